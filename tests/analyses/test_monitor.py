"""RegisterMonitor: the analyses' own numbers during anybody's training, which stays as it is."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import regtune
import tiny_seq2seq
from regtune.analyses.artefacts.artefacts import artefact_statistics
from regtune.analyses.attention.attention import attention_statistics
from regtune.analyses.monitor import RegisterMonitor
from regtune.errors import ConfigError, DataError
from tiny import tiny_model
from tiny_tokenizer import VOCABULARY, tiny_tokenizer

TEXTS = ["The cat is in the house.", "Who lives in the house?", "a"]


class Seen(TrainerCallback):
    """A reporter: what `Trainer.log` hands to TensorBoard, W&B and the like."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append({"step": state.global_step, **logs})


def make_trainer(folder, *, registers=2, monitored=True, reader=True, **model_settings):
    model = tiny_model("bert", "sequence-classification", vocab_size=len(VOCABULARY), **model_settings)
    if registers:
        torch.manual_seed(1)
        regtune.add_registers(model, regtune.RegisterConfig(num_registers=registers))
    tokenizer = tiny_tokenizer()
    data = [{**tokenizer(text), "labels": number % 2} for number, text in enumerate(TEXTS * 4)]
    arguments = TrainingArguments(
        str(folder), max_steps=4, logging_steps=2, per_device_train_batch_size=3, report_to=[], save_strategy="no",
        learning_rate=1e-3, use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    seen = Seen()
    trainer = Trainer(
        model, arguments, train_dataset=data, processing_class=tokenizer if reader else None, callbacks=[seen]
    )
    if monitored:
        trainer.add_callback(RegisterMonitor(trainer, TEXTS))
    return trainer, seen


def monitor_of(trainer):
    return next(one for one in trainer.callback_handler.callbacks if isinstance(one, RegisterMonitor))


def test_it_logs_the_analyses_numbers_at_every_logging_step_beside_the_trainers_own(tmp_path):
    trainer, seen = make_trainer(tmp_path)
    trainer.train()
    ours = [log for log in seen.logs if "attention/register" in log]
    assert [log["step"] for log in ours] == [2, 4]
    assert [log["step"] for log in seen.logs if "loss" in log] == [2, 4]
    model, batch = trainer.model.eval(), monitor_of(trainer).batch
    attention, states = attention_statistics(model, [batch]), artefact_statistics(model, [batch])
    last = ours[-1]
    cls, sep, *_, register = attention.means["mass"].mean((0, 1))
    assert [last["attention/cls"], last["attention/sep"], last["attention/register"]] == [cls, sep, register]
    assert last["attention/sink_rate"] == attention.means["sink_rate"].mean()
    largest = states.by_text["block"]["norm_max_over_median"].mean(0).max()
    assert last["states/norm_max_over_median"] == largest >= 1
    (module,) = [part for part in model.modules() if type(part).__name__ == "Registers"]
    norms = module(1)[0].norm(dim=-1).tolist()
    assert [last["registers/norm_0"], last["registers/norm_1"]] == norms
    assert ours[0]["registers/norm_0"] != norms[0]
    assert trainer.state.log_history[0].keys() >= {"registers/norm_0", "epoch", "step"}


def test_training_is_the_same_bit_for_bit_with_and_without_it(tmp_path):
    weights = []
    for monitored in (True, False):
        trainer, _ = make_trainer(tmp_path, monitored=monitored, hidden_dropout_prob=0.3)
        trainer.train()
        assert trainer.model.training
        weights.append(copy.deepcopy(trainer.model.state_dict()))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_parts_that_were_in_evaluation_mode_stay_in_it(tmp_path):
    trainer, _ = make_trainer(tmp_path)
    model = trainer.model.train()
    model.bert.embeddings.eval()
    monitor_of(trainer).measure(model)
    assert model.training
    assert not model.bert.embeddings.training
    assert not model.bert.embeddings.dropout.training


def test_without_registers_the_rest_is_logged(tmp_path):
    trainer, seen = make_trainer(tmp_path, registers=0)
    trainer.train()
    assert sorted(key for key in seen.logs[0] if "/" in key) == [
        "attention/cls",
        "attention/sep",
        "attention/sink_rate",
        "states/norm_max_over_median",
    ]


def test_what_cannot_be_read_is_left_out_with_one_warning(tmp_path):
    trainer, _ = make_trainer(tmp_path)
    trainer.model.bert.config._attn_implementation_internal = "flex_attention"
    monitor = monitor_of(trainer)
    monitor.batch = {**monitor.batch, "attention_mask": torch.ones_like(monitor.batch["attention_mask"])}
    monitor._states = lambda model: {"states/norm_max_over_median": 1.0}
    with pytest.warns(UserWarning, match="leaves something out.*flex_attention") as caught:
        found = [monitor.measure(trainer.model) for _ in range(2)]
    assert len(caught) == 1
    assert [sorted(one) for one in found] == [
        ["registers/norm_0", "registers/norm_1", "states/norm_max_over_median"]
    ] * 2


def test_a_trainer_without_a_tokenizer_and_no_texts_are_refused(tmp_path):
    trainer, _ = make_trainer(tmp_path, monitored=False, reader=False)
    with pytest.raises(ConfigError, match="processing_class=tokenizer"):
        RegisterMonitor(trainer, TEXTS)
    trainer, _ = make_trainer(tmp_path, monitored=False)
    with pytest.raises(DataError, match="no text"):
        RegisterMonitor(trainer, [])


def test_a_decoder_s_own_registers_are_watched_beside_the_encoder_s():
    model = tiny_seq2seq.tiny_model("bart")
    config = regtune.RegisterConfig(num_registers=1, decoder_registers=2, init_std=1.0)
    trainer = SimpleNamespace(model=regtune.add_registers(model, config), processing_class=tiny_tokenizer())
    with pytest.warns(UserWarning, match="leaves something out"):
        found = RegisterMonitor(trainer, TEXTS).measure(model)
    own = model.get_decoder().registers(1)[0].norm(dim=-1)
    assert [found[f"registers/decoder_norm_{n}"] for n in range(2)] == pytest.approx(own.tolist())
    assert found["registers/norm_0"] == pytest.approx(model.get_encoder().registers(1)[0, 0].norm().item())
    assert "registers/norm_1" not in found
