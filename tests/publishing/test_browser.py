"""The page of `export --page` in headless Chromium, from disk and from a server of files: the answers of `predict`."""

from __future__ import annotations

import base64
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import browser
import liftplus
import web_runtime
from checked_pictures import drawn
from liftplus import cli

from ..conftest import table_with_parents, write_folder
from ..report.conftest import driver
from ..serving.test_browser import shown

__all__ = ["driver"]

pytestmark = [pytest.mark.browser, pytest.mark.slow]
EXACT: dict[str, Any] = {"workers": 0, "precision": "fp32", "device": "cpu", "cache": False, "decode": "exact"}
SURE = 0.7
ASK = """
const [data, name, done] = arguments;
const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
answer(new File([bytes], name)).then(done);
"""


@pytest.fixture(scope="module")
def folder(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three classes, calibrated but not trained, and its page beside it; and pictures of all kinds."""
    pytest.importorskip("onnxruntime")
    root = tmp_path_factory.mktemp("exported")
    web_runtime.real(root / "cache")
    photos = write_folder(root / "photos", {"train": (3, 2, 2), "val": (9, 8, 6), "test": (2, 1, 1)})
    (root / "counts.json").write_text('{"red square": 5, "green hill": 3, "blue sky": 1}')
    model = liftplus.fit(table_with_parents(photos), epochs=0, tte=True, prior=root / "counts.json", **EXACT)
    model.calibrate()
    model.save(root / "run")
    with pytest.MonkeyPatch.context() as patch, suppress(SystemExit):
        patch.setenv("LIFTPLUS_CACHE", str(root / "cache"))
        promised = ("--sets", 0.6, "--sets-by", "all", "--unknown", 0.1)
        given = ("--out", root / "page", "--page", "--five-crops", *promised, "--level", "auto", "--sure", SURE)
        patch.setattr(sys, "argv", ["liftplus", "export", *map(str, (root / "run", *given))])
        cli.main()
    return root


@pytest.fixture(scope="module")
def pictures(folder: Path) -> list[Path]:
    """Files that show how a browser decodes: turned, transparent, grey, with a colour profile, large."""
    made = folder / "pictures"
    made.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    drawn(1, (150, 90)).save(made / "turned.jpg", exif=turned, quality=90)
    clear = drawn(2)
    clear.putalpha(Image.fromarray(np.linspace(0, 255, 100 * 120).reshape(100, 120).astype(np.uint8)))
    clear.save(made / "clear.png")
    drawn(3).quantize(16).save(made / "one_clear_colour.gif", transparency=3)
    drawn(4, (700, 90)).convert("L").save(made / "grey.jpg")
    drawn(5, (301, 407)).save(made / "profile.jpg", icc_profile=swapped_profile())
    drawn(6, (40, 33)).save(made / "small.webp", quality=80)
    shutil.copy(folder / "photos" / "test" / "red_square" / "0.png", made / "known.png")
    return sorted(made.iterdir())


def swapped_profile() -> bytes:
    """sRGB with red and blue changed, so that whoever applies it cannot be overlooked."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.find(b"rXYZ"), profile.find(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A server that sends the folder's files and does nothing else."""
    handler = partial(SimpleHTTPRequestHandler, directory=folder / "page")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def asked(driver: Any, file: Path) -> Any:
    driver.set_script_timeout(120)
    return driver.execute_async_script(ASK, base64.b64encode(file.read_bytes()).decode(), file.name)


def loaded(driver: Any) -> set[str]:
    """Addresses that the page has asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}


@pytest.mark.parametrize("place", ["disk", "server"])
def test_it_answers_as_predict(
    place: str, folder: Path, pictures: list[Path], address: str, driver: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same bits of pixels, so probabilities differ by rounding in the resizing alone."""
    driver.get("data:text/html,")  # the browser's own first page asks for much
    loaded(driver)
    begin = (folder / "page").as_uri() + "/" if place == "disk" else address
    driver.get(f"{begin}index.html")
    model = liftplus.load(folder / "run", **EXACT)
    found = model.predict(pictures, sets=0.6, sets_by="all", unknown=0.1, level="auto", sure=SURE)
    assert found.levels is not None and found.groups is not None and found.group_probabilities is not None
    assert len(set(found.levels)) > 1
    assert found.sets is not None and found.unknown is not None and len(set(found.unknown.tolist())) == 2
    largest = 0.0
    answers = zip(found.levels, found.groups, found.group_probabilities, strict=True)
    rows = zip(pictures, found.names, found.probabilities, found.sets, found.unknown, answers, strict=True)
    for file, names, chances, members, unknown, (level, group, sum_) in rows:
        told = asked(driver, file)
        top = told["top"]
        assert told["set"] == list(members) and told["unknown"] == unknown, file.name
        assert [entry["class"] for entry in top] == list(names), file.name
        assert told["level"] == level and (told["group"] is None) == (group == ""), file.name
        if told["group"]:
            assert told["group"]["name"] == group, file.name
            largest = max(largest, abs(told["group"]["probability"] - sum_))
        differences = [abs(entry["probability"] - chance) for entry, chance in zip(top, chances, strict=True)]
        largest = max(largest, *differences)
    with capsys.disabled():
        print(f"largest difference from {place}: {largest:.1e}")
    assert largest < 1e-3
    assert all(url.startswith((begin, "blob:", "data:")) for url in loaded(driver))
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_pictures_are_chosen_and_shown(folder: Path, pictures: list[Path], driver: Any, tmp_path: Path) -> None:
    evil = tmp_path / "<img src=x onerror='window.evil = 1'>.jpg"
    evil.write_bytes(pictures[0].read_bytes())
    (tmp_path / "cut.jpg").write_bytes((folder / "pictures" / "profile.jpg").read_bytes()[:3000])
    drawn(7).save(tmp_path / "other.tiff")
    driver.get((folder / "page" / "index.html").as_uri())
    files = (evil, tmp_path / "cut.jpg", tmp_path / "other.tiff", pictures[1])
    driver.find_element("id", "file").send_keys("\n".join(map(str, files)))
    texts = shown(driver, 4)
    assert [text.splitlines()[0] for text in texts] == [file.name for file in files]
    assert "red square" in texts[0] and "%" in texts[0] and "red square" in texts[3]
    assert "Set: " in texts[0] and any("It is probably of no known class." in text for text in texts)
    assert "cut.jpg cannot be read as an image by this browser." in texts[1] and "cannot be read" in texts[2]
    assert driver.execute_script("return window.evil") is None
    assert driver.find_element("id", "state").text == "4 pictures answered."
    about = driver.find_element("id", "about").text
    assert "3 classes; the best 3 are shown, from 5 crops" in about and "do not leave this browser" in about
    assert driver.title == "run – liftplus"


def test_what_is_missing_is_said(folder: Path, pictures: list[Path], driver: Any, tmp_path: Path) -> None:
    for name in ("index.html", "onnxruntime-web.js"):
        (tmp_path / name).write_bytes((folder / "page" / name).read_bytes())
    driver.get((tmp_path / "index.html").as_uri())
    assert "all of the folder must be there" in asked(driver, pictures[0])["error"]
    assert "all of the folder must be there" in driver.find_element("id", "state").text
    driver.get_log("browser")


def test_a_picture_of_too_many_pixels_is_refused(folder: Path, driver: Any, tmp_path: Path) -> None:
    text = (folder / "page" / "index.html").read_text(encoding="utf-8")
    assert '"most_pixels": 50000000' in text
    (folder / "page" / "less.html").write_text(text.replace('"most_pixels": 50000000', '"most_pixels": 100'))
    drawn(8, (11, 10)).save(tmp_path / "large.png")
    drawn(8, (10, 10)).save(tmp_path / "allowed.png")
    driver.get((folder / "page" / "less.html").as_uri())
    said = "large.png has 11 x 10 pixels, and at most 100 are allowed."
    assert asked(driver, tmp_path / "large.png") == {"error": said}
    assert asked(driver, tmp_path / "allowed.png")["top"]


def test_on_a_small_screen(folder: Path, driver: Any) -> None:
    browser.look(driver, 360, 640)
    driver.get((folder / "page" / "index.html").as_uri())
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
