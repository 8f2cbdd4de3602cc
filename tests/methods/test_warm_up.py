"""The masked-LM warm-up: it learns, it changes what it should and nothing else, and it can be interrupted."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import GPT2Config, GPT2Model

from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
from regtune.errors import CheckpointError, ConfigError, DataError, TrainingError, UnsupportedModelError
from regtune.methods.warm_up import WARM_UP_FILE, WarmUpSettings, cut_passages, masked_lm_on, warm_up
from regtune.registers.surgery import backbone_of, num_registers, register_parameters
from regtune.sweeps.run import build_session, run_experiment
from regtune.tasks.mlm import mask_tokens
from tiny import FAMILIES
from tiny_tokenizer import save_questions, save_tiny, tiny_tokenizer

TEXTS = [f"the cat lives in the house {index}. who was in the house?" for index in range(12)] * 2


def config_for(folder, family="bert", *, registers=3, **warm) -> RunConfig:
    base = folder / family
    if not base.is_dir():
        save_tiny(base, family)
    settings = {"steps": 8, "batch_size": 6, "learning_rate": 1e-3, "register_learning_rate": 1e-2} | warm
    return RunConfig(
        model=str(base),
        registers=RegisterConfig(num_registers=registers),
        data=DataConfig(max_length=40),
        settings={"stride": 8, "max_question_length": 20},
        training=TrainConfig(precision="float32", batch_size=4),
        methods={"warm_up": settings},
    )


def warmed(folder, config):
    """A model before and after its warm-up, as state dicts, with the facts."""
    folder.mkdir(exist_ok=True)
    session = build_session(config)
    model, tokenizer = session.model, session.reader
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = WarmUpSettings(**config.methods["warm_up"])
    facts = warm_up(model, TEXTS, tokenizer, settings=settings, config=config, folder=folder)
    return model, before, model.state_dict(), facts


def changed(before, after) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def is_register(name: str) -> bool:
    return ".registers." in name


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_warms_up_on_its_own_backbone(tmp_path, family):
    config = config_for(tmp_path, family)
    _, before, after, facts = warmed(tmp_path / "run", config)
    touched = changed(before, after)
    head = {name for name in before if name.startswith(("qa_outputs", "classifier"))}
    assert head
    assert not touched & head
    assert {name for name in before if is_register(name)} <= touched
    assert len(touched) > len(before) / 2
    assert facts["steps"] == facts["curve"][-1]["step"] == 8


def test_the_loss_falls(tmp_path):
    *_, facts = warmed(tmp_path / "run", config_for(tmp_path, steps=80))
    losses = [point["loss"] for point in facts["curve"]]
    assert losses[-1] < 0.8 * losses[0]
    assert facts["passages"] == 12
    assert facts["text_tokens"] > 80 * 6 * 5


def test_registers_alone_learn_and_the_backbone_stays_bit_identical(tmp_path):
    model, before, after, _ = warmed(tmp_path / "run", config_for(tmp_path, trainable="registers"))
    touched = changed(before, after)
    assert touched
    assert all(is_register(name) for name in touched)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_control_does_the_same_without_registers(tmp_path):
    model, before, after, facts = warmed(tmp_path / "run", config_for(tmp_path, registers=0))
    assert num_registers(model) == 0
    assert len(changed(before, after)) > len(before) / 2
    assert facts["text_tokens"] == warmed(tmp_path / "other", config_for(tmp_path))[3]["text_tokens"]


def test_the_head_and_the_random_state_are_those_of_a_run_without_warm_up(tmp_path):
    config = config_for(tmp_path)
    session = build_session(config)
    model, tokenizer = session.model, session.reader
    state = torch.get_rng_state()
    (tmp_path / "run").mkdir()
    settings = WarmUpSettings(**config.methods["warm_up"])
    warm_up(model, TEXTS, tokenizer, settings=settings, config=config, folder=tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state)
    plain = build_session(dataclasses.replace(config, methods={})).model
    assert torch.equal(model.qa_outputs.weight, plain.qa_outputs.weight)


def test_a_second_start_goes_on_from_the_same_weights(tmp_path, monkeypatch):
    config = config_for(tmp_path)
    _, _, first, facts = warmed(tmp_path / "run", config)
    monkeypatch.setattr("regtune.methods.warm_up.masked_lm_on", None)
    _, _, second, again = warmed(tmp_path / "run", config)
    assert not changed(first, second)
    assert again == facts


def test_a_warm_up_that_was_interrupted_ends_with_the_same_weights(tmp_path):
    config = config_for(tmp_path)
    _, _, first, _ = warmed(tmp_path / "one", config)
    _, _, second, _ = warmed(tmp_path / "two", config)
    assert not changed(first, second)


def test_a_broken_result_is_refused(tmp_path):
    config = config_for(tmp_path)
    warmed(tmp_path / "run", config)
    path = tmp_path / "run" / WARM_UP_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"warm_up\.safetensors can't be used .* Delete it"):
        warmed(tmp_path / "run", config)


def test_frozen_registers_cannot_be_warmed_up_alone(tmp_path):
    config = config_for(tmp_path, registers=0, trainable="registers")
    with pytest.raises(ConfigError, match="has 0 registers and none that learn"):
        warmed(tmp_path / "run", config)


def test_frozen_registers_and_a_frozen_backbone_are_frozen_again_afterwards(tmp_path):
    config = config_for(tmp_path)
    config = dataclasses.replace(config, registers=RegisterConfig(num_registers=2, trainable=False))
    config = dataclasses.replace(config, methods={**config.methods, "linear_probe": {}})
    model, before, after, _ = warmed(tmp_path / "run", config)
    assert not any(is_register(name) for name in changed(before, after))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {"qa_outputs.weight", "qa_outputs.bias"}


def test_a_loss_that_is_no_number_stops_the_warm_up(tmp_path, monkeypatch):
    for kind in (WarmUpSettings, TrainConfig):  # no allowed rate is so wrong
        monkeypatch.setattr(kind, "__post_init__", lambda _: None)
    with pytest.raises(TrainingError, match=r"before training became nan at step \d+ of 50.*warm_up\.learning_rate"):
        warmed(tmp_path / "run", config_for(tmp_path, steps=50, learning_rate=1e30))


def test_the_masked_model_has_the_very_same_backbone_and_a_tied_decoder(tmp_path):
    config = config_for(tmp_path)
    model = build_session(config).model
    masked = masked_lm_on(model, config)
    assert backbone_of(masked) is backbone_of(model)
    assert masked.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert register_parameters(masked) == register_parameters(model)


def test_a_model_without_a_masked_lm_head_is_refused(tmp_path):
    model = build_session(config_for(tmp_path)).model
    GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UnsupportedModelError, match=r"gpt2 can't be warmed up: no masked-LM model .*GPT2Config"):
        masked_lm_on(model, dataclasses.replace(config_for(tmp_path), model=str(tmp_path / "gpt2")))


def test_masks_follow_the_stated_shares_and_spare_special_tokens():
    ids = torch.randint(10, 1000, (100, 400))
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, 0] = True
    inputs, labels = mask_tokens(
        ids, special, probability=0.15, mask_token_id=4, vocabulary=1000, generator=torch.Generator().manual_seed(0)
    )
    chosen = labels != -100
    assert not chosen[:, 0].any()
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(inputs[~chosen], ids[~chosen])
    assert chosen[:, 1:].float().mean() == pytest.approx(0.15, abs=0.006)
    assert (inputs[chosen] == 4).float().mean() == pytest.approx(0.8, abs=0.02)
    assert (inputs[chosen] == ids[chosen]).float().mean() == pytest.approx(0.1, abs=0.02)


def test_at_least_one_token_is_masked():
    ids = torch.arange(10, 16).unsqueeze(0)
    special = torch.zeros_like(ids, dtype=torch.bool)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        _, labels = mask_tokens(ids, special, probability=1e-9, mask_token_id=4, vocabulary=99, generator=generator)
        assert (labels != -100).any()


def test_long_passages_are_cut_and_nothing_is_lost():
    tokenizer = tiny_tokenizer()
    pieces = cut_passages(["the cat " * 30, "the cat " * 30, "who"], tokenizer, max_length=16)
    assert all(len(piece) <= 16 and piece[0] == tokenizer.cls_token_id for piece in pieces)
    content = [i for piece in pieces for i in piece if i not in tokenizer.all_special_ids]
    assert content == tokenizer("the cat " * 30 + "who", add_special_tokens=False)["input_ids"]
    with pytest.raises(DataError, match="no passages"):
        cut_passages([], tokenizer, max_length=16)


def test_a_whole_run_with_a_warm_up_records_it(tmp_path):
    save_questions(tmp_path / "q.json")
    config = config_for(tmp_path, steps=12)
    data = dataclasses.replace(config.data, train=(str(tmp_path / "q.json"),), eval=(str(tmp_path / "q.json"),))
    training = dataclasses.replace(config.training, epochs=1.0)
    config = dataclasses.replace(config, data=data, training=training, output_dir=tmp_path / "run")
    record = run_experiment(config, progress=False)
    assert [point["step"] for point in record.training["warm_up"]["curve"]] == [10, 12]
    assert record.training["steps"] == 2
