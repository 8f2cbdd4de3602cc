"""Claims about a training run: what it does, counts and gives back."""

import math

import pytest
import torch
from safetensors.torch import load_file

from regtune.config import RegisterConfig
from regtune.errors import ConfigError
from regtune.interfaces import Metric
from regtune.registers import card
from regtune.registers.surgery import add_registers, register_parameters
from regtune.training.checkpoints import SEAL
from tiny import tiny_model
from tiny_windows import MAX_LENGTH, even_windows, score, settings, tiny_run, tiny_windows


def test_a_run_counts_its_steps_and_text_tokens_and_learns(tmp_path):
    result, model = tiny_run(tmp_path, settings(epochs=6, learning_rate=1e-2))
    assert (result.steps, result.epochs, result.resumed_from) == (60, 6.0, None)
    assert result.text_tokens == 6 * sum(len(window.input_ids) for window in tiny_windows(40))
    assert result.tokens_per_second == pytest.approx(result.text_tokens / result.seconds)
    assert result.peak_memory_bytes > 1e7
    assert result.curve[-1]["loss"] < result.curve[0]["loss"]
    assert not model.training


def test_the_model_ends_with_the_weights_of_the_best_evaluation(tmp_path):
    scores = iter([0.1, 0.9, 0.9, 0.3])
    result, model = tiny_run(tmp_path, evaluate=lambda _: {"f1": next(scores), "exact_match": 0.5})
    assert (result.best_step, result.best_metrics) == (10, {"f1": 0.9, "exact_match": 0.5})
    best = load_file(tmp_path / "checkpoints" / "checkpoint-10" / "model.safetensors")
    last = load_file(tmp_path / "checkpoints" / "checkpoint-20" / "model.safetensors")
    state = model.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in best.items())
    assert not all(torch.equal(state[name], weight) for name, weight in last.items())


def test_the_best_and_the_newest_checkpoints_are_kept(tmp_path):
    scores = iter([0.9, 0.1, 0.2, 0.3])
    tiny_run(tmp_path, settings(save_total_limit=1), evaluate=lambda _: {"f1": next(scores)})
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")) == [
        "checkpoint-20",
        "checkpoint-5",
    ]


