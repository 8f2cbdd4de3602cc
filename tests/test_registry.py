"""The registry: lazy built-in entries, plugins, entry points, and no silent override."""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint

import pytest

from regtune import registry
from regtune.errors import ConfigError, UnknownNameError
from regtune.registry import Registry, load_plugin


class Thing:
    name = "thing"


def fresh(**builtin):
    return Registry("task", "tasks", builtin)


def test_a_builtin_entry_is_loaded_when_it_is_first_used():
    table = fresh(square="fractions:Fraction", missing="no_such_module:Thing")
    assert list(table) == ["square", "missing"]
    assert table.get("square") == 0
    with pytest.raises(ModuleNotFoundError):
        table.get("missing")


def test_an_unknown_name_suggests_the_nearest():
    table = fresh(classify="fractions:Fraction")
    with pytest.raises(UnknownNameError, match=r"Unknown task 'clasify'\. Did you mean 'classify'\?"):
        table.get("clasify")


def test_no_name_is_overridden():
    table = fresh(thing="fractions:Fraction")
    with pytest.raises(ConfigError, match=r"'thing' exists already \(built in\)"):
        table.add(Thing)
    other = fresh()
    other.add(Thing)
    other.add(Thing)  # the same file again
    assert isinstance(other.get("thing"), Thing)

    class Nameless:
        name = ""

    with pytest.raises(ConfigError, match="needs a `name`"):
        other.add(Nameless)


def test_entry_points_are_found_and_cannot_take_a_builtin_name(monkeypatch):
    point = EntryPoint(name="ratio", value="fractions:Fraction", group="regtune.tasks")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "regtune.tasks" else [])
    monkeypatch.setattr(registry, "_installed", registry._installed.__wrapped__)
    table = fresh()
    assert list(table) == ["ratio"]
    assert table.get("ratio") == 0
    with pytest.raises(ConfigError, match="which is built in"):
        list(fresh(ratio="decimal:Decimal"))


def test_installed_packages_are_looked_through_once_for_a_path(monkeypatch):
    asked = []
    monkeypatch.setattr(registry, "entry_points", lambda group: asked.append(group) or [])
    monkeypatch.setattr(registry, "_installed", functools.cache(registry._installed.__wrapped__))
    table = fresh()
    assert "ratio" not in table
    assert not list(table)
    assert asked == ["regtune.tasks"]
    monkeypatch.syspath_prepend("somewhere else")
    assert "ratio" not in table
    assert asked == ["regtune.tasks"] * 2


def test_a_plugin_file_registers_once(tmp_path, monkeypatch):
    table = fresh()
    monkeypatch.setattr(registry, "TABLE", table, raising=False)
    file = tmp_path / "mine.py"
    file.write_text("from regtune.registry import TABLE\n\n@TABLE.add\nclass Mine:\n    name = 'mine'\n")
    load_plugin(file)
    load_plugin(file)
    assert list(table) == ["mine"]
    assert table.origin("mine") == str(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [("1 / 0", "ZeroDivisionError"), ("import nothing_there", "ModuleNotFoundError"), ("(", "SyntaxError")],
)
def test_a_plugin_that_fails_is_named(tmp_path, text, said):
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"--plugin .*broken\.py failed: {said}"):
        load_plugin(file)


def test_a_plugin_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no Python file"):
        load_plugin(tmp_path / "nothing.py")
