"""Where a model of an unlisted architecture keeps its parts: read from its modules, and tried on one batch.

One forward pass tells which module is called when, with which tensor, and what it gives; a few more tell what a changed
input does. Each part is named with what showed it. What is found is a guess until the invariants hold on it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from regtune.errors import UnsupportedModelError
from regtune.families._family import patch_grid
from regtune.testing.subject import accepted

Choice = dict[str, Any]
"""Fields of a `Family` that go together."""
_PROJECTIONS = (nn.Linear, nn.Conv1d, Conv1D)
_KEYS, _VALUES = (re.compile(rf"(w?{one[0]}|{one})(_?(proj|lin|head|layer))?") for one in ("key", "value"))
_FUSED = re.compile(r"c_attn|w?qkv(_?(proj|lin))?|query_key_value|kv_\w*proj", re.IGNORECASE)
_ACROSS = re.compile(r"cross|encoder_attn|encdec", re.IGNORECASE)
_SAME = 1e-4
"""Largest difference, of states of size 1, that is rounding where another length or padding is computed."""
_SHORT = 12
"""Tokens of the text on which changes are tried; places left and right of it are needed."""


class Evidence(NamedTuple):
    """A part, or a property, and what showed it."""

    part: str
    """The name of the field of `Family`."""
    value: Any
    shown_by: str


@dataclass(kw_only=True)
class Parts:
    """What was found: fields that are settled, and those with several possible values, the likeliest first."""

    settled: Choice = field(default_factory=dict)
    choices: list[list[Choice]] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)

    def settle(self, part: str, value: Any, shown_by: str) -> None:
        """Notes a field that has one possible value."""
        self.settled[part] = value
        self._show(part, value, shown_by)

    def choose(self, options: list[Choice], shown_by: dict[str, str]) -> None:
        """Notes fields with several possible values, with what speaks for the first."""
        self.choices.append(options)
        for part, why in shown_by.items():
            self._show(part, options[0].get(part), why)

    def _show(self, part: str, value: Any, shown_by: str) -> None:
        if value not in (None, ()):
            self.evidence.append(Evidence(part, value, shown_by))


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a module inside a forward pass; `began` and `ended` count all beginnings and endings."""

    path: str
    module: nn.Module
    given: Tensor | None
    """The first tensor that it was given, by place or by name."""
    named: dict[str, Any]
    output: Any
    began: int
    ended: int


def read_parts(model: Any, backbone: Any, batch: dict[str, Tensor]) -> Parts:
    """Reads an architecture's parts from a model of it.

    Args:
        model: in evaluation mode, with any head or none, without registers.
        backbone: the stack in it that is read.
        batch: a padded batch for the model: `input_ids [batch, seq]` and its mask, or `pixel_values`.

    Raises:
        UnsupportedModelError: there is nothing that registers could join; the message says what is missing.
    """
    return _Reading(model, backbone, batch).parts()


