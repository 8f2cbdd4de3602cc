"""Registers and LoRA in one adapter of peft: saved, loaded, switched, merged and taken off like any other."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import peft
import pytest
import torch

from regtune import RegisterConfig, RegisterLoraConfig, add_registers, from_pretrained, num_registers
from regtune.analyses.attribution.attribute import attribute
from regtune.errors import CheckpointError, ConfigError, InputError, UnsupportedModelError
from regtune.registers.surgery import find_registers, register_parameters
from tiny import inputs, tiny_model

TARGETS = ["query", "value"]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def config(n=3, *, r=4, **registers):
    registers = RegisterConfig(num_registers=n, **registers)
    return RegisterLoraConfig(registers=registers, r=r, target_modules=TARGETS, modules_to_save=["qa_outputs"])


def trained(model, seed=3):
    """Every weight that learns gets a value that shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def adapted(n=3, seed=3, **changes):
    return trained(peft.get_peft_model(tiny_model("bert"), config(n, **changes)), seed)


def logits(model, batch=None):
    with torch.no_grad():
        output = model(**(inputs("bert", pad=4) if batch is None else batch))
    return torch.stack([output.start_logits, output.end_logits])


def test_registers_learn_with_lora_and_the_base_is_frozen():
    model = peft.get_peft_model(tiny_model("bert"), config()).train()
    loss = model(**inputs("bert"), start_positions=torch.ones(3).long(), end_positions=torch.ones(3).long()).loss
    loss.backward()
    learnt = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learnt == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum("registers" in name for name in learnt) == 2
    assert all("lora_" in name or "registers" in name or "qa_outputs.modules_to_save" in name for name in learnt)
    assert not any(parameter.requires_grad for parameter in register_parameters(frozen()))


def frozen():
    return peft.get_peft_model(tiny_model("bert"), config(trainable=False))


def test_one_adapter_holds_both_and_gives_the_same_bits_again(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    expected = logits(model)
    assert expected.shape[-1] == 20
    again = peft.PeftModel.from_pretrained(tiny_model("bert"), tmp_path)
    assert num_registers(again) == 3
    assert torch.equal(logits(again), expected)
    assert not any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.slow
def test_after_import_regtune_peft_loads_it_whichever_came_first(tmp_path):
    adapted().save_pretrained(tmp_path / "adapter")
    tiny_model("bert").save_pretrained(tmp_path / "base")
    code = """
import sys
{imports}
from transformers import AutoModelForQuestionAnswering
base = AutoModelForQuestionAnswering.from_pretrained("base")
model = peft.PeftModel.from_pretrained(base, "adapter")
print(regtune.num_registers(model))
"""
    for imports in (
        "import regtune; assert not {'torch', 'peft'} & set(sys.modules); import peft",
        "import peft; import regtune",
    ):
        found = python(code.format(imports=imports), tmp_path)
        assert found.stdout.strip() == "3", found.stderr
    found = python("import peft; peft.PeftConfig.from_pretrained('adapter')", tmp_path)
    assert "REGISTER_LORA" in found.stderr, "without regtune, peft must not load it without its registers"


def python(code, folder):
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_disabled_the_adapter_leaves_the_base_bit_for_bit():
    plain = logits(tiny_model("bert"))
    model = adapted()
    assert not torch.equal(logits(model), plain)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
        assert num_registers(model) == 0
    assert num_registers(model) == 3


def test_adapters_on_one_base_have_their_own_n_and_are_switched(tmp_path):
    base = tiny_model("bert")
    plain, expected = logits(base), {}
    for name, n in (("few", 1), ("many", 6), ("none", 0)):
        model = adapted(n, seed=n)
        model.save_pretrained(tmp_path / name)
        expected[name] = logits(model)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "few", adapter_name="few")
    for name in ("many", "none"):
        model.load_adapter(tmp_path / name, adapter_name=name)
    for name, n in (("many", 6), ("few", 1), ("none", 0), ("few", 1)):
        model.set_adapter(name)
        assert num_registers(model) == n
        assert torch.equal(logits(model), expected[name])
        with model.disable_adapter():
            assert torch.equal(logits(model), plain)
    model.set_adapter("many")
    model.delete_adapter("few")
    assert torch.equal(logits(model), expected["many"])


