"""Exports models to ONNX and torch.export and measures what the files compute. Run by test_programs.py.

In a process of its own, since the shape checks of the test suite can't be traced: `exported.py FOLDER CASE ...`, a case
being FORMAT:FAMILY:HEAD:PLACEMENT:DEPTH.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import tiny_images
from registers.placed import padded
from regtune.config import RegisterConfig
from regtune.registers.surgery import add_registers, disable_registers
from regtune.serving.export import export
from regtune.session import around
from serving.placed_on import session_on


def measure(case: str, folder: Path) -> dict[str, object]:
    """The export's own largest difference; another one, by the file's engine alone; and what registers make of it."""
    kind, family, head, placement, depth = case.split(":")
    if family == "vit":
        config = RegisterConfig(num_registers=3, init_std=0.5, depth=depth)
        model = add_registers(tiny_images.tiny_model("vit", head), config).eval()
        session, batch = around(model, tiny_images.ViTImageProcessorPil()), tiny_images.images(seed=5)
    else:
        session = session_on(family, head, placement=placement, depth=depth)
        batch = padded(family, batch=4, seq=17, pad=6, seed=7)
        batch["token_type_ids"] = torch.arange(17).ge(9).long().expand(4, -1) * batch["attention_mask"]
    found = export(session, folder, format=kind, progress=False)
    given = {name: batch[name] for name in found.inputs}
    with torch.no_grad():
        expected = session.model(**given)[0]
        with disable_registers(session.model):
            effect = (session.model(**given)[0] - expected).abs().max().item()
    if kind == "onnx":
        import onnxruntime

        engine = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        logits = torch.from_numpy(engine.run(None, {name: value.numpy() for name, value in given.items()})[0])
        axes = {one.name: one.shape for one in engine.get_inputs()}
    else:
        logits = next(iter(torch.export.load(folder / "model.pt2").module()(**given).values()))
        axes = {}
    mask = given.get("attention_mask")
    seen = mask.bool() if mask is not None and logits.shape[:2] == mask.shape else ...
    return {
        "largest": found.largest,
        "again": (logits - expected)[seen].abs().max().item(),
        "effect": effect,
        "files": found.files,
        "axes": axes,
        "tried": sorted({check.shape[0] for check in found.checks}),
        "padded": any(check.padded for check in found.checks),
        "config": json.loads((folder / "config.json").read_text()),
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    measured = {case: measure(case, place / str(number)) for number, case in enumerate(sys.argv[2:])}
    (place / "found.json").write_text(json.dumps(measured))
