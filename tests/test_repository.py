"""What a reader of the repository may rely on."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


@pytest.mark.slow
def test_every_generated_table_and_figure_agrees_with_the_records():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "build_results.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nRun `make results`."


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_source_files_say_what_they_are_for(path):
    text = path.read_text(encoding="utf-8")
    assert text.lstrip().startswith('"""')


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_without_venv_make_says_what_to_install(tmp_path):
    # A make that runs these tests hands its own flags and depth down, and the inner one would name its folder.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "demo", "PYTHON=false", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "'false -m venv' failed." in done.stderr
    assert "apt install python3-venv" in done.stderr
    assert done.stdout == ""


def test_nobody_but_the_session_opens_models():
    """Loading is in `models`, `registers` and the session; proofs of saving and exporting load again."""
    openers = set()
    for path in [*SOURCES, *(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        calls = (
            node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        )
        if any(getattr(call, "id", getattr(call, "attr", "")) == "from_pretrained" for call in calls):
            place = path.relative_to(ROOT / "src" / "regtune" if path in SOURCES else ROOT)
            openers.add(place.parts[0] if place.parts[0] in ("models", "registers") else place.as_posix())
    assert openers == {"models", "registers", "session.py", "testing/invariants.py", "serving/plain.py"}


GENERAL = (
    "config.py",
    "records.py",
    "session.py",
    "interfaces.py",
    "noise.py",
    "rows/reading.py",
    "registry.py",
    "analyses/inspection.py",
    "tables.py",
    "typed.py",
)
GENERAL_ROOMS = ("sweeps", "stats", "report", "training", "models", "methods", "registers", "families")
ONE_TASKS_OWN = {
    "report/overlays/pictures.py",
    "report/overlays/terminal.py",
    "registers/reg_bert.py",
}
"""The overlays draw a question above its context, RegBERT is the paper's model."""
WORDS_OF_QUESTIONS = {"question", "questions", "stride", "squad", "answer_start", "exact_match", "null_answers"}


def _words(tree):
    """Every name, attribute, argument and text of a module, cut into words; docstrings aside."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)
    }
    about = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)} | docs
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in about:
            yield from re.findall(r"\w+", node.value.lower())
        for name in ("id", "attr", "arg", "name"):
            if isinstance(word := getattr(node, name, None), str):
                yield word.lower()


def test_general_rooms_know_nothing_of_questions():
    """Span question answering is one task of several: what is its own is in `tasks/qa`."""
    source = ROOT / "src" / "regtune"
    paths = [source / name for name in GENERAL] + [
        path for room in GENERAL_ROOMS for path in (source / room).rglob("*.py")
    ]
    found = {}
    for path in paths:
        place = path.relative_to(source).as_posix()
        words = WORDS_OF_QUESTIONS.intersection(_words(ast.parse(path.read_text(encoding="utf-8"))))
        if words and place not in ONE_TASKS_OWN:
            found[place] = words
    assert found == {}


def test_links_between_the_documents_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            made = link == "troubleshooting.md"  # when the site is built
            if "://" not in link and not made:
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_promise_of_security_names_tests_that_exist():
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    for promise in re.findall(r"^- \*\*(?:.+\n)+?(?=- \*\*|\n|\Z)", page, flags=re.MULTILINE):
        named = re.findall(r"^  - `(tests/\S+\.py)::(test_\w+)`$", promise, flags=re.MULTILINE)
        assert named, promise
        for file, name in named:
            assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {name}"


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name)
def test_the_python_in_the_documents_names_public_things_only(page):
    import regtune

    for name in re.findall(r"\bregtune\.([A-Za-z_]+)\(", page.read_text(encoding="utf-8")):
        assert name in regtune.__all__


def test_the_readme_counts_the_embedded_questions_right():
    import regtune

    examples = regtune.load_questions(["embedded:train", "embedded:dev"]).items
    passages = len({example.context for example in examples})
    for page in ("README.md", "CHANGELOG.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert f"{passages} passages, {len(examples)} questions" in text
