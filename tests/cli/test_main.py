"""How the command line is used wrongly, fails, helps and stops: exit codes and messages."""

from __future__ import annotations

import ast
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import example as always
from hypothesis import strategies as st

import regtune
from command_line import invoke, prepare, train
from regtune.cli.main import COMMANDS, main
from regtune.cli.parsing import parse, say
from regtune.registry import ANALYSES, FAMILIES, METHODS, TASKS
from tiny_tokenizer import save_tiny, tiny_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.delenv("REGTUNE_DEBUG", raising=False)
    return lambda *arguments: invoke(capsys, arguments)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return prepare(tmp_path)


# Used wrongly: 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["Unknown command 'trian'", "Did you mean 'train'"]),
        (["--verison"], ["Unknown option", "Did you mean '--version'"]),
        (["train", "--registers.num-regsters", "3"], ["Unrecognized", "--registers.num-registers"]),
        (["train", "--registers.num-registers", "three"], ["--registers.num-registers", "three"]),
        (["train", "--registers.num-registers", "-3"], ["num_registers=-3", "from 0 to 65,536"]),
        (["train", "--registers.placement", "prefx"], ["prefx", "after_cls"]),
        (["train", "missing.yaml"], ["missing.yaml", "doesn't exist"]),
        (["train", "--output-dir", "x", "my.yaml"], ["Put the recipe first"]),
        (["evaluate"], ["Name the run directory or model first"]),
        (["evaluate", "--data", "embedded:dev"], ["Name the run directory or model first"]),
        (["ask", "x", "--question", "Who?"], ["--context"]),
        (["ask", "x", "--question", "Who?", "--context", "a", "--context-file", "b"], ["one of them"]),
        (["ask", "x", "--question", "Who?", "--context-file", "missing.txt"], ["missing.txt", "can't be read"]),
        (["ask", "x"], ["--question"]),
        (["info"], ["Missing", "DIR"]),
    ],
)
def test_wrong_use_exits_with_2_and_says_what_is_right(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_no_command_shows_the_overview_and_counts_as_wrong_use(run):
    code, out, _ = run()
    assert code == 2
    assert all(name in out for name in COMMANDS)


def test_a_bad_recipe_exits_with_2_and_names_file_and_key(run, place):
    Path("my.yaml").write_text("registers: {num_register: 3}")
    code, _, err = run(*train("my.yaml"))
    assert code == 2
    assert "my.yaml" in err
    assert "Did you mean 'registers.num_registers'" in err


def test_a_recipe_may_not_choose_a_folder_outside_but_the_user_may(run, place):
    Path("my.yaml").write_text("output_dir: ../elsewhere")
    code, _, err = run(*train("my.yaml"))
    assert (code, "leaves the current directory" in err) == (2, True)
    Path("my.yaml").write_text("registers: {num_registers: 0}")
    outside = place.parent / f"{place.name}-outside"
    assert run(*train("my.yaml"), "--output-dir", outside)[0] == 0
    assert (outside / "run.json").is_file()


def test_windows_longer_than_the_models_positions_exit_with_2(run, place):
    code, _, err = run(*train(), "--data.max-length", "100", "--output-dir", "run")
    assert code == 2
    assert "--data.max-length 66" in err


# Help and version


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_what_a_command_does_and_ends_with_examples(run, name):
    code, out, _ = run(name, "--help")
    assert code == 0
    assert f"usage: regtune {name}" in out
    assert out.rstrip().splitlines()[-1].strip() == COMMANDS[name].examples[-1]


@pytest.fixture
def parsed(monkeypatch):
    """Gives commands to the parser, from the repository's root, and no further."""
    seen = []

    def stop(*arguments, **settings):
        seen.append(parse(*arguments, **settings))
        raise KeyboardInterrupt

    for module in {command.run.__module__ for command in COMMANDS.values()}:
        monkeypatch.setattr(f"{module}.parse", stop)
    for table in (ANALYSES, FAMILIES, METHODS, TASKS):
        monkeypatch.setattr(table, "_added", dict(table._added))
    for name in [name for name in sys.modules if name.startswith("regtune_plugin_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir(ROOT)
    for place in ("regtune.session", "regtune.cli.parsing"):
        monkeypatch.setattr(f"{place}.is_local", lambda name: False)
    monkeypatch.setattr("regtune.session._model_config", lambda name: {})
    return seen


def test_the_examples_in_the_help_are_accepted_by_the_parser(parsed):
    examples = [example.split("| ")[-1] for command in COMMANDS.values() for example in command.examples]
    for example in examples:
        assert main(arguments(example)) == 130, example
    assert len(parsed) == len(examples)


def arguments(command: str) -> list[str]:
    """What stands behind `regtune`; before it may stand variables of the environment."""
    words = shlex.split(command, comments=True)
    return words[words.index("regtune") + 1 :]


def documented(page: Path) -> list[str]:
    """The commands in a page's blocks of shell, each in one line."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\$\w+", "4", line.strip()) for line in lines if line.strip().startswith("regtune ")]


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("docs/results/*.md")]


@pytest.mark.parametrize("page", [page for page in PAGES if documented(page)], ids=lambda page: page.name)
def test_the_commands_in_the_documents_are_accepted_as_they_are_written(parsed, page):
    for command in documented(page):
        assert main(arguments(command)) == 130, command
    assert len(parsed) == len(documented(page))


def test_the_documents_show_every_command():
    shown = {word for page in PAGES for command in documented(page) for word in command.split()}
    assert {name for name in COMMANDS if name not in shown} == {"demo"}, "`make demo` runs it"


def test_version(run):
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("regtune 0.")


def test_it_starts_quickly_and_without_the_heavy_libraries():
    code = (
        "import sys; from regtune.cli.main import main; code = main(['--help']);"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Examples:" in done.stdout


@pytest.mark.parametrize("module", ["regtune", "regtune.cli.main"])
def test_the_installed_command_runs(tmp_path, module):
    command = [sys.executable, "-m", module, "info", str(tmp_path / "missing" / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


# It failed: 1


def test_a_broken_model_exits_with_1_and_one_line(run, place):
    weights = place / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    for arguments in (
        train(),
        ["info", "model"],
        ["doctor", "model"],
        ["ask", "model", "--question", "Who?", "--context", "Ann."],
        ["evaluate", "model", "--data", "q.json"],
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (1, ""), arguments
        assert " error: " in f" {err}"
        assert "Traceback" not in err
        assert "cut short or damaged" in err


def test_a_git_lfs_pointer_is_recognised(run, place):
    weights = place / "model" / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    for arguments in (train(), ["info", "model"], ["doctor", "model"]):
        code, _, err = run(*arguments)
        assert code == 1
        assert "Git-LFS pointer" in err
        assert "git lfs pull" in err


def test_a_slow_tokenizer_is_refused(run, place, monkeypatch):
    class Slow(type(tiny_tokenizer())):
        is_fast = False

    slow = Slow.from_pretrained("model")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: slow)
    code, _, err = run(*train())
    assert code == 1
    assert "slow" in err


def test_an_unfinished_run_and_a_folder_of_something_else_are_told_apart(run, place):
    Path("started").mkdir()
    Path("started/config.json").write_text('{"model": "m", "registers": {}, "training": {}, "answers": {}}')
    assert "isn't finished" in run("info", "started")[2]
    Path("other").mkdir()
    assert "neither a run directory nor a model" in run("ask", "other", "--question", "a", "--context", "b")[2]
    code, _, err = run("evaluate", "runs/none/model")
    assert (code, "doesn't exist" in err) == (1, True)


def test_a_model_without_an_answering_head_is_refused_instead_of_guessing(run, place):
    save_tiny(place / "plain", head="none")
    for arguments in (
        ["ask", "plain", "--question", "Who?", "--context", "Ann."],
        ["evaluate", "plain", "--data", "q.json"],
    ):
        code, _, err = run(*arguments)
        assert code == 1
        assert "no head for question answering" in err
        assert "regtune train --model plain" in err


def test_debug_shows_the_traceback(place, monkeypatch):
    with pytest.raises(Exception, match="neither"):
        main(["info", "--debug", "."])
    monkeypatch.setenv("REGTUNE_DEBUG", "1")
    with pytest.raises(Exception, match="neither"):
        main(["info", "."])


def test_an_unexpected_error_is_one_line_too(run, monkeypatch):
    def broken(argv):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setitem(COMMANDS, "info", COMMANDS["info"]._replace(run=broken))
    code, _, err = run("info", "x")
    assert code == 1
    assert "ZeroDivisionError: division by zero" in err
    assert "--debug" in err


@pytest.mark.parametrize(("name", "hint"), [("train", True), ("demo", True), ("info", False)])
def test_ctrl_c_exits_with_130_and_says_how_to_go_on(run, monkeypatch, name, hint):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, name, COMMANDS[name]._replace(run=interrupted))
    code, _, err = run(name)
    assert code == 130
    assert "Interrupted." in err
    assert ("same command continues" in err) is hint


def test_a_plugin_file_is_run_before_the_command(run, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("print('hello from the plugin')")
    for arguments in (("--plugin", str(file), "--version"), ("--version", f"--plugin={file}")):
        code, out, _ = run(*arguments)
        assert code == 0
        assert "regtune 0." in out
    assert run("--version", "--plugin")[0] == 2
    code, _, err = run("--plugin", str(tmp_path / "none.py"), "--version")
    assert code == 2
    assert "is no Python file" in err


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_says_what_ctrl_c_says(monkeypatch, capsys, name, code):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    command = COMMANDS["train"]._replace(run=lambda _: signal.raise_signal(number))
    monkeypatch.setitem(COMMANDS, "train", command)
    assert main(["train"]) == code
    assert "Interrupted. The same command continues the run." in capsys.readouterr().err
    assert signal.getsignal(number) is before


# What is printed


def test_everything_is_printed_by_the_one_function_that_lets_nothing_act():
    """`print`, `sys.stdout` and `sys.stderr` stand nowhere else; how far a command is has a stream of its own."""
    own, found = {"cli/parsing.py", "progress.py"}, set()
    source = Path(regtune.__file__).parent
    for file in source.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            text = ast.unparse(node) if isinstance(node, (ast.Call, ast.Attribute)) else ""
            if text.startswith("print(") or re.fullmatch(r"sys\.(stdout|stderr)(\.write.*)?", text):
                found.add(file.relative_to(source).as_posix())
    assert found - own <= {"cli/main.py", "report/overlays/terminal.py"}  # a closed pipe, and whether it is a terminal


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.text(), st.booleans())
@always("\x1b[31mred\x1b[0m \x1b[2J\x1b]0;title\x07\r\u202e\ud800", True)
@always("\x1b[31mred\x1b[0m", False)
def test_what_is_said_acts_on_no_terminal(capsys, text, colours):
    say(text, colours=colours)
    said = capsys.readouterr().out
    if colours:
        said = re.sub(r"\x1b\[[0-9;]*m", "", said)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", said)
