"""How far a long command has come, on standard error: a line a stage; bars in a terminal, elsewhere lines.

A command opens `stages`. Whatever it calls tells of its loops with `each` and `steps`, which say nothing where no
stages are open, so that a function of the library is silent by itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

from regtune.errors import printable

ItemT = TypeVar("ItemT")
SILENCE = 30.0
"""Most seconds without a line where there is no terminal."""
_TICK = 1.0
_clock = time.monotonic


@contextlib.contextmanager
def stages(total: int, *, shown: bool = True) -> Iterator[None]:
    """Opens a command, or a part of the command that is open, of so many stages that `begin_stage` announces.

    Args:
        total: how many.
        shown: False keeps everything inside silent. Of several processes of a training, the first one alone speaks.
    """
    above = _INNERMOST.get()
    shown = shown and os.environ.get("RANK", "0") == "0" and (above is None or above.watch is not None)
    with contextlib.ExitStack() as stack:
        watch = above.watch if above is not None else _Watch() if shown else None
        if above is None and watch is not None:
            stack.enter_context(watch.awake())
        yield stack.enter_context(_inside(_Level(above=above, watch=watch if shown else None, total=total)))


def begin_stage(what: str) -> None:
    """Says that the next stage of the open command begins: `2/5 tokenizing 3,696 examples`."""
    level = _INNERMOST.get()
    if level is None or level.watch is None or level.unit:
        return
    level.done, level.note = level.done + 1, what
    level.watch.say(level.line)


@contextlib.contextmanager
def steps(total: int, unit: str, *, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """A loop inside a stage: a bar in a terminal, and what is told every half minute elsewhere.

    Args:
        total: how many steps.
        unit: what they are: `steps`, `batches`.
        done: those of an earlier process.

    Yields:
        A function of how many are done by now, and of a note (`loss 1.23`).
    """
    above = _INNERMOST.get()
    if above is None or above.watch is None:
        yield lambda *_: None
        return
    watch = above.watch
    level = _Level(above=above, watch=watch, total=total, unit=unit, done=done, first=done, began=_clock())
    bar = tqdm(total=total, initial=done, unit=f" {unit}", leave=False, disable=not watch.bars, file=sys.stderr)

    def tell(now: int, note: str = "") -> None:
        bar.set_postfix_str(note, refresh=False)
        bar.update(now - level.done)
        level.done, level.note = now, note

    with bar, _inside(level):
        yield tell


def each(items: Iterable[ItemT], unit: str, *, total: int | None = None) -> Iterator[ItemT]:
    """The items, counted as `steps`; those without a length with their `total`."""
    with steps(len(items) if isinstance(items, Sized) else total or 0, unit) as tell:
        for number, item in enumerate(items):
            tell(number, "")
            yield item


def duration(seconds: float) -> str:
    """A time as a person says it: `45 s`, `8 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class _Watch:
    """Writes the lines of one command; without a terminal a thread sees to it that the next one is never far."""

    def __init__(self) -> None:
        self.stream = sys.stderr
        self.bars = self.stream.isatty()
        self.level: _Level | None = None
        self.last = _clock()

    def say(self, line: str) -> None:
        """Writes a line, above the bars where there are any."""
        self.last = _clock()
        if self.bars:
            tqdm.write(printable(line, keep=""), file=self.stream)
        else:
            print(printable(line, keep=""), file=self.stream, flush=True)

    def beat(self) -> None:
        """Says how far it is if nothing was said for long."""
        level = self.level
        if level is not None and _clock() - self.last > SILENCE - 2 * _TICK:
            self.say(level.line)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Inside, `beat` is called all the time, also while a step takes minutes."""
        over = threading.Event()

        def watch() -> None:
            with contextlib.suppress(OSError, ValueError):  # nobody reads any more
                while not over.wait(_TICK):
                    self.beat()

        thread = threading.Thread(target=watch, name="regtune progress", daemon=True)
        if not self.bars:
            thread.start()
        try:
            yield
        finally:
            over.set()


@dataclass(kw_only=True, eq=False)
class _Level:
    """Stages, or a loop, inside others."""

    above: _Level | None
    watch: _Watch | None
    """None: silent."""
    total: int
    unit: str = ""
    """Of a loop; stages have none."""
    done: int = 0
    first: int = 0
    note: str = ""
    began: float = 0.0

    @property
    def line(self) -> str:
        """`2/9 · 4/5 training · 12 of 40 steps, loss 1.23, about 3 min left`."""
        words: list[str] = []
        level: _Level | None = self
        named = False
        while level is not None:
            words.append(
                level.progress if level.unit else f"{level.done}/{level.total}{'' if named else ' ' + level.note}"
            )
            named |= not level.unit
            level = level.above
        return " · ".join(reversed(words))

    @property
    def progress(self) -> str:
        """`12 of 40 steps, loss 1.23, about 3 min left`."""
        words = [f"{self.done:,} of {self.total:,} {self.unit}", self.note]
        if self.done > self.first:
            left = (_clock() - self.began) / (self.done - self.first) * (self.total - self.done)
            words.append(f"about {duration(left)} left")
        return ", ".join(filter(None, words))


_INNERMOST: ContextVar[_Level | None] = ContextVar("regtune_progress", default=None)


@contextlib.contextmanager
def _inside(level: _Level) -> Iterator[None]:
    _INNERMOST.set(level)
    if level.watch is not None:
        level.watch.level = level
    try:
        yield
    finally:
        if _INNERMOST.get() is level:
            _INNERMOST.set(level.above)
        if level.watch is not None and level.watch.level is level:
            level.watch.level = level.above
