"""The page says what `compare` says, gives every accuracy with its number of pictures, and praises no chance."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from liftplus import report
from liftplus.data.dataset import DataSet, Split
from liftplus.evaluation import differences
from liftplus.report import content, figures, findings, judgement, read, series, thumbnails
from liftplus.report.chart import save
from liftplus.report.findings import Finding
from liftplus.report.judgement import judge
from made_runs import Made

NAMES = tuple(f"class {k}" for k in range(24))


def seen(folders: Sequence[Path]) -> tuple[list[series.Series], judgement.Judgement, list[Finding]]:
    parts = series.grouped([read.run(folder) for folder in folders])
    found = judge(parts)
    return parts, found, findings.everything(parts, found, [], ())


def accuracy_of(found: Sequence[Finding]) -> Finding:
    return next(one for one in found if one.title == "Accuracy")


@pytest.fixture(scope="module")
def close(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two methods that chance alone tells apart, two seeds each, as `compare` lays them out."""
    root = tmp_path_factory.mktemp("close")
    return [
        Made(NAMES[:4], method=method, seed=seed, skill=(skill,) * 3, tests=2).write(root / f"{method}-seed{seed}")
        for method, skill in (("zeroshot", 0.5), ("linear_probe", 0.6))
        for seed in (0, 1)
    ]


def test_the_page_has_compares_sentence(close: list[Path], tmp_path: Path) -> None:
    methods = [
        differences.Contender(name, False, differences.read_tests(close[k : k + 2]))
        for name, k in (("zeroshot", 0), ("linear_probe", 2))
    ]
    said = differences.judged(methods)
    page = report.write(close, tmp_path / "out").read_text(encoding="utf-8")
    for one in said:
        if one.key in ("overall", "few"):
            assert one.sentence() in page and not one.exceeds
    _, _, found = seen(close)
    best = accuracy_of(found)
    assert best.sign == "plain" and "within noise" in best.text and "points over" not in best.text
    assert '<li class="good">' not in page and "best" not in re.findall(r'<td class="([^"]*)"', page)
    assert "Nothing is bold" in page


def test_what_exceeds_noise_is_said_and_bold(tmp_path: Path) -> None:
    runs = [
        Made(NAMES, method=method, seed=seed, skill=(skill,) * 3, tests=40).write(tmp_path / f"{method}{seed}")
        for method, skill in (("zeroshot", 0.2), ("linear_probe", 0.9))
        for seed in (0, 1, 2)
    ]
    parts, verdict, found = seen(runs)
    best = accuracy_of(found)
    assert best.sign == "good" and "linear_probe beats zeroshot" in best.text and "more than noise" in best.text
    rows = {row["label"]: row for row in content.accuracy(parts, verdict)}
    assert [cell["best"] for cell in rows["linear_probe"]["cells"]] == [True] * 5
    assert not any(cell["best"] for cell in rows["zeroshot"]["cells"])


def test_one_accuracy_stands_with_its_pictures_and_interval(tmp_path: Path) -> None:
    """Three of three right: 29.2 to 100, by Clopper and Pearson."""
    run = Made(NAMES[:3], skill=(1, 1, 1), tests=1).write(tmp_path / "run")
    _, _, found = seen([run])
    best = accuracy_of(found)
    assert best.sign == "plain" and "may be chance" not in best.text
    assert "100.0 % overall on 3 test pictures, with a 95 % interval from 29.2 to 100.0 %" in best.text
    page = report.write([run], tmp_path / "out").read_text(encoding="utf-8")
    row = re.search(r'<th scope="row">.*?</tr>', page, re.DOTALL)
    assert row is not None and "29.2 to 100.0" in row[0] and "3 pictures" in row[0] and "1 picture<" in row[0]
    with (tmp_path / "out" / "figures" / "accuracy.csv").open(newline="") as stream:
        assert next(csv.DictReader(stream))["test_images"] == "3"


@pytest.mark.parametrize("skill", [0.0, 0.55, 1.0])
@pytest.mark.parametrize("tests", [1, 3, 30])
def test_the_caps_of_whiskers_are_inside_the_drawing(skill: float, tests: int, tmp_path: Path) -> None:
    runs = [Made(NAMES[:4], seed=seed, skill=(skill,) * 3, tests=tests).write(tmp_path / str(seed)) for seed in (0, 1)]
    parts, verdict, _ = seen(runs)
    drawn = figures.accuracy(parts, verdict)
    assert drawn is not None
    low, high = drawn.figure.axes[0].get_ylim()
    ends = [row[6] for row in drawn.rows if row[6] is not None]
    assert low == 0 and max(ends) < high and all(tick <= 100 for tick in drawn.figure.axes[0].get_yticks())
    assert "test_images" in drawn.header and [row[-1] for row in drawn.rows if row[1] == "overall"] == [4 * tests]
    save(drawn, tmp_path)
    labels = [text.get_text() for text in drawn.figure.axes[0].get_xticklabels()]
    assert f"{4 * tests:,} pictures" in labels[0]


