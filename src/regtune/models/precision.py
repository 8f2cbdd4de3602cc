"""Where a model runs and in what precision: bfloat16 autocast where the device has it natively."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

Precision = Literal["float32", "bfloat16"]


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    if torch.accelerator.is_available():
        return torch.device(torch.accelerator.current_accelerator() or "cpu")
    return torch.device("cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 run natively there (on a CPU: AVX512-BF16, AMX or Arm's BF16)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and any(
            torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "amx", "bf16")
        )
    return False


def resolve_precision(choice: Literal["auto", "float32", "bfloat16"], device: torch.device) -> Precision:
    """What `auto` means on this device."""
    if choice != "auto":
        return choice
    return "bfloat16" if has_bfloat16(device) else "float32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Autocast to bfloat16, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()
