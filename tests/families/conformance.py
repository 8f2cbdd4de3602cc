"""What works on each architecture, tried on tiny random models; for the README's table.

python tests/families/conformance.py [FAMILY ...]     (from the repository's root; minutes)
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from transformers import QuantizedCache
from transformers.cache_utils import Fp8QuantizedLayer

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny
import tiny_images
import tiny_seq2seq
from regtune.analyses.artefacts.artefacts import artefact_statistics
from regtune.analyses.attention.tap import attention_tap
from regtune.analyses.attribution.attribute import attribute
from regtune.analyses.registers.states import register_states
from regtune.config import RegisterConfig
from regtune.errors import RegtuneError
from regtune.families._family import LEDGER
from regtune.families.listing import SUPPORT, WORKS
from regtune.records import versions
from regtune.registers.cache_names import CACHE
from regtune.registers.kept import registers_cache
from regtune.registry import FAMILIES
from regtune.rows.targets import TokenLogit
from regtune.rows.token_classes import TokenClass
from regtune.testing.broken import BrokenInvariantError
from regtune.testing.invariants import (
    NotApplicableError,
    disabled_is_plain,
    gradients_reach_registers,
    masked_is_plain,
    text_length_kept,
)
from regtune.testing.subject import Subject, make_inputs

PROOFS = (disabled_is_plain, masked_is_plain, text_length_kept, gradients_reach_registers)
HEADS = {
    "question answering": "QuestionAnswering",
    "sequence classification": "SequenceClassification",
    "token classification": "TokenClassification",
    "masked LM": "MaskedLM",
    "causal LM": "CausalLM",
    "text to text": "Seq2SeqLM",
    "image classification": "ImageClassification",
    "none": "",
}
ALIASES = {"": "none", "CausalLM": "causal-lm", "MaskedLM": "masked-lm", "Seq2SeqLM": "text-to-text"}
TWO = {"num_registers": 2, "init_std": 0.5}
Cells = dict[str, dict[str, str]]


def kind_of(family: str) -> tuple[Any, str]:
    """The module that makes tiny models of a family, and their name there."""
    kind = FAMILIES.get(family).model_types[0]
    known = ((tiny_images, tiny_images.FAMILIES), (tiny_seq2seq, tiny_seq2seq.FAMILIES))
    return next((module for module, names in known if kind in names), tiny), kind


def model_of(family: str, head: str) -> Any:
    """A tiny model with a head of transformers' (`QuestionAnswering`, or none)."""
    module, kind = kind_of(family)
    known = {"QuestionAnswering": "question-answering", "SequenceClassification": "sequence-classification"}
    known |= {"TokenClassification": "token-classification", "ImageClassification": "image-classification"}
    attention = "sdpa" if module is not tiny else tiny.attentions_of(kind)[-1]
    return module.tiny_model(kind, {**ALIASES, **known}[head], attention)


def heads_of(family: str) -> list[str]:
    """The names of heads that transformers has for it and that read what the table's families read."""
    module, _ = kind_of(family)
    config = model_of(family, "").config
    causal = FAMILIES.get(family).causal
    found = []
    for title, head in HEADS.items():
        auto = getattr(transformers, f"AutoModelFor{head}" if head else "AutoModel")
        towers = module is tiny_images and head == "ImageClassification"
        writes = {"CausalLM": causal, "MaskedLM": not causal and module is tiny}.get(head, True)
        if writes and (towers or type(config) in auto._model_mapping):
            found.append(title)
    return found


def tried(act: Callable[[], Any]) -> str:
    """`works`, or the reason why not; what is neither is an error of the table's maker."""
    try:
        act()
    except (RegtuneError, NotApplicableError) as error:
        if isinstance(error, BrokenInvariantError):
            raise
        return re.split(r" Supported: | Available: ", str(error))[0]  # what else there is changes
    return WORKS


def proved(model: Any, **settings: Any) -> None:
    """Registers on this model keep the quick promises; `check_family` in the tests tries them all."""
    subject = Subject(model=model, inputs=make_inputs(model)[0])
    subject.add(RegisterConfig(**{**TWO, **settings}))
    for proof in PROOFS:
        proof(subject)


