"""One table, four ways to show it: the same cells, harmless in each."""

import csv
import io
import re

import pytest

from regtune.tables import Column, Table, number, probability

TABLE = Table(
    name="t",
    caption="Scores",
    columns=("arm", Column("F1", ".1f"), "seeds", "verdict", Column("lost", lambda value: f"{value:+d}")),
    rows=(("baseline", 61.62, 3, None, None), ("N = 4", 9.0, 12, "helps", 5)),
    notes=("F1 in percent.",),
)


def test_a_terminal_gets_words_to_the_left_and_numbers_to_the_right():
    assert TABLE.text == (
        "Scores:\n"
        "arm         F1  seeds  verdict  lost\n"
        "baseline  61.6      3\n"
        "N = 4      9.0     12  helps      +5\n"
        "F1 in percent."
    )
    assert str(TABLE) == TABLE.text


def test_a_table_without_titles_has_no_header():
    assert Table(columns=("", ""), rows=(("model", "minilm"), ("N", "8"))).text == "model  minilm\nN      8"


def test_the_same_cells_stand_in_markdown_html_and_csv():
    lines = TABLE.markdown().splitlines()
    assert lines[0] == "## Scores"
    assert lines[3] == "|---|--:|--:|---|--:|"
    cells = [["baseline", "61.6", "3", "", ""], ["N = 4", "9.0", "12", "helps", "+5"]]
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:6]] == cells
    assert list(csv.reader(io.StringIO(TABLE.csv)))[1:] == cells
    found = re.findall(r"<td[^>]*>([^<]*)</td>", TABLE.html.replace("\u00a0", " "))
    assert [found[:5], found[5:]] == cells
    assert not TABLE.markdown(0).startswith("#")
    assert "F1 in percent." in TABLE.markdown(0)


def test_the_direction_of_a_column_can_be_named_and_numbers_are_known_by_how_they_begin():
    table = Table(columns=(Column("day", align="left"), "range"), rows=(("2026-01-01", "-0.40 to +1.23"),))
    assert table.markdown(0).splitlines()[1] == "|---|--:|"


def test_numbers_without_a_format_have_three_digits_that_count():
    assert [number(value) for value in (0.12345, 12.345, 1234.5)] == ["0.123", "12.3", "1,234"]
    assert Table(columns=("a", "b"), rows=((0.12345, 7),)).cells == (("0.123", "7"),)
    assert [probability(value) for value in (0.0, 0.0123, 0.5)] == ["< 0.001", "0.012", "0.50"]


def test_markup_of_others_is_text():
    evil = "<script>alert('x')</script> | `a` [b](c)"
    table = Table(name="a", caption=evil, columns=(evil,), rows=((evil,),), notes=(evil,))
    assert "<script>" not in table.html + table.markdown()
    assert table.html.count("&lt;script&gt;") == 5
    assert table.markdown(0).splitlines()[2].count("\\|") == 1


def test_a_cell_that_a_spreadsheet_would_run_is_made_text():
    table = Table(columns=("a",), rows=(("=cmd()",), ("+0.50",), ("-1.00 to +2.00",), ("-1+cmd",)))
    assert table.csv.splitlines()[1:] == ["'=cmd()", "+0.50", "-1.00 to +2.00", "'-1+cmd"]


@pytest.mark.parametrize("wicked", ["\r=cmd()", "a\r\n=cmd()", " =cmd()", "\uff1dcmd()", "\t@x", "\u2028+x", "\x1b[2J"])
def test_no_cell_starts_a_formula_ends_a_line_or_acts_on_a_terminal(wicked):
    table = Table(caption=wicked, columns=(wicked,), rows=((wicked,), ("end",)), notes=(wicked,))
    assert table.csv.count("\n") == 3
    assert not set(table.csv + table.text + table.markdown() + table.html) & set("\r\u2028\x1b")
    assert all(line.strip('" ')[:1] not in tuple("=+-@\t\uff1d") for line in table.csv.splitlines())
    assert table.text.count("\n") == 4


def test_words_of_a_table_that_is_wider_than_a_terminal_are_wrapped_and_numbers_are_not():
    words = "a product of two narrow matrices is added to every linear layer of the model and its head"
    table = Table(
        columns=("name", "what", "why", "number"), rows=(("lora", words, words, 1234567.0), ("x", "y", "z", 2.0))
    )
    lines = table.text.splitlines()
    assert max(map(len, lines)) <= 120
    assert len(lines) > 3
    assert [line.split()[-1] for line in lines if line.startswith(("lora", "x"))] == ["1,234,567", "2"]
    column = slice(lines[0].index("what"), lines[0].index("why"))
    assert " ".join(line[column].strip() for line in lines[1:-1]) == words
    bare = Table(columns=("", ""), rows=((f"{words} {words}", words),)).text.splitlines()  # no header counts as one
    assert max(map(len, bare)) <= 120
    assert len(bare) > 1
    long = "x" * 150
    assert Table(columns=("a", "b"), rows=((long, "y z"),)).text.splitlines()[1].startswith(long)  # no word is cut
    wide = tuple(f"column {number}" for number in range(20))
    assert len(Table(columns=wide, rows=((1.0,) * 20,)).text.splitlines()) == 2  # numbers give no way
