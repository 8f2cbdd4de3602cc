"""Messages are bounded and act on no terminal, whatever a value holds."""

import json
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regtune import errors
from regtune.errors import ConfigError, DataError, MissingExtraError, RegtuneError, printable, shown, unknown_name

WICKED = ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "a\rb", "\u202eevil", "\u2066", "\u2028", "\x00", "\x7f", "\ud83d"]
QUIET = "Überbau 日本 ที่นี่ می‌خواهم 👩‍👩‍👧 plain\ttext\n"


@pytest.mark.parametrize("wicked", WICKED)
def test_nothing_that_acts_gets_through(wicked):
    texts = [
        printable(wicked),
        shown(wicked),
        shown([wicked]),
        str(DataError(f"in {wicked} there")),
        shown({wicked: 1}),
    ]
    texts.append(str(unknown_name("set", wicked, ["a"])))
    for text in texts:
        assert not any(
            sign in text for sign in set(wicked) - {"[", "]", ";"} if not sign.isalnum() or not sign.isascii()
        )


def test_text_of_any_language_stays_as_it_is():
    assert printable(QUIET) == QUIET
    assert printable(QUIET, keep="") == QUIET.replace("\t", "\\u0009").replace("\n", "\\u000a")


@pytest.mark.parametrize("wicked", WICKED)
def test_printable_json_is_the_same_json(wicked):
    text = printable(json.dumps({"a": wicked, "b": [QUIET]}, ensure_ascii=False, indent=1))
    assert json.loads(text) == {"a": wicked, "b": [QUIET]}


def test_a_message_is_bounded_and_keeps_its_start_and_its_advice():
    text = str(ConfigError("It was wrong: " + "x" * 1_700_000 + " Set max_length to 5."))
    assert len(text) < 5_000
    assert text.startswith("It was wrong: xxx")
    assert text.endswith("Set max_length to 5.")
    assert "(1696035 characters left out)" in text


def test_a_shown_value_is_short():
    large = ["x" * 10**6, ["x" * 10**6] * 10**4, {str(n): n for n in range(10**4)}, 10**4000, 1 << 40_000, b"x" * 10**6]
    assert all(len(shown(value)) < 1_000 for value in large)


def test_a_deep_value_is_shown():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert len(shown(deep)) < 100


def test_a_value_whose_repr_fails_is_shown_by_its_kind():
    class Broken:
        def __repr__(self):
            raise RuntimeError

    assert "Broken" in shown(Broken())


def test_an_error_without_a_text_stays():
    assert RegtuneError().args == ()


def every_error(kind=RegtuneError):
    return [kind, *(below for each in kind.__subclasses__() for below in every_error(each))]


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.text(), st.integers(0, 6_000))
@example("\x1b]0;\u202e\ud800\r", 6_000)
def test_no_error_of_regtune_acts_on_a_terminal_or_fills_it(text, times):
    kinds = set(every_error())
    assert {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)} <= kinds
    for kind in kinds:
        made = kind(text * times, text, text) if kind is MissingExtraError else kind(text * times)
        said = str(made)
        assert len(said) < 4_100
        assert not [sign for sign in said if unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\t"]
