"""No long command is silent: a line a stage, and without a terminal a line at least every half minute."""

from __future__ import annotations

import io
import itertools
import re
import sys
import threading
import time
from contextlib import nullcontext

import pytest
import yaml

from command_line import invoke, prepare, train
from regtune import progress
from regtune.cli.main import main
from regtune.progress import SILENCE, begin_stage, each, stages, steps
from regtune.session import Session
from regtune.training.trainer import RegisterTrainer


class Clock:
    """Time that passes only when a test says so, second by second; notes when each line was written."""

    def __init__(self):
        self.now = 1000.0
        self.lines = []

    def passes(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.now += 1
            level = progress._INNERMOST.get()
            if level is not None and level.watch is not None:
                level.watch.beat()

    @property
    def longest_silence(self) -> float:
        times = [1000.0, *(when for when, _ in self.lines), self.now]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "_clock", lambda: clock.now)
    monkeypatch.setattr(progress._Watch, "awake", lambda self: nullcontext())
    say = progress._Watch.say
    monkeypatch.setattr(
        progress._Watch, "say", lambda self, line: (clock.lines.append((clock.now, line)), say(self, line))
    )
    return clock


def slow(monkeypatch, clock, owner, name, seconds):
    """Makes a method take so long."""
    whole = getattr(owner, name)

    def slower(*args, **kwargs):
        clock.passes(seconds)
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, name, slower)


def test_without_a_terminal_training_is_never_silent_for_more_than_half_a_minute(clock, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(prepare(tmp_path))
    slow(monkeypatch, clock, Session, "rows", 100)
    slow(monkeypatch, clock, Session, "forward", 45)
    slow(monkeypatch, clock, RegisterTrainer, "training_step", 100)
    code, _, err = invoke(capsys, tuple(train("--output-dir", "run")))
    assert code == 0, err
    assert clock.now > 1000 + 300
    assert clock.longest_silence <= SILENCE
    assert re.search(r"4/5 training on \d+ rows, 1 epochs · 1 of \d+ steps, about \d+ (s|min) left", err)
    assert re.search(r"5/5 predicting 6 examples of q · \d of \d batches", err)


def test_what_is_left_is_estimated_from_the_steps_of_this_process(clock):
    with stages(1):
        begin_stage("training")
        with steps(40, "steps", done=20) as tell:
            for step in range(21, 26):
                clock.passes(60)
                tell(step, "loss 1.5")
            clock.passes(29)
    assert clock.lines[-1][1] == "1/1 training · 25 of 40 steps, loss 1.5, about 16 min left"


def test_stages_inside_stages_say_where_they_are(clock):
    with stages(2):
        begin_stage("the first cell")
        with stages(3):
            begin_stage("reading")
            list(each("abc", "letters"))
    assert clock.text.splitlines() == ["1/2 the first cell", "1/2 · 1/3 reading"]


def test_a_function_of_the_library_is_silent_by_itself_and_where_it_is_asked_to_be(clock, monkeypatch):
    list(each("abc", "letters"))
    begin_stage("nothing is open")
    with stages(1, shown=False):
        begin_stage("hidden")
        with stages(1):
            begin_stage("inside something hidden")
            assert list(each("abc", "letters")) == ["a", "b", "c"]
    monkeypatch.setenv("RANK", "1")
    with stages(1):
        begin_stage("another process")
    assert clock.lines == []


def test_a_step_that_takes_long_does_not_keep_the_clock_from_speaking(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SILENCE", 0.1)
    monkeypatch.setattr(progress, "_TICK", 0.01)
    with stages(1):
        begin_stage("one long step")
        until = time.monotonic() + 20
        said = ""
        while said.count("1/1 one long step\n") < 3 and time.monotonic() < until:
            time.sleep(0.05)
            said += capsys.readouterr().err
    assert said.count("1/1 one long step\n") >= 3
    for thread in threading.enumerate():
        if thread.name == "regtune progress":
            thread.join(5)
            assert not thread.is_alive()


def test_a_terminal_gets_bars(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    with stages(1):
        begin_stage("reading")
        list(each("abc", "letters"))
    assert "1/1 reading\n" in screen.getvalue()
    assert "letters" in screen.getvalue()


def test_nothing_in_a_name_acts_on_the_terminal(clock, capsys):
    with stages(1):
        begin_stage("reading a\x1b[2Jb\rc")
    assert not set(capsys.readouterr().err) & set("\x1b\r")


def said(err: str) -> list[tuple[int, int]]:
    """The numbers of the outermost stages, in order."""
    return [(int(number), int(total)) for number, total in re.findall(r"^(\d+)/(\d+) (?!·)", err, re.MULTILINE)]


def test_every_long_command_says_each_of_its_stages(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(prepare(tmp_path))
    recipe = {"arms": ["baseline", "registers"], "num_registers": [2], "seeds": [0], "keep_models": "none"}
    recipe["training_sets"], recipe["evaluation_sets"] = {"tiny": ["q.json"]}, ["q.json"]
    recipe["base"] = {
        "model": "model",
        "data": {"max_length": 60},
        "settings": {"stride": 12, "max_question_length": 24},
        "training": {"epochs": 1, "batch_size": 3, "precision": "float32"},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "asked.jsonl").write_text('{"question": "who?", "context": "ann lives in the house"}\n')
    for number, command in (
        (5, train("--output-dir", "run")),
        (3, ["evaluate", "run"]),
        (2, ["predict", "run", "--file", "asked.jsonl"]),
        (None, ["doctor", "run"]),
        (2, ["sweep", "grid.yaml", "--folder", "grid"]),
        (3, ["report", "grid", "--resamples", "600"]),
    ):
        assert main(command) in (0, 1)
        err = capsys.readouterr().err
        stages_said = said(err)
        total = stages_said[0][1]
        assert number in (None, total), err
        assert stages_said == [(one, total) for one in range(1, total + 1)], (command, err)
