"""The page: says what the records say, stands alone, and escapes what others wrote."""

import csv
import io
import re
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest

from regtune.config import DataConfig
from regtune.report.collect import collect
from regtune.report.figures import drawn, score_figure
from regtune.report.page import build_report, write_report
from regtune.report.rendering import write
from regtune.report.scores import Settings
from regtune.tasks.qa.task import F1
from report.synthetic import config_of, write_cell, write_plan, write_sweep

VOID = {"meta", "link", "br", "hr", "img", "input", "col"}
EVIL = "<script>alert('x')</script>"


class Structure(HTMLParser):
    """Collects tags, ids and addresses, and every end tag that does not fit."""

    def __init__(self, text):
        super().__init__()
        self.open, self.wrong, self.ids, self.addresses, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.addresses.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="session")
def text(report):
    return report.read_text(encoding="utf-8")


def test_the_verdict_stands_on_top_with_seeds_questions_and_corrections(text):
    top = text[: text.index("<h3>")]
    assert 'class="verdict helps"' in top
    assert "Registers help at N = 16: +" in top
    assert "200 questions, 5 seeds in each arm, paired by seed" in top
    assert "corrected for 2 comparisons" in top
    assert "Worse than these registers: frozen random vectors and registers + backbone frozen." in top


def test_every_element_is_closed_and_every_id_is_used_once(text):
    page = Structure(text)
    assert page.wrong == []
    assert page.open == []
    assert sorted(page.ids) == sorted(set(page.ids))
    assert page.tags.count("svg") == 4


def test_nothing_is_fetched_from_anywhere(text):
    page = Structure(text)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "script" not in page.tags


def test_the_page_is_small(text):
    assert len(text.encode()) < 1_000_000


def test_every_reference_inside_a_figure_has_its_target(text):
    wanted = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    assert wanted
    assert wanted <= set(Structure(text).ids)


def test_the_same_records_give_the_same_bytes(sweep, report, tmp_path):
    again = write_report(sweep, output=tmp_path, resamples=600)
    for path in sorted(p for p in report.parent.rglob("*") if p.is_file()):
        assert (tmp_path / path.relative_to(report.parent)).read_bytes() == path.read_bytes(), path.name
    assert again.name == "report.html"


def test_tables_lie_beside_the_page_as_markdown_and_csv(report):
    markdown = (report.parent / "tables.md").read_text(encoding="utf-8")
    assert "## F1 on en.dev: every arm against the baseline" in markdown
    rows = list(csv.reader(io.StringIO((report.parent / "tables/arms-f1-en.dev.csv").read_text())))
    assert rows[0][0] == "arm"
    assert [row[0] for row in rows[1:4]] == ["baseline", "registers, N = 4", "registers, N = 16"]
    assert rows[3][1] == "helps"
    assert {len(row) for row in rows} == {len(rows[0])}


def test_the_first_table_has_six_columns_and_the_small_print_is_folded(report, text):
    rows = list(csv.reader(io.StringIO((report.parent / "tables/summary.csv").read_text())))
    assert rows[0] == ["arm", "F1, mean ± SD", "difference (95 %)", "p", "verdict", "seeds"]
    assert rows[1][0] == "baseline"
    assert text.index('id="summary"') < text.index('class="figures"')
    assert re.search(
        r'<details class="basis"><summary>[^<]+</summary><p class="basis">F1 on en.dev, 200 questions', text
    )


def test_weights_chosen_on_the_reported_set_get_no_verdict(tmp_path):
    import json

    write_sweep(tmp_path, counts=(0, 4), seeds=(0, 1), questions=60, sets=("dev.json",), effects={4: 0.4})
    fair = build_report(collect(tmp_path), settings=Settings(resamples=200)).sections[0].headline
    assert "Weights that are scored: the last epoch's." in fair.basis
    for path in tmp_path.rglob("run.json"):
        content = json.loads(path.read_text())
        content["training"]["checkpoint"] = {"rule": "best", "on": "dev"}
        path.write_text(json.dumps(content))
    top = build_report(collect(tmp_path), settings=Settings(resamples=200)).sections[0].headline
    assert top.verdict == "no verdict"
    assert top.sentence.startswith("No verdict: the weights of these runs were chosen on dev, the set that is reported")
    assert top.sentence.endswith(fair.sentence)
    assert "the checkpoint that scored best on dev, which is reported here" in top.basis