def test_one_seed_is_no_proof_of_a_poor_tail(tmp_path: Path) -> None:
    light = Made(NAMES, method="zeroshot", skill=(0.6, 0.6, 0.6), tests=1).write(tmp_path / "light")
    heavy = Made(NAMES, method="full", skill=(0.6, 0.6, 0.5), tests=1).write(tmp_path / "heavy")
    _, _, found = seen([light, heavy])
    assert not [one for one in found if one.title in ("Tail poor", "Tail behind")]


def test_runs_on_other_pictures_are_not_compared(tmp_path: Path) -> None:
    a = Made(NAMES[:4], tests=3).write(tmp_path / "a")
    b = Made(NAMES[:4], method="full", tests=5).write(tmp_path / "b")
    _, verdict, found = seen([a, b])
    assert verdict.differences == () and "cannot be compared" in accuracy_of(found).text
    assert report.write([a, b], tmp_path / "out").is_file()


def test_a_seed_on_other_pictures_is_told_and_left_out(tmp_path: Path) -> None:
    runs = [Made(NAMES[:4], seed=seed, tests=3 + seed).write(tmp_path / str(seed)) for seed in (0, 1)]
    parts, verdict, _ = seen(runs)
    assert "other pictures than the other seeds" in verdict.problems[0]
    assert verdict.answers(parts[0].label, False).right.shape == (1, 12)  # type: ignore[union-attr]


def test_seeds_that_only_one_method_has(tmp_path: Path) -> None:
    runs = [Made(NAMES[:4], seed=seed).write(tmp_path / str(seed)) for seed in (0, 1, 2)]
    runs += [Made(NAMES[:4], method="full", seed=seed).write(tmp_path / f"f{seed}") for seed in (1, 5)]
    _, verdict, _ = seen(runs)
    assert {one.seeds for one in verdict.differences} == {2}, "the smaller number; seeds of two methods are not paired"


class Pictures:
    """A store that draws every picture it knows."""

    def __init__(self, known: Sequence[str]) -> None:
        self.known = known

    def image(self, key: str) -> Image.Image:
        if key not in self.known:
            raise KeyError(key)
        return Image.new("RGB", (8, 8))


def confused(folder: Path, wrong: dict[int, list[str]]) -> list[read.Run]:
    """Two seeds that took these pictures of "a", of two, for "b"."""
    runs = []
    for seed, keys in wrong.items():
        run = Made(("a", "b"), seed=seed, skill=(1, 1, 1), tests=2).write(folder / str(seed))
        lines = ["path,true,predicted,probability,correct"]
        for key in ("a/0.jpg", "a/1.jpg"):
            guess = "b" if key in keys else "a"
            lines.append(f"{key},a,{guess},0.5,{int(guess == 'a')}")
        lines += [f"b/{k}.jpg,b,b,0.5,1" for k in (2, 3)]
        (run / "predictions.csv").write_text("\n".join(lines) + "\n")
        right = 2 - len(keys)
        table = [f"0,0,{right}"] * (right > 0) + [f"0,1,{len(keys)}"] * bool(keys) + ["1,1,2"]
        (run / "confusion.csv").write_text("true,predicted,images\n" + "\n".join(table) + "\n")
        runs.append(read.run(run))
    return runs


@pytest.mark.parametrize(
    ("wrong", "count", "shown"),
    [
        ({0: [], 1: ["a/1.jpg"]}, "1 of 4 (2 seeds, 2 test pictures each), 25 %", 1),
        ({0: ["a/0.jpg"], 1: ["a/0.jpg"]}, "2 of 4 (2 seeds, 2 test pictures each), 50 %", 1),
        ({0: ["a/0.jpg"], 1: ["a/1.jpg"]}, "2 of 4 (2 seeds, 2 test pictures each), 50 %", 2),
        ({0: ["a/0.jpg"]}, "1 of its 2 test pictures, 50 %", 1),
    ],
)
def test_every_pair_has_a_picture(wrong: dict[int, list[str]], count: str, shown: int, tmp_path: Path) -> None:
    (one,) = series.grouped(confused(tmp_path, wrong))
    keys = ["a/0.jpg", "a/1.jpg", "train.jpg"]
    data = DataSet("x", ("a", "b"), ("a", "b"), {"train": Split(("train.jpg",), (1,))}, Pictures(keys))  # type: ignore[arg-type]
    (pair,) = thumbnails.pairs(one, data)
    assert (pair.true, pair.predicted, pair.count) == ("a", "b", count)
    assert len(pair.wrong) == shown and pair.example is not None


def test_a_picture_that_cannot_be_read_gives_way_to_another(tmp_path: Path) -> None:
    (one,) = series.grouped(confused(tmp_path, {0: ["a/0.jpg"], 1: ["a/0.jpg", "a/1.jpg"]}))
    data = DataSet("x", ("a", "b"), ("a", "b"), {}, Pictures(["a/1.jpg"]))  # type: ignore[arg-type]
    (pair,) = thumbnails.pairs(one, data)
    assert len(pair.wrong) == 1 and pair.example is None and pair.images == 3
