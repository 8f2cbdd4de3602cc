"""What goes wrong in plain peft (0.21), each shown there first, and that it doesn't here."""

from __future__ import annotations

import dataclasses
import warnings

import peft
import pytest
import torch

from regtune.config import RegisterConfig, RunConfig
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.interfaces import Rows
from regtune.registers.surgery import add_registers, num_registers
from regtune.registry import METHODS
from regtune.session import Session
from tiny import inputs, tiny_model
from tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def attached(name, model, *, n=0, rows=None, **settings):
    """A session on a model with the method."""
    method = METHODS.get(name)
    config = RunConfig(registers=RegisterConfig(num_registers=n))
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, max_length=20),
        settings={"stride": 5, "max_question_length": 9},
    )
    session = Session(name="tiny", model=model, reader=tiny_tokenizer(), config=config)
    if n:
        add_registers(model, config.registers)
    method.attach(session, method.settings(**settings))
    if rows is not None:
        method.initialise(session, method.settings(**settings), rows)
    return session


def plain(model, kind, task=None, **fields):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, kind(task_type=task, **fields)).eval()


def start(model, **batch):
    with torch.no_grad():
        return model.eval()(**batch).start_logits


def pairs():
    batch = inputs("bert", pad=4)
    types = torch.zeros_like(batch["input_ids"])
    types[:, 8:] = 1
    return batch | {"token_type_ids": types}


