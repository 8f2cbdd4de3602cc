"""QLoRA: a base in 4 bits, on a CPU too; and what bitsandbytes may do when it is imported."""

from __future__ import annotations

import logging
import sys

import peft
import pytest
import torch

from methods.conformance import WORKS, Cell, outcome, prepare
from regtune import RegisterConfig, RegisterLoraConfig, num_registers
from regtune.errors import ConfigError, MissingExtraError
from regtune.methods.peft_kinds import import_bitsandbytes
from regtune.session import SharedInputs
from tiny import inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def installed():
    return pytest.importorskip("bitsandbytes")


def config(n=0, **fields):
    registers = RegisterConfig(num_registers=n)
    fields = {"target_modules": "all-linear", "modules_to_save": ["qa_outputs"], "quantised": True} | fields
    return RegisterLoraConfig(registers=registers, r=4, **fields)


def logits(model):
    with torch.no_grad():
        return model.eval()(**inputs("bert", pad=4)).start_logits


def test_it_is_trained_saved_opened_and_scored_alone_and_with_registers(installed, tmp_path):
    folder, shared = prepare(tmp_path), SharedInputs()
    for registers in (False, True):
        assert outcome(Cell("qlora", "BERT", "qa", registers), folder, shared) == WORKS


@pytest.mark.parametrize("n", [0, 3])
def test_the_layers_are_held_in_4_bits_and_one_adapter_gives_the_same_bits_again(installed, n, tmp_path):
    model = peft.get_peft_model(tiny_model("bert"), config(n))
    small = [module for module in model.modules() if isinstance(module, installed.nn.Linear4bit)]
    assert len(small) == 3 * 6, "every linear layer of every layer, no other"
    assert all(module.weight.dtype == torch.uint8 for module in small)
    base = tiny_model("bert")
    with model.disable_adapter():
        off = logits(model)
    assert not torch.equal(off, logits(base))
    assert (off - logits(base)).abs().max() < 0.5, "near the base in full"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_model("bert"), tmp_path)
    assert num_registers(again) == n
    assert torch.equal(logits(again), logits(model))
    with again.disable_adapter():
        assert torch.equal(logits(again), off)


def test_adapters_on_one_base_agree_on_its_bits(installed):
    model = peft.get_peft_model(tiny_model("bert"), config(2))
    model.add_adapter("second", config(1))
    assert sum(isinstance(module, installed.nn.Linear4bit) for module in model.modules()) == 3 * 6
    with pytest.raises(ConfigError, match=r"default, second, full can't share a base model: default, second \(quant"):
        model.add_adapter("full", config(1, quantised=False))
    with pytest.raises(ConfigError, match="quantised=True is for LoRA alone, not for REGISTER_LOHA"):
        peft.PeftConfig.from_peft_type(peft_type="REGISTER_LOHA", quantised=True)


def test_without_bitsandbytes_it_says_which_extra_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        MissingExtraError, match=r"QLoRA needs the package 'bitsandbytes'.*pip install 'regtune\[qlora\]'"
    ):
        peft.get_peft_model(tiny_model("bert"), config())


def test_bitsandbytes_is_imported_without_code_from_the_hub_and_without_its_warning(monkeypatch, tmp_path, caplog):
    (tmp_path / "kernels.py").write_text("raise SystemExit('code from the hub')")
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text(
        "import logging\n"
        "try:\n    import kernels\nexcept ImportError as error:\n"
        "    logging.getLogger('bitsandbytes.backends.cpu.ops').warning('Failed to load: %s', error)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    import_bitsandbytes()
    assert sys.modules["bitsandbytes"].__file__.startswith(str(tmp_path))
    assert not caplog.records
    assert "kernels" not in sys.modules
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("later")
    assert [record.message for record in caplog.records] == ["later"]
    monkeypatch.delitem(sys.modules, "bitsandbytes")
