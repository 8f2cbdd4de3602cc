"""The whole model as one program, registers inside: traced by torch.export, and from there to ONNX.

Tracing runs the model once on tensors that hold no numbers, hooks of registers included, so the program needs neither
regtune nor transformers. Batch and length stay free. A decoder's program has no cache: it reads a text and gives the
logits of all its places.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regtune.errors import MissingExtraError, UnsupportedModelError
from regtune.interfaces import Batch
from regtune.serving.proof import Traced, Written, trial_inputs
from regtune.session import Session

TORCH_FILE = "model.pt2"
ONNX_FILE = "model.onnx"


def write_torch(session: Session, folder: Path) -> Written:
    """Writes `model.pt2`, which `torch.export.load` opens."""
    inputs = trial_inputs(session)
    with _quiet():
        torch.export.save(_trace(session, inputs[0]), folder / TORCH_FILE)
        program = torch.export.load(folder / TORCH_FILE).module()

    def run(given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        with torch.inference_mode():
            found: Mapping[str, Tensor] = program(**{name: value.to(session.device) for name, value in given.items()})
        return found

    return Written(run=run, inputs=inputs)


def write_onnx(session: Session, folder: Path) -> Written:
    """Writes `model.onnx` (weights beyond 2 GB beside it), for onnxruntime and what is built on it.

    Raises:
        MissingExtraError: a package of the `onnx` extra is missing.
    """
    require_onnx()
    import onnxruntime

    inputs = trial_inputs(session)
    traced = _trace(session, inputs[0])
    outputs = _names(session, inputs[0])
    with _quiet():
        made = torch.onnx.export(
            traced,
            dynamo=True,
            input_names=list(inputs[0]),
            output_names=outputs,
            dynamic_shapes=_free(inputs[0], "batch", "seq"),
            verbose=False,
        )
        assert made is not None
        made.save(folder / ONNX_FILE)
    runtime = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])

    def run(given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        found = runtime.run(outputs, {name: value.numpy() for name, value in given.items()})
        return {name: torch.from_numpy(value) for name, value in zip(outputs, found, strict=True)}

    return Written(run=run, inputs=inputs)


def require_onnx() -> None:
    """Refuses where a package that ONNX needs isn't installed, before anything slow is done.

    Raises:
        MissingExtraError: one isn't.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingExtraError(package, "onnx", "Export to ONNX") from error


def _trace(session: Session, inputs: Batch) -> torch.export.ExportedProgram:
    given = {name: value.to(session.device) for name, value in inputs.items()}
    try:
        with torch.no_grad(), _quiet():
            any_size = torch.export.Dim.DYNAMIC  # a named one asks for proofs of sizes that torch can't find
            free = _free(inputs, any_size, any_size)
            return torch.export.export(Traced(session, inputs).eval(), (), given, dynamic_shapes=free, strict=False)
    except Exception as error:  # whatever a model's code does that can't be traced
        reason = next(iter(str(error).strip().splitlines()), "")
        raise UnsupportedModelError(
            f"{session.name} ({type(session.model).__name__}) can't be traced by torch.export for any batch and "
            f"length: {type(error).__name__}: {reason} Serve it through regtune.open, or export it as `plain`."
        ) from error


def _free(inputs: Batch, batch: Any, seq: Any) -> dict[str, dict[int, Any]]:
    """What the axes are that stay free: the batch and, of texts, the length."""
    return {name: {0: batch} if name == "pixel_values" else {0: batch, 1: seq} for name in inputs}


def _names(session: Session, inputs: Batch) -> list[str]:
    with torch.inference_mode():
        return list(
            Traced(session, inputs).eval()(**{name: value.to(session.device) for name, value in inputs.items()})
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters of torch say of their own deprecations and of packages that no model here needs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
