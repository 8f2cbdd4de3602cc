"""A model without any trace of regtune in it, that computes what the model with registers computes.

Three ways, by what registers are in the model; none is an approximation that nobody measured:

- **words**: a decoder's registers stand before the text and see none of it, so each is one more word of the vocabulary.
  The tokenizer puts them in front of every text, and any engine that serves the architecture serves the model.
- **prefix**: keys and values that are the same for every text are those of prefix tuning (Li and Liang 2021), so peft
  reads them. A decoder's always are; for registers that are fresh at every layer, or share one position, it is the only
  way.
- **prefix of an encoder**: its registers see the text. Where the audit (`analyses.registers.states`) finds them
  constant, their mean states become key and value biases of each layer: W_k r and W_v r beside the text's.

A model with absolute positions counts a prefix as places, so its table of positions gets N rows that no token reads.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from regtune.analyses.registers.states import CONSTANT_BELOW, register_states
from regtune.errors import MissingExtraError, UnsupportedModelError
from regtune.families._family import embed_words, modules_at, submodule
from regtune.interfaces import Batch
from regtune.registers.cache_names import CACHE, cache_argument, given_cache, put_cache
from regtune.registers.passes import Layout
from regtune.registers.surgery import backbone_of, remove_registers, require_registers
from regtune.serving.proof import Written, trial_inputs
from regtune.session import Session, load_model

PREFIX = "prefix"
"""Folder of peft's adapter, inside that of the model."""
_SEGMENTS = (
    "peft's class for questions drops token_type_ids, which this model reads. Hand the prefix to transformers itself, "
    "as docs/serving.md shows; that is what was compared."
)
_FORMER_NAME = (
    "This version of peft doesn't hand its prefix to this version of transformers: it asks for the cache by a former "
    "name. Hand the prefix to transformers itself, as docs/serving.md shows; that is what was compared."
)
_READ = ("input_ids", "attention_mask", "token_type_ids")
_AUDITED = 8
"""Rows of a batch on which an encoder is audited and compared; few, so that there are batches of many lengths."""
_TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}
"""What peft calls a model by the end of its class's name; it can tell no other what comes before their texts."""


def write_plain(session: Session, folder: Path, *, data: Sequence[str] = (), limit: int = 64) -> Written:
    """Writes a folder that transformers opens, and `prefix` in it where peft is needed; an adapter is merged before.

    Raises:
        UnsupportedModelError: no registers, registers that vary with the text (with the numbers), an architecture in
            which they have no plain form, or an adapter that can't be merged.
        MissingExtraError: a prefix is needed and peft isn't installed.
    """
    session = _merged(session)
    model, family = session.model, session.family
    registers = require_registers(model)
    if not registers.enabled or registers.masked:
        raise UnsupportedModelError("Registers are switched off or masked here; export outside of that context.")
    if not family.causal:
        _check_takes_prefix(session)
        batches = session.batches(session.rows(session.sample(data, limit)), batch_size=_AUDITED)
        read = tuple(
            {name: batch[name] for name in _READ if name in batch and name in session.accepted} for batch in batches
        )
        return _with_prefix(session, folder, _constant(session, batches), read)
    _check_windows(session)
    if registers.deep is None and (family.positions == "absolute" or registers.config.rotary == "before"):
        return _with_words(session, folder)
    return _with_prefix(session, folder, _read_once(session), _texts(session))


def _merged(session: Session) -> Session:
    """The session with its adapter merged into a copy of the model, registers and head included; itself without one."""
    if isinstance(session.model, PreTrainedModel):
        return session
    try:
        merged = copy.deepcopy(session.model).merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as error:  # prompts, bottlenecks
        raise UnsupportedModelError(
            f"{session.name}: its adapter can't be merged into the model's weights ({error}), so it has no plain form. "
            "Export it as `onnx` or `torch`, where it is part of the program."
        ) from error
    return dataclasses.replace(session, model=merged.eval())


