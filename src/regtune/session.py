"""What a person names on the command line: a finished run, or a model in a folder, on the hub, or `minilm`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regtune.config import RunConfig
from regtune.errors import CheckpointError
from regtune.recipes import config_from_dict
from regtune.records import CONFIG_FILE, RUN_FILE, RunRecord, load_record, read_json

MODEL_DIR = "model"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A model and, where it comes from a run directory, that run."""

    name: str
    model: str
    """The folder or hub name that holds the model."""
    run_dir: Path | None = None
    record: RunRecord | None = None
    """None for a model that isn't in a run directory."""

    @property
    def config(self) -> RunConfig:
        """The run's config, or the defaults for a plain model."""
        if self.record is None:
            return RunConfig(model=self.model)
        return config_from_dict(self.record.config, f"{self.run_dir}/{RUN_FILE}")


@dataclass(kw_only=True, eq=False)
class Session:
    """A model that was opened once and is asked about itself once; every command works on one."""

    name: str
    """As it was named: a run directory, a folder, a hub name."""
    model: Any
    reader: Any
    """Its tokenizer or image processor."""
    task: Any = None
    """The `Task` of its head; None for a model without one."""
    task_settings: Any = None
    run_dir: Path | None = None
    record: RunRecord | None = None
    """Of the run that it comes from."""


def open_target(name: str | Path) -> Target:
    """Finds out what was named; a run's own `model` folder belongs to its run.

    Raises:
        CheckpointError: a run that isn't finished, or a folder that is neither a run nor a model.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if is_local(str(name)):
            raise CheckpointError(f"{name} doesn't exist: no such run directory or model folder.")
        return Target(name=str(name), model=str(name))
    run_dir = folder.parent if folder.name == MODEL_DIR and (folder.parent / RUN_FILE).is_file() else folder
    if (run_dir / RUN_FILE).is_file():
        return Target(name=str(name), model=str(run_dir / MODEL_DIR), run_dir=run_dir, record=load_record(run_dir))
    if is_run_config(folder / CONFIG_FILE):
        raise CheckpointError(
            f"{name} holds a run that isn't finished ({RUN_FILE} is missing). Continue it with the same "
            f"`regtune train` command; its config is in {folder / CONFIG_FILE}."
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{name} is neither a run directory nor a model: it holds no {RUN_FILE} and no config.json."
        )
    return Target(name=str(name), model=str(folder))


def is_local(name: str) -> bool:
    """Whether a name that isn't there must have meant a local path: a hub name is `name` or `owner/name`."""
    first, _, rest = Path(name).as_posix().partition("/")
    return not first or first.startswith((".", "~")) or "/" in rest or (rest != "" and Path(first).is_dir())


def is_run_config(path: Path) -> bool:
    """Whether a `config.json` is regtune's and not a model's."""
    content = read_json(path) if path.is_file() else None
    return isinstance(content, dict) and {"model", "registers", "training", "answers"} <= content.keys()


def require_answering_head(model: str) -> None:
    """Refuses a model whose head would be made of random numbers.

    Raises:
        CheckpointError: the model was saved without a question-answering head.
    """
    from transformers import PretrainedConfig

    from regtune.models.loading import resolve_model

    try:
        settings: dict[str, Any] = PretrainedConfig.get_config_dict(resolve_model(model))[0]
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{model} can't be loaded: {error}") from error
    made_for = settings.get("architectures") or []
    if made_for and not any("QuestionAnswering" in name for name in made_for):
        raise CheckpointError(
            f"{model} is a {made_for[0]} and has no head for question answering, so its answers would be random. "
            f"Fine-tune it first: regtune train --model {model}"
        )
