"""Makes peft know regtune's kinds of adapters as soon as both are imported, whichever comes first.

`PeftModel.from_pretrained` looks a kind up in peft's own tables, so they must hold regtune's before it is called; and
`import regtune` must not import peft (and torch) for those who don't use it. Hence a finder that finds nothing itself:
it runs one function behind peft's own import.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_HOME = "regtune.methods.peft"
_IMPORTERS = ("regtune.registers.in_peft", _HOME)


class _BehindPeft(MetaPathFinder):
    """Lets the other finders find peft, and enters regtune's kinds when it has been imported."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Peft's own spec, with a loader that tells regtune afterwards."""
        if name != "peft":
            return None
        finders = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in finders if hasattr(finder, "find_spec"))
        spec = next((one for one in found if one is not None), None)
        loader = None if spec is None else spec.loader
        if loader is not None:
            run = loader.exec_module

            def run_and_enter(module: ModuleType) -> None:
                run(module)
                enter()

            loader.exec_module = run_and_enter  # type: ignore[method-assign]
        return spec


def enter() -> None:
    """Imports what writes the kinds into peft's tables, unless it is that which imports peft just now."""
    importers = [sys.modules[name] for name in _IMPORTERS if name in sys.modules]
    if not any(getattr(module.__spec__, "_initializing", False) for module in importers):
        importlib.import_module(_HOME)


def watch() -> None:
    """Enters the kinds now if peft is there, else when it comes."""
    if "peft" in sys.modules:
        enter()
    elif not any(isinstance(finder, _BehindPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BehindPeft())
