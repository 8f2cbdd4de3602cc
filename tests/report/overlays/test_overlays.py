"""Overlays as HTML: the real text, one scale, strips, the ledger; and what is no explanation is refused."""

import copy
import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regtune.errors import DataError, UnknownNameError
from regtune.report.overlays.page import overlay_page, percent, signed, write_overlay
from regtune.report.overlays.pictures import read_pictures
from regtune.report.overlays.terminal import overlay_text
from regtune.report.overlays.words import text_pieces
from report.measured import CONTEXT, QUESTION, attribution, explanations
from report.test_page import Structure

MARK = re.compile(r'<mark class="([^"]+)" style="--a:([\d.e-]+)" title="([^"]*)" tabindex="(-?\d)">(.*?)</mark>')


def texts(page):
    """What a reader sees of every question and context."""
    found = re.findall(r'<p class="read[^"]*"><span class="tag">\w+</span>(.*?)</p>', page)
    return [unescape(re.sub(r"<[^>]+>", "", one)) for one in found]


def document(record):
    """One attribution on its text."""
    content = explanations(methods=(record["method"],), counts=(len(record["registers"]),))
    content["models"][0]["attributions"] = [record]
    return content


@pytest.fixture(scope="module")
def page():
    return overlay_page(explanations())


def test_every_panel_shows_the_text_as_it_was_written(page):
    assert set(texts(page)) == {QUESTION, CONTEXT}
    assert len(texts(page)) == 2 * 8


def test_pieces_of_a_word_stand_together_without_their_marks(page):
    assert re.search(r">design</mark><mark[^>]+>ed</mark>", page)
    assert ">##ed</mark>" not in page


def test_the_darkest_colour_is_the_largest_share_of_its_method(page):
    (picture,) = read_pictures(explanations())
    assert set(picture.scales) == {"attnlrp", "chefer"}
    for method, scale in picture.scales.items():
        panels = [panel for model in picture.models for panel in model.panels if panel.method == method]
        assert scale == max(abs(panel.share(piece.score)) for panel in panels for piece in panel.pieces)
        assert f"+{100 * scale:.1f} %" in page
    strengths = [float(strength) for _, strength, _, _, text in MARK.findall(page) if not text.startswith(("[", "r"))]
    assert max(strengths) == 1.0
    assert strengths.count(1.0) == 2  # one a method
    assert "One scale a method" in page


def own_share(own):
    """Chefer's default: nearly everything on the explained token (14: ada)."""
    record = attribution("chefer", num_registers=2) | {"read_from": [14], "options": {"start_layer": 0}}
    record["relevance"] = [score * (1 - own) for score in record["relevance"]]
    record["relevance"][14] = own
    return record


def test_a_token_that_keeps_nearly_everything_to_itself_is_not_drawn_and_it_is_said():
    content = explanations(methods=("chefer",), counts=(0,))
    record = own_share(0.97)
    place = record["tokens"].index("ada")
    record |= {"read_from": [place]}
    record["relevance"][14], record["relevance"][place] = 0.0, 0.97
    content["models"][0]["attributions"] = [record]
    (picture,) = read_pictures(content)
    (panel,) = picture.models[0].panels
    assert not any(piece.token == "ada" for piece in panel.pieces)
    assert picture.scales["chefer"] < 0.1
    assert panel.left_out == pytest.approx(0.97, abs=0.02)
    page, said = overlay_page(content), overlay_text(content, colour=False)
    for shown in (page, " ".join(said.split())):
        assert "start layer 0" in shown
        assert "not drawn: the explained token itself, 97 %" in shown
    assert CONTEXT in texts(page)


def test_a_token_that_keeps_its_part_is_drawn():
    (picture,) = read_pictures(document(own_share(0.3)))
    assert picture.models[0].panels[0].left_out == 0.0


