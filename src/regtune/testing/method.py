"""Does a method keep what `Method` promises? It comes and goes without a trace, and what it says learns does learn."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regtune.config import RunConfig, TrainConfig
from regtune.interfaces import Attached, Method
from regtune.registry import METHODS
from regtune.session import Session, SharedInputs
from regtune.testing.broken import Broken
from regtune.testing.subject import make_inputs, values_of
from regtune.training.parameter_groups import parameter_groups

_FILES = (".safetensors", ".json", ".md")


def check_method(name: str, model: str | Path, *, task: str = RunConfig.task, settings: Any = None) -> None:
    """Checks everything that a method promises, by putting it onto a model and taking it off again.

    Switched off, the model answers bit for bit as before, also when the method's own weights have moved; detached, it
    has its own weights, flags and answers again. Parameters that the method claims are the model's, learn, and get
    gradients; stages leave something to learn; what it saves holds no pickle. One that acts in training alone changes
    the loss of a training step and no answer.

    Args:
        name: of the registered method.
        model: a folder with a model and its tokenizer, a hub name or `minilm`; a tiny random one will do.
        task: whose head the model gets.
        settings: the method's; by default its defaults.

    Raises:
        BrokenInvariantError: everything that doesn't hold, with what was measured.
        UnsupportedModelError: the method doesn't fit the model.
    """
    method: Method = METHODS.get(name)
    settings = method.settings() if settings is None else settings
    broken = Broken(f"The method {name!r}")
    broken.declared(method, settings)
    broken.require(bool(method.label(settings).strip()), "label must say what it is in a table")
    torch.manual_seed(0)
    session = SharedInputs().start(RunConfig(model=str(model), task=task))
    session.model.eval()
    inputs, _ = make_inputs(session.model)
    flags = {key: parameter.requires_grad for key, parameter in session.model.named_parameters()}
    state = {key: value.clone() for key, value in session.model.state_dict().items()}
    plain, known = _outputs(session, inputs), {id(parameter) for parameter in session.model.parameters()}
    attached = method.attach(session, settings)
    with attached.disabled():
        broken.require(
            _outputs(session, inputs).equal(plain), "disabled() must give the model's own outputs, bit for bit"
        )
    acts = partial(_training_loss, session) if method.dropped else partial(_outputs, session)
    if method.dropped:
        broken.require(_outputs(session, inputs).equal(plain), "dropped: the model's answers must stay as they are")
    _check_learning(broken, session, method, settings, inputs)
    on = acts(inputs).detach()
    own = [parameter for parameter in session.model.parameters() if id(parameter) not in known]
    with torch.no_grad():
        for parameter in own:
            parameter.add_(torch.randn_like(parameter))
    if own:
        broken.require(not acts(inputs).equal(on), "its own weights have no effect on the outputs")
        with attached.disabled():
            same = _outputs(session, inputs).equal(plain)
        broken.require(same, "disabled() must give the model's own outputs, also when the method's weights have moved")
    _check_saving(broken, attached)
    attached.detach()
    after = session.model.state_dict()
    broken.require(after.keys() == state.keys(), f"detach leaves other keys: {sorted(after.keys() ^ state.keys())[:5]}")
    changed = [key for key in state if key in after and not state[key].equal(after[key])]
    broken.require(not changed, f"detach leaves other weights: {changed[:5]}")
    left = {key: parameter.requires_grad for key, parameter in session.model.named_parameters()}
    broken.require(left == flags, f"detach leaves other flags: {[k for k in flags if left.get(k) != flags[k]][:5]}")
    broken.require(_outputs(session, inputs).equal(plain), "detach must give the model's own outputs back, bit for bit")
    broken.tell()


def _training_loss(session: Session, inputs: dict[str, Tensor]) -> Tensor:
    """Of a training step in which every token is learnt; the seed fixes what is drawn."""
    session.model.train()
    torch.manual_seed(0)
    loss: Tensor = session.model(**inputs, labels=inputs["input_ids"]).loss
    session.model.eval()
    return loss


@torch.no_grad()
def _outputs(session: Session, inputs: dict[str, Tensor]) -> Tensor:
    return values_of(session.model, inputs)


def _check_learning(broken: Broken, session: Session, method: Method, settings: Any, inputs: dict[str, Tensor]) -> None:
    """Groups and stages, by one backward pass."""
    training = TrainConfig()
    claimed = method.groups(session.model, settings, training)
    learning = {id(p): key for key, p in session.model.named_parameters() if p.requires_grad}
    for group in claimed:
        strangers = sum(id(parameter) not in learning for parameter in group.parameters)
        broken.require(not strangers, f"group {group.name!r}: {strangers} parameters aren't the model's or are frozen")
        broken.require(group.learning_rate > 0, f"group {group.name!r}: learning rate {group.learning_rate}")
    broken.require(bool(parameter_groups(session.model, training, claimed=claimed)), "nothing is left to learn")
    for stage in method.stages(session, settings, training):
        chosen = [key for key, p in session.model.named_parameters() if p.requires_grad and stage.learns(key, p)]
        broken.require(bool(chosen), f"stage {stage.name!r}: nothing learns in it")
        broken.require(
            stage.epochs > 0 and stage.learning_rate > 0, f"stage {stage.name!r}: epochs and rate must be > 0"
        )
    if method.dropped:
        loss: Any = _training_loss(session, inputs)
    else:
        loss = values_of(session.model, inputs).square().mean()
    loss.backward()
    missed = [learning.get(id(p), "?") for group in claimed for p in group.parameters if p.grad is None]
    broken.require(not missed, f"parameters of its groups that no gradient reaches: {missed[:5]}")
    session.model.zero_grad()


def _check_saving(broken: Broken, attached: Attached) -> None:
    with tempfile.TemporaryDirectory() as folder, broken.trying("save"):
        attached.save(Path(folder))
        odd = [str(file.relative_to(folder)) for file in Path(folder).rglob("*") if file.is_file()]
        odd = [name for name in odd if not name.endswith(_FILES)]
        broken.require(not odd, f"save writes {odd}; weights are safetensors and settings JSON")
