"""Is the description of an architecture true? Its parts are there, registers keep their promises, rules balance."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from regtune.analyses.attribution.attribute import attribute
from regtune.analyses.neurons.weights import neuron_weights
from regtune.config import RegisterConfig
from regtune.families import family_of
from regtune.families._family import Family, modules_at, submodule
from regtune.registers.surgery import backbone_of, decoder_of
from regtune.rows.targets import TokenLogit
from regtune.testing.broken import Broken
from regtune.testing.invariants import prove
from regtune.testing.subject import Subject, make_inputs


def check_family(model: nn.Module, registers: Iterable[RegisterConfig] = ()) -> None:
    """Checks everything that a family promises, on one model of it; a tiny random one will do.

    The parts that the family names have to be there; registers have to keep the invariants of docs/architecture.md,
    wherever they may stand; and relevance rules, if it has any, have to balance (only on a model with a head).

    Args:
        model: a Hugging Face model without registers, in evaluation mode, on the CPU. It stays as it is.
        registers: those to try; by default three, at every place and depth that the family allows.

    Raises:
        BrokenInvariantError: everything that doesn't hold, with what was measured.
        UnsupportedModelError: the model is of no known family.
    """
    backbone = backbone_of(model)
    family = family_of(backbone.config, "parts")
    broken = Broken(f"The family {family.name!r} ({type(model).__name__})")
    for path in missing_parts(family, model):
        broken.require(False, f"there is no {path}")
    configs = list(registers) or (
        list(_everywhere(family, model)) if family.refusal is None and not broken.found else []
    )
    for config in configs:
        subject = Subject(model=copy.deepcopy(model), inputs=make_inputs(model)[0])
        subject.add(config)
        where = f"placement={config.placement}, depth={config.depth}"
        where += f", decoder_registers={config.decoder_registers}" if config.decoder_registers else ""
        for finding in prove(subject):
            broken.require(finding.passed is not False, f"{where}: {finding.name}: {finding.text}")
    if not family.reads_images and family.encoder is None and family.feed_forward_in is not None and not broken.found:
        with broken.trying("a row for each feed-forward neuron"):
            neuron_weights(model, 0)
    if model is not backbone and not broken.found:
        exact: Any = copy.deepcopy(model).double()
        inputs = make_inputs(model)[0]
        logits = exact(**inputs).get("logits")
        target = TokenLogit(position=1) if logits is not None and logits.dim() == 3 else None
        for method in family.relevance:
            with broken.trying(method):
                attribute(exact, inputs, method=method, target=target)
    broken.tell()


def missing_parts(family: Family, model: Any) -> Iterator[str]:
    """Parts that every model of the family has, and this one hasn't."""
    within = (family.attention, family.attention_out, family.feed_forward_in, family.feed_forward_out, *family.norms)
    inside = [f"{family.attention}.{name}" for name in (family.keys, family.values) if name]
    paths = (family.word_embeddings, family.embeddings, family.norm, family.stack, family.final_norm, family.layers)
    named = [path for path in (*paths, *family.within_layers(*within, *inside, family.gated)) if path is not None]
    yield from (path for path in named if not any(modules_at(backbone_of(model), path)))
    if model.get_output_embeddings() is not None:
        yield from (path for path in family.lm_head if submodule(model, path) is None)


def _everywhere(family: Family, model: nn.Module) -> Iterator[RegisterConfig]:
    for placement in family.placements:
        for depth in ("input",) if family.shared_layers else ("input", "every_layer"):
            yield RegisterConfig(num_registers=3, placement=placement, depth=depth, init_std=0.5)  # type: ignore[arg-type]
    if decoder_of(model) is not None:
        yield RegisterConfig(num_registers=2, decoder_registers=3, init_std=0.5)
        yield RegisterConfig(num_registers=0, decoder_registers=3, depth="every_layer", init_std=0.5)
