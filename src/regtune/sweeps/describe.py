"""What a model or a run directory is, read from its files without loading the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regtune.errors import CheckpointError
from regtune.records import RunRecord
from regtune.registry import TASKS
from regtune.session import Target, open_target
from regtune.stats.comparison import shown
from regtune.sweeps.scored import faults
from regtune.tables import Column, Table


def describe(name: str) -> dict[str, Any]:
    """Architecture, family, registers, parameters and, for a run, its metrics, versions and times; plain JSON types.

    Args:
        name: a run directory, a model's folder, a hub name or `minilm`.

    Raises:
        CheckpointError: nothing there that can be read, or weights that are cut short.
        MissingExtraError: `minilm` without the `demo` extra.
    """
    target = open_target(name)
    facts = {"name": name} | _model_facts(target)
    if target.record is not None:
        facts["run"] = _run_facts(target.record)
        facts["run"]["faults"] = faults(Path(target.run_dir or "."), target.record)
    return facts


def _model_facts(target: Target) -> dict[str, Any]:
    from regtune.families import family_of
    from regtune.models.loading import adapter_settings, load_config, resolve_model
    from regtune.registers.surgery import CONFIG_KEY

    location = resolve_model(target.model)
    config = load_config(location)
    adapter = adapter_settings(location) or {}
    try:
        family = family_of(config).name
    except TypeError as error:  # UnsupportedModelError: telling what it is must work for any model
        family = f"not supported: {error}"
    return {
        "model": location,
        "architecture": (config.architectures or [type(config).__name__])[0],
        "model_type": config.model_type,
        "family": family,
        "layers": getattr(config, "num_hidden_layers", None),
        "hidden_size": getattr(config, "hidden_size", None),
        "positions": getattr(config, "max_position_embeddings", None),
        "registers": adapter.get(CONFIG_KEY) or getattr(config, CONFIG_KEY, None),
        "adapter": {"kind": adapter.get("peft_type"), "base": adapter.get("base_model_name_or_path")}
        if adapter
        else None,
        "parameters": _parameters(Path(location)),
    }


def _parameters(folder: Path) -> dict[str, int] | None:
    """Numbers in a local folder's safetensors files, all and the registers'; None for a hub name."""
    from safetensors import SafetensorError, safe_open

    from regtune.models.safety import check_model_files

    if not folder.is_dir():
        return None
    check_model_files(folder)
    total = registers = 0
    file = folder
    try:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118 (not a mapping)
                    size = math.prod(weights.get_slice(key).get_shape())
                    total += size
                    registers += size if "registers." in key else 0
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: the weights are cut short or damaged ({error}). Copy them again.") from error
    return {"total": total, "registers": registers}


def _run_facts(record: RunRecord) -> dict[str, Any]:
    return {
        "model": record.config.get("model"),
        "config_hash": record.config_hash,
        "task": record.task,
        "started": record.started,
        "seconds": record.seconds,
        "metrics": record.metrics,
        "training": {key: value for key, value in record.training.items() if not isinstance(value, (list, dict))},
        "versions": record.versions,
        "machine": record.machine,
    }


def describe_text(facts: dict[str, Any]) -> str:
    """The facts as lines."""
    parameters, registers = facts["parameters"], facts["registers"]
    rows = [
        ("model", facts["model"]),
        ("architecture", f"{facts['architecture']} ({facts['model_type']})"),
        ("family", facts["family"]),
        ("size", f"{facts['layers']} layers, hidden size {facts['hidden_size']}, {facts['positions']} positions"),
        ("registers", _settings(_counts_first(registers)) if registers else "none"),
    ]
    if parameters:
        rows.append(("parameters", f"{parameters['total']:,}, of them {parameters['registers']:,} in registers"))
    if facts["adapter"]:
        rows.append(("adapter", f"{facts['adapter']['kind']} on {facts['adapter']['base']}"))
    run = facts.get("run")
    if run:
        rows += [
            ("fine-tuned from", run["model"]),
            ("run", f"{run['started']}, {run['seconds']:.0f} s, {run['config_hash']}"),
        ]
        rows += [(f"on {name}", _scores(metrics, run["task"])) for name, metrics in run["metrics"].items()]
        rows += [("not to be relied on", fault) for fault in run["faults"]]
        rows += [(part, _settings(run[part])) for part in ("training", "versions", "machine")]
    return Table(columns=("", Column("", align="left")), rows=tuple(rows)).text


def scores_text(record: RunRecord) -> str:
    """The task's metrics on each evaluation set, a line each."""
    return "\n".join(f"{name}: {_scores(values, record.task)}" for name, values in record.metrics.items())


def _counts_first(registers: dict[str, Any]) -> dict[str, Any]:
    """Settings of registers, how many in front; of a decoder's own nothing is said where it has none."""
    counts = {name: registers.get(name) for name in ("num_registers", "decoder_registers")}
    return {name: value for name, value in {**counts, **registers}.items() if value or name != "decoder_registers"}


def _settings(values: dict[str, Any]) -> str:
    said = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
    return ", ".join(f"{key} {value}" for key, value in said.items() if value is not None)


def _scores(values: Mapping[str, float], task: str) -> str:
    known = {metric.name: metric for metric in TASKS.get(task).metrics}
    return ", ".join(
        f"{known[name].title} {shown(known[name], value)}" for name, value in values.items() if name in known
    )
