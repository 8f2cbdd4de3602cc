"""What registers hold: means, likeness, and how much of it depends on the input."""

import numpy as np
import pytest
import torch

from analyses.attribution.explained import encoder
from regtune.analyses.registers.states import register_states
from regtune.errors import DataError, UnsupportedModelError
from regtune.registers.surgery import disable_registers, find_registers, mask_registers
from regtune.rows.token_classes import TokenClass
from tiny import FAMILIES, inputs

N = 3


def batches_for(family="bert", count=3, pad=4):
    """Analysis batches of random tokens: [CLS] first, [SEP] last, the rest content."""
    found = []
    for seed in range(count):
        batch = inputs(family, pad=pad, seed=seed)
        classes = torch.full_like(batch["input_ids"], TokenClass.CONTEXT, dtype=torch.int8)
        classes[:, 0], classes[:, -1] = TokenClass.CLS, TokenClass.SEP
        classes[batch["attention_mask"] == 0] = TokenClass.PADDING
        found.append({**batch, "token_classes": classes, "example": 3 * seed + torch.arange(3)})
    return found


def hidden_from_text(model):
    """Lets registers attend to themselves alone: their states can't depend on the text any more."""
    registers = find_registers(model)

    def cut(scores):
        scores = scores.clone()
        scores[..., : registers.num_registers, registers.num_registers :] = -1e9
        return scores

    for layer in model.bert.encoder.layer:
        layer.attention.self.register_forward_pre_hook(
            lambda module, args, kwargs: (
                args,
                {**kwargs, "attention_mask": cut(full_mask(kwargs["attention_mask"], args[0]))},
            ),
            with_kwargs=True,
        )
    return model


def full_mask(mask, states):
    total = states.shape[1]
    if mask is None:
        return torch.zeros(len(states), 1, total, total, dtype=states.dtype)
    return mask.expand(len(states), 1, total, total).to(states.dtype)


def by_hand(model, batches):
    """States of every window at every depth, `[depths, windows, total, hidden]`, by plain output_hidden_states."""
    registers = find_registers(model)
    rows, orders = [], []
    handles = [model.bert.encoder.register_forward_pre_hook(lambda *_: orders.append(registers.layout.order))]
    handles += [
        layer.register_forward_pre_hook(lambda _, args, kw: rows[-1].append(args[0]), with_kwargs=True)
        for layer in model.bert.encoder.layer
    ]
    for batch in batches:
        rows.append([])
        with torch.no_grad():
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for handle in handles:
        handle.remove()
    assert orders == [None] * len(rows)
    return torch.cat([torch.stack(parts) for parts in rows], dim=1)


def test_means_variation_and_likeness_are_those_computed_by_hand():
    model, batches = encoder("bert", num_registers=N), batches_for()
    found = register_states(model, batches)
    states = by_hand(model, batches).numpy()
    mine, text = states[:, :, :N], states[:, :, N:]
    content = torch.cat([batch["token_classes"] == TokenClass.CONTEXT for batch in batches]).numpy()
    tokens = text[:, content]
    assert np.allclose(found.means[:-1].numpy(), mine.mean(1), atol=1e-6)
    assert np.allclose(found.variation, mine.var(1).sum(-1) / tokens.var(1).sum(-1)[:, None], atol=1e-9)
    unit = mine / np.linalg.norm(mine, axis=-1, keepdims=True)
    assert np.allclose(found.similarity, np.einsum("lwid,lwjd->lij", unit, unit) / mine.shape[1])
    scaled = (mine - tokens.mean(1)[:, None, None]) / tokens.std(1)[:, None, None]
    scaled /= np.linalg.norm(scaled, axis=-1, keepdims=True)
    assert np.allclose(found.similarity_zscored, np.einsum("lwid,lwjd->lij", scaled, scaled) / mine.shape[1])
    vectors = (find_registers(model).tokens + find_registers(model).positions).detach().numpy()
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    assert np.allclose(found.similarity_initial, vectors @ vectors.T)
    assert found.windows == 9


@pytest.mark.parametrize("family", FAMILIES)
def test_registers_enter_as_constants_and_then_take_up_the_input(family):
    found = register_states(encoder(family, num_registers=N), batches_for(family))
    assert found.variation.shape == (3, N)
    assert (found.variation[0] < 1e-12).all()
    assert (found.variation[1:] > 1e-6).all()
    assert np.allclose(np.diagonal(found.similarity, axis1=1, axis2=2), 1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_batches_and_padding_do_not_count(attention):
    model, batches = encoder("bert", num_registers=N, attention=attention), batches_for()
    single = [{name: value[row : row + 1] for name, value in batch.items()} for batch in batches for row in range(3)]
    whole, alone = register_states(model, batches), register_states(model, single)
    assert torch.allclose(whole.means, alone.means, atol=1e-6)
    assert np.allclose(whole.variation, alone.variation)


def test_a_register_that_cannot_see_the_text_is_found_to_be_constant():
    model = hidden_from_text(encoder("bert", num_registers=N, attention="eager"))
    found = register_states(model, batches_for())
    assert found.constant() == (0, 1, 2)
    assert found.variation.max() < 1e-12


def test_two_equal_registers_are_alike_at_every_layer():
    model = encoder("bert", num_registers=N)
    with torch.no_grad():
        for parameter in find_registers(model).parameters():
            parameter[1] = parameter[2]
    found = register_states(model, batches_for())
    for cosines in (found.similarity, found.similarity_zscored, found.similarity_initial[None]):
        assert np.allclose(cosines[:, 1, 2], 1)
        assert (cosines[:, 0, 1] < 0.999).all()


def test_what_shows_nothing_is_refused():
    model = encoder("bert", num_registers=N)
    (batch,) = batches_for(count=1)
    with pytest.raises(DataError, match="1 windows"):
        register_states(model, [{name: value[:1] for name, value in batch.items()}])
    special = {**batch, "token_classes": torch.zeros_like(batch["token_classes"])}
    with pytest.raises(DataError, match="0 content tokens"):
        register_states(model, [special])
    with pytest.raises(UnsupportedModelError, match="no registers"):
        register_states(encoder("bert"), [batch])
    with pytest.raises(UnsupportedModelError, match="training mode"):
        register_states(encoder("bert", num_registers=N).train(), [batch])
    with disable_registers(model), pytest.raises(UnsupportedModelError, match="disabled"):
        register_states(model, [batch])


def test_masked_registers_can_be_looked_at():
    model = encoder("bert", num_registers=N)
    with mask_registers(model):
        assert register_states(model, batches_for()).means.isfinite().all()
