"""Recipes are read strictly: everything wrong is refused with the file, the key and what to do."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig, to_dict
from regtune.errors import ConfigError, UnknownNameError
from regtune.recipes import config_from_dict, load_recipe
from regtune.sweeps.grid import load_sweep

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> RunConfig:
        Path("my.yaml").write_text(text, encoding="utf-8")
        return load_recipe("my.yaml")

    return write


def test_a_recipe_is_the_difference_from_the_defaults(recipe):
    found = recipe("model: me/mine\nregisters: {num_registers: 3}\ndata:\n  eval: [xquad:de]\noutput_dir: runs/a\n")
    assert found == RunConfig(
        model="me/mine",
        output_dir=Path("runs/a"),
        registers=RegisterConfig(num_registers=3),
        data=DataConfig(eval=("xquad:de",)),
    )
    assert recipe("") == recipe("# nothing but a comment\n") == RunConfig()


@pytest.mark.parametrize("written", ["2e-5", "2.0e-5", "0.00002"])
def test_learning_rates_may_be_written_in_any_way(recipe, written):
    assert recipe(f"training: {{learning_rate: {written}, epochs: 2}}").training == TrainConfig(
        learning_rate=2e-5, epochs=2.0
    )


def test_none_is_a_word_for_positions_and_null_means_unset(recipe):
    found = recipe("registers: {position: none}\ndata: {max_train_examples: null}")
    assert found.registers.position == "none"
    assert found.data.max_train_examples is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modle: x", ["my.yaml", "'modle'", "Did you mean 'model'"]),
        ("registers: {num_register: 3}", ["'registers.num_register'", "Did you mean 'registers.num_registers'"]),
        ("training: {epochs: three}", ["my.yaml", "training.epochs", "'three'", "number"]),
        ("registers: {num_registers: 2.5}", ["registers.num_registers", "2.5", "whole number"]),
        ("registers: {num_registers: true}", ["registers.num_registers", "True", "whole number"]),
        ("registers: {trainable: 1}", ["registers.trainable", "true or false"]),
        ("registers: {placement: prefx}", ["registers.placement", "'prefx'", "Did you mean 'prefix'"]),
        ("registers: 8", ["registers", "8", "a mapping with settings of its own"]),
        ("registers:", ["registers", "empty"]),
        ("data: {eval: embedded:dev}", ["data.eval", "list"]),
        ("data: {eval: [1]}", ["data.eval[0] is 1", "must be text"]),
        ("training: {epochs: .nan}", ["training.epochs", "'.nan'", "must be a number"]),
        (f"training: {{seed: {'9' * 5000}}}", ["training.seed", "4920 characters more", "whole number"]),
        ("model: &a x\ntrust_remote_code: *a", ["line 1", "anchors and aliases", "write the value out"]),
        ("model: !!binary x", ["line 1", "tag", "write plain values"]),
        ("model: " + "[" * 50_000, ["line 1", "20 levels of nesting"]),
        ("# " + "x" * 100_000, ["more than 100,000 bytes"]),
        ("model: 3", ["model", "3", "text"]),
        ("training: {warmup_ratio: 500}", ["my.yaml", "training.", "warmup_ratio=500.0"]),
        ("- a\n- b", ["my.yaml", "not settings"]),
        ("data: {max_lenght: 60}", ["my.yaml", "Did you mean 'data.max_length'"]),
        ("data: {stride: 60}", ["my.yaml: data.stride", "under `settings`: settings.stride"]),
        ("answers: {top_k: 2}", ["my.yaml: answers.top_k", "under `settings`: settings.top_k"]),
        ("model: [x", ["my.yaml", "line", "not valid YAML"]),
        ("model: a\nregisters:\n  init: normal\n  init: zeros", ["line 4", "'init'", "twice"]),
        ("model: !!python/object/apply:os.getcwd []", ["line 1", "not valid YAML"]),
        ("1: 2", ["Unknown setting", "my.yaml"]),
        ("[1]: 2", ["my.yaml, line 1", "not valid YAML"]),
    ],
)
def test_what_is_wrong_is_named(recipe, text, words):
    with pytest.raises(ConfigError) as caught:
        recipe(text)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("folder", ["/tmp/x", "../x", "a/../../x", "~/x", "C:\\x", "a\\..\\..\\x"])
def test_an_output_folder_outside_is_refused(recipe, folder):
    with pytest.raises(ConfigError, match=r"output_dir=.* leaves the current directory.*--output-dir"):
        recipe(f"output_dir: '{folder}'")


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"model: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_recipe(tmp_path / "a.yaml")


def test_a_missing_recipe_suggests_one_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="doesn't exist"):
        load_recipe("minilm.yaml")
    Path("recipes").mkdir()
    Path("recipes/minilm-small.yaml").write_text("model: minilm")
    assert load_recipe("minilm-small") == load_recipe("minilm-small.yaml") == RunConfig()
    with pytest.raises(UnknownNameError, match=r"Did you mean 'minilm-small\.yaml'"):
        load_recipe("minilm-smal")
    with pytest.raises(ConfigError, match="is a folder"):
        load_recipe("recipes")


def test_a_file_comes_before_a_recipe_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    Path("recipes/a.yaml").write_text("model: there")
    Path("a.yaml").write_text("model: here")
    assert load_recipe("a.yaml").model == "here"


def test_the_papers_recipe_is_the_papers_setting_number_for_number():
    found = load_recipe(RECIPES / "regbert-tydiqa-en.yaml")
    assert found.model == "bert-base-uncased"
    assert found.registers == RegisterConfig(
        num_registers=5, placement="prefix", position="learned", init="normal", init_std=0.02, layer_norm=False
    )
    assert found.data.max_length == 434
    assert (found.data.train, found.data.eval) == (("tydiqa:train:english",), ("tydiqa:dev:english",))
    assert found.training == TrainConfig(
        epochs=3.0,
        batch_size=8,
        learning_rate=2e-5,
        register_learning_rate=2e-5,
        weight_decay=0.01,
        warmup_ratio=0.0,
        seed=595,
        data_seed=595,
    )
    assert found.settings == {"stride": 128, "top_k": 20, "max_answer_tokens": 60}


def test_every_training_recipe_in_the_repository_is_valid_and_named_after_its_output():
    for path in RECIPES.glob("*-tydiqa-en.yaml"):
        assert load_recipe(path).output_dir == Path("runs") / path.stem


@settings(derandomize=True, deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
    st.integers(0, 200),
    st.floats(0, 1),
    st.floats(-50, 50),
    st.booleans(),
)
def test_a_config_survives_the_way_through_its_plain_form(model, registers, rate, threshold, null_answers):
    config = RunConfig(
        model=model,
        registers=RegisterConfig(num_registers=registers),
        training=TrainConfig(learning_rate=rate),
        settings={"null_answers": null_answers, "null_threshold": threshold},
    )
    assert config_from_dict(to_dict(config), "a test") == config


@settings(derandomize=True, deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_yaml_either_is_a_config_or_a_config_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("recipe") / "any.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    try:
        outcome = load_recipe(path)
    except ConfigError as error:
        outcome = error
    assert isinstance(outcome, RunConfig) or str(path) in str(outcome)


LAUGHS = "".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 30))
BOMBS = {
    "a billion laughs": f"a0: &a0 [x, x]\n{LAUGHS}",
    "mappings of aliases": "a: &a {x: 1}\nb: &b {p: *a, q: *a}\nc: &c {p: *b, q: *b}\ndata: *c",
    "a list in itself": "data: &a [*a]",
    "a mapping in itself": "&a\ndata: *a",
    "a key that is itself": "? &a [*a]\n: 1",
    "merged with itself": "data: &a\n  <<: *a",
    "merged a billion times": "a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}",
    "no such anchor": "model: *nothing",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_of_aliases_is_refused_before_anything_is_built_of_it(recipe, monkeypatch, name):
    monkeypatch.setattr(yaml, "compose", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(ConfigError, match=r"my\.yaml, line \d+: .*anchors and aliases .* are not read"):
        recipe(BOMBS[name])


PIECES = ["&a ", "*a", "!!map ", "!<x> ", "<<: ", "? ", "- ", "[", "]", "{", "}", ": ", "\n", "\t", "  ", "#", "|", ">"]
PIECES += [
    "%YAML 9.9",
    "---",
    "...",
    "'",
    '"',
    "\\x",
    "\0",
    "\x85",
    "\ud800",
    "\ufeff",
    "NaN",
    "1e999",
    "9" * 5_000,
    "@",
    "`",
]


def fuzz(folder, rounds):
    """Damages real recipes; what reads them gives settings or a sentence that names the file."""
    draw, refused = Random(0), 0
    recipes = [file.read_text(encoding="utf-8") for file in sorted(RECIPES.glob("*.yaml"))]
    path = folder / "any.yaml"
    for _ in range(rounds):
        text = draw.choice(recipes)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(text) + 1)
            text = (
                text[:at] + draw.choice(PIECES) * draw.choice((1, 1, 1, 30)) + text[at + draw.choice((0, 0, 1, 20)) :]
            )
        raw = bytearray(text.encode(errors="surrogatepass"))
        if draw.random() < 0.3:
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        path.write_bytes(raw)
        for read in (load_recipe, load_sweep):
            said = ""
            try:
                read(path)
            except ConfigError as error:
                said = str(error)
                refused += 1
            assert not said or (str(path) in said and len(said) < 5_000)
    return refused


def test_no_damage_to_a_recipe_escapes_as_a_raw_error(tmp_path):
    assert fuzz(tmp_path, 150) > 150


@pytest.mark.slow
def test_no_damage_to_a_recipe_escapes_as_a_raw_error_in_a_long_run(tmp_path):
    assert fuzz(tmp_path, 2_000) > 2_000