def refused(model: Any, reason: str) -> UnsupportedModelError:
    """The error for an architecture that registers can't be put into."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return UnsupportedModelError(
        f"No family can be found for {type(model).__name__} (model_type={kind!r}): {reason} Registers are not "
        "supported there. Where that is mistaken, write the family by hand (docs/extending.md) and try it: "
        "regtune --plugin family.py doctor MODEL."
    )


class _Reading:
    """One model while its parts are read."""

    def __init__(self, model: Any, backbone: Any, batch: dict[str, Tensor]) -> None:
        self.model, self.backbone = model, backbone
        self.batch = accepted(backbone, batch)
        self.images = "pixel_values" in batch
        self.names: dict[int, str] = {id(module): path for path, module in backbone.named_modules()}
        self.takes = inspect.signature(backbone.forward).parameters
        self.found = Parts()

    def parts(self) -> Parts:
        """Everything, in the order in which a family states it."""
        found = self.found
        self._inputs()
        self._called()
        self.layers = self._layers()
        depth = len(self.backbone.get_submodule(self.layers))
        self.start = f"{self.layers}.{min(1, depth - 1)}."  # the first layer of some models lacks a norm
        calls = _trace(self.backbone, self.batch, lambda path: not self._deeper(path))
        self.layer = self._first_layer(calls)
        self.over = max(call.ended for call in calls if self._within(call.path))
        self.outside = [call for call in calls if call.path and not self._within(call.path)]
        self.inside = [call for call in calls if call.path.startswith(self.start)]
        depths = sum(self._within(call.path) and not self._deeper(call.path, all_of_them=True) for call in calls)
        if depths > depth:
            found.settle("shared_layers", True, f"{depth} layers are called {depths} times in one pass")
        self._attention()
        self._behind()
        self._joining()
        if not self.images:
            self._mask()
            self._causal()
            self._positions()
        else:
            found.choose([{"positions": "absolute"}], {"positions": "an image has one size, and no padding"})
            self._image()
        self._vocabulary()
        self._writer()
        return found

    # What it reads

    def _inputs(self) -> None:
        main = getattr(self.model, "main_input_name", None)
        if main not in ("input_ids", "pixel_values"):
            raise refused(self.model, f"it reads {main!r}, neither texts nor images.")
        if self.images:
            self.found.settle("inputs", ("pixel_values",), "main_input_name")
        elif "attention_mask" not in self.takes:
            raise refused(
                self.model, "its forward takes no attention_mask, so that no token can be hidden from others."
            )

    def _called(self) -> None:
        """A head that calls parts of the backbone, and not the backbone, would run without registers."""
        if self.model is self.backbone or getattr(self.model.config, "is_encoder_decoder", False):
            return
        at = next(path for path, module in self.model.named_modules() if module is self.backbone)
        if not _trace(self.model, self.batch, lambda path: path == at):
            kind = type(self.backbone).__name__
            raise refused(
                self.model, f"its head calls parts of its {kind}, and never that, so registers would not run."
            )

    def _layers(self) -> str:
        """The list of modules of one class that holds the most parameters, of those as long as the model is deep."""
        depth = getattr(self.backbone.config, "num_hidden_layers", None)
        lists = [
            (path, module)
            for path, module in self.backbone.named_modules()
            if isinstance(module, nn.ModuleList) and len({type(child) for child in module}) == 1
        ]
        right = [pair for pair in lists if len(pair[1]) == depth] or lists
        if not right:
            raise refused(self.model, "it has no list of layers of one class.")
        path: str
        path, layers = max(right, key=lambda pair: sum(parameter.numel() for parameter in pair[1].parameters()))
        self.found.settle("layers", path, f"a list of {len(layers)} {type(layers[0]).__name__}")
        return path

    def _within(self, path: str) -> bool:
        return path.startswith(f"{self.layers}.")

    def _deeper(self, path: str, *, all_of_them: bool = False) -> bool:
        """Whether a module is inside a layer; one of those that are read aside, unless `all_of_them` are meant."""
        first = path.startswith((f"{self.layers}.0.", self.start))
        return self._within(path) and path.count(".") > self.layers.count(".") + 1 and (all_of_them or not first)

    def _first_layer(self, calls: list[_Call]) -> _Call:
        """Its call; where a model calls the `forward` of its layers, which no hook sees, that of what is in it."""
        first = next((call for call in calls if call.path == f"{self.layers}.0"), None)
        if first is not None:
            return first
        inner = [call for call in calls if call.path.startswith(f"{self.layers}.0.")]
        if not inner:
            raise refused(self.model, f"a forward pass doesn't call the modules of {self.layers}.")
        layer = self.backbone.get_submodule(f"{self.layers}.0")
        ended = max(call.ended for call in inner)
        return dataclasses.replace(inner[0], path="", module=layer, output=None, ended=ended)

    # Inside a layer

    def _attention(self) -> None:
        """The attending module, by its projections, and the rest of a layer in the order of its calls."""
        found, start = self.found, self.start
        linear = [call for call in self.inside if isinstance(call.module, _PROJECTIONS)]
        kinds = (_KEYS, _VALUES, _FUSED)
        ends = {kind: [call for call in linear if kind.fullmatch(_last(call.path))] for kind in kinds}
        apart = bool(ends[_KEYS] and ends[_VALUES])
        attending = ends[_KEYS] if apart else ends[_FUSED]
        if not attending or _parent(attending[0].path) == start[:-1]:
            has = ", ".join(type(child).__name__ for child in self.layer.module.children())
            raise refused(
                self.model,
                f"no module of its layers has keys and values (a {type(self.layer.module).__name__} has {has}), and "
                "a register acts as something that tokens attend to.",
            )
        first = attending[0]
        module = self.backbone.get_submodule(_parent(first.path))
        at = _parent(first.path).removeprefix(start)
        found.settle("attention", at, f"the {type(module).__name__} with {_last(first.path)}")
        for part, kind in (("keys", _KEYS), ("values", _VALUES)):
            found.settle(part, _last(ends[kind][0].path) if apart else None, "a projection of that name")
        beside = [call for call in linear if call in (*ends[_KEYS], *ends[_VALUES]) or _same(call.given, first.given)]
        rest = [call for call in linear if call.began > first.began and call not in beside]
        rows = len(first.given) if first.given is not None else 0
        out = next((call for call in rest if call.given is not None and len(call.given) == rows), None)
        if out is None:
            raise refused(self.model, f"no projection is called behind the keys and values of {at}.")
        found.settle("attention_out", out.path.removeprefix(start), "the first projection behind keys and values")
        self._feed_forward([call for call in linear if call is not out and call not in beside])
        norms = [call for call in self.inside if _is_norm(call.module)]
        paths = tuple(dict.fromkeys(call.path.removeprefix(start) for call in norms))
        found.settle("norms", paths, ", ".join(dict.fromkeys(type(call.module).__name__ for call in norms)))
        plain = [call for call in norms if not isinstance(call.module, nn.LayerNorm) and call.given is not None]
        if plain and not _shifts(plain[0]):
            found.settle("rms_norm", True, "adding 1 to what a norm reads changes what it gives")
        for call in self.inside:
            bias = next((name for name, value in call.named.items() if "bias" in name and _is_square(value)), None)
            if bias is not None:
                found.settle("position_bias", bias, f"given to {call.path.removeprefix(start)}")
                break

    def _feed_forward(self, rest: list[_Call]) -> None:
        """The projections beside attention: the one that reads most writes, and what makes its inputs reads."""
        out = max(rest, key=lambda call: (_reads(call.module), call.began), default=None)
        before = [] if out is None else [call for call in rest if call.began < out.began and call is not out]
        if out is None or not before:
            self.found.settled |= {"feed_forward_in": None, "feed_forward_out": None}
            return
        last = before[-1]
        width = _reads(out.module)
        self.found.settle("feed_forward_out", out.path.removeprefix(self.start), f"reads the widest states, {width}")
        twins = [one for one in before if _same(one.given, last.given) and _writes(one.module) == _writes(last.module)]
        others = [call for call in self.inside if call is not out]
        activated = [one for one in twins if any(_same(call.given, one.output) for call in others)]
        if len(twins) == 2 and len(activated) == 1:
            (last,) = (one for one in twins if one is not activated[0])
        unclear = len(twins) == 2 and len(activated) != 1
        fused = _writes(last.module) == 2 * width
        if fused and any(_starts(call.given, last.output) and _width(call.given) == width for call in others):
            self.found.settle("gate_in_front", True, "the first half of what it gives is activated")
        paired = len(twins) == 2 or fused
        why = "the linear one of two" if len(twins) == 2 else "the projection before it"
        self.found.settle("feed_forward_in", None if unclear else last.path.removeprefix(self.start), why)
        if paired and _parent(last.path) != self.start[:-1]:
            self.found.settle("gated", _parent(last.path).removeprefix(self.start), "it multiplies two streams")

    # Behind the layers

    def _behind(self) -> None:
        """Where the registers leave: at the module around the layers, a norm behind them, or the last layer."""
        parent, length = _parent(self.layers), self._length
        last = self._calls_ended(behind=True)
        norm = next((call for call in last if _is_norm(call.module) and _is_states(call.output, length)), None)
        if norm is not None:
            self.found.settle("final_norm", norm.path, "the norm that is called behind the last layer")
        around = next((call for call in self.outside if call.path == parent), None)
        options, why = [], "the last of the layers"
        if around is not None and _is_states(around.given, length):
            options.append(parent)
            why = f"the {type(around.module).__name__} that calls the layers"
        elif norm is not None:
            options.append(norm.path)
            why = "the norm behind the last layer"
        if "shared_layers" not in self.found.settled and self.layer.path:
            options.append(self.layers)
        if not options:
            raise refused(self.model, "its layers are shared, and no module is called behind the last one.")
        found = [{"stack": path} | (self._whole() if path == self.layers else {}) for path in options]
        self.found.choose(found, {"stack": why, "unsupported": "its config has such an attribute"})

    def _whole(self) -> Choice:
        """Registers that leave behind the last layer need it to be called."""
        names = [name for name in self.backbone.config.to_dict() if name.endswith("layerdrop")]
        reason = "a last layer that is left out would leave them in the sequence"
        mine = [name for name in names if "decoder" not in name]
        return {"unsupported": tuple((name, 0.0, reason) for name in mine)} if mine else {}

    def _calls_ended(self, *, behind: bool) -> list[_Call]:
        """Calls outside of the layers that were over before the first one, or that began behind the last one."""
        if behind:
            return [call for call in self.outside if call.began > self.over and not call.path.startswith("pooler")]
        return [call for call in self.outside if call.ended < self.layer.began]

    @property
    def _length(self) -> int:
        """Tokens of a row, as the layers have them."""
        if not self.images:
            return self.batch["input_ids"].shape[1]
        given = self.layer.given
        return 0 if given is None or given.dim() < 3 else given.shape[1]

    # In front of the layers

    def _joining(self) -> None:
        """Modules behind which registers may join: what ends last in front of the layers, on the words' way."""
        words = self._words()
        states = self.layer.given
        length, rows = self._length, len(next(iter(self.batch.values())))
        front = self._calls_ended(behind=False)
        once = [call for call in front if sum(other.path == call.path for other in self.outside) == 1]
        on_the_way = [
            call
            for call in once
            if _is_states(call.output, length)
            and len(call.output) == rows
            and (_holds(call.path, words) or (_is_states(call.given, length) and len(call.given) == rows))
        ]
        on_the_way.sort(key=lambda call: (not _same(call.output, states), -call.ended))
        if not on_the_way:
            shape = None if states is None else tuple(states.shape)
            raise refused(
                self.model,
                f"its layers read states of shape {shape}, and no module in front of them gives "
                f"[batch, {length} tokens, width].",
            )
        options: list[Choice] = []
        for call in on_the_way:
            if call.path == words and not self._reads_words(words):
                continue
            choice = self._embeddings(call, front)
            if choice is not None and choice not in options:
                options.append(choice)
                if not self.images and call.path != words:
                    options.append(choice | {"masks_first": True})
        if not options:
            raise refused(self.model, f"no module behind {words} is as wide as a norm or table beside it.")
        first = on_the_way[0]
        reached = "what it gives is what the first layer reads" if _same(first.output, states) else "the last in front"
        self.found.choose(
            options,
            {
                "embeddings": reached,
                "norm": "the last norm inside",
                "dropout": "the last dropout behind that",
                "widen": "a projection between them and the layers",
                "embeddings_mask": "it is given the attention mask",
            },
        )

    def _words(self) -> str:
        """The table of words, or what makes tokens of patches."""
        try:
            path = self.names.get(id(self.backbone.get_input_embeddings()))
        except (NotImplementedError, AttributeError):
            path = None
        if path is None:
            raise refused(self.model, "get_input_embeddings() names no module of it.")
        self.found.settle("word_embeddings", path, "get_input_embeddings()")
        return path

    def _embeddings(self, call: _Call, front: list[_Call]) -> Choice | None:
        """The fields that belong to one place where registers may join; None if nothing there is as wide."""
        within = [one for one in front if one.path == call.path or one.path.startswith(f"{call.path}.")]
        width = _width(call.output)
        norms = [one for one in within if _is_norm(one.module) and _width(one.output) == width]
        norm = max(norms, key=lambda one: one.ended, default=None)
        later = [one for one in within if norm is not None and one.began > norm.ended]
        drops = [one for one in later if isinstance(one.module, nn.Dropout)]
        words = self.found.settled["word_embeddings"]
        if norm is None and _width_of(self.backbone.get_submodule(words)) != width and not self.images:
            return None
        widths = [one for one in front if one.began > call.ended and isinstance(one.module, nn.Linear)]
        wider = next((one for one in widths if _same(one.given, call.output) and _width(one.output) != width), None)
        mask = self.batch.get("attention_mask")
        given = (name for name, value in call.named.items() if isinstance(value, Tensor) and _same(value, mask))
        scale = self._scale(words) if call.path == words and not self.images else None
        return {
            "embeddings": call.path,
            "norm": None if norm is None else norm.path,
            "dropout": drops[-1].path if drops else None,
            "widen": None if wider is None else wider.path,
            "embeddings_mask": next(given, None),
            "word_scale": scale,
        }

    def _reads_words(self, words: str) -> bool:
        """Whether the model reads embedded words as it reads ids, so that registers can stand among them."""
        if self.images or "inputs_embeds" not in self.takes:
            return False
        return self._scale(words) is not None or self._embedded(words, 1.0)

    def _scale(self, words: str) -> str | None:
        """The number on the backbone by which it multiplies words that it looked up itself."""
        of_its_own = vars(self.backbone).items()
        numbers = {name: value for name, value in of_its_own if isinstance(value, float) and value != 1}
        if not numbers or self._embedded(words, 1.0):
            return None
        return next((name for name, value in numbers.items() if self._embedded(words, value)), None)

    @torch.no_grad()
    def _embedded(self, words: str, scale: float) -> bool:
        text = self._text()
        given = self.backbone.get_submodule(words)(text["input_ids"]) * scale
        try:
            found = self._states(inputs_embeds=given, attention_mask=text["attention_mask"])
        except Exception:  # somebody's model, which may compute positions from ids alone
            return False
        return _near(found, self._states(**text))

    # Trying

    def _text(self, **changes: Tensor) -> dict[str, Tensor]:
        """The first tokens of the longest text, alone."""
        row = int(self.batch["attention_mask"].sum(1).argmax())
        ids = self.batch["input_ids"][row : row + 1]
        ids = ids[:, self.batch["attention_mask"][row].bool()][:, :_SHORT]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | changes

    @torch.no_grad()
    def _states(self, **batch: Tensor) -> Tensor:
        found: Tensor = self.backbone(**batch)[0]
        return found

    def _other(self, ids: Tensor) -> Tensor:
        """Another token in each one's place, from the batch's first text."""
        first = self.batch["input_ids"][0]
        taken = [next(one for one in first.tolist() if one != token) for token in ids.flatten().tolist()]
        return torch.tensor(taken).view_as(ids)

    def _mask(self) -> None:
        """Tokens that the mask hides must not act on others, or masked registers would.

        The last of three is changed, since embeddings may read the neighbours of a token: registers join behind them.
        """
        text = self._text()
        ids = text["input_ids"]
        hidden = text["attention_mask"].clone()
        hidden[:, -3:] = 0
        changed = torch.cat([ids[:, :-1], self._other(ids[:, -1:])], dim=1)
        one, two = (self._states(input_ids=some, attention_mask=hidden)[:, :-3] for some in (ids, changed))
        if not _near(one, two):
            raise refused(
                self.model,
                f"another token behind its attention_mask changes the states of the text by {_apart(one, two):.1e}, so "
                "that masked registers would act, too.",
            )

    def _causal(self) -> None:
        text = self._text()
        changed = text["input_ids"].clone()
        changed[:, -1:] = self._other(changed[:, -1:])
        before, after = (self._states(**self._text(input_ids=ids)) for ids in (text["input_ids"], changed))
        difference = _apart(before[:, :-1], after[:, :-1])
        causal = _near(before[:, :-1], after[:, :-1])
        self.found.settle("causal", causal, f"another last token changes earlier states by {difference:.1e}")
        whole = self.backbone.config._attn_implementation == "sdpa" and self._window("sliding_window") is None
        if causal and whole and self._makes_mask(text):
            self.found.settle("masks_always", True, "its layers get a mask for a text without padding")
        window = next((name for name in ("sliding_window", "local_attention") if self._window(name)), None)
        if window is not None and not causal:
            why = f"its config says {self._window(window)}"
            self.found.choose([{"local_window": window}, {}], {"local_window": why})

    def _makes_mask(self, text: dict[str, Tensor]) -> bool:
        """Whether layers get a mask where every token sees all earlier ones."""
        (first,) = _trace(self.backbone, text, lambda path: path == f"{self.layers}.0")
        return any("mask" in name and isinstance(value, Tensor) for name, value in first.named.items())

    def _window(self, name: str) -> int | None:
        value = getattr(self.backbone.config, name, None)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    def _positions(self) -> None:
        """Added to the words, turned into queries and keys, or distances: by moving and stretching positions."""
        kind, why = self._kind_of_positions()
        others = {"absolute": "relative", "rotary": "relative", "relative": "absolute"}
        options: list[Choice] = [{"positions": kind}, {"positions": others[kind]}]
        self.found.choose(options, {"positions": why})
        self._position_table()

    def _kind_of_positions(self) -> tuple[str, str]:
        text = self._text()
        plain = self._states(**text)
        places = torch.arange(text["input_ids"].shape[1]).unsqueeze(0)
        if "position_ids" in self.takes:
            ways = (places + 2, places + 5, 2 * places + 2)
            near, far, wide = (self._states(**text, position_ids=ids) for ids in ways)
            if not _near(near, wide):
                why = f"position_ids moved by 3 change states by {_apart(near, far):.1e}"
                why += f", stretched ones by {_apart(near, wide):.1e}"
                return ("rotary" if _near(near, far) else "absolute"), why
        pad = torch.full((1, 3), self.model.config.pad_token_id or 0)
        moved = self._states(
            input_ids=torch.cat([pad, text["input_ids"]], dim=1),
            attention_mask=torch.nn.functional.pad(text["attention_mask"], (3, 0)),
        )[:, 3:]
        why = f"3 hidden tokens in front change states by {_apart(moved, plain):.1e}"
        return ("relative" if _near(moved, plain) else "absolute"), why

    def _position_table(self) -> None:
        """The tables of positions and of types, by the rows that they read, and the first row that a token uses."""
        found, words = self.found, self.found.settled["word_embeddings"]
        wide = {_width_of(self.backbone.get_submodule(words)), self.backbone.config.hidden_size}
        tables: dict[str, _Call] = {}
        for call in self._calls_ended(behind=False):
            if call.path == words or _width(call.output) not in wide:
                continue
            steps = call.given[:1].diff() if _is_ids(call.given) else None
            counts, rests = (steps is not None and bool((steps == step).all()) for step in (1, 0))
            if counts or (steps is None and "position" in _last(call.path).lower() and "embed" in _last(call.path)):
                tables.setdefault("position_embeddings", call)
            elif rests and isinstance(call.module, nn.Embedding):
                tables.setdefault("type_embeddings", call)
        why = {"position_embeddings": "its rows are read in order", "type_embeddings": "one row is read everywhere"}
        for part, reason in why.items():
            found.settle(part, tables[part].path if part in tables else None, reason)
        table = tables.get("position_embeddings")
        limit = getattr(self.backbone.config, "max_position_embeddings", None)
        if self.images or table is None or limit is None or not isinstance(table.module, nn.Embedding):
            return
        mask, read = self.batch["attention_mask"].bool(), table.given
        if not _is_ids(read):
            return
        first = int((read if len(read) == len(mask) else read[:1].expand(mask.shape))[mask].min())
        offset = first - max(0, table.module.num_embeddings - int(limit))
        if offset > 0:
            found.settle("position_offset", offset, f"the first token reads row {first} of the table")

    def _image(self) -> None:
        """Tokens in front of the patches, and which tokens a class is read from."""
        height, width = self.batch["pixel_values"].shape[-2:]
        rows, columns = patch_grid(self.backbone.config, height, width)
        leading = self._length - rows * columns
        if leading < 0:
            reason = f"its first layer reads {self._length} tokens where an image has {rows * columns} patches."
            raise refused(self.model, reason)
        self.found.settle("leading", leading, f"{self._length} tokens for {rows * columns} patches")
        self._position_table()
        if leading or self.found.settled["position_embeddings"] is None:
            words = self.found.settled["word_embeddings"]
            front, images = self._calls_ended(behind=False), len(self.batch["pixel_values"])
            whole = [call for call in front if _is_states(call.output, self._length) and len(call.output) == images]
            parts = [call for call in whole if call.path != words]
            drop = next((call for call in parts if isinstance(call.module, nn.Dropout)), None)
            first = drop or min(parts, key=lambda call: call.ended, default=None)
            self.found.settle("assembled", first and first.path, "patches, [CLS] and positions are together there")
        if self.model is self.backbone:
            return
        seen: list[Tensor] = []

        def keep(_module: nn.Module, _args: tuple, output: Any) -> None:
            state = output[0]
            state.requires_grad_(True).retain_grad()
            seen.append(state)

        handle = self.backbone.register_forward_hook(keep)
        try:
            self.model(**self.batch).logits.sum().backward()
        finally:
            handle.remove()
            self.model.zero_grad()
        grad = None if not seen else seen[0].grad
        if grad is None:
            return
        read = grad.abs().sum((0, 2)) > 0
        behind, in_front = bool(read[leading:].any()), bool(read[:leading].any())
        pooling = "both" if behind and in_front else "mean" if behind else "token"
        self.found.settle("pooling", pooling, "the tokens on which the logits depend")

    # Around the backbone

    def _vocabulary(self) -> None:
        """The modules between the last state and logits over the vocabulary, the final norm included."""
        self.found.settled["lm_head"] = ()
        head = self.model.get_output_embeddings() if hasattr(self.model, "get_output_embeddings") else None
        if head is None or self.images or self.model is self.backbone or self.model.config.is_encoder_decoder:
            return
        at = next(path for path, module in self.model.named_modules() if module is self.backbone)
        calls = _trace(self.model, self.batch, lambda path: path == at or (bool(path) and not _holds(at, path)))
        ended = next(call.ended for call in calls if call.path == at)
        behind = [call.path for call in calls if call.began > ended]
        steps = [path for path in behind if not any(_holds(other, path) for other in behind if other != path)]
        norm = self.found.settled.get("final_norm")
        first = () if norm is None else (f"{at}.{norm}",)
        self.found.settle("lm_head", (*first, *steps), "called behind the last layer")

    def _writer(self) -> None:
        """Of a model with a decoder beside this encoder: the module of its layers that attends to the encoder."""
        if not getattr(self.model.config, "is_encoder_decoder", False):
            return
        self.found.settle("leading", 0, "it reads with an encoder and has no [CLS]")
        decoder = self.model.get_decoder()
        inside = (path.split(".") for path, _ in decoder.named_modules())
        across = (parts for parts in inside if _ACROSS.search(parts[-1]) and parts[-1][-4:] != "norm")
        found = next((parts for parts in across if any(part.isdigit() for part in parts)), None)
        if found is not None:
            first = next(place for place, part in enumerate(found) if part.isdigit())
            self.found.settle("cross_attention", ".".join(found[first + 1 :]), "by its name in the decoder's layers")


