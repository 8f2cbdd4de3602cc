"""Images through every command of a study: sweep, inspect, compare and report, with pictures in the page."""

from __future__ import annotations

import pytest

from command_line import invoke
from regtune.analyses.inspection import inspect
from regtune.config import RunConfig, TrainConfig
from regtune.report.page import write_report
from regtune.sweeps.grid import SweepConfig
from regtune.sweeps.sweep import run_sweep
from tiny_images import folder_of, save_tiny


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two arms and two seeds on red and blue images."""
    folder = tmp_path_factory.mktemp("study")
    data = folder_of(folder / "pets", size=(30, 30))
    sweep = SweepConfig(
        arms=("baseline", "registers"),
        num_registers=(2,),
        seeds=(0, 1),
        training_sets={"pets": (str(data),)},
        evaluation_sets=(str(data),),
        base=RunConfig(
            model=str(save_tiny(folder / "base")),
            task="images",
            training=TrainConfig(epochs=1.0, batch_size=3, precision="float32"),
        ),
    )
    return sweep, folder / "sweep", run_sweep(sweep, folder / "sweep", progress=False)


def test_a_study_of_images_is_inspected_compared_and_reported(study, capsys):
    sweep, folder, outcome = study
    assert (len(outcome.finished), outcome.failed) == (4, {})
    kept = {cell.config.registers.num_registers: folder / cell.key for cell in sweep.cells() if cell.seed == 0}
    for place in kept.values():
        inspect(str(place), parts=("attention", "artefacts"), limit=4, settings={"artefacts": {"probes": False}})
    page = write_report(folder, resamples=200).read_text(encoding="utf-8")
    assert "Norms of patches behind each block: pets/cat/0.png" in page
    assert "Attention to patches, mean over heads: pets/cat/0.png" in page
    assert "images have another size than 24 × 24 pixels" in page or "accuracy" in page
    code, said, _ = invoke(capsys, ("compare", kept[2], kept[0]))
    assert (code, "accuracy" in said) == (0, True)
    code, said, _ = invoke(capsys, ("evaluate", kept[2], "--data", "embedded:dev"))
    assert code != 0
    assert "has the label" in said + _


def test_the_command_trains_on_images_and_says_what_was_resized(tmp_path, capsys):
    data, model = folder_of(tmp_path / "pets", size=(30, 30)), save_tiny(tmp_path / "model")
    train = ("train", "--task", "images", "--model", model, "--data.train", data, "--data.eval", data)
    quick = ("--training.epochs", "1", "--training.precision", "float32", "--output-dir", tmp_path / "run")
    code, said, told = invoke(capsys, (*train, *quick))
    assert (code, "accuracy" in said) == (0, True)
    assert "6 of 6 images have another size than 24 × 24 pixels" in told
