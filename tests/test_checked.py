"""What conftest puts in front of regtune's functions: annotations that don't hold are errors."""

import sys

import jaxtyping
import pytest
import torch

from checked import check

MODULE = """
from __future__ import annotations
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from jaxtyping import Float
from torch import Tensor
if TYPE_CHECKING:
    from nowhere import Missing

@dataclass
class Later:
    number: int

    @property
    def twice(self) -> int:
        return f"{self.number}{self.number}"

    @classmethod
    def of(cls, number: str) -> Later:
        return cls(int(number))

def halved(number: int) -> int:
    return number / 2 if number % 2 else number // 2

def added(one: Float[Tensor, "n"], two: Float[Tensor, "n"] | None) -> Float[Tensor, "n"]:
    return one + two

def joined(parts: list[Float[Tensor, "n"]], given: Missing) -> Later:
    return Later(len(parts)) if given else parts

def counted(upto: int) -> Iterator[int]:
    yield from range(upto)
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    (folder / "watched_module.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        hooks = list(sys.meta_path)
        check("watched_module")
        import watched_module

        sys.meta_path[:] = hooks
        yield watched_module
        del sys.modules["watched_module"]


VECTOR = torch.zeros(3)


def test_what_holds_passes(watched):
    assert watched.halved(4) == 2
    assert watched.added(VECTOR, VECTOR + 1).tolist() == [1, 1, 1]
    assert watched.joined([VECTOR, VECTOR], given="a name that only type checkers import").number == 2
    assert list(watched.counted(3)) == [0, 1, 2]
    assert watched.Later.of("5").number == 5


@pytest.mark.parametrize(
    "broken",
    [
        lambda it: it.halved("4"),
        lambda it: it.halved(3),  # gives 1.5
        lambda it: it.added(VECTOR, torch.zeros(4)),
        lambda it: it.added(VECTOR, torch.zeros(3, dtype=torch.int32)),
        lambda it: it.joined([torch.zeros(1, 1)], True),
        lambda it: it.joined([VECTOR], False),  # gives a list
        lambda it: list(it.counted("3")),
        lambda it: it.Later("5"),
        lambda it: it.Later.of(5),
        lambda it: it.Later(5).twice,
    ],
)
def test_what_does_not_hold_is_an_error(watched, broken):
    with pytest.raises(jaxtyping.TypeCheckError):
        broken(watched)


def test_nothing_is_checked_when_jaxtyping_is_off(watched, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert watched.halved(3) == 1.5
    assert watched.joined([VECTOR], False) == [VECTOR]
    assert watched.Later("5").twice == "55"