def test_a_checkpoint_is_weights_and_states_without_a_pickle_or_a_card_even_for_a_moment(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("written")

    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(card, "write_card", refuse)
    tiny_run(tmp_path)
    found = {path.name for path in (tmp_path / "checkpoints" / "checkpoint-20").iterdir()}
    states = {f"{name}.{end}" for name in ("optimizer", "lr_scheduler", "random_0") for end in ("json", "safetensors")}
    assert found == {"model.safetensors", "config.json", "trainer_state.json", SEAL} | states


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_runs_with_the_same_seeds_are_identical(tmp_path, precision):
    (first, one), (second, two) = (tiny_run(tmp_path / name, settings(precision=precision)) for name in "ab")
    assert first.curve == second.curve
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert all(parameter.dtype == torch.float32 for parameter in one.parameters())
    assert first.precision == precision


def test_the_seed_changes_dropout_and_the_data_seed_the_order(tmp_path):
    curves = [
        tiny_run(tmp_path / str(i), config)[0].curve
        for i, config in enumerate((settings(), settings(seed=1), settings(data_seed=1)))
    ]
    assert curves[0] != curves[1]
    assert curves[0] != curves[2]


def test_the_order_of_windows_is_the_same_for_every_number_of_registers_and_every_seed(tmp_path):
    seen = []
    for registers, seed in ((0, 0), (3, 0), (3, 1)):
        model = add_registers(tiny_model("bert"), RegisterConfig(num_registers=registers))
        batches = []
        model.register_forward_pre_hook(
            lambda module, args, batch, to=batches: to.append(batch["input_ids"].tolist()) if module.training else None,
            with_kwargs=True,
        )
        tiny_run(tmp_path / f"{registers}{seed}", settings(seed=seed), model=model)
        seen.append(batches)
    assert len(seen[0]) == 20
    assert seen[0] == seen[1] == seen[2]


def test_evaluating_does_not_change_training(tmp_path):
    def noisy(model):
        torch.rand(100)
        return score(model)

    quiet, noisy_run = tiny_run(tmp_path / "a")[0], tiny_run(tmp_path / "b", evaluate=noisy)[0]
    assert quiet.curve == noisy_run.curve


@pytest.mark.parametrize(
    ("schedule", "after"), [("linear", 0.5), ("cosine", 0.5 * (1 + math.cos(math.pi * 0.5))), ("constant", 1.0)]
)
def test_each_group_warms_up_and_follows_the_schedule_at_its_own_peak(tmp_path, schedule, after):
    config = settings(schedule=schedule, register_learning_rate=1e-2, epochs=2, evals_per_epoch=10, warmup_ratio=0.2)
    curve = {point["step"]: point for point in tiny_run(tmp_path, config)[0].curve}
    for name, peak in (("learning_rate", 2e-3), ("register_learning_rate", 1e-2)):
        assert curve[1][name] == 0
        assert curve[3][name] == pytest.approx(peak / 2)
        assert curve[5][name] == pytest.approx(peak)
        assert curve[13][name] == pytest.approx(peak * after)


def test_registers_learn_and_frozen_ones_stay(tmp_path):
    for trainable in (True, False):
        model = add_registers(tiny_model("bert"), RegisterConfig(num_registers=2, trainable=trainable))
        before = [parameter.detach().clone() for parameter in register_parameters(model)]
        tiny_run(tmp_path / str(trainable), model=model)
        moved = [not torch.equal(a, b) for a, b in zip(before, register_parameters(model), strict=True)]
        assert all(moved) if trainable else not any(moved)


def test_padded_batching_pads_every_window_to_max_length(tmp_path):
    shapes = set()
    model = tiny_model("bert")
    model.bert.embeddings.register_forward_hook(
        lambda module, args, output: shapes.add(output.shape[1]) if module.training else None
    )
    result, _ = tiny_run(tmp_path, settings(batching="padded"), model=model)
    assert shapes == {MAX_LENGTH}
    assert result.text_tokens == 2 * sum(len(window.input_ids) for window in tiny_windows(40))


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path):
    changes = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
    runs = [
        tiny_run(
            tmp_path / str(size),
            settings(batch_size=size, gradient_accumulation_steps=8 // size, precision="float32", epochs=1),
            model=tiny_model("bert", **changes),
            windows=even_windows(40),
        )
        for size in (8, 2)
    ]
    assert runs[0][0].steps == runs[1][0].steps == 5
    for large, small in zip(runs[0][0].curve, runs[1][0].curve, strict=True):
        assert small == pytest.approx(large, rel=1e-3)


def test_gradient_checkpointing_gives_the_same_run_and_is_switched_off_afterwards(tmp_path):
    plain = tiny_run(tmp_path / "a", settings(precision="float32"))[0]
    saving, model = tiny_run(tmp_path / "b", settings(precision="float32", gradient_checkpointing=True))
    assert saving.curve[-1]["loss"] == pytest.approx(plain.curve[-1]["loss"], rel=1e-4)
    assert not model.is_activation_checkpointing


def test_a_fractional_number_of_epochs_is_trained_and_evaluated_at_its_end(tmp_path):
    result, _ = tiny_run(tmp_path, settings(epochs=1.5))
    assert (result.steps, result.epochs) == (15, 1.5)
    assert [point["step"] for point in result.curve if "f1" in point] == [5, 10, 15]


def test_without_an_evaluation_the_last_weights_stay(tmp_path):
    result, model = tiny_run(tmp_path, evaluate=None)
    assert (result.best_step, result.best_metrics) == (None, {})
    last = load_file(tmp_path / "checkpoints" / "checkpoint-20" / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in last.items())


def test_a_best_metric_that_is_not_measured_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="choose='bleu' is not among what evaluate returned: f1"):
        tiny_run(tmp_path, choose=Metric(name="bleu", title="BLEU", columns=("bleu",)))


def test_a_model_with_nothing_to_train_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="frozen"):
        tiny_run(tmp_path, model=tiny_model("bert").requires_grad_(requires_grad=False))


def _settings_of(model):
    """The model's config without what `save_pretrained` notes in it."""
    return {name: value for name, value in model.config.to_dict().items() if name not in ("dtype", "architectures")}


def test_a_run_prints_nothing_and_leaves_forward_and_config_alone(tmp_path, capfd):
    model = tiny_model("bert")
    before = _settings_of(model)
    tiny_run(tmp_path, model=model)
    assert capfd.readouterr() == ("", "")
    assert "forward" not in vars(model)
    assert _settings_of(model) == before


def test_without_a_choice_the_last_weights_stay_however_they_score(tmp_path):
    seen = []

    def falling(model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"f1": -float(len(seen))}

    result, model = tiny_run(tmp_path, evaluate=falling, choose=None)
    assert (result.best_step, result.best_metrics) == (None, {})
    assert len(seen) == 4
    assert all(torch.equal(value, seen[-1][name]) for name, value in model.state_dict().items())
    assert not all(torch.equal(value, seen[0][name]) for name, value in model.state_dict().items())


def test_a_metric_for_which_less_is_better_is_chosen_by_its_smallest_value(tmp_path):
    values = iter([3.0, 1.0, 2.0, 4.0])
    loss = Metric(name="loss", title="loss", columns=("loss",), higher_is_better=False)
    result, _ = tiny_run(tmp_path, evaluate=lambda _: {"loss": next(values)}, choose=loss)
    assert result.best_metrics["loss"] == 1.0
