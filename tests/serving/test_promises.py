"""Sets, unknown pictures and levels: a server tells what `predict` tells, to programs and on its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Command, table_with_parents, write_folder
from .conftest import Started

ASKED = ("--sets", "0.8", "--unknown", "0.2", "--level", "auto", "--sure", "0.5")


@pytest.fixture
def served(command: Command, tmp_path: Path) -> Any:
    """A calibrated run on data with parents, the pictures, and a server for it."""
    photos = write_folder(tmp_path / "photos", {"train": (12, 6, 4), "val": (12, 10, 8), "test": (3, 3, 3)})
    table = table_with_parents(photos)
    ended = command("zeroshot", "--data", table, "--out", "run", "precision=fp32", "workers=0")
    assert ended.code == 0, ended.err
    ended = command("calibrate", "run", "device=cpu", "precision=fp32")
    assert ended.code == 0, ended.err
    started = Started(tmp_path / "run", tmp_path / "told", *ASKED)
    yield sorted((photos / "test").rglob("*.png")), started
    started.end()


@pytest.mark.slow
@pytest.mark.browser
def test_as_predict_tells(served: Any, command: Command, driver: Any) -> None:
    files, started = served
    ended = command("predict", "run", *files, *ASKED, "--set", "precision=fp32", "--set", "device=cpu", "--json")
    assert ended.code == 0, ended.err
    expected = json.loads(ended.out)
    answer = started.client.form([(file.name, file.read_bytes()) for file in files]).json
    assert len(answer["pictures"]) == len(expected) == 9
    for one, other in zip(answer["pictures"], expected, strict=True):
        assert one["set"] == other["set"] and one["unknown"] == other["unknown"] and one["level"] == other["level"]
        assert one["unknown_score"] == pytest.approx(other["unknown_score"], abs=1e-3)
        assert (one["group"] or {}).get("name") == (other["group"] or {}).get("name")
    assert any(one["set"] for one in expected) and {one["level"] for one in expected} <= {"leaf", "parent", ""}

    driver.get(started.url)
    driver.find_element("css selector", "input[type=file]").send_keys(str(files[0]))
    shown = _until(driver, "Set:")
    first = expected[0]
    assert f"Set: {', '.join(first['set']) or 'no class fits'}" in shown
    assert ("It is probably of no known class." in shown) == first["unknown"]
    assert (f"{first['level']}: {first['group']['name']}" if first["group"] else "No level is sure.") in shown


def _until(driver: Any, word: str) -> str:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 20).until(lambda one: word in one.find_element("tag name", "body").text)
    text: str = driver.find_element("tag name", "body").text
    return text
