"""Makes peft know regtune's kinds of adapters as soon as both are imported, whichever comes first.

`PeftModel.from_pretrained` looks a kind up in peft's own tables, so they must hold regtune's before it is called; and
`import regtune` must not import peft (and torch) for those who don't use it. Hence a finder that finds nothing itself:
behind peft's own import it writes an entry for each kind into peft's table of configs. An entry is a promise: the
classes are imported when it is used, since peft is often imported halfway through the import of other libraries.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_HOME = "regtune.methods.peft"
_OWN = ("BITFIT", "BOTTLENECK")
_OF_PEFT = (
    "ADAPTION_PROMPT",
    "IA3",
    "LN_TUNING",
    "LOHA",
    "LOKR",
    "LORA",
    "MISS",
    "MULTITASK_PROMPT_TUNING",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
    "P_TUNING",
    "TRAINABLE_TOKENS",
    "VERA",
)
KINDS = (*_OWN, *(f"REGISTER_{kind}" for kind in (*_OF_PEFT, *_OWN)))
"""What `adapter_config.json` calls them."""


class _Promise:
    """Stands for a config class until it is used."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def _kept(self) -> Any:
        importlib.import_module(_HOME)
        return sys.modules["peft.mapping"].PEFT_TYPE_TO_CONFIG_MAPPING[self._kind]

    def __call__(self, **fields: Any) -> Any:
        return self._kept()(**fields)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept(), name)


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
                import_bitsandbytes()
                run(module)
                _enter()

            loader.exec_module = run_and_enter  # type: ignore[method-assign]
        return spec


def import_bitsandbytes() -> None:
    """Imports bitsandbytes, where it is installed, as peft would do next, but without the library `kernels`.

    With it, on a CPU that computes in bfloat16, bitsandbytes would run code from the hub; without it, it warns.
    """
    if "bitsandbytes" in sys.modules or importlib.util.find_spec("bitsandbytes") is None:
        return
    hidden: dict[str, Any] = {"kernels": sys.modules["kernels"]} if "kernels" in sys.modules else {}
    warns = logging.getLogger("bitsandbytes.backends.cpu.ops")
    sys.modules["kernels"], warns.disabled = None, True  # type: ignore[assignment]
    try:
        with contextlib.suppress(ImportError):
            importlib.import_module("bitsandbytes")
    finally:
        del sys.modules["kernels"]
        sys.modules |= hidden
        warns.disabled = False


def _enter() -> None:
    table = sys.modules["peft.mapping"].PEFT_TYPE_TO_CONFIG_MAPPING
    for kind in KINDS:
        table.setdefault(kind, _Promise(kind))


def watch() -> None:
    """Enters the kinds now if peft is there, else when it comes."""
    if "peft.mapping" in sys.modules:
        _enter()
    elif not any(isinstance(finder, _BehindPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BehindPeft())