def learnt(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def test_token_types_reach_the_model():
    batch = pairs()
    without = {name: value for name, value in batch.items() if name != "token_type_ids"}
    expected = start(tiny_model("bert"), **batch)
    assert not torch.equal(expected, start(tiny_model("bert"), **without))
    dropped = plain(tiny_model("bert"), peft.LoraConfig, "QUESTION_ANS", target_modules=["query"])
    assert torch.equal(start(dropped, **batch), start(dropped, **without)), "peft drops them"
    assert torch.equal(start(attached("lora", tiny_model("bert")).model, **batch), expected)


@pytest.mark.parametrize("name", ["prompt_tuning", "p_tuning", "mpt"])
@pytest.mark.parametrize("n", [0, 2])
def test_prompts_leave_before_the_head_and_labels_mean_the_text(name, n):
    batch, gold = pairs(), torch.tensor([3, 5, 7])
    theirs = plain(tiny_model("bert"), peft.PromptTuningConfig, "QUESTION_ANS", num_virtual_tokens=6)
    assert start(theirs, **batch).shape == (3, 26), "peft gives logits for its prompt too"
    model = learnt(attached(name, tiny_model("bert"), n=n, num_virtual_tokens=6).model).eval()
    output = model(**batch, start_positions=gold, end_positions=gold)
    assert output.start_logits.shape == (3, 20)
    expected = sum(
        torch.nn.functional.cross_entropy(logits, gold) for logits in (output.start_logits, output.end_logits)
    )
    torch.testing.assert_close(output.loss, expected / 2)
    output.loss.backward()
    learns = [(k, p.grad) for k, p in model.named_parameters() if p.requires_grad and not k.endswith("default.bias")]
    assert all(gradient is not None and gradient.abs().any() for _, gradient in learns)


@pytest.mark.parametrize("family", ["electra", "albert"])
def test_prompts_have_the_width_of_narrow_embeddings(family):
    batch = inputs(family, pad=4)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        start(plain(tiny_model(family), peft.PromptTuningConfig, "QUESTION_ANS", num_virtual_tokens=6), **batch)
    model = learnt(attached("prompt_tuning", tiny_model(family), num_virtual_tokens=6).model)
    assert not torch.equal(start(model, **batch), start(tiny_model(family), **batch))


@pytest.mark.parametrize(("family", "part"), [("modernbert", "head.dense"), ("deberta-v2", "pooler.dense")])
def test_the_whole_head_learns(family, part):
    theirs = plain(
        tiny_model(family, "sequence-classification"), peft.LoraConfig, "SEQ_CLS", target_modules="all-linear", r=2
    )
    frozen = [n for n, p in theirs.named_parameters() if part in n and "lora_" not in n and not p.requires_grad]
    assert frozen, "peft leaves it frozen"
    model = attached("lora", tiny_model(family, "sequence-classification")).model
    heads = [(n, p) for n, p in model.named_parameters() if "modules_to_save" in n]
    assert any(part in name for name, _ in heads)
    assert all(parameter.requires_grad for _, parameter in heads)
    outside = {n.split(".modules_to_save")[0] for n, _ in heads}
    assert all(
        any(path.startswith(f"base_model.model.{n.rpartition('.')[0]}") for path in outside)
        for n, _ in tiny_model(family, "sequence-classification").named_parameters()
        if not n.startswith(tiny_model(family).base_model_prefix)
    )


@pytest.mark.parametrize("family", ["mpnet", "modernbert"])
def test_a_prefix_that_would_be_dropped_is_refused(family):
    model = tiny_model(family, "masked-lm")
    batch = inputs(family)
    with torch.no_grad():
        expected = model(**batch).logits
    theirs = plain(model, peft.PrefixTuningConfig, "FEATURE_EXTRACTION", num_virtual_tokens=4)
    with torch.no_grad():
        dead = theirs(input_ids=batch["input_ids"]).logits
    assert torch.equal(dead, expected), "peft's prefix does nothing, and says nothing"
    with pytest.raises(UnsupportedModelError, match=r"prefix tuning can't be put onto tiny: .*so a prefix is dropped"):
        attached("prefix", tiny_model(family, "masked-lm"))


@pytest.mark.parametrize("name", ["pissa", "olora"])
@pytest.mark.parametrize("n", [0, 2])
def test_methods_that_start_from_the_base_leave_it_where_it_is(name, n, tmp_path):
    batch = pairs()
    expected = start(tiny_model("bert"), **batch)
    theirs = plain(tiny_model("bert"), peft.LoraConfig, target_modules=["query", "value"], init_lora_weights=name)
    with theirs.disable_adapter():
        assert (start(theirs, **batch) - expected).abs().max() > 0.01, "peft moves the base"
    session = attached(name, tiny_model("bert"), n=n)
    if not n:
        torch.testing.assert_close(start(session.model, **batch), expected, atol=1e-4, rtol=1e-4)
    check_kept(session.model, batch, expected, tmp_path)
    kind = session.model.peft_config["default"]
    assert (kind.r, kind.init_lora_weights) == (16, True)


def check_kept(model, batch, base, folder):
    learnt(model)
    assert not torch.allclose(start(model, **batch), base, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(start(model, **batch), base)
    model.save_pretrained(folder)
    again = peft.PeftModel.from_pretrained(tiny_model("bert"), folder)
    assert torch.equal(start(again, **batch), start(model, **batch))


def loss_of(model):
    return model(**rows().collate(range(8), None)).loss


def rows():
    """Eight rows with answers."""
    batch = inputs("bert", batch=8)
    batch |= {"start_positions": torch.arange(8), "end_positions": torch.arange(8)}

    def collate(chosen, _):
        return {name: value[list(chosen)] for name, value in batch.items()}

    return Rows(rows=range(8), lengths=[20] * 8, example=list(range(8)), collate=collate, roles=lambda _: {})


def test_lora_ga_is_loaded_as_it_was_saved(tmp_path):
    batch = pairs()
    expected = start(tiny_model("bert"), **batch)
    config = peft.LoraConfig(
        r=4, target_modules=["query", "value"], init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig()
    )
    model = tiny_model("bert")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.preprocess_loraga(model, config, lambda: loss_of(model).backward())
    theirs = peft.get_peft_model(model, config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    again = peft.PeftModel.from_pretrained(tiny_model("bert"), tmp_path / "theirs")
    assert (start(again, **batch) - start(theirs, **batch)).abs().max() > 1e-3, "peft loads another model"
    session = attached("lora_ga", tiny_model("bert"), rows=rows(), r=4)
    torch.testing.assert_close(start(session.model, **batch), expected, atol=1e-4, rtol=1e-4)
    check_kept(session.model, batch, expected, tmp_path / "ours")


def test_the_half_that_holds_the_start_stays(tmp_path):
    session = attached("pissa", tiny_model("bert"), r=4)
    model, settings = session.model.train(), METHODS.get("pissa").settings(r=4)
    groups = METHODS.get("pissa").groups(model, settings, session.config.training)
    before = [parameter.detach().clone() for parameter in groups[0].parameters]
    optimizer = torch.optim.AdamW(groups[0].parameters, lr=0.1, weight_decay=groups[0].weight_decay)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    for parameter, old in zip(groups[0].parameters, before, strict=True):
        axis = 0 if parameter.shape[0] == 8 else 1
        (moved, kept), (was, held) = parameter.detach().chunk(2, dim=axis), old.chunk(2, dim=axis)
        assert torch.equal(kept, held)
        assert not torch.equal(moved, was)


def test_prompts_can_be_disabled_and_the_bases_own_head_answers():
    batch = pairs()
    expected = start(tiny_model("bert"), **batch)
    theirs = plain(tiny_model("bert"), peft.PromptTuningConfig, "QUESTION_ANS", num_virtual_tokens=6)
    with pytest.raises((UnboundLocalError, AttributeError)), theirs.disable_adapter():
        pass
    for n in (0, 2):
        model = learnt(attached("prompt_tuning", tiny_model("bert"), n=n, num_virtual_tokens=6).model)
        assert not torch.equal(start(model, **batch), expected)
        with model.disable_adapter():
            assert torch.equal(start(model, **batch), expected)
            assert num_registers(model) == 0
        assert num_registers(model) == n
        assert torch.equal(start(model.unload(), **batch), expected)


def test_prompts_that_leave_no_room_for_the_text_are_refused():
    with pytest.raises(
        ConfigError, match=r"num_virtual_tokens=50 and data.max_length=20 are more than the 66 positions"
    ):
        attached("prompt_tuning", tiny_model("bert"), num_virtual_tokens=50)


def test_lora_plus_learns_faster_in_the_second_matrix_and_registers_keep_their_rate():
    session = attached("lora_plus", tiny_model("bert"), n=2, ratio=8.0)
    method, training = METHODS.get("lora_plus"), session.config.training
    (group,) = method.groups(session.model, method.settings(ratio=8.0), training)
    names = {id(parameter): name for name, parameter in session.model.named_parameters()}
    assert len(group.parameters) == 18
    assert all(".lora_B." in names[id(parameter)] for parameter in group.parameters)
    assert group.learning_rate == 8 * training.learning_rate


def test_unknown_tokens_are_refused():
    with pytest.raises(ConfigError, match="'zebra' is no token of this model's vocabulary"):
        attached("trainable_tokens", tiny_model("bert"), tokens=("zebra",))
    session = attached("trainable_tokens", tiny_model("bert"), tokens=("cat", "house"))
    ids = session.model.peft_config["default"].token_indices
    assert ids == sorted(tiny_tokenizer().convert_tokens_to_ids(["cat", "house"]))
