"""One forward pass is its own: threads, nested calls, recomputation, shared parts and `.forward` give what each
gives alone. Copies and wrappers are in test_wrappers.py."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from registers.placed import every_case, logits, registered, three_batches
from regtune.config import RegisterConfig
from regtune.errors import InputError
from regtune.registers import passes
from regtune.registers.surgery import add_registers, backbone_of, disable_registers, mask_registers, remove_registers
from tiny import EVERY, inputs

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # checkpoints in no_grad
placed_anywhere = pytest.mark.parametrize(("family", "placement", "depth"), every_case())


def in_threads(*jobs):
    """Runs the jobs together, each four times; what differs from what was expected."""
    wrong: list[str] = []
    start = threading.Barrier(len(jobs))

    def work(run, expected):
        start.wait()
        for _ in range(4):
            try:
                if not torch.equal(run(), expected):
                    wrong.append("another result")
            except Exception as error:  # a thread's error is lost otherwise
                wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@pytest.mark.grid
@placed_anywhere
def test_threads_give_what_each_gives_alone(family, placement, depth):
    model = registered(family, placement=placement, depth=depth)
    one, two, three = three_batches(family)

    def switched_off():
        with disable_registers(model):
            return logits(model, one)

    def hidden():
        with mask_registers(model, [1]):
            return logits(model, two)

    jobs = [switched_off, hidden, lambda: logits(model, three)]
    assert in_threads(*[(job, job()) for job in jobs]) == []


@pytest.mark.grid
@placed_anywhere
def test_nested_calls_give_what_each_gives_alone(family, placement, depth):
    model = registered(family, placement=placement, depth=depth)
    one, two, three = three_batches(family)
    alone = [logits(model, batch) for batch in (one, two, three)]
    with disable_registers(model):
        without = logits(model, one)
    inner, nested = [], [False]

    def call_again(*_):
        if not nested[0]:
            nested[0] = True
            inner.append(logits(model, two))
            with disable_registers(model):
                inner.append(logits(model, one))
            nested[0] = False

    norms = [m for m in backbone_of(model).modules() if type(m).__name__.endswith("Norm")]
    for module in (
        model.get_input_embeddings(),
        norms[0],
        norms[-2],
    ):
        module.register_forward_hook(call_again)  # before the registers join, and when they are in
    assert torch.equal(logits(model, three), alone[2])
    assert len(inner) >= 6
    assert all(torch.equal(found, (alone[1], without)[place % 2]) for place, found in enumerate(inner))


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_another_model_called_inside_a_pass_disturbs_neither(placement):
    model, other = registered(placement=placement), registered("modernbert", placement)
    outer, inner, _ = three_batches("bert")
    wanted, wanted_inner, found = logits(model, outer), logits(other, inner), []
    model.bert.encoder.layer[1].register_forward_hook(lambda *_: found.append(logits(other, inner)))
    assert torch.equal(logits(model, outer), wanted)
    assert torch.equal(found[0], wanted_inner)


def gradients(model):
    found = {name.replace("_checkpoint_wrapped_module.", ""): p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return {name: value for name, value in found.items() if value is not None}


def loss_of(model, batch):
    return model(**batch).logits.square().sum()


def layers_of(model):
    lists = [m for name, m in backbone_of(model).named_modules() if name.split(".")[-1] in ("layer", "layers", "h")]
    return next(m for m in lists if isinstance(m, nn.ModuleList))


@pytest.mark.grid
@placed_anywhere
@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_run_again_after_another_pass_have_their_own_pass(family, placement, depth, reentrant):
    if family == "albert" or (reentrant and depth == "input"):
        pytest.skip("no layer has a hook of registers; models are run again as a whole below")
    model = registered(family, placement=placement, depth=depth)
    one, two, _ = three_batches(family)
    loss_of(model, one).backward()
    expected = gradients(model)
    with disable_registers(model):
        loss_of(model, one).backward()
    expected_off = gradients(model)
    layers = layers_of(model)
    way = CheckpointImpl.REENTRANT if reentrant else CheckpointImpl.NO_REENTRANT
    for index, layer in enumerate(layers):
        layers[index] = checkpoint_wrapper(layer, way)
    first = loss_of(model, one)
    with disable_registers(model):
        off = loss_of(model, one)
    logits(model, two)
    for loss, right in ((first, expected), (off, expected_off)):
        loss.backward()
        found = gradients(model)
        assert found.keys() == right.keys()
        for name, value in right.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.grid
@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_whole_model_run_again_keeps_its_settings(family, reentrant):
    model = registered(family)
    batch = three_batches(family)[0]
    with mask_registers(model, [0]):
        loss_of(model, batch).backward()
        expected = gradients(model)
        embeds = torch.ones(1, requires_grad=True)

        def run(one):
            return model(**batch).logits * one

        loss = checkpoint(run, embeds, use_reentrant=reentrant).square().sum()
    loss.backward()  # the context is over
    found = gradients(model)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    loss = checkpoint(run, embeds, use_reentrant=reentrant).square().sum()
    with pytest.raises(InputError, match="it isn't clear which is meant"):
        loss.backward()


def test_what_was_moved_away_before_a_recomputation_is_refused():
    model = registered(placement="suffix", depth="every_layer")
    layers = layers_of(model)
    for index, layer in enumerate(layers):
        layers[index] = checkpoint_wrapper(layer, CheckpointImpl.NO_REENTRANT)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        loss = loss_of(model, three_batches("bert")[0])
    with pytest.raises(InputError, match="can't be told from which forward pass"):
        loss.backward()


def test_nothing_is_remembered_of_passes_that_are_gone():
    model = registered(depth="every_layer")
    batch = three_batches("bert")[0]
    logits(model, batch)
    before = len(passes._REMEMBERED)
    for _ in range(5):
        logits(model, batch)
    assert len(passes._REMEMBERED) <= before


@pytest.mark.grid
@placed_anywhere
def test_forward_called_directly_and_embeddings_called_alone(family, placement, depth):
    model = registered(family, head="none", placement=placement, depth=depth)
    batch = three_batches(family)[0]
    with torch.no_grad():
        assert torch.equal(model.forward(**batch).last_hidden_state, model(**batch).last_hidden_state)
        embeddings = getattr(model, "embeddings", model.get_input_embeddings())
        assert embeddings(batch["input_ids"]).shape[1] == batch["input_ids"].shape[1]
    remove_registers(model)
    assert "forward" not in model.__dict__


@pytest.mark.grid
@placed_anywhere
def test_models_that_share_a_stack_leave_each_other_alone(family, placement, depth):
    one = registered(family, head="none", placement=placement, depth=depth)
    other = copy.deepcopy(remove_registers(copy.deepcopy(one)))
    batch = three_batches(family)[0]
    with torch.no_grad():
        alone, plain = one(**batch).last_hidden_state, other(**batch).last_hidden_state
        for name in ("encoder", "transformer", "layers", "h", "final_norm", "embeddings", "embed_tokens", "embed_in"):
            if hasattr(one, name):
                setattr(other, name, getattr(one, name))
        assert torch.equal(other(**batch).last_hidden_state, plain)
        add_registers(other, RegisterConfig(num_registers=2, init_std=0.5, placement=placement))
        both = other(**batch).last_hidden_state
        assert not torch.equal(both, plain)
        assert torch.equal(one(**batch).last_hidden_state, alone)
        remove_registers(one)
        assert torch.equal(other(**batch).last_hidden_state, both)
        assert torch.equal(one(**batch).last_hidden_state, plain)


def test_masks_that_do_not_fit_are_refused_in_words():
    model, ids = registered(head="none"), inputs("bert")["input_ids"]
    with pytest.raises(InputError, match=r"int64; a full mask is added to the scores as it is"):
        model(input_ids=ids, attention_mask=torch.ones(3, 1, 20, 20, dtype=torch.long))
    with pytest.raises(InputError, match=r"\(3, 25\), which doesn't fit 20 tokens"):
        model(input_ids=ids, attention_mask=torch.ones(3, 25, dtype=torch.long))
