"""What a named data set declares about itself: one `DataSource` a file, all of them in `sources.DATASETS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from regtune.errors import ConfigError, unknown_name
from regtune.tasks.qa.data.squad_record import RecordCollector

Parts = Mapping[str, str]

SPLITS_TRAIN_DEV: Mapping[str, str] = {"train": "train", "dev": "validation", "validation": "validation"}
"""What may be written for a split, and the hub's word for it."""


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A data set that is loaded by name: `prefix`, then its parts, with colons between (`tydiqa:dev:finnish`)."""

    prefix: str
    """The first part of the name."""
    parts: Mapping[str, Mapping[str, str]]
    """For each further part, in order: what may be written, and the source's own word for it."""
    licence: str
    source: str
    """Where it comes from, for records and tables."""
    language: Callable[[Parts], str]
    """The language of the contexts and answers as an ISO 639-1 code, from the parts of the name."""
    load: Callable[[Parts, RecordCollector], None]
    """Adds every question of the set to a collector."""

    @property
    def pattern(self) -> str:
        """How its names look, for messages."""
        return ":".join([self.prefix, *(f"<{part}>" for part in self.parts)])

    def parse(self, name: str) -> dict[str, str]:
        """The parts of a name, in the source's own words.

        Raises:
            ConfigError: a part is missing, left over or unknown; the message lists what there is.
        """
        given = name.split(":")[1:]
        if len(given) != len(self.parts):
            choices = "; ".join(f"{part}: {', '.join(known)}" for part, known in self.parts.items())
            raise ConfigError(f"The data set {name!r} must be written {self.pattern}, with {choices}.")
        parts = {}
        for (part, known), value in zip(self.parts.items(), given, strict=True):
            if value not in known:
                raise unknown_name(f"{part} in {name!r}:", value, known)
            parts[part] = known[value]
        return parts


def same(*words: str) -> dict[str, str]:
    """A table in which each of these words stands for itself."""
    return {word: word for word in words}