def _texts(session: Session) -> tuple[Batch, ...]:
    """Random texts for a decoder, each counted from its first token, as `generate` counts them."""
    batches = ({name: batch[name] for name in ("input_ids", "attention_mask")} for batch in trial_inputs(session))
    return tuple({**batch, "position_ids": _counted(batch["attention_mask"])} for batch in batches)


def _counted(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def _check_windows(session: Session) -> None:
    """Refuses registers that windows never let go of: no plain model keeps a token in sight for ever."""
    settings = require_registers(session.model).config
    cache: Any = DynamicCache(config=session.model.config)
    windowed = any(cache.is_sliding)
    words = (settings.windows, settings.depth, settings.rotary) == ("leave", "input", "before")
    if windowed and not words:
        raise UnsupportedModelError(
            f"{session.name}: layers of this {session.family.name} see a window of the text, in which a plain model "
            f"keeps no prefix, and these registers are no words (windows={settings.windows!r}, depth="
            f"{settings.depth!r}, rotary={settings.rotary!r}). Export it as `onnx` or `torch`; or train it with "
            "windows='leave', depth='input' and rotary='before'."
        )


def _check_takes_prefix(session: Session) -> None:
    """Refuses encoders to which nothing can hand keys and values."""
    family = session.family
    takes = cache_argument(type(backbone_of(session.model)).forward)
    if takes is None or family.positions != "absolute" or family.keys is None or family.values is None:
        raise UnsupportedModelError(
            f"{family.name} takes no keys and values from outside in transformers, so its registers have no plain "
            "form. Export it as `onnx` or `torch`, where they are part of the program."
        )


# Registers as words


def _with_words(session: Session, folder: Path) -> Written:
    registers = require_registers(session.model)
    n, first = registers.num_registers, len(session.reader)
    plain = remove_registers(copy.deepcopy(session.model))
    rows = plain.get_input_embeddings().num_embeddings
    if first + n > rows:
        plain.resize_token_embeddings(first + n, mean_resizing=False)
    ids = torch.arange(first, first + n, device=session.device)
    words, head = plain.get_input_embeddings().weight, plain.get_output_embeddings()
    with torch.no_grad():
        vectors = registers(1)[0]
        words[ids] = vectors
        scaled = embed_words(backbone_of(plain), session.family, ids)  # Gemma's are
        words[ids] = vectors * (vectors.norm() / scaled.norm().clamp(min=torch.finfo(scaled.dtype).tiny))
        if head is not None and head.weight is not words:
            head.weight[ids] = 0
    if session.family.positions == "absolute":
        plain = _more_places(plain, session, n)
    if plain.can_generate():
        plain.generation_config.suppress_tokens = ids.tolist()
    names = [f"<|register_{index}|>" for index in range(n)]
    reader, notes = _reader_with(session.reader, names, first)
    if session.family.positions == "absolute":
        reader.model_max_length += n
    plain.save_pretrained(folder)
    reader.save_pretrained(folder)
    loaded = load_model(type(plain).__name__, folder).to(session.device).eval()

    def run(given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        mask = given["attention_mask"]
        layout = Layout(n, mask.argmax(dim=1), mask.shape[1])
        before = {"input_ids": ids.cpu(), "attention_mask": torch.ones(n, dtype=mask.dtype)}
        joined = {name: layout.insert(before[name].expand(len(mask), -1), given[name]) for name in before}
        joined["position_ids"] = _counted(joined["attention_mask"])
        with torch.inference_mode():
            output = loaded(**{name: value.to(session.device) for name, value in joined.items()}, use_cache=False)
        found = {name: value.cpu() for name, value in output.items() if isinstance(value, Tensor)}
        places = {name: value for name, value in found.items() if value.dim() > 1 and value.shape[1] == layout.total}
        return found | {name: layout.strip(value)[..., :rows] for name, value in places.items()}

    def read(batch: Batch) -> Batch:
        """The same without the ids that registers take: no text holds them."""
        words = batch["input_ids"]
        return {**batch, "input_ids": words.masked_fill(torch.isin(words, ids.cpu()), 0)}

    inputs = tuple(map(read, _texts(session)))
    return Written(run=run, inputs=inputs, left_out=tuple(ids.tolist()), notes=notes)


def _reader_with(reader: Any, names: Sequence[str], first: int) -> tuple[Any, tuple[str, ...]]:
    """The tokenizer with registers as special tokens before every text and every chat, and what it can't do."""
    from tokenizers import processors

    reader = copy.deepcopy(reader)
    expected = reader("a").input_ids
    reader.add_tokens(list(names), special_tokens=True)
    ids = reader.convert_tokens_to_ids(list(names))
    if ids != list(range(first, first + len(names))):
        raise UnsupportedModelError(
            f"The tokenizer gives registers the ids {ids}, and the model has them from {first} on: its vocabulary has "
            "gaps. Export the model as `onnx` or `torch`."
        )
    text = "".join(names)
    if isinstance(reader.chat_template, str):
        reader.chat_template = text + reader.chat_template
    if reader.is_fast:
        before, own = " ".join(names), reader.backend_tokenizer.post_processor
        added = processors.TemplateProcessing(
            single=f"{before} $A", pair=f"{before} $A $B:1", special_tokens=list(zip(names, ids, strict=True))
        )
        reader.backend_tokenizer.post_processor = added if own is None else processors.Sequence([own, added])
    if reader("a").input_ids == ids + expected:
        return reader, ()
    return reader, (f"This tokenizer can't put registers in front by itself: begin every text with {text}",)


# Registers as a prefix of keys and values

Prefix = Float[Tensor, "layers 2 heads registers head"]


def _read_once(session: Session) -> Prefix:
    """Keys and values of a decoder's registers, for texts that start at position N."""
    backbone, n = backbone_of(session.model), require_registers(session.model).num_registers
    cache: Any = DynamicCache(config=backbone.config)
    one = torch.zeros(1, 1, dtype=torch.long, device=session.device)
    given: dict[str, Any] = {"input_ids": one, "position_ids": one + n, "use_cache": True}
    put_cache(given, cache, cache_argument(backbone.forward))
    with torch.no_grad():
        backbone(**given)
    return torch.stack([torch.stack([layer.keys[0, :, :n], layer.values[0, :, :n]]) for layer in cache.layers])


def _constant(session: Session, batches: Sequence[Batch]) -> Prefix:
    """Keys and values of an encoder's registers at their mean states, if they are constant.

    Raises:
        UnsupportedModelError: they vary.
    """
    backbone, family = backbone_of(session.model), session.family
    assert family.keys is not None
    assert family.values is not None
    states = register_states(session.model, batches)
    variation = states.variation.max(axis=0)
    varying = [index for index in range(len(variation)) if variation[index] > CONSTANT_BELOW]
    if varying:
        listed = ", ".join(f"{index} ({variation[index]:.2g})" for index in varying)
        raise UnsupportedModelError(
            f"{session.name}: registers {listed} vary with the text, measured on {states.windows} windows (variance as "
            f"a share of the tokens'; constant is at most {CONSTANT_BELOW}). They are no biases. Export it as `onnx` "
            "or `torch`."
        )
    heads = backbone.config.num_attention_heads
    found = []
    for layer, mean in zip(modules_at(backbone, *family.within_layers()), states.means, strict=False):
        attention = layer.get_submodule(family.attention)
        made = [attention.get_submodule(path)(mean).detach() for path in (family.keys, family.values)]
        found.append(torch.stack([one.view(len(mean), heads, -1).transpose(0, 1) for one in made]))
    return torch.stack(found)


def _with_prefix(session: Session, folder: Path, prefix: Prefix, inputs: tuple[Batch, ...]) -> Written:
    try:
        from peft import PeftModel, PrefixTuningConfig, get_peft_model
    except ImportError as error:
        raise MissingExtraError("peft", "peft", "A prefix of keys and values") from error
    layers, _, heads, n, width = prefix.shape
    kind = type(session.model).__name__
    plain = remove_registers(copy.deepcopy(session.model))
    if session.family.positions == "absolute":
        plain = _more_places(plain, session, n)
    plain.save_pretrained(folder)
    session.reader.save_pretrained(folder)
    settings = PrefixTuningConfig(
        task_type=next((name for end, name in _TASK_TYPES.items() if kind.endswith(end)), "FEATURE_EXTRACTION"),
        num_virtual_tokens=n,
        num_layers=layers,
        num_attention_heads=heads,
        token_dim=heads * width,
        num_transformer_submodules=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        plain.name_or_path = ""
        adapted = get_peft_model(plain, settings)
        with torch.no_grad():  # peft's order: registers, then for each layer keys and values
            adapted.prompt_encoder["default"].embedding.weight.copy_(prefix.permute(3, 0, 1, 2, 4).reshape(n, -1))
        adapted.save_pretrained(str(folder / PREFIX), save_embedding_layers=False)
        loaded = PeftModel.from_pretrained(load_model(kind, folder), str(folder / PREFIX)).to(session.device).eval()

        arrives = _prefix_arrives(loaded, inputs[0], n)
    notes = [_SEGMENTS] if kind.endswith("ForQuestionAnswering") and "token_type_ids" in inputs[0] else []
    notes += [] if arrives else [_FORMER_NAME]

    def run(given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        named: dict[str, Any] = {name: value.to(session.device) for name, value in given.items()}
        if notes:
            mask = named["attention_mask"]
            named["attention_mask"] = torch.cat([mask.new_ones(len(mask), n), mask], dim=1)
            named[CACHE] = DynamicCache(list(prefix.unsqueeze(2).expand(-1, -1, len(mask), -1, -1, -1)))
            if "position_ids" in named:
                named["position_ids"] = named["position_ids"] + n
        with torch.inference_mode():
            output = (loaded.get_base_model() if notes else loaded)(**named)
        return {name: value for name, value in output.items() if isinstance(value, Tensor)}

    return Written(run=run, inputs=inputs, notes=tuple(notes))


def _prefix_arrives(loaded: Any, given: Batch, n: int) -> bool:
    """Whether peft's class hands its prefix on, in a pass and where it writes."""
    inputs = {name: value.to(loaded.device) for name, value in given.items()}
    try:
        with torch.inference_mode():
            loaded(**inputs)
    except ValueError:  # "Model does not support past key values", which it looks for by their name
        return False
    if not hasattr(loaded, "base_model_prepare_inputs_for_generation"):
        return True
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    asked = loaded.prepare_inputs_for_generation(ids, attention_mask=mask, **{CACHE: DynamicCache()})
    return int(given_cache(asked).get_seq_length()) == n


def _more_places(plain: Any, session: Session, n: int) -> Any:
    """The same model with N more positions in front, which no token of a text reads once N places come before it."""
    state, config = plain.state_dict(), copy.deepcopy(plain.config)
    table = submodule(backbone_of(plain), session.family.position_embeddings)
    assert isinstance(table, nn.Embedding)
    name = next(name for name, module in plain.named_modules() if module is table) + ".weight"
    offset = session.family.position_offset
    rows = state[name]
    state[name] = torch.cat([rows[:offset], rows.new_zeros(n, rows.shape[1]), rows[offset:]])
    config.max_position_embeddings += n
    made = type(plain)(config).to(rows.device, rows.dtype).eval()
    made.load_state_dict(state)
    if plain.can_generate():
        made.generation_config = plain.generation_config
    return made
