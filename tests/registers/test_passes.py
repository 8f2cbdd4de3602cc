"""One forward pass is its own: threads, nested calls, copies, wrappers and recomputation give what each gives alone."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

from regtune.config import RegisterConfig
from regtune.errors import InputError
from regtune.families.albert import ALBERT
from regtune.registers.surgery import (
    add_registers,
    disable_registers,
    find_registers,
    mask_registers,
    num_registers,
    remove_registers,
)
from tiny import ABSOLUTE, FAMILIES, inputs, tiny_model

CASES = [
    (family, placement, depth)
    for family in FAMILIES
    for placement in ("prefix", "after_cls", "suffix")
    for depth in ("input", "every_layer")
    if (placement != "after_cls" or family in ABSOLUTE) and (depth == "input" or family != ALBERT.model_types[0])
]


def made(family="bert", placement="prefix", depth="input", head="sequence-classification", n=4, seed=0):
    model = tiny_model(family, head, seed=seed)
    return add_registers(model, RegisterConfig(num_registers=n, placement=placement, depth=depth, init_std=1.0))


def in_threads(*jobs):
    """Runs all jobs at the same time; gives their results, and raises what any of them raised."""
    results, errors, gate = [None] * len(jobs), [], threading.Barrier(len(jobs))

    def run(place, job):
        try:
            gate.wait()
            results[place] = job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(place, job)) for place, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@pytest.mark.parametrize(("family", "placement", "depth"), CASES)
def test_threads_that_share_a_model_get_what_one_alone_gets(family, placement, depth):
    model = made(family, placement, depth)
    batches = [inputs(family, batch=2, seq=seq, pad=pad, seed=seq) for seq, pad in ((20, 5), (12, 3), (30, 0), (8, 2))]

    def often(batch):
        with torch.no_grad():
            return [model(**batch).logits for _ in range(6)]

    with torch.no_grad():
        alone = [model(**batch).logits for batch in batches]
    for found, wanted in zip(in_threads(*(lambda b=batch: often(b) for batch in batches)), alone, strict=True):
        for logits in found:
            torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)


def test_registers_switched_off_in_one_thread_stay_on_in_another():
    model, batch = made(), inputs("bert", pad=4)
    inside, done = threading.Event(), threading.Event()

    def off():
        with disable_registers(model), mask_registers(model):
            inside.set()
            done.wait(10)
            return model(**batch).logits

    def on():
        inside.wait(10)
        try:
            return model(**batch).logits
        finally:
            done.set()

    with torch.no_grad():
        expected = model(**batch).logits
        with disable_registers(model):
            plain = model(**batch).logits
        assert not torch.equal(expected, plain)
        without, with_registers = in_threads(torch.no_grad()(off), torch.no_grad()(on))
    assert torch.equal(without, plain)
    assert torch.equal(with_registers, expected)


@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_a_pass_inside_a_pass_disturbs_neither(placement):
    model, other = made(placement=placement), made("modernbert", placement, seed=1)
    outer, inner = inputs("bert", seq=20, pad=5), inputs("bert", seq=9, pad=2, seed=3)
    with torch.no_grad():
        wanted, wanted_inner = model(**outer).logits, [model(**inner).logits, other(**inner).logits]
        found = []

        def look(_module, _args, _output):
            if not found:
                found.append(None)
                found[:] = [model(**inner).logits, other(**inner).logits]

        hook = model.bert.encoder.layer[1].register_forward_hook(look)
        try:
            assert torch.equal(model(**outer).logits, wanted)
        finally:
            hook.remove()
    assert all(torch.equal(one, two) for one, two in zip(found, wanted_inner, strict=True))


@pytest.mark.parametrize(
    ("family", "placement", "depth"), [c for c in CASES if c[0] in ("bert", "deberta-v2", "modernbert")]
)
def test_recomputed_layers_know_their_own_pass_after_another_one(family, placement, depth):
    first, second = inputs(family, seq=20, pad=5), inputs(family, seq=11, pad=3, seed=4)

    def gradients(checkpointing):
        model = made(family, placement, depth)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        loss = model(**first).logits.square().sum()
        loss = loss + model(**second).logits.square().sum()  # a second pass before the backward one
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, recomputed = gradients(False), gradients(True)
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        scale = float(gradient.abs().max()) or 1.0
        assert torch.allclose(recomputed[name], gradient, atol=1e-5 * scale), name


def test_models_that_share_an_encoder_stack_don_t_change_each_other():
    one, other = tiny_model("bert", "sequence-classification"), tiny_model("bert", "sequence-classification", seed=1)
    other.bert.encoder = one.bert.encoder
    batch = inputs("bert", pad=4)
    with torch.no_grad():
        plain = other(**batch).logits
        add_registers(one, RegisterConfig(num_registers=4, init_std=1.0))
        own = one(**batch).logits
        assert torch.equal(other(**batch).logits, plain)
        add_registers(other, RegisterConfig(num_registers=2, init_std=1.0))
        assert torch.equal(one(**batch).logits, own)
        assert not torch.equal(other(**batch).logits, plain)


@pytest.mark.parametrize(("family", "placement", "depth"), CASES)
def test_calling_forward_is_calling_the_model(family, placement, depth):
    model, batch = made(family, placement, depth, head="none"), inputs(family, pad=6)
    with torch.no_grad():
        wanted = model(**batch).last_hidden_state
        assert torch.equal(model.forward(**batch).last_hidden_state, wanted)
        assert wanted.shape[1] == 20


@pytest.mark.parametrize("family", FAMILIES)
def test_the_embeddings_alone_give_the_texts_rows(family):
    model, batch = made(family, head="none"), inputs(family)
    with torch.no_grad():
        assert model.embeddings(batch["input_ids"]).shape[1] == 20


@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta-v2"])
def test_a_deep_copy_computes_with_its_own_registers(family):
    model, batch = made(family), inputs(family, pad=3)
    with torch.no_grad():
        wanted = model(**batch).logits
        twin = copy.deepcopy(model)
        assert torch.equal(twin(**batch).logits, wanted)
        find_registers(twin).tokens.fill_(3.0)
        assert torch.equal(model(**batch).logits, wanted)
        assert not torch.equal(twin(**batch).logits, wanted)
    twin(**batch).logits.sum().backward()
    assert find_registers(twin).tokens.grad is not None
    assert find_registers(model).tokens.grad is None


class Frame(nn.Module):
    """Somebody's own module around a model."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, **batch):
        return self.inner(**batch).logits