def test_options_stand_on_the_page_and_in_the_terminal():
    record = attribution("integrated-gradients") | {"steps": 42, "error": 0.0032}
    record["options"] = {"baseline": "pad", "registers": "held", "special_tokens": "held"}
    said = "baseline pad, registers held, special tokens held, 42 steps, scores exact to 0.32 % of the largest"
    assert said in overlay_page(document(record))
    assert said in " ".join(overlay_text(document(record), colour=False).split())


def test_a_share_is_of_everything_that_was_booked():
    (picture,) = read_pictures(document(attribution(num_registers=2)))
    (panel,) = picture.models[0].panels
    booked = sum(abs(score) for _, score in (*panel.tokens, *panel.registers)) + 0.4 + 1.1 + 0.3
    assert panel.size == pytest.approx(booked)


def test_colour_and_line_tell_the_sign():
    page = overlay_page(explanations(methods=("attnlrp",)))
    found = {text: (kind, title) for kind, _, title, _, text in MARK.findall(page)}
    assert found["brother"][0] == "n s"
    assert "brother: −" in found["brother"][1]
    assert found["Who"][0] == "p s"
    assert re.search(r"who: \+[\d.]+ logits, \+[\d.]+ % of all that was booked", found["Who"][1])


def test_strong_tokens_are_stops_of_the_tab_key_and_all_others_can_be_tapped(page):
    stops = {(float(strength) >= 0.3, stop) for _, strength, _, stop, text in MARK.findall(page) if "%" not in text}
    assert stops == {(True, "0"), (False, "-1")}


def test_special_tokens_and_registers_stand_on_strips_of_their_own(page):
    assert page.count("Special tokens</span>") == 8
    assert page.count("Registers</span>") == 4
    assert re.search(r">\[CLS\] [+−\d]", page)
    assert re.search(r">r3 [+−\d]", page)
    assert not any("[" in text for text in texts(page))


def test_the_answer_is_ruled(page):
    ruled = "".join(text for kind, _, _, _, text in MARK.findall(page) if kind.endswith("a"))
    assert ruled == "AdaLindqvist" * 8


def test_the_ledger_beneath_adds_up_to_the_logit():
    (picture,) = read_pictures(explanations(methods=("attnlrp",)))
    for panel in (panel for model in picture.models for panel in model.panels):
        assert [name for name, _ in panel.ledger] == [
            "tokens", "registers", "positions", "types", "biases", "softmax", "residual",
        ]  # fmt: skip
        assert sum(amount for _, amount in panel.ledger) == pytest.approx(panel.value)


def test_a_method_without_a_law_is_given_none(page):
    (picture,) = read_pictures(explanations(methods=("occlusion",)))
    assert not picture.models[0].panels[0].has_law
    assert page.count("sum = logit") == 4
    assert "of all attention" not in page
    assert re.search(r'title="ada: \+[\d.]+ %"', page)


def test_models_stand_side_by_side_and_a_missing_one_is_said():
    content = explanations(methods=("attnlrp",))
    del content["models"][1]["attributions"][1]
    page = overlay_page(content)
    order = re.findall(r'aria-label="(\w+, [\w ]+)">\n<header>', page)
    assert order == ["start, without registers", "start, with 4 registers", "end, without registers"]
    assert "attnlrp, end: not explained with 4 registers" in page


def test_all_numbers_are_in_a_table_for_those_who_see_no_colour(page):
    assert "All numbers, with 4 registers (35 rows)" in page
    assert '<td class="words">register 3</td>' in page


def test_the_palette_is_chosen_without_scripts(page):
    found = Structure(page)
    assert "script" not in found.tags
    assert found.tags.count("input") == 3
    assert re.search(r'id="overlay-1-green-red"[^>]* checked>', page)
    assert re.search(r'id="overlay-1-blue-orange"[^>]* checked>', overlay_page(explanations(), palette="blue-orange"))


def test_the_page_is_whole_and_fetches_nothing(page):
    found = Structure(page)
    assert (found.wrong, found.open) == ([], [])
    assert sorted(found.ids) == sorted(set(found.ids))
    assert all(address.startswith(("#", "data:")) for address in found.addresses)
    assert not re.search(r"@import|url\((?!#)", page)