def test_adapters_that_need_other_hooks_are_refused():
    model = adapted()
    with pytest.raises(ConfigError, match=r"'deep' has registers of depth='every_layer' and 'default' of 'input'"):
        model.add_adapter("deep", config(depth="every_layer"))
    with pytest.raises(ConfigError, match=r"base model has 2 registers of its own.*remove_registers"):
        peft.get_peft_model(add_registers(tiny_model("bert"), RegisterConfig(num_registers=2)), config())


def test_modules_to_save_may_name_the_registers_that_an_adapter_brings(tmp_path):
    named = {"target_modules": TARGETS, "modules_to_save": ["registers", "qa_outputs"]}
    model = peft.get_peft_model(tiny_model("bert"), RegisterLoraConfig(registers={"num_registers": 2}, **named))
    model.add_adapter("more", RegisterLoraConfig(registers={"num_registers": 5}, **named))
    for name, n in (("default", 2), ("more", 5)):
        model.set_adapter(name)
        trained(model, seed=n)
        model.save_pretrained(tmp_path, selected_adapters=[name])
        expected = logits(model)
        folder = tmp_path if name == "default" else tmp_path / name
        again = peft.PeftModel.from_pretrained(tiny_model("bert"), folder)
        assert num_registers(again) == num_registers(model) == n
        assert torch.equal(logits(again), expected)
    with pytest.raises(ConfigError, match=r"names 'registers', and there are none.*RegisterLoraConfig\(registers="):
        peft.get_peft_model(tiny_model("bert"), RegisterLoraConfig(**named))


def plain_lora(model):
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=TARGETS))


def inside_transformers(model):
    try:
        model.add_adapter(peft.LoraConfig(target_modules=TARGETS))
    except ValueError as error:  # transformers 5.24 takes adapters of its own from peft 0.22 on
        if "version of PEFT" not in str(error):
            raise
        pytest.skip(str(error))
    return model


def prompted(model):
    return peft.get_peft_model(model, peft.PromptTuningConfig(task_type="QUESTION_ANS", num_virtual_tokens=4))


@pytest.mark.parametrize("wrap", [plain_lora, inside_transformers, prompted])
def test_registers_that_an_adapter_would_be_saved_without_are_refused(wrap):
    model = wrap(tiny_model("bert"))
    with pytest.raises(UnsupportedModelError, match=r"would be saved without these registers.*RegisterLoraConfig"):
        add_registers(model, RegisterConfig(num_registers=2))
    assert find_registers(model) is None


def test_a_model_that_gave_its_adapter_back_takes_registers():
    for model in (plain_lora(tiny_model("bert")).merge_and_unload(), plain_lora(tiny_model("bert")).unload()):
        assert num_registers(add_registers(model, RegisterConfig(num_registers=2))) == 2


def test_one_batch_with_several_adapters_is_refused_and_says_how():
    model = adapted()
    model.add_adapter("other", config(1))
    with pytest.raises(InputError, match=r"Group the requests by adapter and switch: model.set_adapter\(name\)"):
        model(**inputs("bert"), adapter_names=["default", "other", "__base__"])


def test_merging_keeps_the_registers_and_unloading_gives_the_base(tmp_path):
    plain, model = logits(tiny_model("bert")), adapted()
    expected = logits(model)
    merged = model.merge_and_unload()
    assert not any("lora" in name or "base_layer" in name for name in merged.state_dict())
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-4)
    merged.save_pretrained(tmp_path)
    again = from_pretrained(type(merged), tmp_path, attn_implementation="eager")
    assert num_registers(again) == 3
    assert torch.equal(logits(again), logits(merged))
    base = adapted().unload()
    assert find_registers(base) is None
    assert base.state_dict().keys() == tiny_model("bert").state_dict().keys()
    assert torch.equal(logits(base), plain), "peft's own unload() would leave the trained head"


