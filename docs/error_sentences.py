"""The page of troubleshooting: every sentence with which regtune refuses something, read from its sources.

The sources are parsed, never run. Whoever writes `raise DataError(f"...")` has written an entry of this page.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).resolve().parents[1] / "src" / "regtune"

INTRODUCTION = """# Troubleshooting

Every error that regtune raises on purpose says what was wrong, with the value, and what to do. This page lists them
all, as they stand in the sources: find yours by searching for words of the message. *Words in italics* stand for what
your message has in their place. Behind each sentence: the exception, and the module that raises it.

- `--debug` behind any command shows the traceback; so does `REGTUNE_DEBUG=1`.
- `regtune info FOLDER` says what a folder holds; `regtune doctor MODEL` tests registers on a checkpoint of yours.
- Exit codes: 0 done, 1 it failed, 2 used wrongly (a `ConfigError`), 130 interrupted. After Ctrl-C the same
  command goes on.
- In Python every one of them is a `regtune.RegtuneError`.
"""

GROUPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "Settings, recipes and flags",
        "A value that can't work, whether it came from a flag, a recipe or Python. `regtune COMMAND --help` lists all "
        "of them with their defaults.",
        ("config.py", "typed.py", "recipes.py", "cli/"),
    ),
    (
        "Names, plugins and extras",
        "A name that regtune doesn't know, a plugin that doesn't fit, or an optional package that is missing.",
        ("registry.py", "errors.py", "interfaces.py", "methods/used.py"),
    ),
    (
        "Opening models and runs",
        "`regtune info FOLDER` shows what is there. Only safetensors are read, and no code from a repository unless "
        "it is named: [Security](security.md).",
        ("session.py", "models/", "records.py", "locks.py"),
    ),
    (
        "Adding, saving and loading registers",
        "`regtune doctor MODEL` tests all promises on your checkpoint.",
        ("registers/", "families/", "testing/"),
    ),
    (
        "Reading data",
        "Each names the file and the record. `--data.on-bad-record skip` leaves bad records out and counts them; "
        "`mend` also moves near offsets to their answer.",
        ("tasks/", "noise.py", "rows/reading.py", "rows/texts.py", "rows/token_classes.py"),
    ),
    (
        "Training",
        "The same command continues an interrupted run from its newest checkpoint.",
        ("training/", "methods/"),
    ),
    (
        "Runs, sweeps and evaluation",
        "A sweep never repeats a cell that is done; start it again after the remedy.",
        ("sweeps/",),
    ),
    (
        "Explaining and inspecting",
        "What each method needs is in [Explaining](explaining.md).",
        ("analyses/", "rows/targets.py"),
    ),
    ("Comparing, reports and the explorer", "", ("report/", "app/", "stats/", "tables.py", "progress.py")),
)
ELSEWHERE = ("Elsewhere", "")
_CLASS_NAMES = re.compile(r"^class (\w+Error)\(", re.MULTILINE)
_SEEN_THROUGH = (
    "shown",
    "str",
    "repr",
    "sorted",
    "list",
    "tuple",
    "set",
    "ascii",
    "map",
    "printable",
    "_shown",
    "join",
)
_MARKUP = re.compile(r"([\\`*_<>\[\]|#{}~])")


class Refusal(NamedTuple):
    """One sentence of one error."""

    module: str
    error: str
    sentence: str


def refusals(sources: Path = SOURCES) -> list[Refusal]:
    """Every error that is made with a message, in the order of modules and lines.

    Args:
        sources: the folder of the package.
    """
    errors = set(_CLASS_NAMES.findall((sources / "errors.py").read_text(encoding="utf-8")))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(sources.rglob("*.py"))}
    said = dict(part for tree in trees.values() for part in _texts_by_name(tree))
    found = []
    for path, tree in trees.items():
        module = path.relative_to(sources).as_posix()
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
            found += [Refusal(module, error, text) for error, text in _made(call, errors, said) if text.strip(" …*.")]
    return list(dict.fromkeys(found))


def _texts_by_name(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Constants of a module that hold text, and what its functions that make a sentence return."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name) and node.returns.id == "str":
            returned = [part.value for part in ast.walk(node) if isinstance(part, ast.Return)]
            yield from ((node.name, text) for text in returned[:1] if isinstance(text, (ast.JoinedStr, ast.BinOp)))
        elif isinstance(node, ast.Assign) and isinstance(node.value, (ast.Constant, ast.JoinedStr)):
            yield from (
                (name.id, node.value) for name in node.targets if isinstance(name, ast.Name) and name.id.isupper()
            )


def _made(call: ast.Call, errors: set[str], said: dict[str, ast.expr]) -> Iterator[tuple[str, str]]:
    """What a call makes, if it makes an error: the class's name and the sentence, Markdown."""
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    arguments = [_text(argument, said) for argument in call.args]
    if name == "MissingExtraError" and len(arguments) == 3:
        package, extra, purpose = arguments
        yield name, f"{purpose} needs the package '{package}'. Install it with: pip install 'regtune\\[{extra}\\]'"
    elif name == "unknown_name" and len(arguments) == 3:
        yield "UnknownNameError", f"Unknown {arguments[0]} {arguments[1]}. Did you mean …? Available: …"
    elif name == "require" and len(arguments) == 3:
        yield "ConfigError", f"{arguments[1]}=… {arguments[2]}"
    elif name in errors and name != "MissingExtraError" and arguments:
        yield name, arguments[0]