def test_a_task_of_ones_own_is_reported_by_its_own_metrics(tmp_path, monkeypatch):
    """Perplexity: two columns, no upper bound, less is better; no points, no paper, no claim."""
    import json

    import numpy as np

    from regtune.interfaces import Task
    from regtune.records import read_json, write_json
    from regtune.registry import TASKS
    from stats.made_up import PERPLEXITY

    class LanguageModelling(Task):
        name, title, examples = "lm", "language modelling", "texts"
        settings = DataConfig
        metrics = (PERPLEXITY,)

    get = TASKS.get
    monkeypatch.setattr(TASKS, "get", lambda name: LanguageModelling() if name == "lm" else get(name))
    write_sweep(tmp_path, counts=(0, 4), seeds=(0, 1, 2), questions=60, sets=("dev.json",))
    for path in tmp_path.rglob("run.json"):
        content = json.loads(path.read_text())
        content["config"]["task"] = content["task"] = "lm"
        n = content["config"]["registers"]["num_registers"]
        rng = np.random.default_rng([n, content["config"]["training"]["seed"]])
        tokens = 5 + np.random.default_rng(0).integers(0, 90, 60)
        nats = tokens * (2.0 - 0.1 * n + 0.02 * rng.standard_normal(60))
        file = path.parent / content["predictions"]["dev"]
        rows = [
            {"id": row["id"], "nats": a, "tokens": float(b)}
            for row, a, b in zip(read_json(file), nats, tokens, strict=True)
        ]
        write_json(file, rows)
        content["metrics"]["dev"] = {"perplexity": float(np.exp(nats.sum() / tokens.sum()))}
        path.write_text(json.dumps(content))
    section = build_report(collect(tmp_path), settings=Settings(resamples=400)).sections[0]
    assert section.headline.verdict == "helps"
    assert re.search(r"Registers help at N = 4: -\d\.\d\d perplexity \(95 %", section.headline.sentence)
    assert section.headline.proven == ""
    assert "60 texts, 3 seeds" in section.headline.basis
    assert "point" not in section.headline.basis + section.headline.sentence + str(section.blocks("")[0])
    (figure,) = section.blocks("Score against the number of registers")
    assert "paper" not in drawn(figure, "f")
    assert section.blocks("Texts that flip") == ()


def test_controls_are_compared_with_registers_of_the_same_number(report):
    rows = list(csv.reader(io.StringIO((report.parent / "tables/controls-f1-en.dev.csv").read_text())))
    verdicts = {row[0]: row[1] for row in rows[1:]}
    assert verdicts == {
        "frozen random vectors, N = 16 minus registers": "worse than registers",
        "registers, N = 16 + backbone frozen minus registers": "worse than registers",
    }


def test_data_sets_and_their_languages_stand_in_columns(report):
    rows = list(csv.reader(io.StringIO((report.parent / "tables/sets-f1.csv").read_text())))
    assert rows[0] == ["arm", "en.dev (en)", "xquad.en (en)"]
    assert re.fullmatch(r"\d\d\.\d \(\+\d+\.\d\d\*\)", rows[3][1])


def test_the_paper_is_marked_as_read_off_the_chart(report):
    drawing = (report.parent / "figures/f1-by-registers.svg").read_text()
    assert "read off the chart" in drawing
    assert "<title" in drawing
    assert "currentColor" not in drawing
    assert "var(" not in drawing


def test_a_figure_tells_its_series_apart_without_colour(report):
    drawing = (report.parent / "figures/curve-f1.svg").read_text()
    assert len(set(re.findall(r"stroke-dasharray: ([\d. ,]+)", drawing))) >= 2
    assert drawing.count("<marker") + len(re.findall(r'<path id="[^"]*m[0-9a-f]{6,}"', drawing)) >= 3


