"""A sentiment classifier: it learns, is finished once, and doesn't mix with another config's."""

import dataclasses
import json

import pytest
import torch

from regtune.analyses.faithfulness.inputs import open_model
from regtune.config import TrainConfig
from regtune.errors import CheckpointError, ConfigError, DataError
from regtune.registers.surgery import num_registers, register_parameters
from regtune.tasks.classify.sentiment import SentimentConfig, train_sentiment
from tiny_tokenizer import save_tiny


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "sst2"
    folder.mkdir()
    lines = [f"1 the cat lives {row}\n0 who was in house {row}\n" for row in range(24)]
    for split, count in (("train", 24), ("dev", 6), ("test", 8)):
        (folder / f"stsa.binary.{split}").write_text("".join(lines[:count]), encoding="utf-8")
    return folder


@pytest.fixture
def config(tmp_path):
    base = save_tiny(tmp_path / "base", head="none", attention="sdpa")
    rates = {"learning_rate": 3e-3, "register_learning_rate": 1e-2}
    training = TrainConfig(epochs=6.0, batch_size=8, precision="float32", **rates)
    return SentimentConfig(model=str(base), training=training)


def test_a_classifier_learns_and_is_read_back_with_its_registers(tmp_path, data, config):
    record = train_sentiment(3, 0, data, tmp_path / "cell", config=config)
    assert record["metrics"]["test"]["accuracy"] > 0.9
    assert record["training"]["steps"] == 36
    assert record["training"]["losses"][-1] < record["training"]["losses"][0]
    assert record["data"] == {"train": 48, "dev": 12, "test": 16}
    assert json.loads((tmp_path / "cell" / "sentiment.json").read_text()) == record
    model, tokenizer = open_model(tmp_path / "cell", "sentiment")
    assert num_registers(model) == 3
    assert model.config.id2label == {0: "negative", 1: "positive"}
    coded = tokenizer(["the cat lives 3", "who was in house 4"], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert model(**coded).logits.argmax(-1).tolist() == [1, 0]


def test_registers_learn_at_their_own_rate(tmp_path, data, config):
    still = dataclasses.replace(config, training=dataclasses.replace(config.training, register_learning_rate=0.0))
    moved = {}
    for name, chosen in (("moving", config), ("still", dataclasses.replace(still, max_steps=4))):
        train_sentiment(2, 0, data, tmp_path / name, config=dataclasses.replace(chosen, max_steps=4))
        moved[name] = torch.cat([p.flatten() for p in register_parameters(open_model(tmp_path / name, "sentiment")[0])])
    assert (moved["moving"] - moved["still"]).abs().mean() > 0.005


def test_a_finished_cell_is_read_and_the_same_seed_repeats(tmp_path, data, config):
    config = dataclasses.replace(config, max_steps=3, max_sentences=16)
    first = train_sentiment(2, 1, data, tmp_path / "cell", config=config)
    before = (tmp_path / "cell" / "sentiment.json").stat().st_mtime_ns
    assert train_sentiment(2, 1, data, tmp_path / "cell", config=config) == first
    assert (tmp_path / "cell" / "sentiment.json").stat().st_mtime_ns == before
    again = train_sentiment(2, 1, data, tmp_path / "again", config=config)
    assert again["training"]["losses"] == first["training"]["losses"]
    other = train_sentiment(2, 2, data, tmp_path / "other", config=config)
    weights = [open_model(tmp_path / name, "sentiment")[0].state_dict() for name in ("cell", "again", "other")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["classifier.weight"], weights[2]["classifier.weight"])
    assert other["seed"] == 2


def test_a_folder_of_another_config_is_refused(tmp_path, data, config):
    config = dataclasses.replace(config, max_steps=1, max_sentences=8)
    train_sentiment(0, 0, data, tmp_path / "cell", config=config)
    with pytest.raises(CheckpointError, match="classifier of another config"):
        train_sentiment(0, 1, data, tmp_path / "cell", config=config)


def test_impossible_requests_are_refused(tmp_path, config):
    with pytest.raises(DataError, match="holds neither"):
        train_sentiment(0, 0, tmp_path, tmp_path / "cell", config=config)
    with pytest.raises(ConfigError, match="max_steps=0"):
        SentimentConfig(max_steps=0)
