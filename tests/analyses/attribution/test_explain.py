"""`explain`: one call for answers, classes, tags, masked and next tokens, in Python and on the command line."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import regtune
from analyses.attribution.explained import encoder
from regtune import explain
from regtune.analyses.attribution import explain as _module  # noqa: F401 - the function of the same name hides it
from regtune.analyses.attribution.explain import explain_row
from regtune.cli.main import main
from regtune.config import DataConfig, RegisterConfig, RunConfig
from regtune.errors import ConfigError, DataError, MissingExtraError, UnknownNameError
from regtune.recipes import settings_of
from regtune.registers.surgery import add_registers
from regtune.report.overlays.pictures import read_pictures
from regtune.rows.targets import ClassLogit, StartLogit
from regtune.tasks.qa.question_answerer import ask
from tiny import inputs, tiny_model
from tiny_tokenizer import save_tiny, tiny_tokenizer

QUESTION = "Who lives in the house?"
CONTEXT = "The cat is in the house. Ann lives in house 3, and Bob was in house 4."
TEXT = "the cat lives in the house"
LEDGER = {"method": "attnlrp"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def registers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registers")
    add_registers(tiny_model("bert"), RegisterConfig(num_registers=3)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def moods(tmp_path_factory):
    labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    return str(save_tiny(tmp_path_factory.mktemp("moods"), head="sequence-classification", **labels))


def opened(folder, **answers):
    """A session with the settings of a run that cut its texts short."""
    config = RunConfig(data=DataConfig(max_length=40), settings={"stride": 12, "max_question_length": 24, **answers})
    session = regtune.open(folder)
    return dataclasses.replace(session, task_settings=settings_of(config, session.task))


# Questions


def test_start_and_end_of_the_answer_that_the_model_gives_are_explained(plain):
    (model,) = explain(plain, QUESTION, CONTEXT, **LEDGER).models
    said = ask(plain, QUESTION, CONTEXT)
    assert model.answer["text"] == said.text
    assert model.answer["probability"] == pytest.approx(said.n_best[0].probability, rel=0.5)  # "no answer" has a share
    assert CONTEXT[model.answer["start"] : model.answer["end"]] == said.text
    start, end = model.attributions
    assert (start.asked, end.asked) == ("start", "end")
    assert start.value + end.value == pytest.approx(said.n_best[0].score, abs=1e-4)
    first, last = (int(one.target.rsplit(" ", 1)[1]) for one in (start, end))
    assert (start.offsets[first][0], start.offsets[last][1]) == (model.answer["start"], model.answer["end"])


def test_offsets_lead_to_the_question_and_to_the_context(plain):
    (model,) = explain(plain, QUESTION, CONTEXT, **LEDGER).models
    found = model.attributions[0]
    for place, (token, (start, end)) in enumerate(zip(found.tokens, found.offsets, strict=True)):
        text = QUESTION if place < model.context_start else CONTEXT
        if not token.startswith("["):
            assert text[start:end].lower() == token.removeprefix("##")


def test_two_models_are_explained_side_by_side(plain, registers):
    found = explain(registers, QUESTION, CONTEXT, target="answer", compare=plain, **LEDGER)
    assert [model.num_registers for model in found.models] == [3, 0]
    assert [len(one.registers) for one in found.attributions] == [3, 0]
    different = found.models[0].answer["text"] != found.models[1].answer["text"]
    assert bool(found.notes) == different
    (picture,) = read_pictures(json.loads(json.dumps(found.to_json())))
    assert [model.label for model in picture.models] == ["with 3 registers", "without registers"]
    assert picture.rows == {"attnlrp": ["answer"]}


@pytest.mark.parametrize("target", ["answer", "answer-minus-null", "answer-minus-runner-up"])
def test_every_target_of_question_answering_is_at_hand(plain, target):
    (found,) = explain(plain, QUESTION, CONTEXT, target=target, **LEDGER).attributions
    assert found.asked == target
    assert abs(found.value - found.total) < 1e-3


def test_a_long_text_is_explained_where_the_answer_is_and_it_is_said(plain):
    long = f"{'The house was in the house. ' * 12}{CONTEXT}"
    session = opened(plain)
    (model,) = explain(session, QUESTION, long, **LEDGER).models
    (note,) = [note for note in model.notes if "overlapping parts" in note]
    found = model.attributions[0]
    spans = found.offsets[model.context_start : -1]
    assert spans[0][0] <= model.answer["start"]
    assert model.answer["end"] <= spans[-1][1]
    assert f"characters {spans[0][0]:,} to {spans[-1][1]:,} of {len(long):,}" in note
    assert len(found.tokens) <= 40
    example = session.task.example({"question": QUESTION, "context": long}, session.task_settings)
    (said,) = session.predict(regtune.Examples(items=(example,), names=("x",)))
    assert model.answer["text"] == said.text
    assert sum(one.value for one in model.attributions) == pytest.approx(said.n_best[0].score, abs=1e-3)


def test_a_question_that_is_too_long_is_cut_and_it_is_said(plain):
    (model,) = explain(plain, "who lives in the house " * 20, CONTEXT, **LEDGER).models
    assert any("were too long and cut" in note for note in model.notes)


def test_no_answer_is_said_and_the_best_answer_is_explained_against_it(plain):
    session = opened(plain, null_answers=True, null_threshold=-1e6)
    (model,) = explain(session, QUESTION, CONTEXT, target="start", **LEDGER).models
    (found,) = model.attributions
    assert found.asked == "answer-minus-null"
    assert found.target.endswith("minus no answer")
    assert any("holds no answer" in note for note in model.notes)
    assert model.answer["text"]


def test_an_answer_against_the_models_own_odds_comes_with_a_warning(plain):
    found = {}
    for question in (QUESTION, "What was in the house?", "Where is the cat?", "Who is Bob?", "What is in house 4?"):
        (model,) = explain(opened(plain), question, CONTEXT, target="answer-minus-null", **LEDGER).models
        warned = any("don't trust this answer" in note for note in model.notes)
        found[warned] = model.attributions[0].value
        assert warned == (model.attributions[0].value < 0)
    assert found


def test_words_that_the_ledger_books_against_their_own_answer_are_compared_with_hiding_them():
    """The sentence stands where the ledger's sign and the experiment's disagree, and nowhere else."""
    model, said = encoder("bert"), set()
    for place, ids in enumerate(inputs("bert", batch=8, seq=9, seed=0)["input_ids"], start=1):
        moved = {"occlusion": {"special_tokens": "moved"}}
        goals, methods = {"start": StartLogit(position=place)}, ("attnlrp", "occlusion")
        row, answer = {"input_ids": ids[None]}, (place, place)
        found, notes = explain_row(model, row, goals, methods=methods, options=moved, answer=answer)
        booked, hidden = (float(one.relevance[place]) for one in found)
        assert len(notes) == (booked < 0 < hidden)
        for note in notes:
            assert note.startswith(f"attnlrp books the answer's own words at {booked:+.2f} logits for start, yet")
            assert f"costs {hidden:.2f}." in note
        said.add(len(notes))
    assert said == {0, 1}


# Classes


def test_a_contrast_of_labels_is_the_difference_of_their_logits(moods):
    targets = ("positive", "negative", "positive-negative")
    found = explain(moods, TEXT, target=targets, method="gradient-input")
    values = {one.asked: one.value for one in found.attributions}
    assert values["positive-negative"] == pytest.approx(values["positive"] - values["negative"], abs=1e-5)
    relevance = {one.asked: one.relevance for one in found.attributions}
    difference = relevance["positive"] - relevance["negative"]
    assert relevance["positive-negative"] == pytest.approx(difference, abs=1e-4)
    assert found.models[0].answer["text"] in ("negative", "positive")
    assert (found.question, found.context) == (None, TEXT)
    with pytest.raises(UnknownNameError, match=r"label 'positiv'\. Did you mean 'positive'"):
        explain(moods, TEXT, target="positiv", method="gradient-input")


def test_texts_pairs_records_and_examples_are_taken_alike(moods, tmp_path):
    given = [TEXT, ("who is it", TEXT), {"text": TEXT, "id": "x"}]
    found = explain(moods, given, method="gradient-input")
    assert [(one.id, one.question, one.context) for one in found] == [
        ("1", None, TEXT),
        ("2", "who is it", TEXT),
        ("x", None, TEXT),
    ]
    assert found[0].attributions[0].value == found[2].attributions[0].value != found[1].attributions[0].value
    pair = found[1].models[0]
    spans = pair.attributions[0].offsets
    assert TEXT[slice(*spans[pair.context_start])] == "the"
    assert "who is it"[slice(*spans[1])] == "who"
    (tmp_path / "set.csv").write_text(f"label,text\npositive,{TEXT}\n")
    session = regtune.open(moods)
    (read,) = explain(session, session.sample([str(tmp_path / "set.csv")]).items, method="gradient-input")
    assert read.attributions[0].value == pytest.approx(found[0].attributions[0].value)


def test_the_scores_of_a_words_pieces_add_up(moods):
    text = "the dog isn't 12, is it"
    pieces, words = (explain(moods, text, method="attnlrp", by="layer", words=by) for by in (False, True))
    (one,), (other,) = pieces.attributions, words.attributions
    assert other.tokens == ("[CLS]", "the", "dog", "isn", "'", "t", "12", ",", "is", "it", "[SEP]")
    assert one.tokens[2:5] == ("d", "##o", "##g")
    assert other.relevance[2] == pytest.approx(one.relevance[2:5].sum())
    assert other.relevance.sum() == pytest.approx(one.relevance.sum())
    assert other.inner.shape == (4, 11)
    assert other.inner.sum(1) == pytest.approx(one.inner.sum(1))
    assert [text[slice(*span)] for span in other.offsets[1:-1]] == list(other.tokens[1:-1])


@pytest.mark.parametrize("by", ["layer", "head", "neuron"])
def test_what_layers_heads_and_neurons_carried_is_handed_out_and_shown(moods, by, tmp_path, capsys):
    page = tmp_path / "why.html"
    assert main(["explain", moods, TEXT, "--methods", "attnlrp", "--by", by, "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    (one,) = explain(moods, TEXT, method="attnlrp", by=by).attributions
    assert one.by == by
    assert one.inner.shape == {"layer": (4, 8), "head": (3, 4, 8), "neuron": (3, 48)}[by]
    what = {"layer": "depth", "head": "head", "neuron": "layer"}[by]
    assert f"What each {what} carried" in shown
    assert f"What each {what} carried" in page.read_text()
    if by == "head":
        for layer in one.inner.sum(-1):
            for total in layer:
                assert f"{total:+.3g}" in shown
    strongest = abs(one.inner[0] if by != "head" else one.inner[0][abs(one.inner[0].sum(-1)).argmax()]).argmax()
    assert f"{strongest if by == 'neuron' else one.tokens[strongest]} " in shown.split("strongest")[1].splitlines()[1]


def test_words_of_two_texts_stay_apart(plain):
    (model,) = explain(plain, QUESTION, CONTEXT, words=True, **LEDGER).models
    found = model.attributions[0]
    assert found.tokens[: model.context_start] == ("[CLS]", "Who", "lives", "in", "the", "house", "?", "[SEP]")
    assert found.tokens[model.context_start] == "The"
    assert found.tokens[found.read_from[0]] == CONTEXT[model.answer["start"] :].split(maxsplit=1)[0].rstrip(".,")


def test_a_model_and_its_tokenizer_are_enough(moods):
    session = regtune.open(moods)
    found = explain((session.model, session.reader), TEXT, target="positive", **LEDGER)
    assert found.attributions[0].value == explain(session, TEXT, target="positive", **LEDGER).attributions[0].value


# Tags, masked tokens, next tokens


def save(folder, model):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_tags_are_explained_at_their_words(tmp_path):
    names = {0: "O", 1: "B-PER", 2: "B-LOC"}
    settings = {"id2label": names, "label2id": {name: n for n, name in names.items()}, "num_labels": 3}
    folder = str(save_tiny(tmp_path, head="token-classification", **settings))
    session = regtune.open(folder)
    with torch.no_grad():
        logits = session.model(**session.reader(TEXT, return_tensors="pt")).logits[0]
    found = explain(folder, TEXT, target=("B-PER@cat", "B-PER-O@2"), **LEDGER)
    values = [one.value for one in found.attributions]
    assert values == pytest.approx([float(logits[2, 1]), float(logits[2, 1] - logits[2, 0])], abs=1e-5)
    assert [one.target for one in found.attributions] == ["tag B-PER of token 2", "tag B-PER minus O of token 2"]
    default = explain(folder, TEXT, **LEDGER)
    tagged = [n for n in range(1, 7) if int(logits[n].argmax())][:5]
    assert [one.asked.split("@")[0] for one in default.attributions] == [names[int(logits[n].argmax())] for n in tagged]
    assert [one.read_from for one in default.attributions] == [(place,) for place in tagged]


def test_a_masked_word_is_explained_in_words(tmp_path):
    folder = str(save_tiny(tmp_path, head="masked-lm"))
    session = regtune.open(folder)
    text = "the [MASK] lives in the house"
    with torch.no_grad():
        logits = session.model(**session.reader(text, return_tensors="pt")).logits[0, 2]
    best, cat = explain(folder, text, target=("predicted", "cat-house"), **LEDGER).attributions
    assert best.value == pytest.approx(float(logits.max()), abs=1e-5)
    ids = session.reader.convert_tokens_to_ids(["cat", "house"])
    assert cat.value == pytest.approx(float(logits[ids[0]] - logits[ids[1]]), abs=1e-5)
    assert cat.target == "token cat minus house at [MASK] 2"


SMALL = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LMS = {
    "gpt2": {"vocab_size": 100, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "llama": {**SMALL, "num_key_value_heads": 1, "intermediate_size": 24},
    "falcon": {**SMALL, "new_decoder_architecture": True, "num_kv_heads": 1, "bias": False},
    "t5": {"vocab_size": 100, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
}
WITHOUT_RULES = ("gradient-input", "integrated-gradients", "occlusion", "attention", "attention-gradient")


def language_model(kind):
    torch.manual_seed(0)
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    tokens = {"pad_token_id": 1, "eos_token_id": 99, "bos_token_id": 2, "decoder_start_token_id": 1}
    model = auto.from_config(AutoConfig.for_model(kind, **LMS[kind], **tokens))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.0 if kind == "t5" else 2.0)
    return model.eval()


@pytest.mark.parametrize("kind", sorted(LMS))
def test_what_a_model_writes_is_explained_token_by_token_by_methods_without_rules(kind, tmp_path):
    model = language_model(kind)
    folder = save(tmp_path, model)
    methods = WITHOUT_RULES[:3] if kind == "falcon" else WITHOUT_RULES
    found = explain(folder, TEXT, method=methods, write=3, max_steps=4096, special_tokens="moved")
    reader = tiny_tokenizer()
    given = reader(TEXT, return_tensors="pt")
    if kind != "t5":  # a text that a decoder writes on has a start token and no end
        given = {name: value[:, :-1] for name, value in given.items()}
    ids = model.generate(
        input_ids=given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=3, do_sample=False
    )
    new = ids[0, 1:] if kind == "t5" else ids[0, given["input_ids"].shape[1] :]
    inner = {"decoder_input_ids": ids[:, :-1], **given} if kind == "t5" else {"input_ids": ids[:, :-1]}
    inner.pop("token_type_ids", None)
    with torch.no_grad():
        logits = model(**inner).logits[0, -3:]
    for method in methods:
        steps = [one for one in found.attributions if one.method == method]
        expected = [float(row[token]) for row, token in zip(logits, new, strict=True)]
        assert [one.value for one in steps] == pytest.approx(expected, abs=1e-4), method
        for step, one in enumerate(steps):
            assert abs(one.relevance).max() > 0, method
            if kind != "t5":  # what comes later can't matter
                assert abs(one.relevance[len(one.relevance) - 2 + step :]).max(initial=0) < 1e-6, method
    if kind != "t5":
        assert found.context.startswith(TEXT)
        assert len(found.context) > len(TEXT)
    (picture,) = read_pictures(found.to_json())
    assert len(picture.rows["occlusion"]) == 3


def test_words_are_asked_of_a_language_model_wherever_it_writes(tmp_path):
    found = explain(save(tmp_path, language_model("gpt2")), TEXT, target="cat-house", method="gradient-input", write=2)
    assert [one.asked for one in found.attributions] == ["cat-house@6", "cat-house@7"]


# What is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((["a", "b"], TEXT), ConfigError, r"The model is list \['a', 'b'\]; give a folder"),
        ((None, TEXT), ConfigError, "The model is NoneType None; give a folder"),
        (("nowhere", None), ConfigError, "explain was given NoneType None; give a text"),
        (("nowhere", 3), ConfigError, "explain was given int 3; give a text, a mapping, or a list"),
        (("nowhere", [3]), ConfigError, "One of the texts is int 3"),
        (("nowhere", []), DataError, "0 texts"),
        (("nowhere", [" "]), DataError, "The text is ' '"),
        (("nowhere", ["who", "where"], CONTEXT), DataError, r"The question is \['who', 'where'\]; give it as text"),
        (("nowhere", "", CONTEXT), DataError, "The question is ''"),
        (("nowhere", QUESTION, ["a", "b"]), DataError, r"The context is \['a', 'b'\]"),
        (("nowhere", QUESTION, b"bytes"), DataError, "The context is b'bytes'"),
    ],
)
def test_a_wrong_argument_gets_a_sentence_before_a_model_is_opened(arguments, error, message):
    with pytest.raises(error, match=message):
        explain(*arguments)


def test_unknown_methods_and_options_are_refused_before_a_model_is_opened():
    with pytest.raises(UnknownNameError, match="Did you mean 'attnlrp'"):
        explain("nowhere", TEXT, method="attnlpr")
    with pytest.raises(UnknownNameError, match=r"option of occlusion, random 'start_layer'.*baseline"):
        explain("nowhere", TEXT, method=("occlusion", "random"), start_layer=3)
    with pytest.raises(ConfigError, match="write=0"):
        explain("nowhere", TEXT, write=0)


def test_options_reach_the_methods_that_have_them(moods):
    found = explain(moods, TEXT, method=("occlusion", "chefer"), baseline="zero", start_layer=1)
    assert [one.options for one in found.attributions] == [
        {"baseline": "zero", "special_tokens": "held"},
        {"start_layer": 1},
    ]


def test_methods_that_cannot_be_had_are_left_out_by_default_and_refused_when_asked_for(moods, monkeypatch):
    import sys

    def attribute(*arguments, method, **more):
        if method == "integrated-gradients":
            raise MissingExtraError("captum", "analysis", "Integrated gradients")
        return genuine(*arguments, method=method, **more)

    module = sys.modules["regtune.analyses.attribution.explain"]
    genuine = module.attribute
    monkeypatch.setattr(module, "attribute", attribute)
    (model,) = explain(moods, TEXT).models
    assert {one.method for one in model.attributions} == {"attnlrp", "chefer"}
    assert any(note.startswith("integrated-gradients is left out: Integrated gradients needs") for note in model.notes)
    with pytest.raises(MissingExtraError):
        explain(moods, TEXT, method="integrated-gradients")


def test_one_row_of_any_task_is_explained_by_several_methods():
    row = {"input_ids": torch.arange(4, 12)[None]}
    goals = {"first": ClassLogit(label=0), "contrast": ClassLogit(label=1, minus=0)}
    model = encoder("mpnet", "sequence-classification")
    options = {"occlusion": {"special_tokens": "moved", "baseline": "zero"}}
    found, notes = explain_row(model, row, goals, methods=("attnlrp", "occlusion"), options=options)
    assert [(one.asked, one.method) for one in found] == [
        (asked, method) for method in ("attnlrp", "occlusion") for asked in goals
    ]
    assert notes == ()


def test_explaining_again_gives_the_same_numbers(plain):
    torch.manual_seed(3)
    first = explain(plain, QUESTION, CONTEXT, **LEDGER).to_json()
    torch.manual_seed(4)
    assert explain(plain, QUESTION, CONTEXT, **LEDGER).to_json() == first


# The command


def test_a_list_of_texts_gives_json_lines_and_a_page(moods, tmp_path, capsys):
    (tmp_path / "in.txt").write_text(f"{TEXT}\nwho is it\n")
    words = ["explain", moods, "--file", str(tmp_path / "in.txt"), "--methods", "attnlrp", "occlusion", "--json"]
    flags = ["--target", "positive-negative", "--baseline", "mask", "--html", str(tmp_path / "why.html")]
    assert main([*words, *flags]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["context"] for line in lines] == [TEXT, "who is it"]
    found = [one for line in lines for one in line["models"][0]["attributions"]]
    assert {one["asked"] for one in found} == {"positive-negative"}
    assert {one["options"]["baseline"] for one in found if one["method"] == "occlusion"} == {"mask"}
    page = (tmp_path / "why.html").read_text()
    for shown in ("lives", "positive-negative", "baseline mask"):
        assert shown in page


def test_a_folder_of_texts_and_a_data_set_are_explained(moods, tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in (("b.txt", "who is it\nthe cat"), ("a.txt", TEXT)):
        (folder / name).write_text(text)
    flags = ["--methods", "gradient-input", "--json"]
    assert main(["explain", moods, "--file", str(folder), *flags]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["id"], line["context"]) for line in lines] == [("a.txt", TEXT), ("b.txt", "who is it\nthe cat")]
    (tmp_path / "set.csv").write_text("label,text\n" + "".join(f"positive,the cat {n}\n" for n in range(8)))
    assert main(["explain", moods, "--data", str(tmp_path / "set.csv"), "--limit", "2", *flags]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["context"] for line in lines] == ["the cat 0", "the cat 4"]


def test_the_terminal_shows_the_predicted_class_and_the_text(moods, capsys):
    assert main(["explain", moods, TEXT, "--methods", "attnlrp", "--words"]) == 0
    shown = capsys.readouterr().out
    for words in ("probability", "predicted", "lives"):
        assert words in shown


def test_without_anything_to_explain_the_command_says_what_to_give(moods, capsys):
    assert main(["explain", moods]) == 2
    assert "Give texts behind the model" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_an_error_in_less_than_a_second(tmp_path, capsys):
    started = time.process_time()
    assert main(["explain", str(tmp_path / "missing"), TEXT]) == 1
    assert time.process_time() - started < 1
    assert "doesn't exist" in capsys.readouterr().err
    assert Path(tmp_path).is_dir()