def test_what_others_wrote_is_escaped(tmp_path):
    folder = tmp_path / f"{EVIL[:8]} sweep"
    for seed in (0, 1):
        for count in (0, 4):
            config = config_of("registers" if count else "baseline", count, seed, sets=("a&b<i>.json",))
            texts = dict.fromkeys(range(40), f"{EVIL} | `{count}`")
            write_cell(folder, config, questions=40, effect=0.4 if count else -0.4, texts=texts)
    page = write_report(folder, output=tmp_path / "out", resamples=100)
    found = Structure(page.read_text(encoding="utf-8"))
    assert "script" not in found.tags
    assert "i" not in found.tags
    assert "&lt;script&gt;alert(" in page.read_text(encoding="utf-8")
    markdown = (page.parent / "tables.md").read_text(encoding="utf-8")
    assert "<script>" not in markdown
    assert "\\|" in markdown


def test_question_and_gold_are_shown_where_the_file_can_be_read(tmp_path):
    from regtune.tasks.qa.data.sources import load_questions

    examples = load_questions(["embedded:dev"]).items
    cells = write_sweep(
        tmp_path / "sweep", counts=(0, 4), seeds=(0, 1), sets=("embedded:dev",), questions=30, effects={0: -0.5, 4: 0.5}
    )
    for path in cells.rglob("*.json.gz"):
        from regtune.records import read_json, write_json

        rows = [row | {"id": example.id} for row, example in zip(read_json(path), examples, strict=False)]
        write_json(path, rows)
    built = build_report(collect(cells), settings=Settings(resamples=100))
    counts, won, *_ = built.sections[0].blocks("Questions that flip")
    known = {example.question: example.answers[0].text for example in examples}
    assert won.name == "flips-won"
    assert won.rows
    assert all(known[row[0]] == row[1].split(" · ")[0] for row in won.rows)
    assert len(won.rows) == counts.rows[0][1]


def search(rows, **best):
    """What `search.json` holds."""
    names = ("learning_rate", "register_learning_rate")
    facts = {"held_out": "every 7th paragraph", "metric": "f1", "training_examples": 3170, "held_out_examples": 526}
    facts |= {"epochs": 1.0, "seeds": [0], "num_registers": 8, "machine": {}, "rows": rows}
    return facts | {"best": {arm: dict(zip(names, rates, strict=True)) for arm, rates in best.items()}}


def test_the_search_for_learning_rates_is_shown(tmp_path):
    from regtune.records import write_json

    write_sweep(tmp_path / "sweep", counts=(0, 4), seeds=(0, 1), questions=30)
    row = {"arm": "registers", "key": "abc", "learning_rate": 2e-4, "register_learning_rate": 1e-3, "f1": 0.5412}
    write_json(tmp_path / "sweep" / "search.json", search([row], registers=(2e-4, 1e-3)))
    table = build_report(collect(tmp_path / "sweep"), settings=Settings(resamples=100)).how.blocks("")[0].table
    assert table.cells == (("registers", "0.0002", "0.001", "54.1"),)
    assert table.notes[0] == (
        "Held out: every 7th paragraph. Searched at N = 8 for registers by f1: one seed (0), 1 epoch a run, 526 "
        "held-out examples."
    )
    assert table.notes[1] == "Chosen: registers: 0.0002, 0.001."


def test_a_rate_that_was_tried_with_several_seeds_is_one_row_with_the_mean():
    from regtune.report.result_tables import search_table
    from regtune.sweeps.search import SearchFile
    from regtune.typed import typed

    rows = [
        {
            "arm": "baseline",
            "seed": seed,
            "learning_rate": rate,
            "f1": f1,
            "seconds": 10.0 + seed,
            "key": f"{rate}{seed}",
        }
        for rate, found in ((1e-4, (0.5, 0.7)), (2e-4, (0.8, 0.9)))
        for seed, f1 in enumerate(found)
    ]
    found = search(rows, baseline=(2e-4, None)) | {"seeds": [0, 1]}
    table = search_table(typed(SearchFile, found, "search.json")).table
    assert table.cells == (("baseline", "0.0001", "60.0", "10.5"), ("baseline", "0.0002", "85.0", "10.5"))
    assert "means over the seeds 0, 1, 1 epoch a run" in table.notes[0]


