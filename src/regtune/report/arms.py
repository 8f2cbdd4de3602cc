"""Which arm, which number of registers, which seed: as a run's record says it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regtune.config import RunConfig, to_dict
from regtune.recipes import config_from_dict, resolved
from regtune.records import AGAIN, RUN_FILE, RunRecord

BASELINE, REGISTERS = "baseline", "registers"
_NOT_ARM = (
    "output_dir",
    "data.eval",
    "training.seed",
    "training.data_seed",
    "training.save_total_limit",
    "training.push_to_hub",
    "settings.batch_size",
)
"""Settings in which runs of one arm may differ."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What one cell of a sweep trains, its seed left out. Two runs with equal arms differ in the seed alone."""

    name: str
    """The label of its methods, from the record: `baseline`, `registers, N = 8`, `[SEP] copies, N = 8`."""
    num_registers: int
    settings: str
    """The whole config but seeds and output folder, as JSON: what makes two arms the same."""
    extra: str = ""
    """Told beside the name where two arms would otherwise have the same one."""

    @property
    def kind(self) -> str:
        """The name without N: `baseline`, `registers`, or what a control is."""
        return self.name.replace(f", N = {self.num_registers}", "")

    @property
    def label(self) -> str:
        """The arm's name in tables and figures."""
        return self.name + (f" ({self.extra})" if self.extra else "")

    @property
    def count(self) -> str:
        """The arm's name where all are registers."""
        return f"N = {self.num_registers}" + (f" ({self.extra})" if self.extra else "")

    @property
    def order(self) -> tuple[int, str, int, str]:
        """Baseline first, then registers by number, then the controls."""
        return ({BASELINE: 0, REGISTERS: 1}.get(self.kind, 2), self.kind, self.num_registers, self.extra)


def settings_of(record: RunRecord, folder: Path) -> dict[str, Any]:
    """Every setting of a run by its dotted name, with today's defaults for those that are newer than the record."""
    return flat(to_dict(resolved(config_from_dict(record.config, f"{folder / RUN_FILE}: config", remedy=AGAIN))))


def default_settings(task: str) -> dict[str, Any]:
    """The default of every setting of runs of a task, by its dotted name."""
    return flat(to_dict(resolved(RunConfig(task=task)))) | {"task": RunConfig.task}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def arm_of(record: RunRecord, settings: Mapping[str, Any]) -> Arm:
    """The arm of a run with those settings (`settings_of`)."""
    count = int(settings["registers.num_registers"])
    own = {name: value for name, value in settings.items() if name not in _NOT_ARM}
    if not count and not settings["registers.decoder_registers"]:  # settings of registers that don't exist
        own = {name: value for name, value in own.items() if "register" not in name or name.startswith("methods.")}
    return Arm(name=record.label, num_registers=count, settings=json.dumps(own, sort_keys=True))


def told_apart(arms: Sequence[Arm]) -> dict[Arm, Arm]:
    """Each arm with an `extra` that names what differs, wherever two of them have the same name."""
    named: dict[Arm, Arm] = {}
    for arm in arms:
        mine = json.loads(arm.settings)
        others = [json.loads(other.settings) for other in arms if other.name == arm.name]
        different = sorted({name for other in others for name in mine if mine[name] != other.get(name)})
        values = [f"{name.rpartition('.')[2]} {short(mine[name])}" for name in different]
        named[arm] = replace(arm, extra=", ".join(values))
    return named


def short(value: Any) -> str:
    """A setting's value as a person reads it."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(short, value))
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value, ensure_ascii=False)


def checkpoint_rule(record: RunRecord) -> str:
    """Which weights were scored, in words."""
    rule = _rule(record)
    if rule.get("rule") == "last":
        return "the last epoch's"
    if rule.get("rule") != "best":
        return "not recorded"
    reported = ", which is reported here" if chosen_on_reported(record) else ""
    return f"the checkpoint that scored best on {rule.get('on')}{reported}"


def weights_rule(record: RunRecord) -> str:
    """Which weights were scored, as a plan names them: `last`, `held_out`, or what else it was."""
    kept = _rule(record).get("rule")
    if kept == "best":
        return "chosen on a reported set" if chosen_on_reported(record) else "held_out"
    return "last" if kept == "last" else "not recorded"


def chosen_on_reported(record: RunRecord) -> bool:
    """Whether the weights were chosen on a set that the record has scores of."""
    return str(_rule(record).get("on")) in record.metrics


def _rule(record: RunRecord) -> Mapping[str, Any]:
    rule = record.training.get("checkpoint")
    return rule if isinstance(rule, Mapping) else {}