def cells_of(family: str) -> Cells:
    """Everything that is tried on one family."""
    about = FAMILIES.get(family)
    heads = heads_of(family)
    made = {title: model_of(family, HEADS[title]) for title in heads}
    plain = made["none"]
    found: Cells = {"heads": {title: tried(lambda m=model: proved(copy.deepcopy(m))) for title, model in made.items()}}
    settings = {
        "places": ("placement", ("prefix", "after_cls", "suffix")),
        "depths": ("depth", ("input", "every_layer")),
    }
    for title, (name, values) in settings.items():
        found[title] = {
            value: tried(lambda n=name, v=value: proved(copy.deepcopy(plain), **{n: v})) for value in values
        }
    writer = made.get("causal LM", made.get("text to text"))
    found["caches"] = {} if writer is None else dict(caches_of(writer, about.causal))
    if about.decoder is not None and writer is not None:
        found["decoder_registers"] = dict(beside_an_encoder(writer))
    scored = made[heads[0]]
    found["relevance"] = {rule: tried(lambda r=rule: explained(scored, r)) for rule in (*LEDGER, "chefer")}
    found["looks"] = {name: tried(lambda look=look: look(copy.deepcopy(plain))) for name, look in LOOKS.items()}
    return found


def beside_an_encoder(model: Any) -> Iterator[tuple[str, str]]:
    """Registers of the decoder's own: beside the encoder's, without any there, fresh in every layer, in each cache."""
    own = {"decoder_registers": 3}
    for name, settings in {
        "beside": own,
        "alone": {**own, "num_registers": 0},
        "every_layer": {**own, "num_registers": 0, "depth": "every_layer"},
    }.items():
        yield name, tried(lambda given=settings: proved(copy.deepcopy(model), **given))  # type: ignore[misc]
    yield from caches_of(model, False, **own)


def caches_of(model: Any, causal: bool, **settings: Any) -> Iterator[tuple[str, str]]:
    """The caches with which the same tokens follow as without one."""
    subject = Subject(model=copy.deepcopy(model), inputs=make_inputs(model)[0])
    subject.add(RegisterConfig(**{**TWO, **settings}))
    batch = subject.moved() if causal else subject.inputs
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def follow(**way: Any) -> torch.Tensor:
        settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 1}
        return subject.model.generate(**given, **settings, **way)

    expected = follow(use_cache=False)
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "dynamic": dict,
        "static": lambda: {"cache_implementation": "static"},
    }
    if causal:
        ways["in chunks"] = lambda: {"prefill_chunk_size": 4}
        ways["kept registers"] = lambda: {CACHE: registers_cache(subject.model).start(len(expected))}
        if not getattr(model.config, "sliding_window", None):  # transformers quantises no windows
            ways["quantised"] = lambda: {CACHE: QuantizedCache("fp8", model.config)}
    with mock.patch.object(Fp8QuantizedLayer, "fp8_dtype", torch.float32):  # so that it loses nothing
        for name, way in ways.items():
            assert torch.equal(follow(**way()), expected), name
            yield name, WORKS


def registered(model: Any) -> Any:
    subject = Subject(model=model, inputs=make_inputs(model)[0])
    subject.add(RegisterConfig(**TWO))
    return model


def explained(model: Any, rule: str) -> None:
    exact = registered(copy.deepcopy(model)).double()
    inputs = make_inputs(model)[0]
    logits = exact(**inputs).get("logits")
    attribute(
        exact, inputs, method=rule, target=TokenLogit(position=1) if logits is not None and logits.dim() == 3 else None
    )


def attended(model: Any) -> None:
    layers: list[int] = []
    with attention_tap(registered(model), lambda layer, *_: layers.append(layer)), torch.no_grad():
        model(**make_inputs(model)[0])
    assert layers == list(range(model.config.num_hidden_layers))


def batch_of(model: Any) -> dict[str, torch.Tensor]:
    """Rows as analyses get them, of tokens that are all content."""
    inputs = make_inputs(model)[0]
    mask = inputs.get("attention_mask")
    if mask is None:  # images
        with torch.no_grad():
            mask = torch.ones(model(**inputs).last_hidden_state.shape[:2], dtype=torch.long)
    classes = torch.where(mask.bool(), TokenClass.CONTEXT, TokenClass.PADDING).to(torch.int8)
    return inputs | {"attention_mask": mask, "token_classes": classes, "example": torch.arange(len(mask))}


LOOKS: dict[str, Callable[[Any], Any]] = {
    "attention": attended,
    "artefacts": lambda model: artefact_statistics(registered(model), [batch_of(model)]),
    "registers' states": lambda model: register_states(registered(model), [batch_of(model)]),
}


def write(names: tuple[str, ...] = ()) -> None:
    """Tries these families (all by default) and writes what was found, family by family."""
    found = json.loads(SUPPORT.read_text())["families"] if SUPPORT.is_file() else {}
    known = {name: versions()[name] for name in ("torch", "transformers")}
    for name in names or tuple(name for name in FAMILIES if FAMILIES.get(name).refusal is None):
        found[name] = cells_of(name)
        print(name, json.dumps(found[name]), flush=True)
        ordered = {each: found[each] for each in FAMILIES if each in found}
        SUPPORT.write_text(json.dumps({"versions": known, "families": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    write(tuple(sys.argv[1:]))
