"""No token's logit depends on a later token, and packed texts stay separate, for every family and shape of mask."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

from by_hand import N, logits_by_hand, padded, rows, with_registers
from regtune.registers.cache_names import CACHE
from regtune.registers.surgery import mask_registers
from tiny import DECODERS, WINDOWED, attentions_of

SEQ = 12
CASES = [(family, attention) for family in DECODERS for attention in attentions_of(family)]


def full_mask(attention: str, *, batch: int = 2) -> torch.Tensor:
    seen = torch.ones(SEQ, SEQ, dtype=torch.bool).tril().expand(batch, 1, SEQ, SEQ)
    return seen if attention == "sdpa" else torch.where(seen, 0.0, torch.finfo(torch.float32).min)


def masks(family: str, attention: str, config) -> dict[str, dict]:
    """Arguments of a forward pass, by the shape of their mask."""
    positions = torch.cat([torch.arange(5), torch.arange(SEQ - 5)]).expand(2, -1)
    found = {
        "none": {},
        "none, no cache": {"use_cache": False},
        "2-D": {"attention_mask": torch.ones(2, SEQ, dtype=torch.long)},
        "2-D, left padding": {"attention_mask": torch.arange(SEQ).ge(torch.tensor([[0], [4]])).long()},
        "2-D, right padding": {"attention_mask": torch.arange(SEQ).lt(torch.tensor([[SEQ], [9]])).long()},
        "4-D": {"attention_mask": full_mask(attention)},
        "4-D, for all rows": {"attention_mask": full_mask(attention, batch=1)},
        "packed": {"position_ids": positions, "use_cache": False},
        "static cache": {CACHE: StaticCache(config=config, max_cache_len=SEQ)},
        "static cache and 4-D": {
            CACHE: StaticCache(config=config, max_cache_len=SEQ),
            "attention_mask": full_mask(attention),
        },
    }
    if hasattr(config, "layer_types"):
        both = {"full_attention": full_mask(attention), "sliding_attention": full_mask(attention).clone()}
        found["dict"] = {"attention_mask": both}
        if attention == "sdpa":
            found["dict of none"] = {"attention_mask": dict.fromkeys(both)}
    elif family in WINDOWED:  # whose layers see a window: a 4-D mask says all, and their static caches hold no more
        del found["static cache and 4-D"]
    return found


@pytest.mark.grid
@pytest.mark.parametrize(("family", "attention"), CASES)
@pytest.mark.parametrize("windows", ["stay", "leave"])
@pytest.mark.parametrize("depth", ["input", "every_layer"])
def test_no_logit_changes_when_a_later_token_changes(family, attention, windows, depth):
    if windows == "leave" and family not in WINDOWED:
        pytest.skip("no windows")
    model, _ = with_registers(family, attention, windows=windows, depth=depth)
    ids = padded(SEQ, SEQ)["input_ids"]
    for shape in masks(family, attention, model.config):
        before = None
        for place in (None, SEQ - 1, 6, 1):
            changed = ids.clone()
            if place is not None:
                changed[:, place] = (changed[:, place] + 40) % 120
            with torch.no_grad():
                logits = model(changed, **masks(family, attention, model.config)[shape]).logits
            if place is None:
                before = logits
                assert torch.isfinite(before).all(), shape
                continue
            assert torch.equal(logits[:, :place], before[:, :place]), (shape, place)
            assert not torch.equal(logits[:, place], before[:, place]), (shape, place)


@pytest.mark.grid
@pytest.mark.parametrize(("family", "attention"), CASES)
def test_no_gradient_flows_from_a_logit_to_a_later_token_or_from_registers_to_the_text(family, attention):
    model, _ = with_registers(family, attention)
    words = model.get_input_embeddings()(padded(SEQ, SEQ)["input_ids"]).detach().requires_grad_()
    states = []
    layers = model.get_submodule(model.base_model_prefix)
    hook = next(module for module in layers.modules() if isinstance(module, torch.nn.ModuleList))[-1]
    handle = hook.register_forward_hook(lambda _, __, output: states.append(output))
    logits = model(inputs_embeds=words).logits
    handle.remove()
    last = states[0] if isinstance(states[0], torch.Tensor) else states[0][0]
    assert last.shape[1] == N + SEQ
    (gradient,) = torch.autograd.grad(logits[:, 5].sum(), words, retain_graph=True)
    assert not gradient[:, 6:].any()
    assert gradient[:, :6].flatten(0, 1).any(-1).any()
    (gradient,) = torch.autograd.grad(last[:, :N].sum(), words, allow_unused=True)
    assert gradient is None or not gradient.any()


@pytest.mark.grid
@pytest.mark.parametrize(("family", "attention"), CASES)
@pytest.mark.parametrize("windows", ["stay", "leave"])
def test_packed_texts_are_what_each_is_alone(family, attention, windows):
    if windows == "leave" and family not in WINDOWED:
        pytest.skip("no windows")
    model, plain = with_registers(family, attention, windows=windows)
    one, two = rows(padded(5, 11, side="right"))
    positions = torch.cat([torch.arange(5), torch.arange(11)])[None]
    with torch.no_grad():
        packed = model(torch.cat([one, two])[None], position_ids=positions, use_cache=False).logits[0]
    for text, found in ((one, packed[:5]), (two, packed[5:])):
        expected = logits_by_hand(plain, model, text, windows=windows)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.grid
@pytest.mark.parametrize(("family", "attention"), CASES)
def test_every_shape_of_mask_gives_the_same_logits(family, attention):
    model, plain = with_registers(family, attention)
    ids = padded(SEQ, SEQ)["input_ids"]
    expected = torch.stack([logits_by_hand(plain, model, text) for text in ids])
    for shape, given in masks(family, attention, model.config).items():
        if shape == "packed" or "padding" in shape or (family in WINDOWED and ("4-D" in shape or "dict" in shape)):
            continue  # other texts, or another mask than the model's own
        with torch.no_grad():
            torch.testing.assert_close(model(ids, **given).logits, expected, atol=2e-5, rtol=1e-4, msg=shape)


@pytest.mark.parametrize(("family", "attention"), [case for case in CASES if case[0] != "gpt2"])
def test_padding_without_positions_changes_nothing(family, attention):
    model, plain = with_registers(family, attention)
    batch = padded(12, 5, 8)
    wide = batch["attention_mask"].bool()[:, None, None] & torch.ones(12, 12, dtype=torch.bool).tril()
    wide = wide if attention == "sdpa" else torch.where(wide, 0.0, torch.finfo(torch.float32).min)
    given = [batch["attention_mask"]] + ([] if family in WINDOWED else [wide])
    for mask in given:
        with torch.no_grad():
            found = model(batch["input_ids"], attention_mask=mask).logits
        for row, text in enumerate(rows(batch)):
            expected = logits_by_hand(plain, model, text)
            torch.testing.assert_close(found[row, -len(text) :], expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "attention"), CASES)
def test_masked_registers_change_nothing_in_any_step(family, attention):
    model, plain = with_registers(family, attention)
    ids = padded(SEQ, SEQ)["input_ids"]
    with torch.no_grad(), mask_registers(model):
        expected = plain(ids).logits
        torch.testing.assert_close(model(ids).logits, expected, atol=2e-5, rtol=1e-4)
        cache = DynamicCache(config=model.config)
        steps = [model(ids[:, place : place + 3], **{CACHE: cache}).logits for place in range(0, SEQ, 3)]
    torch.testing.assert_close(torch.cat(steps, 1), expected, atol=2e-5, rtol=1e-4)