def test_an_adapter_for_another_base_is_refused_and_both_are_named(tmp_path):
    model = tiny_model("bert")
    model.name_or_path = "org/first"
    trained(peft.get_peft_model(model, config())).save_pretrained(tmp_path)
    other = tiny_model("bert", seed=1)
    other.name_or_path = "org/second"
    with pytest.raises(
        CheckpointError, match=r"made for the base model org/first, and this one is org/second \(digest"
    ):
        peft.PeftModel.from_pretrained(other, tmp_path)
    with pytest.raises(CheckpointError, match=r"num_hidden_layers 3 there, 2 here"):
        peft.PeftModel.from_pretrained(tiny_model("bert", num_hidden_layers=2), tmp_path)
    smaller = peft.PeftModel.from_pretrained(tiny_model("bert").to(torch.bfloat16), tmp_path)
    assert num_registers(smaller) == 3


@pytest.mark.parametrize("family", ["modernbert", "deberta-v2", "electra"])
def test_other_families_keep_the_same_promises(family, tmp_path):
    batch = inputs(family, pad=4)
    plain = logits(tiny_model(family), batch)
    kind = RegisterLoraConfig(
        registers={"num_registers": 2}, target_modules="all-linear", modules_to_save=["qa_outputs"]
    )
    model = trained(peft.get_peft_model(tiny_model(family), kind))
    expected = logits(model, batch)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), plain)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(tiny_model(family), tmp_path), batch), expected)


def test_the_settings_are_plain_json_and_checked(tmp_path):
    adapted().save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    saved = json.loads(file.read_text())
    assert (saved["peft_type"], saved["registers"]["num_registers"]) == ("REGISTER_LORA", 3)
    file.write_text(json.dumps(saved | {"registers": {"num_registers": "3"}}))
    with pytest.raises(CheckpointError, match=r"num_registers is '3', but must be a whole number"):
        peft.PeftModel.from_pretrained(tiny_model("bert"), tmp_path)


@pytest.mark.parametrize("requests", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_one_model_answers_as_two_do(requests, tmp_path):
    """Requests alternate between adapter and base: what comes out is what two models would say, byte for byte."""
    adapted().save_pretrained(tmp_path)
    both = peft.PeftModel.from_pretrained(tiny_model("bert", num_hidden_layers=3), tmp_path)
    apart = {"adapter": peft.PeftModel.from_pretrained(tiny_model("bert"), tmp_path), "base": tiny_model("bert")}
    generator = torch.Generator().manual_seed(0)
    for request in range(requests):
        length = int(torch.randint(4, 30, (1,), generator=generator))
        batch = {"input_ids": torch.randint(4, 120, (1, length), generator=generator)}
        if torch.rand(1, generator=generator) < 0.5:
            found, expected = logits(both, batch), logits(apart["adapter"], batch)
        else:
            with both.disable_adapter():
                found = logits(both, batch)
            expected = logits(apart["base"], batch)
        assert found.numpy().tobytes() == expected.numpy().tobytes(), request
    own = sum(p.numel() for p in both.parameters()) - sum(p.numel() for p in apart["base"].parameters())
    assert own == sum(p.numel() for n, p in both.named_parameters() if "lora_" in n or "modules_to_save" in n)


def test_it_is_explained_like_the_model_that_it_makes():
    """A PEFT model's own `forward` names no arguments; Chefer's rules want one weight in each layer."""
    model, batch = adapted(), inputs("bert", pad=4)
    merged = adapted().merge_and_unload()
    for method in ("attnlrp", "gradient-input"):
        for one, other in zip(
            attribute(model, batch, method=method), attribute(merged, batch, method=method), strict=True
        ):
            np.testing.assert_allclose(one.relevance, other.relevance, atol=1e-4)
    with pytest.raises(UnsupportedModelError, match=r"query has an adapter beside it.*merge the adapter"):
        attribute(model, batch, method="chefer")
    assert len(attribute(merged, batch, method="chefer")) == len(batch["input_ids"])
    with model.disable_adapter():
        assert attribute(model, batch, method="chefer")