def _text(node: ast.expr, said: dict[str, ast.expr]) -> str:
    """The text that an expression makes, with what only a run knows as words in italics."""
    if isinstance(node, ast.Constant):
        return _MARKUP.sub(r"\\\1", str(node.value)).replace("\n", " ")
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, said) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, said) + _text(node.right, said)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, said)
    name = node.func if isinstance(node, ast.Call) else node
    if isinstance(name, ast.Name) and name.id in said:
        return _text(said[name.id], {})
    return _placeholder(node)


def _placeholder(node: ast.expr) -> str:
    """A word in italics for a value: the last name in its expression."""
    word = _name(node)
    return f"*{word}*" if word else "…"


def _name(node: ast.AST) -> str:
    """The word of a placeholder; empty where there is none that tells anything."""
    while isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Call):
        called = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if called in _SEEN_THROUGH and node.args:
            return _name(node.args[-1])
        return {"len": "number", "type": "type"}.get(called, "")
    word = getattr(node, "id", getattr(node, "attr", ""))
    return "class" if word == "__name__" else word.strip("_").replace("_", " ")


def page(sources: Path = SOURCES) -> str:
    """The page as Markdown: the introduction, and a list for each group that has any."""
    grouped: dict[tuple[str, str], list[Refusal]] = defaultdict(list)
    for refusal in refusals(sources):
        grouped[_group(refusal.module)].append(refusal)
    parts = [INTRODUCTION]
    for title, remark in [*((title, remark) for title, remark, _ in GROUPS), ELSEWHERE]:
        if entries := grouped.get((title, remark)):
            parts.append("\n\n".join(part for part in (f"## {title}", remark, _listed(entries)) if part) + "\n")
    return "\n".join(parts)


def _group(module: str) -> tuple[str, str]:
    for title, remark, places in GROUPS:
        if module.startswith(places):
            return title, remark
    return ELSEWHERE


def _listed(entries: list[Refusal]) -> str:
    lines = []
    for entry in entries:
        wrong, stop, remedy = re.sub(r"\s+", " ", entry.sentence).strip().partition(". ")
        module = entry.module.removesuffix(".py")
        lines.append(f"- {wrong}{stop.strip()}{f' <b>{remedy}</b>' if remedy else ''} (`{entry.error}`, `{module}`)")
    return "\n".join(lines)
