"""What each of two processes does with every case: shares the model out, trains on its half of a batch, and saves.

Run by test_wrappers.py: `shared_out.py FOLDER FAMILY ...`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from registers.placed import every_case, logits, padded, registered
from regtune.errors import UnsupportedModelError
from regtune.registers.saving import from_pretrained, save_registers
from regtune.registers.surgery import add_registers, disable_registers, remove_registers
from tiny import HEADS, tiny_model

LABELS = torch.tensor([0, 1, 1, 0])


def train(model: nn.Module, batch: dict[str, torch.Tensor], labels: torch.Tensor) -> None:
    """Three steps without dropout."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(3):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def fsdp2(model: nn.Module) -> nn.Module:
    """Each layer is a shard of its own, the rest is another."""
    mesh = init_device_mesh("cpu", (2,))
    for name, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and name.endswith(("layer", "layers")):
            for layer in part:
                fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WAYS = {"ddp": ddp, "fsdp2": fsdp2}


def refusal(change, model: nn.Module) -> str:
    try:
        change(model)
    except UnsupportedModelError as error:
        return str(error)
    return "nothing was refused"


def work(folder: Path, case: tuple[str, str, str], way: str, rank: int) -> None:
    family, head = case[0], "sequence-classification"
    batch, mine = padded(family, batch=4, seq=12, pad=4), slice(2 * rank, 2 * rank + 2)
    model = registered(*case)
    wrapped = WAYS[way](model)
    train(wrapped, {name: value[mine] for name, value in batch.items()}, LABELS[mine])
    found = {"on": logits(wrapped, batch)}
    with disable_registers(wrapped):
        found["off"] = logits(wrapped, batch)
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        model.save_pretrained(folder, state_dict=weights)
    save_registers(wrapped, folder / "registers")
    distributed.barrier()
    again = from_pretrained(HEADS[head], folder, attn_implementation="eager").eval()
    found["loaded"] = logits(WAYS[way](again), batch)
    refused = [refusal(add_registers, WAYS[way](tiny_model(family, head))), refusal(remove_registers, wrapped)]
    if rank == 0:
        save_file(found, folder / "found.safetensors")
        (folder / "refused.txt").write_text("\n".join(refused))


def main() -> None:
    folder, families = Path(sys.argv[1]), sys.argv[2:]
    distributed.init_process_group("gloo")
    for case in every_case(families):
        for way in WAYS:
            work(folder / "-".join((*case, way)), case, way, distributed.get_rank())
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
