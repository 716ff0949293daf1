"""Tables in terminals of any width and in files."""

from __future__ import annotations

import io

import pytest

from liftplus import console

COLUMNS = ["method", "overall", "mean class", "many", "medium", "few", "seconds", "trained weights", "memory GiB"]
GROUPS = ("26.5", "69.8", "100.0", "72.5", "–")


def rows(spread: str) -> list[list[object]]:
    """Four methods; numbers with or without a spread over seeds."""
    names = ("zeroshot", "linear_probe", "full", "lift+ (five crops)")
    return [[name, *(value + spread * (value != "–") for value in GROUPS), 325.1, 2692224, 2.1] for name in names]


def printed(monkeypatch: pytest.MonkeyPatch, width: int, terminal: bool, spread: str) -> list[str]:
    stream = io.StringIO()
    out = console._Console(file=stream, force_terminal=terminal, width=width, color_system=None, soft_wrap=True)
    monkeypatch.setattr(console, "out", out)
    console.table("accuracy in percent", COLUMNS, rows(spread))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("spread", ["", " ± 1.2"])
@pytest.mark.parametrize("width", [30, 60, 80, 100, 200])
def test_words_are_whole_in_every_terminal(monkeypatch: pytest.MonkeyPatch, width: int, spread: str) -> None:
    """The table fits into 80 columns; in a narrower one the terminal breaks its lines."""
    lines = printed(monkeypatch, width, True, spread)
    assert max(map(len, lines)) <= max(width, 80)
    words = " ".join(lines).split()
    for word in (*" ".join(COLUMNS).split(), *GROUPS, "zeroshot", "linear_probe", "crops)"):
        assert word in words
    assert words.count("2,692,224") == 4 and words.count("±") == (16 if spread else 0)


def test_a_file_has_one_line_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(monkeypatch, 80, False, " ± 1.2")
    assert len(lines) == 1 + 2 + 1 + 4 and max(map(len, lines)) < 120
    last = "lift+ (five crops) 26.5 ± 1.2 69.8 ± 1.2 100.0 ± 1.2 72.5 ± 1.2 – 325.1 2,692,224 2.1"
    assert " ".join(lines[-1].split()) == last
    assert len({len(line) for line in lines[-4:]}) == 1  # numbers stand on the right
