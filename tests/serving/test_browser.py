"""The page in a browser: pictures chosen and dropped, and what is shown of them."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

import pytest

import browser
import liftplus
from checked_pictures import drawn, jpeg

from .conftest import QUICK, Started

pytestmark = pytest.mark.browser

DROP = """
const held = new DataTransfer();
for (const [data, name] of arguments) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  held.items.add(new File([bytes], name, { type: "image/jpeg" }));
}
document.dispatchEvent(new DragEvent("drop", { dataTransfer: held, bubbles: true, cancelable: true }));
"""


def shown(driver: Any, count: int) -> list[str]:
    """The texts of the answers, once there are so many."""
    end = time.monotonic() + 30
    while len(found := driver.find_elements("css selector", "#answers li:not([hidden])")) < count:
        assert time.monotonic() < end, driver.page_source
        time.sleep(0.05)
    return [one.text for one in found]


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_picture_is_chosen_and_its_classes_are_shown(
    dark: bool, run: Path, started: Started, driver: Any, tmp_path: Path
) -> None:
    evil = "<img src=x onerror='window.evil = 1'>.jpg"
    (tmp_path / evil).write_bytes(jpeg(drawn(3)))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    browser.look(driver, 1280, 900, dark=dark)
    driver.get(started.url)
    driver.find_element("id", "file").send_keys(f"{tmp_path / evil}\n{tmp_path / 'broken.jpg'}")
    texts = shown(driver, 2)
    best = liftplus.load(run, **QUICK).predict(tmp_path / evil)
    good = next(text for text in texts if evil in text)
    assert best.names[0][0] in good and f"{100 * best.probabilities[0][0]:.1f} %" in good
    assert any("broken.jpg cannot be read as an image" in text for text in texts)
    assert driver.execute_script("return window.evil") is None
    assert driver.find_element("id", "state").text == "2 pictures answered."
    assert driver.title == "run – liftplus"
    paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 26)" if dark else "rgb(246, 247, 248)")
    assert [one for one in driver.get_log("browser") if one["level"] == "SEVERE" and "422" not in one["message"]] == []


def test_a_picture_is_dropped(run: Path, started: Started, driver: Any) -> None:
    driver.get(started.url)
    driver.execute_script(DROP, [base64.b64encode(jpeg(drawn(4))).decode(), "dropped.jpg"])
    assert "dropped.jpg" in shown(driver, 1)[0]
    names = liftplus.load(run, **QUICK).class_names
    assert sum(name in shown(driver, 1)[0] for name in names) == len(names)
    width = driver.execute_script("return document.querySelector('#answers img').naturalWidth")
    assert width == 120


def test_answers_have_the_order_of_the_pictures(started: Started, driver: Any) -> None:
    """The first picture is the largest, so its answer comes last."""
    driver.get(started.url)
    large, small = jpeg(drawn(5, (1100, 900))), jpeg(drawn(6))
    files = [(large, "a.jpg"), *((small, f"{name}.jpg") for name in "bcd")]
    driver.execute_script(DROP, *([base64.b64encode(data).decode(), name] for data, name in files))
    assert [text.splitlines()[0] for text in shown(driver, 4)] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    driver.execute_script(DROP, [base64.b64encode(small).decode(), "e.jpg"])
    assert [text.splitlines()[0] for text in shown(driver, 5)] == ["e.jpg", "a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def test_by_keyboard_and_on_a_small_screen(started: Started, driver: Any) -> None:
    browser.look(driver, 360, 640)
    driver.get(started.url)
    driver.find_element("tag name", "body").send_keys("\ue004")  # Tab
    assert driver.execute_script("return document.activeElement.id") == "file"
    outline = driver.execute_script("return getComputedStyle(document.getElementById('drop')).outlineStyle")
    assert outline == "solid"
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    requested = driver.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert requested and all(name.startswith(started.url) for name in requested)
