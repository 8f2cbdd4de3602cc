"""Classes of tokens."""

import pytest
import torch

from regtune.errors import ConfigError
from regtune.rows.token_classes import TokenClass, is_content, is_punctuation, token_classes
from tiny_tokenizer import tiny_tokenizer

CLS, SEP, SIGN, QUESTION, CONTEXT, PAD = (
    TokenClass.CLS,
    TokenClass.SEP,
    TokenClass.PUNCTUATION,
    TokenClass.QUESTION,
    TokenClass.CONTEXT,
    TokenClass.PADDING,
)


def coded(*texts):
    return tiny_tokenizer()(list(texts), padding=True, return_tensors="pt")


def test_every_position_of_a_pair_has_its_class():
    tokenizer = tiny_tokenizer()
    pair = tokenizer(["who is cat?"], ["the cat, is."], return_tensors="pt")
    found = token_classes(pair["input_ids"], pair["attention_mask"], tokenizer, context_start=torch.tensor([6]))
    assert found[0].tolist() == [
        CLS, QUESTION, QUESTION, QUESTION, SIGN, SEP, CONTEXT, CONTEXT, SIGN, CONTEXT, SIGN, SEP,
    ]  # fmt: skip


def test_padding_is_a_class_of_its_own_and_no_text_without_a_question_is_one():
    batch = coded("the cat is in the house", "cat")
    found = token_classes(batch["input_ids"], batch["attention_mask"], tiny_tokenizer())
    assert found[1].tolist() == [CLS, CONTEXT, SEP, PAD, PAD, PAD, PAD, PAD]


def test_the_first_special_token_is_cls_also_behind_padding_on_the_left():
    tokenizer = tiny_tokenizer()
    batch = tokenizer(["the cat", "cat"], padding=True, padding_side="left", return_tensors="pt")
    found = token_classes(batch["input_ids"], batch["attention_mask"], tokenizer)
    assert found[1].tolist() == [PAD, CLS, CONTEXT, SEP]


def test_a_word_that_the_tokenizer_cannot_spell_is_still_a_word():
    batch = coded("the 猫 is")
    found = token_classes(batch["input_ids"], batch["attention_mask"], tiny_tokenizer())
    assert found[0].tolist() == [CLS, CONTEXT, CONTEXT, CONTEXT, SEP]


def test_content_is_what_somebody_wrote():
    every = torch.tensor([int(each) for each in TokenClass], dtype=torch.int8)
    assert [TokenClass(int(each)) for each in every[is_content(every)]] == [SIGN, QUESTION, CONTEXT]


def test_punctuation_is_signs_alone():
    assert all(map(is_punctuation, ("##.", " ,", "§")))
    assert not any(map(is_punctuation, ("a.", "", "##a")))


def test_byte_level_pieces_are_read_as_the_text_they_stand_for():
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["the cat’s house … – is"] * 4, vocab_size=400, min_frequency=1)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer)
    ids = torch.tensor([tokenizer("cat …")["input_ids"]])
    found = token_classes(ids, torch.ones_like(ids), tokenizer)
    assert found[0, -1] == SIGN
    assert found[0, 0] == CONTEXT


def test_wrong_shapes_are_refused():
    batch = coded("the cat")
    with pytest.raises(ConfigError, match="must be equal"):
        token_classes(batch["input_ids"], batch["attention_mask"][:, :2], tiny_tokenizer())
    with pytest.raises(ConfigError, match="one number for each row"):
        token_classes(batch["input_ids"], batch["attention_mask"], tiny_tokenizer(), context_start=torch.tensor([1, 2]))
