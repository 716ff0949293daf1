"""The page in headless Chromium, from file://: no error, nothing fetched, figures seen, a table that works."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

import browser
from liftplus import report
from made_runs import Made

pytestmark = pytest.mark.browser
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    names = ["<b>bold</b>", "🐙 octopus", "שלום", "x" * 300, *(f"class {k}" for k in range(96))]
    runs = [Made(names, method=m, seed=s, tests=10).write(root / f"{m}{s}") for m in ("full", "lift+") for s in (0, 1)]
    return report.write(runs, root / "out")


def opened(driver: Any, page: Path) -> None:
    driver.get(page.as_uri())
    errors = [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert errors == []


def column(driver: Any, number: int) -> list[str]:
    script = "return [...document.querySelectorAll('#table tbody tr')].map(r => r.cells[arguments[0]].textContent)"
    return driver.execute_script(script, number)


def search(driver: Any, words: str) -> None:
    field = "const s = document.getElementById('search'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
    driver.execute_script(field, words)
    time.sleep(0.3)


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_shows_its_figures(driver: Any, page: Path, width: str, dark: bool) -> None:
    browser.look(driver, *WIDTHS[width], dark=dark)
    driver.get_log("performance")
    opened(driver, page)
    sizes = driver.execute_script(
        "return [...document.querySelectorAll('figure svg')]"
        ".map(s => [s.getBBox().width, s.clientWidth, s.clientHeight])"
    )
    assert len(sizes) == 6 and all(min(size) > 100 for size in sizes)
    across = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert across[0] <= across[1], "the page must not scroll sideways"
    paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(paper[4:].split(",")[0]) < 60) == dark
    ink = "return getComputedStyle(document.querySelector('figure svg text')).fill"
    assert (int(driver.execute_script(ink)[4:].split(",")[0]) > 120) == dark, "figures follow the colours"
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("data:", page.as_uri()))] == []


def test_the_switch_of_colours(driver: Any, page: Path) -> None:
    browser.look(driver, 1280, 900)
    opened(driver, page)
    button = driver.find_element("id", "theme")
    seen = []
    for _ in range(3):
        button.click()
        seen.append((button.text, driver.execute_script("return getComputedStyle(document.body).backgroundColor")))
    assert [word for word, _ in seen] == ["Light", "Dark", "Auto"]
    assert seen[0][1] == seen[2][1] != seen[1][1]


@pytest.mark.slow
def test_the_table_sorts_and_filters(driver: Any, page: Path) -> None:
    browser.look(driver, 1280, 900)
    opened(driver, page)
    counts = [int(text.replace(",", "")) for text in column(driver, 3)]
    assert len(counts) == 50 and counts == sorted(counts, reverse=True) and counts[0] == 500
    heads = driver.find_elements("css selector", "#table th button")
    heads[5].click()
    values = [float(text) for text in column(driver, 5)]
    assert values == sorted(values)
    heads[5].click()
    best = [float(text) for text in column(driver, 5)]
    assert best == sorted(best, reverse=True) and best[0] > values[0]
    sorted_now = "return [...document.querySelectorAll('#table th')].map(h => h.getAttribute('aria-sort'))"
    assert driver.execute_script(sorted_now)[5] == "descending"
    heads[0].click()
    names = column(driver, 0)
    assert names.index("class 9") < names.index("class 10"), "numbers in names sort by value"

    driver.find_element("id", "search").send_keys("octopus")
    deadline = time.monotonic() + 5
    while len(found := column(driver, 0)) != 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == ["🐙 octopus"] and driver.find_element("id", "shown").text == "1 of 100 classes"
    search(driver, "96")
    assert column(driver, 0) == ["class 92"] and column(driver, 1) == ["96"], "its number, as in data inspect"
    search(driver, "")
    driver.find_element("css selector", "#group option:nth-child(4)").click()
    time.sleep(0.3)
    assert set(column(driver, 2)) == {"few"}
    driver.find_element("css selector", "#group option:nth-child(1)").click()
    before = column(driver, 0)
    driver.execute_script("document.getElementById('next').click()")
    assert set(before).isdisjoint(column(driver, 0)) and driver.find_element("id", "page").text == "Page 2 of 2"
    names = driver.execute_script(
        "return JSON.parse(document.getElementById('classes-data').textContent).rows.map(r => r[0])"
    )
    assert names[:3] == ["<b>bold</b>", "🐙 octopus", "שלום"]
    assert driver.execute_script("return document.querySelectorAll('bdi b').length") == 0


@pytest.mark.slow
def test_8142_classes_load_quickly(driver: Any, tmp_path: Path) -> None:
    names = [f"Genus{k % 900} species number {k} of the insects" for k in range(8142)]
    runs = [Made(names, method=m, tests=1).write(tmp_path / m) for m in ("lift+", "full")]
    path = report.write(runs, tmp_path / "out")
    assert path.stat().st_size < 15e6
    browser.look(driver, 1280, 900)
    opened(driver, path)
    script = "const t = performance.getEntriesByType('navigation')[0]; return [t.loadEventEnd, t.duration]"
    loaded, _ = driver.execute_script(script)
    print(f"{path.stat().st_size / 1e6:.2f} MB loaded in {loaded:.0f} ms")
    assert 0 < loaded < 3000
    start = time.perf_counter()
    driver.execute_script("document.querySelectorAll('#table th button')[0].click()")
    assert time.perf_counter() - start < 2 and len(column(driver, 0)) == 50
