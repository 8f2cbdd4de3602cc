"""MuToR: registers that predict, against brute force; plain inference; runs with it alone, and with LoRA."""

from __future__ import annotations

import pytest
import torch

import regtune
from command_line import invoke
from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
from regtune.errors import InputError, UnsupportedModelError
from regtune.methods.mutor import AttachedMutor, MutorSettings, register_places, what_is_seen
from regtune.records import read_json
from regtune.registry import METHODS
from regtune.rows.texts import NOT_SCORED
from regtune.session import SharedInputs
from regtune.sweeps.run import build_session, run_experiment
from regtune.testing import check_method
from regtune.training.trainer import RegisterTrainer
from tiny import tiny_model
from tiny_tokenizer import save_tiny

FAMILIES = ("llama", "gpt2", "qwen3", "gpt_neox")


def answers(*, left=False):
    """Three rows of prompt and answer, the second and third padded; and labels on the answers alone."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 120, (3, 11), generator=generator)
    mask, labels = torch.ones_like(ids), ids.clone()
    for row, (prompt, length) in enumerate([(4, 11), (2, 7), (3, 5)]):
        start = 11 - length if left else 0
        mask[row] = 0
        mask[row, start : start + length] = 1
        labels[row] = NOT_SCORED
        labels[row, start + prompt : start + length] = ids[row, start + prompt : start + length]
    return ids, mask, labels


def brute_force(model, vector, ids, mask, labels, offset, weight):
    """The loss, one register at a time: the plain model on the tokens before it and it, with position ids."""
    table, next_tokens, ahead = model.get_input_embeddings(), [], []
    for row in range(len(ids)):
        places = mask[row].nonzero().flatten().tolist()
        for place in places[1:]:
            if labels[row, place] == NOT_SCORED:
                continue
            before = [one for one in places if one < place]
            words, positions = table(ids[row, before])[None], torch.tensor([before])
            logits = model(
                inputs_embeds=words, position_ids=positions, attention_mask=torch.ones(1, len(before))
            ).logits
            next_tokens.append(-logits[0, -1].log_softmax(-1)[ids[row, place]])
            target = place + offset
            if target in places and labels[row, target] != NOT_SCORED:
                words = torch.cat([words, vector[None, None]], dim=1)
                positions = torch.tensor([[*before, target - 1]])
                ones = torch.ones(1, len(before) + 1)
                logits = model(inputs_embeds=words, position_ids=positions, attention_mask=ones).logits
                ahead.append(-logits[0, -1].log_softmax(-1)[ids[row, target]])
    return (1 - weight) * torch.stack(next_tokens).mean() + weight * torch.stack(ahead).mean()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_are_those_of_brute_force_with_prompts_padding_and_batches(family, attention, monkeypatch):
    for left in (False, True):
        for offset in (0, 1, 3):
            monkeypatch.setattr(torch, "randint", lambda *_, chosen=offset, **__: torch.tensor(chosen))
            model = tiny_model(family, "causal-lm", attention)
            attached = AttachedMutor(model, MutorSettings(weight=0.3))
            vector = model.mutor.vector
            monkeypatch.undo()
            ids, mask, labels = answers(left=left)
            monkeypatch.setattr(torch, "randint", lambda *_, chosen=offset, **__: torch.tensor(chosen))
            model.training = True  # its layers stay as they are, without dropout
            found = model(input_ids=ids, attention_mask=mask, labels=labels)
            (gradient,) = torch.autograd.grad(found.loss, vector)
            with attached.disabled():
                expected = brute_force(model, vector, ids, mask, labels, offset, 0.3)
                (wanted,) = torch.autograd.grad(expected, vector)
                plain = model(input_ids=ids, attention_mask=mask).logits
            assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)
            assert torch.allclose(gradient, wanted, atol=1e-6 + 1e-4 * float(wanted.abs().max()))
            assert torch.allclose(found.logits[mask.bool()], plain[mask.bool()], atol=1e-4)
            monkeypatch.undo()


def test_a_register_stands_before_each_learnt_token_whose_target_is_learnt_too():
    labels = torch.tensor([[9, 9, -100, 9, 9, 9], [-100, -100, -100, -100, 9, 9]])
    places, there = register_places(labels, 0)
    assert [row[ok].tolist() for row, ok in zip(places, there, strict=True)] == [[1, 3, 4, 5], [4, 5]]
    places, there = register_places(labels, 2)
    assert [row[ok].tolist() for row, ok in zip(places, there, strict=True)] == [[1, 3], []]
    assert register_places(labels[1:], 3)[0].shape == (1, 0)


def test_a_register_sees_the_tokens_before_it_and_itself_and_nobody_sees_a_register():
    text = torch.tensor([[False, True, True, True]])
    seen = what_is_seen(text, torch.tensor([[3, 2]]))[0]
    for place in range(4):
        assert seen[place].nonzero().flatten().tolist() == list(range(1, place + 1)) or place == 0
    assert seen[4].nonzero().flatten().tolist() == [1, 2, 4]
    assert seen[5].nonzero().flatten().tolist() == [1, 5]


def test_a_batch_without_room_for_a_register_still_gives_every_parameter_a_gradient():
    model = tiny_model("llama", "causal-lm").train()
    AttachedMutor(model, MutorSettings(d_max=1))
    ids = torch.tensor([[5, 6, 7]])
    labels = torch.full_like(ids, NOT_SCORED)
    model(input_ids=ids, labels=torch.tensor([[5, NOT_SCORED, 7]])).loss.backward()
    assert model.mutor.vector.grad is not None
    model.zero_grad()
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    assert loss.item() == 0
    assert float(model.mutor.vector.grad.abs().sum()) == 0


def test_accumulated_batches_weigh_as_many_as_their_tokens():
    model = tiny_model("llama", "causal-lm").train()
    AttachedMutor(model, MutorSettings(d_max=1))
    ids, mask, labels = answers()
    whole = model(input_ids=ids, attention_mask=mask, labels=labels)
    half = model(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=torch.tensor(28))
    count = int((labels != NOT_SCORED).sum())
    assert half.loss.item() == pytest.approx(whole.loss.item() * count / 28)


def test_full_masks_and_other_kernels_are_refused():
    model = tiny_model("llama", "causal-lm").train()
    AttachedMutor(model, MutorSettings())
    ids, _, labels = answers()
    with pytest.raises(InputError, match=r"attention_mask must be \[batch, seq\]"):
        model(input_ids=ids, labels=labels, attention_mask=torch.ones(3, 1, 11, 11, dtype=torch.bool))
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="'flash_attention_2', which takes no mask"):
        model(input_ids=ids, labels=labels)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutor")
    for family in ("llama", "gpt2", "mistral"):
        save_tiny(folder / family, family, head="causal-lm")
    save_tiny(folder / "classes", "llama", head="sequence-classification")
    (folder / "pairs.csv").write_text(
        "prompt,answer\n" + "".join(f"who is in {n % 2},the cat lives in the house {n % 2}\n" for n in range(12))
    )
    return folder


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_keeps_the_promises_of_a_method(place, family):
    check_method("mutor", place / family, task="lm")


def config_of(place, name, model="llama", registers=0, **methods):
    sets = (str(place / "pairs.csv"),)
    return RunConfig(
        task="instruct",
        model=str(place / model),
        output_dir=place / name,
        registers=RegisterConfig(num_registers=registers),
        data=DataConfig(train=sets, eval=sets, max_length=40),
        training=TrainConfig(epochs=2.0, batch_size=4, learning_rate=1e-2, precision="float32"),
        methods=methods,
    )


CASES = {
    "alone": ("llama", 0, {"mutor": {}}),
    "of_gpt2": ("gpt2", 0, {"mutor": {"d_max": 2}}),
    "with_registers": ("llama", 2, {"mutor": {}}),
    "behind_lora": ("llama", 0, {"lora": {}, "mutor": {}}),
    "before_lora_with_registers": ("llama", 2, {"mutor": {}, "lora": {}}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_learns_with_it_and_leaves_nothing_of_it(place, name):
    model, registers, methods = CASES[name]
    config = config_of(place, name, model, registers, **methods)
    record = run_experiment(config, progress=False)
    plain = run_experiment(
        config_of(place, f"{name}_without", model, registers, **{k: v for k, v in methods.items() if k != "mutor"}),
        progress=False,
    )
    assert record.metrics["pairs"]["perplexity"] != plain.metrics["pairs"]["perplexity"]
    assert ("MuToR" in record.label, "MuToR" in plain.label) == (True, False)
    assert record.parameters["total"] == plain.parameters["total"]
    session = regtune.open(config.output_dir)
    assert not [key for key in session.model.state_dict() if "mutor" in key]
    found = [one.to_json() for one in session.predict(session.sample())]
    said = read_json(config.output_dir / record.predictions["pairs"])
    assert [one["nats"] for one in found] == pytest.approx([one["nats"] for one in said], rel=1e-5)


def test_a_run_that_was_killed_goes_on_with_its_vector(place, monkeypatch):
    whole = run_experiment(config_of(place, "whole", mutor={}), progress=False)
    config = config_of(place, "killed", mutor={})

    def stop(self, *args, **kwargs):
        raise KeyboardInterrupt

    save = RegisterTrainer._save_checkpoint
    with monkeypatch.context() as patched:
        patched.setattr(RegisterTrainer, "_save_checkpoint", lambda *given: (save(*given), stop(*given)))
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config, progress=False)
    record = run_experiment(config, progress=False)
    assert record.training["resumed_from"] == 3
    assert record.metrics == whole.metrics


def test_the_vector_learns_at_the_registers_rate(place):
    config = config_of(place, "rate", mutor={})
    model = build_session(config).model
    (group,) = METHODS.get("mutor").groups(model, MutorSettings(), TrainConfig(register_learning_rate=0.5))
    assert (group.learning_rate, group.parameters[0] is model.mutor.vector) == (0.5, True)


@pytest.mark.parametrize(
    ("model", "task", "methods", "told"),
    [
        ("classes", "classify", {}, r"the task classify learns no next tokens; tasks that do are lm and instruct"),
        ("mistral", "lm", {}, r"its layers see 7 tokens, fewer than data\.max_length=384; set --data\.max-length 7"),
        ("llama", "lm", {"prompt_tuning": {}}, r"prompt_tuning in the same run makes masks"),
    ],
)
def test_models_and_runs_that_it_does_not_fit_are_refused(place, model, task, methods, told):
    config = RunConfig(model=str(place / model), task=task, methods={"mutor": {}, **methods})
    session = SharedInputs().start(config)
    with pytest.raises(UnsupportedModelError, match=told):
        METHODS.get("mutor").attach(session, MutorSettings())


SWEEP = """
arms: [baseline, mutor, lora+mutor]
seeds: [0, 1]
training_sets: {pairs: [pairs.csv]}
evaluation_sets: [pairs.csv]
methods: {mutor: {d_max: 2}}
base:
  task: instruct
  model: llama
  registers: {num_registers: 0}
  data: {max_length: 40}
  training: {epochs: 1, batch_size: 4, precision: float32}
"""


def test_it_is_an_arm_of_sweeps_and_reports_compare_perplexities(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    (place / "sweep.yaml").write_text(SWEEP)
    code, _, err = invoke(capsys, ("sweep", "sweep.yaml", "--folder", "runs/sweep"))
    assert code == 0, err
    code, _, err = invoke(capsys, ("report", "runs/sweep", "--resamples", "500"))
    assert code == 0, err
    (page,) = (place / "runs" / "sweep").rglob("*.html")
    text = page.read_text()
    for word in ("MuToR, d_max", "LoRA, r", "perplexity"):
        assert word in text
