"""Decoders with registers, computed by hand: no hooks, no cache, no padding; one row, one full mask, written out."""

from __future__ import annotations

import copy

import torch

from regtune.config import RegisterConfig
from regtune.registers.surgery import add_registers, find_registers
from tiny import tiny_model

N = 5


def with_registers(family: str, attention: str = "sdpa", head: str = "causal-lm", n: int = N, **settings):
    """A model with registers, and the same without."""
    plain = tiny_model(family, head, attention)
    if head == "causal-lm":
        plain.generation_config.eos_token_id = None  # random models would stop anywhere
    model = add_registers(copy.deepcopy(plain), RegisterConfig(num_registers=n, init_std=0.5, **settings))
    return model, plain


def masks_by_hand(config, tokens: int, n: int, windows: str, attention: str):
    """Who sees whom, `[1, 1, n + tokens, n + tokens]`, or a dict of them for models with several kinds of layers."""

    def seen(query: int, key: int, window: int | None) -> bool:
        stays = windows == "stay" and key < n
        return key <= query and (stays or window is None or query - key < window)

    def mask(window: int | None):
        total = range(n + tokens)
        whole = torch.tensor([[seen(query, key, window) for key in total] for query in total])[None, None]
        return whole if attention == "sdpa" else torch.where(whole, 0.0, torch.finfo(torch.float32).min)

    window = getattr(config, "sliding_window", None)
    if hasattr(config, "layer_types"):
        return {"full_attention": mask(None), "sliding_attention": mask(window)}
    return mask(window)


@torch.no_grad()
def logits_by_hand(plain, model, row, *, rotary: str = "before", windows: str = "stay"):
    """Logits of one text `[tokens]`, `[tokens, vocabulary]`: of the plain model, given the registers of the other."""
    registers = find_registers(model)
    vectors, n, tokens = registers.tokens + registers.positions, registers.num_registers, len(row)
    words = plain.get_input_embeddings()(row)
    before = torch.arange(-n, 0) if rotary == "before" else torch.zeros(n, dtype=torch.long)
    if plain.config.model_type == "gpt2":  # which adds positions to everything
        before = torch.zeros(n, dtype=torch.long)
        vectors = vectors - plain.transformer.wpe(before)
    attention = plain.config._attn_implementation
    return plain(
        inputs_embeds=torch.cat([vectors, words])[None],
        position_ids=torch.cat([before, torch.arange(tokens)])[None],
        attention_mask=masks_by_hand(plain.config, tokens, n, windows, attention),
        use_cache=False,
    ).logits[0, n:]


def greedy_by_hand(plain, model, row, steps: int, **settings) -> list[int]:
    """The tokens that follow, each the most likely one."""
    found = row.tolist()
    for _ in range(steps):
        found.append(int(logits_by_hand(plain, model, torch.tensor(found), **settings)[-1].argmax()))
    return found[len(row) :]


def padded(*lengths: int, side: str = "left", seed: int = 1) -> dict[str, torch.Tensor]:
    """Random texts of these lengths in a batch."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.ones(len(lengths), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(longest - length, None) if side == "left" else slice(length)
        ids[row, place] = torch.randint(4, 120, (length,), generator=generator)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def rows(batch) -> list[torch.Tensor]:
    """Each text alone."""
    return [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def logits_of(output) -> torch.Tensor:
    """All logits, `[2 or classes, batch, seq]` or `[classes, batch]`."""
    return output.logits.movedim(-1, 0) if "logits" in output else torch.stack([output.start_logits, output.end_logits])