def test_a_users_own_module_is_looked_through():
    model, batch = made(), inputs("bert", pad=4)
    frame = Frame(model)
    assert num_registers(frame) == 4
    with torch.no_grad():
        on, plain = frame(**batch), None
        with disable_registers(model):
            plain = frame(**batch)
        with disable_registers(frame):
            assert torch.equal(frame(**batch), plain)
    assert not torch.equal(on, plain)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks by an old name
def test_a_peft_model_is_looked_through():
    peft = pytest.importorskip("peft")
    model, batch = made(), inputs("bert", pad=4)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS", r=2)).eval()
    assert num_registers(wrapped) == 4
    with torch.no_grad():
        on = wrapped(**batch).logits
        with disable_registers(wrapped):
            off = wrapped(**batch).logits
        with disable_registers(model):
            assert torch.equal(wrapped(**batch).logits, off)
    assert not torch.equal(on, off)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks by an old name
def test_registers_that_peft_keeps_a_copy_of_train_and_act():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS", r=2, modules_to_save=["registers"])
    model, batch = peft.get_peft_model(made(), config), inputs("bert", pad=4)
    model.train()
    model(**batch, labels=torch.zeros(3, dtype=torch.long)).loss.backward()
    copies = {n: p for n, p in model.named_parameters() if "registers" in n and p.requires_grad}
    assert copies
    assert all(parameter.grad is not None for parameter in copies.values())
    model.eval()
    with torch.no_grad():
        before = model(**batch).logits
        for parameter in copies.values():
            parameter.fill_(5.0)
        assert not torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize("mode", [True, False])
def test_registers_are_added_in_the_models_own_mode(mode):
    model = tiny_model("bert").train(mode)
    add_registers(model, RegisterConfig(num_registers=2))
    assert find_registers(model).training is mode


def test_a_full_mask_of_whole_numbers_is_refused_in_words():
    model, batch = made(), inputs("bert", pad=4)
    full = batch["attention_mask"][:, None, None, :].expand(-1, 1, 20, -1)
    with pytest.raises(InputError, match=r"torch\.int64; .* must be bool \(SDPA\) or floating point"):
        model(input_ids=batch["input_ids"], attention_mask=full)


def test_what_is_removed_leaves_nothing_behind():
    plain = tiny_model("bert", "sequence-classification")
    batch = inputs("bert", pad=4)
    with torch.no_grad():
        wanted = plain(**batch).logits
        model = remove_registers(add_registers(plain, RegisterConfig(num_registers=3)))
        assert torch.equal(model(**batch).logits, wanted)
    assert not any("forward" in part.__dict__ for part in model.modules())
