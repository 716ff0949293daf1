"""Numbers and the words that go with them."""

from __future__ import annotations

import pytest

from liftplus.words import agreeing, counted


@pytest.mark.parametrize(
    ("number", "expected"), [(0, "0 classes are"), (1, "1 class is"), (2, "2 classes are"), (1200, "1,200 classes are")]
)
def test_words_agree_with_their_number(number: int, expected: str) -> None:
    assert counted(number, "class is", "classes are") == expected


def test_the_usual_plural() -> None:
    assert (counted(1, "picture"), counted(3, "picture"), agreeing(0.5, "point")) == (
        "1 picture",
        "3 pictures",
        "points",
    )
