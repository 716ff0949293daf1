"""The page of a check: what is on it, and that a browser shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from checked_pictures import drawn, jpeg
from liftplus.checks import cleaning, page
from liftplus.checks.check import Check

from .test_cleaning import checked

NAMES = ("<b>bold</b>", "שלום", "x" * 200)


@pytest.fixture
def found(tmp_path: Path) -> Check:
    made = checked([0, 0, 0, 1, 1, 2], test=[0, 1], pairs=((0, 6), (1, 2)), own={3: 0.01}, far=(4,), broken=(5,))
    for number, place in enumerate(made.places):
        if number != 5:
            (tmp_path / place.key).write_bytes(jpeg(drawn(number)))
    made.dataset.store.path = str(tmp_path)  # type: ignore[attr-defined]
    object.__setattr__(made.dataset, "class_names", NAMES)
    return made


def test_page_and_csv(found: Check, tmp_path: Path) -> None:
    written = page.write(found, cleaning.left_out(found), tmp_path / "out")
    text = written.read_text(encoding="utf-8")
    assert "<b>bold</b>" not in text and "&lt;b&gt;bold" in text
    assert "http" not in text.replace("http-equiv", "")
    lines = page.findings(found, cleaning.left_out(found))
    assert [line.finding for line in lines] == ["unreadable", "near", "near", "label", "outlier"]
    assert [(line.path, line.left_out) for line in lines[1:3]] == [("train0", "yes"), ("train2", "yes")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [page.MARKER, page.PAGE, page.CSV]


def test_more_than_the_page_shows_is_in_the_csv(found: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "SHOWN", 1)
    text = page.write(found, {}, tmp_path / "out").read_text(encoding="utf-8")
    assert "1 more is in findings.csv" in text and "Doubles: 2" in text
    assert len((tmp_path / "out" / page.CSV).read_text(encoding="utf-8").splitlines()) == 6


@pytest.mark.browser
@pytest.mark.slow
def test_in_a_browser(found: Check, tmp_path: Path, driver: Any) -> None:
    written = page.write(found, cleaning.left_out(found), tmp_path / "out")
    driver.get(written.as_uri())
    assert [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    sizes = driver.execute_script("return [...document.images].map(i => i.naturalWidth)")
    # Each finding shows its picture, a double its original too.
    assert len(sizes) == written.read_text(encoding="utf-8").count("<img") >= 8 and min(sizes) > 0
    assert driver.execute_script("return document.body.scrollWidth <= innerWidth")
