"""Image classification: folders, lists and drawn images; odd and broken files; one run from data to predictions."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig
from regtune.errors import CheckpointError, DataError
from regtune.rows.token_classes import TokenClass
from regtune.session import SharedInputs
from regtune.session import open as open_session
from regtune.sweeps.predict import predict
from regtune.sweeps.run import run_experiment
from regtune.tasks.images import ImageClassification, ImageSettings, opened
from regtune.testing import check_task
from tiny_images import BLUE, FAMILIES, LEADING, RED, folder_of, save_tiny
from tiny_tokenizer import save_tiny as save_text

TASK = ImageClassification()


def read(*names, limit=None, **settings):
    return TASK.read([str(name) for name in names], ImageSettings(**settings), limit=limit)


def test_a_folder_of_folders_is_labelled_by_their_names_in_turn(tmp_path):
    found = read(folder_of(tmp_path / "pets"), limit=4)
    assert [(item.id, item.label) for item in found.items] == [
        ("pets/cat/0.png", "cat"),
        ("pets/dog/0.png", "dog"),
        ("pets/cat/1.png", "cat"),
        ("pets/dog/1.png", "dog"),
    ]


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_a_list_of_paths_beside_its_images_is_read(tmp_path, name):
    folder_of(tmp_path / "pets", count=1)
    rows = [("pets/cat/0.png", "cat"), ("pets/dog/0.png", "dog")]
    lines = ["path,kind", *(f"{path},{label}" for path, label in rows)]
    if name.endswith("jsonl"):
        lines = [json.dumps({"path": path, "kind": label}) for path, label in rows]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    assert [item.label for item in read(tmp_path / name, label_column="kind").items] == ["cat", "dog"]


def test_drawn_images_are_the_same_every_time_and_all_shapes_are_there():
    found, again = read("embedded:dev"), read("embedded:dev")
    assert found.items == again.items
    assert found.facts["labels"] == dict.fromkeys(("circle", "cross", "square", "triangle"), 8)
    assert not {item.source for item in found.items} & {item.source for item in read("embedded:train").items}


def test_a_hub_set_is_read_with_its_labels_and_undecoded_images(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    folder_of(tmp_path / "pets", count=1)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"img": [str(tmp_path / f"pets/{label}/0.png") for label in ("cat", "dog")], "label": [0, 1]}
    made = datasets.Dataset.from_dict(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    found = read("hub:me/pets:train").items
    assert [(item.label, item.size) for item in found] == [("cat", (24, 24)), ("dog", (24, 24))]


ODD = {
    "grey": (lambda: Image.new("L", (4, 4), 128), "one channel, read as grey", (128, 128, 128)),
    "bits": (lambda: Image.fromarray(np.full((4, 4), 32768, np.uint16)), "16 bits a channel", (128, 128, 128)),
    "clear": (lambda: Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "with transparency, laid on white", (255, 255, 255)),
    "cmyk": (lambda: Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "CMYK, converted to RGB", (255, 0, 0)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_images_become_three_channels_and_it_is_said(tmp_path, name):
    make, told, colour = ODD[name]
    folder_of(tmp_path / "pets", count=1)
    make().save(tmp_path / "pets/cat/odd.tif")
    found = read(tmp_path / "pets")
    assert found.notes[0].startswith(f"1 of 3 images: {told}")
    image, _ = opened(tmp_path / "pets/cat/odd.tif", "")
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", colour)


def test_of_an_animated_image_the_first_frame_is_read_and_it_is_said(tmp_path):
    folder_of(tmp_path / "pets", count=1)
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "pets/cat/moving.gif", save_all=True, append_images=frames[1:])
    assert "animated: the first frame is read" in read(tmp_path / "pets").notes[0]
    assert opened(tmp_path / "pets/cat/moving.gif", "")[0].getpixel((0, 0)) == RED


def broken(place):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(noise).save(place / "cat/0.png")
    (place / "cat/0.png").write_bytes((place / "cat/0.png").read_bytes()[:900])


BAD = {
    "cut": (broken, r"cat/0\.png: the image is broken"),
    "text": (lambda place: (place / "cat/a.png").write_text("no"), r"a\.png: this is no image that Pillow reads"),
    "empty": (lambda place: (place / "fox").mkdir(), r"fox holds no image\. Put images of 'fox' there"),
    "astray": (lambda place: Image.new("L", (4, 4)).save(place / "x.png"), r"x\.png lies in no label's folder"),
    "floats": (lambda place: Image.new("F", (4, 4)).save(place / "cat/f.tif"), r"f\.tif: .* numbers of mode F"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_refused_in_words_or_left_out_and_counted(tmp_path, name):
    spoil, told = BAD[name]
    spoil(folder_of(tmp_path / "pets"))
    with pytest.raises(DataError, match=told):
        read(tmp_path / "pets")
    found = read(tmp_path / "pets", on_bad_record="skip")
    assert len(found.skipped) == 1
    assert {item.label for item in found.items} == {"cat", "dog"}


def test_lists_and_folders_without_images_are_refused_in_words(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no folder of a label\. Put each image into a folder named"):
        read(tmp_path / "empty")
    (tmp_path / "a.csv").write_text("path,label\nnone.png,cat\n")
    with pytest.raises(DataError, match=r"line 2: there is no image .*none\.png\. Check the path"):
        read(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("picture_of,label\nnone.png,cat\n")
    with pytest.raises(DataError, match=r"no column is called like a image .*--settings\.image-column COLUMN"):
        read(tmp_path / "b.csv")
    (tmp_path / "c.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"line 1: 'cat' is no record"):
        read(tmp_path / "c.txt")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("vit"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_images_keeps_what_a_task_promises(tmp_path, family):
    head = "image-classification" if family not in ("deit",) else "none"
    check_task("images", folder_of(tmp_path / "pets"), save_tiny(tmp_path / "model", family, head))


def test_rows_have_a_place_for_every_patch_and_images_of_another_size_are_resized_and_it_is_said(tmp_path, tiny):
    session = open_session(tiny)
    folder_of(tmp_path / "pets", ("LABEL_0", "LABEL_1"), size=(50, 40))  # width and height
    Image.new("RGB", (24, 24)).save(tmp_path / "pets/LABEL_0/fits.png")
    examples = session.sample([str(tmp_path / "pets")])
    rows = session.rows(examples)
    assert rows.notes == (
        "6 of 7 images have another size than 24 × 24 pixels (height × width; the first: pets/LABEL_0/0.png, 40 × 50) "
        "and were resized.",
    )
    assert set(rows.lengths) == {LEADING["vit"] + 9}
    batch = rows.batch([0, 1]) | rows.roles(rows.rows[:2])
    assert batch["pixel_values"].shape == (2, 3, 24, 24)
    assert batch["token_classes"][0].tolist() == [TokenClass.CLS, *[TokenClass.CONTEXT] * 9]
    assert batch["patch_grid"].tolist() == [[3, 3]] * 2
    assert rows.pictures is not None
    assert rows.pictures(rows.rows[:1]).shape == (1, 24, 24, 3)


def test_a_mask_that_hides_nothing_changes_nothing(tiny):
    session = open_session(tiny)
    batch = session.rows(unlabelled()).batch([0, 1])
    with torch.no_grad():
        plain = session.model(pixel_values=batch["pixel_values"]).logits
        assert torch.allclose(session.forward(batch).logits, plain, atol=1e-6)


def unlabelled(count=2):
    found = read("embedded:dev", limit=count)
    return dataclasses.replace(found, items=tuple(dataclasses.replace(item, label=None) for item in found.items))


def test_a_processor_that_doesnt_fit_the_model_is_refused_in_words(tmp_path):
    folder = save_tiny(tmp_path / "model")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"size": {"height": 32, "width": 24}}))
    session = open_session(folder)
    with pytest.raises(
        CheckpointError, match=r"makes images of 32 × 24 pixels, and the model reads 24 × 24\. Set size"
    ):
        session.rows(unlabelled())
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no image processor that can be loaded"):
        open_session(folder)


def test_tasks_of_texts_and_images_dont_take_each_others_models(tmp_path, tiny):
    with pytest.raises(
        CheckpointError, match=r"is a vit, for which there is no head for classification .*--task images"
    ):
        SharedInputs().start(RunConfig(model=str(tiny), task="classify"))
    with pytest.raises(CheckpointError, match=r"is a bert, for which there is no head for image classification"):
        SharedInputs().start(RunConfig(model=str(save_text(tmp_path / "bert")), task="images"))
    with pytest.raises(CheckpointError, match=r"has no head for question answering"):
        open_session(tiny, task="qa")


def config_of(tiny, data, place, **changes):
    return RunConfig(
        model=str(tiny),
        task="images",
        output_dir=place,
        data=DataConfig(train=(str(data),), eval=(str(data),)),
        registers=RegisterConfig(num_registers=2),
        training=TrainConfig(epochs=6.0, batch_size=2, learning_rate=3e-3, precision="float32"),
        **changes,
    )


def test_a_run_learns_red_from_blue_and_its_model_predicts_files_and_folders(tmp_path, tiny):
    data = folder_of(tmp_path / "pets")
    record = run_experiment(config_of(tiny, data, tmp_path / "run"), progress=False)
    assert record.metrics["pets"]["accuracy"] == record.metrics["pets"]["macro_f1"] == 1.0
    assert record.parameters["registers"] > 0
    assert record.training["text_tokens"] == 6 * 6 * (LEADING["vit"] + 9)
    found = predict(tmp_path / "run", data)
    assert {(one["id"], one["label"]) for one in found} >= {("cat/0.png", "cat"), ("dog/2.png", "dog")}
    (one,) = predict(tmp_path / "run", data / "dog/1.png")
    assert one["label"] == "dog"
    (given,) = predict(tmp_path / "run", [{"image": Image.new("RGB", (99, 30), RED)}])
    assert given["label"] == "cat"
    with pytest.raises(DataError, match=r"there is no image .*nowhere\.png"):
        predict(tmp_path / "run", [{"image": "nowhere.png"}])
