"""Four kinds of tokenizer, trained on a few sentences in milliseconds, and examples to cut."""

import functools

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from regtune.tasks.qa.examples import Answer, QAExample
from regtune.tasks.qa.windows import make_windows

CORPUS = [
    "the cat sat on the mat in Paris, and where did the dog go in 1984?",
    "héllo wörld: ที่นี่ สวัสดี ภาษาไทย مرحبا بالعالم السلام नमस्ते दुनिया 日本 語 Привет мир",
    "the cat  ran; what is it? Wo ist der Hund? où est le chat",
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
NAMES = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def template(pair):
    return processors.TemplateProcessing(single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)])


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES)


def byte_level(*, trim, prefix_space, roberta):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    if roberta:
        tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", 2), ("<s>", 0), trim_offsets=trim, add_prefix_space=prefix_space
        )
    else:
        tokenizer.post_processor = template("<s> $A </s> $B </s>")
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=names, **NAMES)


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=160, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = template("<s> $A:0 </s>:0 </s>:1 $B:1 </s>:1")
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES)


KINDS = {
    "bert-wordpiece": wordpiece,
    "roberta-byte-bpe": lambda: byte_level(trim=True, prefix_space=False, roberta=True),
    "roberta-untrimmed": lambda: byte_level(trim=False, prefix_space=True, roberta=True),
    "modernbert-byte-bpe": lambda: byte_level(trim=False, prefix_space=False, roberta=False),
    "xlmr-unigram": unigram,
}


@functools.cache
def tokenizer_of(kind):
    return KINDS[kind]()


def example(context, answer=None, *, number=0, question="where is the cat?"):
    answers = () if answer is None else (Answer(text=context[slice(*answer)], start=answer[0]),)
    return QAExample(id=f"q{number}", question=question, context=context, answers=answers, is_impossible=answer is None)


def cut(examples, tokenizer, **changes):
    choices = {"max_length": 64, "stride": 8, "max_question_length": 24, "for_training": True} | changes
    return make_windows(examples, tokenizer, **choices)


def answer_of(window, examples):
    first, last = window.start_position - window.context_start, window.end_position - window.context_start
    return examples[window.example].context[window.offsets[first, 0] : window.offsets[last, 1]]


LONG = " ".join(f"the cat number {number} sat on the mat in Paris." for number in range(40))
every_kind = pytest.mark.parametrize("kind", KINDS)
