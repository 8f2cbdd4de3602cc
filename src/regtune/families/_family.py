"""What regtune has to know about an architecture: where its parts are and how its positions work.

A family is one declarative file in `families/`; adding an architecture is that file and one line in the table there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Family:
    """The description of one architecture. Module paths start at the backbone (`model.base_model`)."""

    name: str
    model_types: tuple[str, ...]
    """Values of `config.model_type` that belong to this family."""
    positions: Literal["absolute", "relative", "rotary"]
    """absolute: added in the embeddings, so registers cost none. relative, rotary: counted along the sequence."""
    embeddings: str = "embeddings"
    """The module whose output registers join."""
    norm: str = "embeddings.LayerNorm"
    """The last LayerNorm inside the embeddings (`RegisterConfig.layer_norm`)."""
    dropout: str = "embeddings.dropout"
    layers: str = "encoder.layer"
    """The list of layers, for registers at every layer."""
    stack: str = "encoder"
    """The module at whose output the registers leave again: before any pooler or head."""
    position_offset: int = 0
    """Rows of the position table that no token uses (RoBERTa starts at padding_idx + 1 = 2)."""
    local_window: str | None = None
    """Config attribute with the local attention window, if some layers see only a window of the sequence."""
    embeddings_mask: str | None = None
    """Name under which the embeddings module is given the attention mask, if it is."""
    mixing: tuple[str, ...] = ()
    """Modules that mix neighbouring positions (convolutions); registers are led around them."""
    shared_layers: bool = False
    """The same layer runs at several depths, so registers of every layer have no place to hang on."""
    unsupported: tuple[tuple[str, Any, str], ...] = ()
    """(config attribute, largest value that works, why): configurations that are refused."""

    @property
    def placements(self) -> tuple[str, ...]:
        """Where registers may join: where positions are distances, nothing may come between [CLS] and the text."""
        return ("prefix", "after_cls", "suffix") if self.positions == "absolute" else ("prefix", "suffix")


def submodule(backbone: nn.Module, path: str) -> nn.Module | None:
    """The module at `path`, or None where this configuration has none (DeBERTa's optional convolution)."""
    try:
        found: nn.Module | None = backbone.get_submodule(path)
    except AttributeError:
        return None
    return found if isinstance(found, nn.Module) else None
