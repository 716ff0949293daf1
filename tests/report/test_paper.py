"""The page on paper: printed to PDF by Chromium, it is whole."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader

import browser
from liftplus import report
from made_runs import Made

pytestmark = pytest.mark.browser
CLASSES = 60
A4 = (718, 1040)  # CSS pixels between margins of 10 mm
HEADINGS = (
    *("Accuracy", "Data and training", "Classes", "Most confused", "Probabilities and crops"),
    *("Why heavy fine-tuning hurts", "Cost and record", "Accuracy by group", "Accuracy against training pictures"),
    *("The data's long tail", "Training loss", "Learning rate", "Reliability of the probabilities", "Numbers"),
    *("Command", "Configuration", "Versions and machine", "Weights, time and memory"),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    names = ["a very long name of a class " * 4, *(f"kind {k:03d}" for k in range(1, CLASSES))]
    runs = [Made(names, method=method, tests=4).write(root / method) for method in ("full", "lift+")]
    return report.write(runs, root / "out")


@pytest.fixture(scope="module")
def sheets(driver: Any, page: Path) -> list[str]:
    """The text of each printed sheet, printed from the dark screen of a phone."""
    browser.look(driver, 390, 844, dark=True)
    driver.get(page.as_uri())
    printed = driver.execute_cdp_cmd(
        "Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": True}
    )
    return [sheet.extract_text() for sheet in PdfReader(io.BytesIO(base64.b64decode(printed["data"]))).pages]


@pytest.mark.slow
def test_every_class_is_printed(sheets: list[str]) -> None:
    text = "\n".join(sheets)
    assert [k for k in range(1, CLASSES) if f"kind {k:03d}" not in text] == []
    assert "Page 1 of" not in text and "Search" not in text


def test_every_column_is_printed(sheets: list[str]) -> None:
    words = " ".join("\n".join(sheets).split())
    for head in ("crops", "seeds", "mean class", "Test", "Often taken for", "precision", "device", "memory"):
        assert head in words, head
    assert "evaluation.top_k" in words and "interval" in words, "settings and numbers are open"


def test_no_heading_stands_alone_at_the_foot(sheets: list[str]) -> None:
    for number, sheet in enumerate(sheets, 1):
        last = [line.strip() for line in sheet.splitlines() if line.strip()][-1]
        assert last not in HEADINGS, (number, last)


def test_nothing_scrolls_on_paper_and_the_screen_is_as_before(driver: Any, page: Path, sheets: list[str]) -> None:
    assert sheets
    rows = "return document.querySelectorAll('#table tbody tr').length"
    closed = "return document.querySelectorAll('details:not([open])').length"
    assert driver.execute_script(rows) == 50 and driver.execute_script(closed) > 5
    driver.set_window_size(*A4)
    browser.look(driver, *A4)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        driver.execute_script("dispatchEvent(new Event('beforeprint'))")
        wide = driver.execute_script(
            "return [...document.querySelectorAll('body *')].filter(e => ['auto', 'scroll'].includes("
            "getComputedStyle(e).overflowX) && e.clientWidth && e.tagName != 'svg').map(e => e.className)"
        )
        beyond = driver.execute_script(
            "return [...document.querySelectorAll('table')].filter(t => t.getBoundingClientRect().right >"
            " t.closest('.card').getBoundingClientRect().right + 1).map(t => t.className)"
        )
        paper = driver.execute_script("return getComputedStyle(document.documentElement).getPropertyValue('--ink')")
        assert (wide, beyond, paper.strip()) == ([], [], "#1c2126")
        assert driver.execute_script(rows) == CLASSES
        driver.execute_script("dispatchEvent(new Event('afterprint'))")
        assert driver.execute_script(rows) == 50
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
