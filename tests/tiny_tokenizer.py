"""A WordPiece tokenizer that spells words out, model folders made with it, and questions they can read."""

from __future__ import annotations

import string
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from regtune.tasks.qa.data.squad import write_squad
from regtune.tasks.qa.examples import Answer, QAExample
from tiny import tiny_model

SPECIAL = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["who", "what", "where", "is", "in", "the", "lives", "cat", "house", "was"]
VOCABULARY = SPECIAL + WORDS + [prefix + c for prefix in ("", "##") for c in string.ascii_lowercase + string.digits]
VOCABULARY += list(".,?!'-:;()")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


def save_tiny(folder: Path, family: str = "bert", *, tokenizer: bool = True, **model) -> Path:
    """A model folder as `save_pretrained` leaves it."""
    tiny_model(family, **model).save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return folder


def examples(count: int = 6) -> list[QAExample]:
    names = ["Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gil", "Hal"]
    found = []
    for index in range(count):
        name = names[index % len(names)]
        context = f"The cat is in the house. {name} lives in house {index}."
        answer = Answer(text=name, start=context.index(name))
        found.append(QAExample(id=f"q{index}", question=f"Who lives in {index}?", context=context, answers=(answer,)))
    return found


def save_questions(path: Path, count: int = 6) -> Path:
    write_squad(examples(count), path)
    return path
