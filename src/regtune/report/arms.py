"""Which arm, which number of registers, which seed: told from a run's config alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from regtune.config import RunConfig, to_dict
from regtune.recipes import upgraded
from regtune.records import RunRecord, file_name
from regtune.registry import METHODS
from regtune.typed import typed

BASELINE, REGISTERS = "baseline", "registers"
ON_REPORTED = "the checkpoint that scored best on {}, which is reported here"
_NOT_ARM = (
    ("output_dir",),
    ("data", "eval"),
    ("training", "seed"),
    ("training", "data_seed"),
    ("training", "save_total_limit"),
    ("training", "push_to_hub"),
    ("answers", "batch_size"),
)
Setting = tuple[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What one cell of a sweep trains, its seed left out. Two runs with equal arms differ in the seed alone."""

    kind: str
    """`baseline`, `registers`, or a control's description."""
    num_registers: int
    settings: str
    """The whole config but seeds and output folder, as JSON: what makes two arms the same."""
    extra: str = ""
    """Told beside the name where two arms would otherwise have the same one."""

    @property
    def label(self) -> str:
        """The arm's name in tables and figures."""
        extra = f" ({self.extra})" if self.extra else ""
        if self.kind == BASELINE:
            return f"baseline{extra}"
        count = f", N = {self.num_registers}" if self.num_registers else ""
        return f"{self.kind}{count}{extra}"

    @property
    def order(self) -> tuple[int, str, int, str]:
        """Baseline first, then registers by number, then the controls."""
        return ({BASELINE: 0, REGISTERS: 1}.get(self.kind, 2), self.kind, self.num_registers, self.extra)


def arm_of(record: RunRecord) -> Arm:
    """The arm of a run, read from its resolved config."""
    config = filled(record.config)
    return Arm(
        kind=_kind(config),
        num_registers=int(config["registers"]["num_registers"]),
        settings=json.dumps(_without(config, _NOT_ARM), sort_keys=True),
    )


def seed_of(record: RunRecord) -> int:
    """The seed of the new weights and dropout: what runs of one arm differ in, and arms are paired by."""
    return int(filled(record.config)["training"]["seed"])


def trained_on(record: RunRecord) -> tuple[str, str, tuple[str, ...]]:
    """The task, the model that was fine-tuned and the names of the training sets, in order."""
    config = filled(record.config)
    return task_of(record), str(config["model"]), tuple(config["data"]["train"])


def task_of(record: RunRecord) -> str:
    """The name of the task; records from before there were several are of question answering."""
    return str(record.config.get("task", "qa"))


def checkpoint_rule(record: RunRecord) -> str:
    """Which weights were scored, in words.

    Records from before the rule was a setting kept the checkpoint that scored best on the first evaluation set.
    """
    training = record.config["training"]
    if "checkpoint" not in training:
        return ON_REPORTED.format(next(iter(record.metrics), "the first evaluation set"))
    if training["checkpoint"] == "last":
        return "the last epoch's"
    share = f"{100 * float(training.get('held_out', 0)):g} % of the training data, held out"
    return f"the checkpoint that scored best on {share}"


def set_name(source: str) -> str:
    """The short name under which records keep an evaluation set."""
    return file_name(source).removesuffix(".gz").removesuffix(".json")


def differences(config: Mapping[str, Any], default: Mapping[str, Any], prefix: str = "") -> dict[str, Setting]:
    """Dotted name to (default, value) of every setting that is not the default's."""
    found: dict[str, Setting] = {}
    for key, value in config.items():
        name, usual = f"{prefix}{key}", default.get(key)
        if isinstance(value, Mapping) and isinstance(usual, Mapping):
            found |= differences(value, usual, f"{name}.")
        elif value != usual:
            found[name] = (usual, value)
    return found


@cache
def _defaults() -> str:
    return json.dumps(to_dict(RunConfig()))


def default_config() -> dict[str, Any]:
    """The defaults of every setting, as plain JSON types."""
    plain: dict[str, Any] = json.loads(_defaults())
    return plain


def filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with today's defaults for settings that did not exist yet when it was written."""
    plain = default_config()
    for key, value in upgraded(config).items():
        both = isinstance(value, Mapping) and isinstance(plain.get(key), dict)
        plain[key] = plain[key] | dict(value) if both else value
    return plain


def told_apart(arms: list[Arm]) -> dict[Arm, Arm]:
    """Each arm with an `extra` that names what differs, wherever two of them have the same label."""
    named: dict[Arm, Arm] = {}
    for arm in arms:
        same = [json.loads(other.settings) for other in arms if other.label == arm.label]
        mine = json.loads(arm.settings)
        names = sorted({name for other in same for name in differences(mine, other)})
        extra = ", ".join(f"{name.rpartition('.')[2]} {_at(mine, name)}" for name in names)
        named[arm] = Arm(kind=arm.kind, num_registers=arm.num_registers, settings=arm.settings, extra=extra)
    return named


def _at(config: Mapping[str, Any], name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return f"{value:g}" if isinstance(value, float) else value


def _without(config: Mapping[str, Any], names: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(config))
    for *folders, last in names:
        place = plain
        for folder in folders:
            place = place.get(folder, {})
        place.pop(last, None)
    if not plain["registers"]["num_registers"]:
        plain["registers"] = {"num_registers": 0}  # settings of registers that do not exist
        plain["training"].pop("register_learning_rate", None)
    return plain


def _kind(config: Mapping[str, Any]) -> str:
    registers, methods = config["registers"], config["methods"]
    count = registers["num_registers"]
    words = [_tokens(registers) if count else ""]
    if "linear_probe" in methods and _is_prompt(registers):
        words = ["prompt tuning"]
    elif "linear_probe" in methods:
        words.append("backbone frozen" if count else "head only, backbone frozen")
    if "warm_up" in methods:
        who = " of the registers" if methods["warm_up"].get("trainable") == "registers" else ""
        words.append(f"after a warm-up{who}" if count else "warm-up without registers")
    words += [_method(name, given) for name, given in methods.items() if name not in ("linear_probe", "warm_up")]
    return ", ".join(word for word in words if word) or BASELINE


def _method(name: str, given: Mapping[str, Any]) -> str:
    """A method's own words; its name where it comes from a plugin that isn't here."""
    if name not in METHODS:
        return name
    method = METHODS.get(name)
    return str(method.label(typed(method.settings, dict(given), f"methods.{name}")))


def _is_prompt(registers: Mapping[str, Any]) -> bool:
    """Word embeddings in front of the text that pass through the embeddings' LayerNorm, as in Lester et al. 2021."""
    prompt = {"placement": "prefix", "position": "none", "init": "embedding", "layer_norm": True, "depth": "input"}
    return bool(registers["num_registers"]) and prompt.items() <= registers.items()


def _tokens(registers: Mapping[str, Any]) -> str:
    frozen = not registers["trainable"]
    copies = {"sep": "[SEP] copies", "mask": "[MASK] copies"}.get(registers["init"])
    if copies:
        name = copies if frozen else f"registers from {copies}"
    else:
        name = "frozen random vectors" if frozen else REGISTERS
    return f"{name} in every layer" if registers["depth"] == "every_layer" else name