def test_a_rate_at_the_edge_of_the_search_is_said_to_be_there():
    from regtune.report.result_tables import search_table
    from regtune.sweeps.search import SearchFile
    from regtune.typed import typed

    rates = [(1e-4, 1e-2, 0.5), (2e-4, 1e-3, 0.6), (2e-4, 1e-2, 0.7), (4e-4, 1e-2, 0.4)]
    names = ("learning_rate", "register_learning_rate", "f1")
    rows = [dict(zip(names, row, strict=True)) | {"arm": "registers"} for row in rates]

    def notes(rates):
        return search_table(typed(SearchFile, search(rows, registers=rates), "search.json")).notes

    assert notes((2e-4, 1e-2))[-1] == (
        "At the edge of what was tried, so a better one may lie beyond it: "
        "registers, register learning rate 0.01 (largest of 2)."
    )
    assert notes((2e-4, None))[-1] == "No chosen rate lies at the edge of what was tried."


def test_answers_that_an_export_left_out_are_not_called_empty(tmp_path):
    from regtune.records import read_json, write_json

    write_sweep(tmp_path, counts=(0, 4), seeds=(0, 1), questions=40, effects={0: -0.5, 4: 0.5}, sets=("dev.json",))
    for path in tmp_path.rglob("*.json.gz"):
        write_json(path, [row | {"text": ""} for row in read_json(path)])
    _, won, *_ = (
        build_report(collect(tmp_path), settings=Settings(resamples=100)).sections[0].blocks("Questions that flip")
    )
    assert {row[2].rpartition(" (")[0] for row in won.rows} == {"(text not kept)"}


def test_planned_cells_that_have_not_begun_are_listed(tmp_path):
    write_sweep(tmp_path / "cells", counts=(0, 4), seeds=(0, 1), questions=40)
    done = [path.parent.name for path in tmp_path.rglob("run.json")]
    planned = [(key, "registers", 4, 0) for key in done] + [("new1", "registers", 32, 0), ("new2", "registers", 32, 1)]
    write_plan(tmp_path, *((*cell, "tydi") for cell in planned), training_sets={"tydi": ["en.train.json.gz"]})
    for folder in (tmp_path, tmp_path / "cells"):
        found = collect(folder)
        assert found.not_begun == ("registers, N = 32, trained on tydi: seeds 0, 1",)
        assert found.groups[0].train_name == "tydi"
        said = "The grid is not whole: 2 of its 6 planned cells are missing (registers, N = 32: seeds 0, 1)."
        section = build_report(found, settings=Settings(resamples=200)).sections[0]
        assert section.headline.basis.endswith(said)
        assert said in section.blocks("Arms")[0].notes


def test_a_chosen_n_is_said_to_be_flattered_and_arms_that_wait_for_it_are_named(tmp_path):
    write_sweep(tmp_path, counts=(0, 4), seeds=(0, 1), questions=40, sets=("dev.json",), controls=("sep",))
    for best, said in (
        ({"t": 4}, "Controls ran at N = 4 because"),
        ({}, "wait for the best N to be known: sep_copies."),
    ):
        write_plan(tmp_path, training_sets={"t": ["en.train.json.gz"]}, at_best=["sep_copies"], best=best)
        page = write_report(tmp_path, output=tmp_path / "out", resamples=200)
        assert said in page.read_text(encoding="utf-8").replace("\u00a0", " ")
        assert said in (page.parent / "tables.md").read_text(encoding="utf-8").replace("\\", "")


def versions_of(report):
    return next(block for block in report.how.blocks("") if block.name == "versions")


