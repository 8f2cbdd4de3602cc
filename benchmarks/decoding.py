"""What do eight registers cost when a decoder reads and writes? N=8 against N=0, in turns; and with registers kept.

A Llama of SmolLM2-135M's shape with random weights, on which speed doesn't depend; one text; a dynamic cache.

python benchmarks/decoding.py [--pairs 30] [--prompt 512]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from record import write_result
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from regtune.config import RegisterConfig
from regtune.models.precision import best_device
from regtune.registers.kept import registers_cache
from regtune.registers.surgery import add_registers

SHAPE: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


class Side:
    """One model that has read a prompt, and goes on token by token."""

    def __init__(self, num_registers: int, prompt: torch.Tensor, *, keep: bool = False) -> None:
        torch.manual_seed(0)
        self.device = best_device()
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), attn_implementation="sdpa")
        self.model: Any = add_registers(model, RegisterConfig(num_registers=num_registers)).to(self.device).eval()
        self.kept = registers_cache(self.model) if keep else None
        self.prompt = prompt.to(self.device)
        self.cache = self.empty()
        self.prefill()

    def empty(self) -> DynamicCache:
        return DynamicCache(config=self.model.config) if self.kept is None else self.kept.start(len(self.prompt))

    def _timed(self, ids: torch.Tensor) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            self.model(ids, past_key_values=self.cache, logits_to_keep=1)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def prefill(self) -> float:
        """Seconds for the prompt into an empty cache."""
        self.cache = self.empty()
        return self._timed(self.prompt)

    def step(self) -> float:
        """Seconds for one more token."""
        return self._timed(self.prompt[:, :1])

    def places(self) -> int:
        """Keys in a layer of the cache."""
        layer: Any = self.cache.layers[0]
        return int(layer.keys.shape[2])


def in_turns(sides: list[Side], name: str, pairs: int) -> list[list[float]]:
    """Seconds of each side in each round; the order turns from round to round."""
    rounds = []
    for number in range(pairs):
        order = range(len(sides)) if number % 2 else reversed(range(len(sides)))
        seconds = {index: getattr(sides[index], name)() for index in order}
        rounds.append([seconds[index] for index in range(len(sides))])
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--prompt", type=int, default=512)
    asked = parser.parse_args()
    prompt = torch.randint(SHAPE["vocab_size"], (1, asked.prompt), generator=torch.Generator().manual_seed(1))
    sides = [Side(0, prompt), Side(8, prompt), Side(8, prompt, keep=True)]
    found: dict[str, Any] = {"prompt": asked.prompt, "pairs": asked.pairs}
    for name in ("prefill", "step"):
        in_turns(sides, name, 2)
        rounds = in_turns(sides, name, asked.pairs)
        for index, side in ((1, ""), (2, "_kept")):
            ratios = [seconds[index] / seconds[0] for seconds in rounds]
            found[f"{name}{side}_ratio"] = round(statistics.median(ratios), 4)
        found[f"{name}_seconds"] = [round(statistics.median(column), 5) for column in zip(*rounds, strict=True)]
    found["more_places"] = sides[1].places() - sides[0].places()
    print(found, write_result("decoding", found))


if __name__ == "__main__":
    main()
