"""The doctor passes healthy models of every family and fails broken ones, with the number it measured."""

from __future__ import annotations

import hashlib

import pytest
import torch

import tiny_seq2seq
from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, ConfigError
from regtune.registers import hooks
from regtune.registers.decoders import _Step
from regtune.registers.hooks import RegisterHooks
from regtune.registers.registers import Registers
from regtune.registers.surgery import add_registers
from regtune.testing import doctor, invariants
from regtune.testing.doctor import examine, report_text
from regtune.testing.invariants import INVARIANTS
from tiny import tiny_model
from tiny_tokenizer import save_tiny

SMALL = RegisterConfig(num_registers=3)


def failed(report) -> set[str]:
    return {finding.name for finding in report.findings if finding.passed is False}


def digests(folder) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.parametrize("family", ["bert", "modernbert"])  # every family is in tests/registers/test_invariants.py
def test_a_healthy_model_passes(family, tmp_path):
    folder = save_tiny(tmp_path, family, tokenizer=False)
    before = digests(folder)
    report = examine(str(folder), SMALL)
    assert failed(report) == set()
    assert report.healthy
    assert "no registers of its own; 3 added" in report.summary
    proved = {finding.name for finding in report.findings if finding.passed}
    assert {"1 switching them off", "2 masking them", "4 saving and loading", "7 gradients"} <= proved
    assert digests(folder) == before, "the doctor must only read"


def test_a_checkpoint_with_registers_is_examined_as_it_is(tmp_path):
    model = add_registers(tiny_model("bert"), RegisterConfig(num_registers=5, placement="suffix", trainable=False))
    model.save_pretrained(tmp_path)
    report = examine(str(tmp_path), SMALL)
    assert report.healthy
    assert "5 registers of its own" in report.summary
    assert "frozen" in report_text(report)


@pytest.mark.parametrize("own", [0, 2])
def test_a_decoder_s_own_registers_are_counted_and_its_causality_proved(own, tmp_path, monkeypatch):
    model = tiny_seq2seq.tiny_model("t5")
    add_registers(model, RegisterConfig(num_registers=own, decoder_registers=3, init_std=1.0))
    model.save_pretrained(tmp_path)
    report = examine(str(tmp_path), SMALL)
    assert report.healthy
    assert f"{own} (encoder) and 3 (decoder) registers of its own" in report.summary
    assert "8 causality and cache" in {finding.name for finding in report.findings if finding.passed}
    extend = _Step.extend

    def registers_see_all(self, masks, *, explicit=False):
        mask = extend(self, masks, explicit=True)
        mask[..., : self.n, :] = True if mask.dtype == torch.bool else 0.0
        return mask

    monkeypatch.setattr(_Step, "extend", registers_see_all)
    assert "8 causality and cache" in failed(examine(str(tmp_path), SMALL))


@pytest.mark.parametrize("changes", [{"placement": "suffix"}, {"depth": "every_layer"}, {"layer_norm": True}])
def test_other_registers_can_be_tried(tmp_path, changes):
    assert examine(str(save_tiny(tmp_path)), RegisterConfig(num_registers=2, **changes)).healthy


def test_real_text_is_used_where_a_tokenizer_fits_and_random_tokens_elsewhere(tmp_path):
    def origin(folder) -> str:
        return next(f.text for f in examine(str(folder), SMALL).findings if f.name == "inputs")

    assert "3 texts, up to" in origin(save_tiny(tmp_path / "text"))
    assert "there is no tokenizer" in origin(save_tiny(tmp_path / "none", tokenizer=False))
    assert "no embedding for" in origin(save_tiny(tmp_path / "small", vocab_size=20))


def leave_them_in(self, module, args, kwargs, output):
    return None


def keep_visible(self, device, masked=None):
    return torch.ones(self.num_registers, dtype=torch.bool, device=device)


def without_gradient(self, batch, depth=0):
    return (self.tokens + self.positions).detach().unsqueeze(0).expand(batch, -1, -1)


def noise(self, batch, depth=0):
    return (self.tokens + torch.randn_like(self.tokens)).unsqueeze(0).expand(batch, -1, -1)


class Shared:
    """A pass that all threads see."""

    top = called = None
    aside = ()


@pytest.mark.parametrize(
    ("owner", "name", "broken", "expected"),
    [
        (RegisterHooks, "leave", leave_them_in, "3 staying inside"),
        (Registers, "visible", keep_visible, "2 masking them"),
        (Registers, "forward", without_gradient, "7 gradients"),
        (Registers, "forward", noise, "4 saving and loading"),
        (hooks, "thread", Shared(), "9 passes of their own"),
    ],
)
def test_a_broken_model_fails_the_promise_it_breaks(tmp_path, monkeypatch, owner, name, broken, expected):
    folder = str(save_tiny(tmp_path))
    monkeypatch.setattr(owner, name, broken)
    report = examine(folder, SMALL)
    assert expected in failed(report)
    assert not report.healthy
    assert "do not trust registers" in report_text(report)


def test_a_check_that_breaks_off_is_a_finding(tmp_path, monkeypatch):
    def broken(subject):
        raise RuntimeError("sizes differ")

    monkeypatch.setattr(invariants, "INVARIANTS", (("1 broken", broken), *INVARIANTS[1:2]))
    report = examine(str(save_tiny(tmp_path)), SMALL)
    assert failed(report) == {"1 broken"}
    assert "RuntimeError: sizes differ" in report_text(report)


def test_a_slow_tokenizer_fails(tmp_path, monkeypatch):
    class Slow:
        is_fast = False
        sep_token_id = 3
        unk_token_id = 0

        def __call__(self, *texts, **settings):
            return {"input_ids": [2, 10, 3, 11, 12, 3]}

    monkeypatch.setattr(doctor, "load_tokenizer", lambda name: Slow())
    report = examine(str(save_tiny(tmp_path)), SMALL)
    assert failed(report) == {"tokenizer"}
    assert "slow" in report_text(report)


def test_no_registers_and_no_model_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="nothing to examine"):
        examine(str(save_tiny(tmp_path / "model")), RegisterConfig(num_registers=0))
    with pytest.raises(CheckpointError, match="doesn't exist"):
        examine(str(tmp_path / "missing"))