def test_what_others_wrote_is_escaped():
    evil = "<script>alert('x')</script>"
    content = explanations()
    content |= {"question": evil + QUESTION, "notes": [evil]}
    content["models"][0] |= {"name": evil, "notes": [evil]}
    content["models"][0]["attributions"][0]["tokens"][1] = evil
    assert "script" not in Structure(overlay_page(content)).tags


def test_a_cut_text_shows_where_it_goes_on():
    content = explanations(methods=("attnlrp",), counts=(0,))
    content["context"] = f"{CONTEXT} It is still in use."
    seen = texts(overlay_page(content))
    assert f"{CONTEXT} …" in seen
    assert f"… {CONTEXT}" not in seen


def test_several_documents_make_several_pictures_with_ids_of_their_own():
    found = Structure(overlay_page([explanations(), explanations()]))
    assert sorted(found.ids) == sorted(set(found.ids))


def test_tokens_that_share_a_character_are_one_piece_with_their_sum():
    (piece,) = [one for one in text_pieces("a 🙂 b", [(2, 3, "x", 1.0), (2, 3, "y", 0.5)]) if one.score is not None]
    assert (piece.text, piece.score, piece.token) == ("🙂", 1.5, "x y")


@given(st.text(min_size=1, max_size=30), st.lists(st.tuples(st.integers(0, 29), st.integers(1, 6)), max_size=12))
def test_pieces_give_back_the_text_and_the_sum_of_the_scores(text, cuts):
    tokens = [(s, min(s + n, len(text)), "t", 1.0) for s, n in cuts if s < len(text)]
    pieces = text_pieces(text, tokens)
    assert "".join(piece.text for piece in pieces) == text
    assert sum(piece.score or 0.0 for piece in pieces) == len(tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 0}, r"why\.json: schema_version=0; this regtune reads 1"),
        ({"models": [{}]}, r"why\.json can't be understood \(KeyError: 'attributions'"),
        ({"models": [{"attributions": []}]}, "no attribution in it"),
        ({"models": [{"attributions": [{"method": "x"}]}]}, "is no attribution"),
        ({"models": [{"attributions": [attribution() | {"offsets": None}]}]}, r"why\.json can't be understood"),
    ],
)
def test_what_is_no_explanation_is_refused_by_name(change, message):
    with pytest.raises(DataError, match=message):
        overlay_page(explanations() | change, source="why.json")


@pytest.mark.parametrize("content", [[], {}, "text", None, 3])
def test_nothing_is_refused(content):
    with pytest.raises(DataError):
        overlay_page(content)


def test_scores_that_are_no_numbers_are_refused():
    content = copy.deepcopy(explanations())
    content["models"][0]["attributions"][0]["relevance"][0] = None
    with pytest.raises(DataError, match="attnlrp for start at token 14 are not all numbers"):
        overlay_page(content)


def test_an_unknown_palette_is_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'blue-orange'"):
        overlay_page(explanations(), palette="blue-oranges")


def test_a_page_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match="taken"):
        write_overlay(tmp_path / "taken" / "why.html", explanations())


def test_scores_that_are_all_zero_are_drawn():
    record = attribution(num_registers=0) | {"positions": 0.0, "biases": 0.0, "softmax": 0.0}
    record["relevance"] = [0.0] * len(record["relevance"])
    assert 'style="--a:0"' in overlay_page(document(record))


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (-0.1234, "−0.123"), (12.3, "+12.3"), (1e-7, "+1.0e-07"), (-2e-9, "−2.0e-09")]
)
def test_numbers_have_signs(value, text):
    assert signed(value) == text


def test_percents_have_signs_but_for_zero():
    assert [percent(share) for share in (0.1234, -0.5, 0.0001, -0.0001)] == ["+12.3 %", "−50.0 %", "0.0 %", "0.0 %"]