def test_runs_of_other_code_or_libraries_are_told_beside_the_verdict(tmp_path):
    for seed in (0, 1):
        write_cell(tmp_path, config_of("baseline", 0, seed, sets=("dev.json",)), questions=40)
        versions = {"regtune_source": "ba9876543210"} if seed else {"torch": "2.14"}
        write_cell(tmp_path, config_of("registers", 4, seed, sets=("dev.json",)), questions=40, versions=versions)
    report = build_report(collect(tmp_path), settings=Settings(resamples=200))
    code = (
        "Not all runs have the same code of regtune (hash of its sources): 0123456789ab in baseline (seeds 0, 1), "
        "registers, N = 4 (seed 0); ba9876543210 in registers, N = 4 (seed 1)."
    )
    assert code in report.sections[0].headline.basis
    assert code in versions_of(report).notes
    assert any("the same version of torch: 2.13 in" in note for note in report.sections[0].blocks("Arms")[0].notes)


def test_runs_without_a_hash_of_the_code_are_dated(tmp_path, sweep):
    import json

    assert versions_of(build_report(collect(sweep), settings=Settings(resamples=600))).notes == ()
    path = write_cell(tmp_path, config_of("baseline", 0, 0), questions=5) / "run.json"
    content = json.loads(path.read_text())
    del content["versions"]["regtune_source"]
    path.write_text(json.dumps(content))
    (note,) = versions_of(build_report(collect(tmp_path), settings=Settings(resamples=200))).notes
    assert "All runs were recorded without a hash of regtune's code, so only their times (2026-01-01T00:00:00" in note


def test_settings_tell_which_arms_have_them(sweep):
    table = build_report(collect(sweep), settings=Settings(resamples=600)).how.blocks("")[0]
    rows = {(row[0], row[2]): row[1] for row in table.rows}
    assert rows["data.train", "en.train.json.gz"] == "all"
    assert rows["registers.num_registers", "4"] == "registers, N = 4"
    assert rows["methods.linear_probe", "{}"] == "registers, N = 16 + backbone frozen"
    assert "Seeds: 0, 1, 2, 3, 4." in table.notes[0]


def test_a_set_with_dollar_signs_is_no_formula_to_the_figures():
    figure = score_figure({0: (50.0, 51.0), 4: (50.0, 51.0)}, {}, F1, "cost $5 and $6")
    assert "cost $5 and $6" in drawn(figure, "f")


def test_two_training_sets_give_two_sections_with_ids_of_their_own(tmp_path):
    import dataclasses

    for train in (("a.json",), ("a.json", "b.json")):
        for seed in (0, 1):
            for count in (0, 4):
                config = config_of("registers" if count else "baseline", count, seed)
                config = dataclasses.replace(config, data=dataclasses.replace(config.data, train=train))
                write_cell(tmp_path / "sweep", config, questions=30)
    page = write_report(tmp_path / "sweep", output=tmp_path / "out", resamples=100).read_text(encoding="utf-8")
    found = Structure(page)
    assert "trained on a.json + b.json" in page
    assert sorted(found.ids) == sorted(set(found.ids))
    assert page.count('class="verdict') == 2
    rows = list(csv.reader(io.StringIO((tmp_path / "out/tables/overview.csv").read_text())))
    assert [title.partition(" (")[0].split("trained on ")[1] for title in rows[0][1:]] == ["a.json", "a.json + b.json"]
    assert [row[0] for row in rows[1:]] == ["baseline", "registers, N = 4"]
    assert all("cannot tell" in cell or "equivalent" in cell for cell in rows[2][1:])


def test_the_output_folder_is_made_and_a_file_in_its_place_is_named(sweep, tmp_path):
    from regtune.errors import DataError

    Path(tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match="taken"):
        write_report(sweep, output=tmp_path / "taken", resamples=600)


def test_a_reader_sees_whole_pages_alone_while_the_page_is_written_again_and_again(tmp_path):
    page, seen, done = tmp_path / "index.html", set(), threading.Event()
    whole = {f"<html>{letter * 2_000_000}</html>" for letter in "ab"}
    write(page, min(whole))

    def read():
        while not done.is_set():
            seen.add(page.read_text(encoding="utf-8"))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(30):
            for text in whole:
                write(page, text)
    finally:
        done.set()
        reader.join()
    assert seen == whole
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"]
