"""Minutes long: the demo, its claim over three seeds, and whole runs on real photographs."""

from __future__ import annotations

import json
import os
import statistics
import zipfile
from pathlib import Path

import pytest

import browser

from .conftest import SHARED, Command

ROOT = Path(__file__).resolve().parents[1]
CLAIM = ROOT / "benchmarks" / "results" / "demo.json"


def mean(rows: list[dict[str, float]], method: str, key: str, tte: bool = False) -> float:
    return statistics.mean(row[key] for row in rows if row["method"] == method and row["tte"] == tte)


def test_committed_results_support_the_claim() -> None:
    rows = json.loads(CLAIM.read_text())["rows"]
    assert len({row["seed"] for row in rows}) >= 3
    assert mean(rows, "lift+", "few") >= mean(rows, "full", "few") + 5
    assert mean(rows, "lift+", "overall") >= mean(rows, "full", "overall")
    assert mean(rows, "lift+", "overall") >= mean(rows, "linear_probe", "overall")
    assert mean(rows, "zeroshot", "overall") < mean(rows, "linear_probe", "overall")
    for rival in ("full+", "linear_probe+"):
        for key in ("overall", "few"):
            assert mean(rows, "lift+", key, tte=True) > mean(rows, rival, key, tte=True)


@pytest.mark.slow
@pytest.mark.long
def test_demo_repeats_the_committed_results(command: Command, tmp_path: Path) -> None:
    ended = command("demo")
    assert ended.code == 0, ended.err
    rows = json.loads((tmp_path / "runs" / "demo" / "results.json").read_text())
    keys = {"method", "tte", "seed", "overall", "many", "medium", "few", "seconds", "tuned_parameters"}
    assert all(row.keys() == keys for row in rows)
    committed = json.loads(CLAIM.read_text())["rows"]
    for row in rows:
        usual = mean(committed, row["method"], "overall", row["tte"])
        # The committed runs have five epochs and the demo three, which full fine-tuning feels most. Other processors
        # round otherwise; seeds differ by less than a point, so three are far outside chance.
        low = 15.0 if row["method"].startswith("full") else 3.0
        assert usual - low <= row["overall"] <= usual + 3.0, row
    assert mean(rows, "lift+", "few") > mean(rows, "full", "few")
    assert "lift+" in ended.out and "results.json" in ended.out
    the_report_opens(tmp_path)


def the_report_opens(folder: Path) -> None:
    """The demo's page in a browser: every figure is there and seen, the table sorts, and nothing is reported."""
    page = folder / "runs" / "demo" / "report" / "report.html"
    assert len(list(page.parent.glob("figures/*.png"))) == 12
    if reason := browser.missing():
        assert not os.environ.get("CI"), reason
        return
    with browser.chromium(folder / "profile") as driver:
        for size in ((1280, 900), (390, 844)):
            browser.look(driver, *size)
            driver.get(page.as_uri())
            script = "return [...document.querySelectorAll('figure svg')].map(s => s.clientHeight)"
            heights = driver.execute_script(script)
            assert len(heights) == 10 and min(heights) > 100
            assert driver.execute_script("return document.querySelector('#table tbody').rows.length") == 50
            assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def every(step: int, data: Path, out: Path) -> Path:
    """An archive of every step-th picture of another: the same classes and splits, in a part of the time."""
    with zipfile.ZipFile(data) as archive, zipfile.ZipFile(out, "w") as part:
        names = sorted(archive.namelist())
        pictures = [name for name in names if "/" in name]
        for name in [*pictures[::step], *(name for name in names if "/" not in name)]:
            part.writestr(name, archive.read(name))
    return out


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.shared
@pytest.mark.parametrize(("name", "step"), [("clothing17_160", 1), ("tinyimagenet200_lt100", 4)])
def test_real_photographs_to_the_end(command: Command, tmp_path: Path, name: str, step: int) -> None:
    data = every(step, SHARED / "data" / f"{name}.zip", tmp_path / f"{name}.zip")
    ended = command("train", "--data", data, "--backbone", "mini_clip", "--out", "run", "--json", "epochs=2")
    assert ended.code == 0, ended.err
    trained = json.loads(ended.out)
    classes = {"clothing17_160": 17, "tinyimagenet200_lt100": 200}[name]
    # mini_clip has never seen a photograph: above chance is what can be asked.
    assert trained["overall"] > 1.2 * 100 / classes
    ended = command("eval", "run", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["overall"] == trained["overall"]
    with zipfile.ZipFile(data) as archive:
        files = [member for member in archive.namelist() if member.lower().endswith((".jpg", ".jpeg"))][:40]
        archive.extractall(tmp_path / "photos", files)
    ended = command("predict", "run", "photos", "--out", "guesses.json")
    assert ended.code == 0, ended.err
    guesses = json.loads((tmp_path / "guesses.json").read_text())
    assert len(guesses) == 40
    assert all(guess["error"] is None and len(guess["top"]) == 5 for guess in guesses)


@pytest.mark.slow
@pytest.mark.shared
def test_imagenet_weights_learn_from_real_photographs(command: Command) -> None:
    """Norm layers of EfficientNet-Lite0, tuned for one epoch, beat the class means that they start from."""
    given = ["--data", SHARED / "data" / "clothing17_160.zip", "--backbone", "efficientnet_lite0", "--json"]
    given += ["image_size=96", "precision=fp32", "tte=false", "tuner=norm"]
    means = command("train", *given, "--out", "means", "epochs=0")
    assert means.code == 0, means.err
    tuned = command("train", *given, "--out", "tuned", "epochs=1", "lr=0.03")
    assert tuned.code == 0, tuned.err
    start, end = (json.loads(ended.out) for ended in (means, tuned))
    # Class means reach 56 % on validation (benchmarks/results/clothing.jsonl); chance is 6.
    assert start["overall"] > 45
    assert end["overall"] > start["overall"] + 2