def _trace(root: nn.Module, batch: dict[str, Tensor], wanted: Callable[[str], bool]) -> list[_Call]:
    """One forward pass, call by call, in the order in which they begin."""
    clock = iter(range(1_000_000))
    open_: list[tuple[str, int]] = []
    calls: list[_Call] = []
    handles = []

    def begin(path: str) -> Callable[..., None]:
        return lambda *_: open_.append((path, next(clock)))

    def end(path: str) -> Callable[..., None]:
        def ended(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            while open_[-1][0] != path:
                open_.pop()
            _, began = open_.pop()
            given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            calls.append(_Call(path, module, given, dict(kwargs), _first(output), began, next(clock)))

        return ended

    for path, module in root.named_modules():
        if wanted(path):
            handles.append(module.register_forward_pre_hook(begin(path)))
            handles.append(module.register_forward_hook(end(path), with_kwargs=True))
    try:
        with torch.no_grad():
            root(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return sorted(calls, key=lambda call: call.began)


def _first(output: Any) -> Any:
    """A module's output or, of several that aren't a pair of angles, the first."""
    if isinstance(output, tuple) and len(output) == 2 and all(isinstance(part, Tensor) for part in output):
        return output[0] if output[0].shape != output[1].shape else output
    if isinstance(output, (tuple, list)):
        return output[0] if output else None
    return output[0] if hasattr(output, "last_hidden_state") else output


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _holds(path: str, inner: str) -> bool:
    return inner == path or inner.startswith(f"{path}.")


def _is_states(value: Any, length: int) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() == 3 and value.shape[1] == length and value.is_floating_point()


def _is_ids(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dim() == 2


def _is_square(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and value.shape[-1] == value.shape[-2] > 1


def _is_norm(module: nn.Module) -> bool:
    weights = list(module.parameters(recurse=False))
    return "norm" in type(module).__name__.lower() and bool(weights) and all(weight.dim() == 1 for weight in weights)


@torch.no_grad()
def _shifts(call: _Call) -> bool:
    """Whether a norm takes the mean away, so that adding a number to what it reads changes nothing."""
    assert call.given is not None
    return _near(call.module(call.given), call.module(call.given + 1.0))


def _same(one: Any, other: Any) -> bool:
    """Whether two tensors are the same memory (views included)."""
    both = isinstance(one, Tensor) and isinstance(other, Tensor)
    return both and one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


def _starts(one: Any, other: Any) -> bool:
    """Whether two tensors begin at the same place of memory."""
    return isinstance(one, Tensor) and isinstance(other, Tensor) and one.data_ptr() == other.data_ptr()


def _width(value: Any) -> int:
    return int(value.shape[-1]) if isinstance(value, Tensor) else 0


def _width_of(module: nn.Module) -> int:
    """How wide the vectors are that a table gives."""
    weight = next(module.parameters(), None)
    return 0 if weight is None else int(weight.shape[-1])


def _reads(module: Any) -> int:
    """How wide the states are that a projection reads."""
    return int(module.weight.shape[0] if isinstance(module, Conv1D) else module.weight.shape[1])


def _writes(module: Any) -> int:
    """How wide the states are that a projection gives."""
    return int(module.weight.shape[1] if isinstance(module, Conv1D) else module.weight.shape[0])


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _near(one: Tensor, other: Tensor) -> bool:
    return _apart(one, other) <= _SAME * max(1.0, float(one.abs().max()))
