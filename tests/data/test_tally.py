"""Many facts in little memory."""

from __future__ import annotations

import sys
from array import array

import pytest

from liftplus.data.file_facts import Facts, digest
from liftplus.data.tally import Tally, spread


def filled(contents: list[bytes]) -> Tally:
    tally = Tally()
    for number, content in enumerate(contents):
        tally.add(Facts(digest(content) if content else None, "" if content else "empty", "RGB", (number, 2 * number)))
    return tally


def test_equal_files_in_order_and_empty_ones_left_out() -> None:
    tally = filled([b"c", b"b", b"", b"a", b"b", b"", b"c", b"d", b"c"])
    assert tally.equal() == [[0, 6, 8], [1, 4]]
    assert tally.unreadable == [(2, "empty"), (5, "empty")]
    assert tally.modes == {"RGB": 7}
    assert Tally().equal() == filled([b"a"]).equal() == filled([b"a", b"b"]).equal() == []


def test_kinds_keep_the_first() -> None:
    tally = Tally()
    for dark in (False, True, True):
        tally.add(Facts(digest(b"x"), "", "L", (1, 1), dark, not dark, below=dark))
    assert (tally.dark.count, tally.dark.first, tally.dark.mode) == (2, 1, "L")
    assert (tally.pale.count, tally.pale.first) == (1, 0)
    assert (tally.below.count, tally.missing.count) == (2, 0)


@pytest.mark.parametrize(("values", "expected"), [([], None), ([7], (7, 7, 7)), ([9, 1, 4, 3], (1, 4, 9))])
def test_spread(values: list[int], expected: tuple[int, int, int] | None) -> None:
    assert spread(array("q", values)) == expected


def test_a_picture_takes_few_bytes() -> None:
    tally = filled([b"%d" % number for number in range(1, 5001)])
    held = sum(map(sys.getsizeof, (tally._digests, tally.widths, tally.heights)))
    assert held < 50 * 5000
