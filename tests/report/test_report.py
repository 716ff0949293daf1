"""The report of made-up runs: what it says, what it leaves out, and that names from data stay names."""

from __future__ import annotations

import csv
import html
import itertools
import json
import os
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import made_runs
from liftplus import config, report
from liftplus.errors import UserError
from liftplus.report import chart, content, feature_figures, features, figures, findings, read, series
from liftplus.report.judgement import judge
from made_runs import Made

NAMES = tuple(f"class {k}" for k in range(24))
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"double\" and 'single' & <b>",
    "x" * 300,
    "🐙 octopus 🦑",
    "שלום עולם",
    "a,b;c\tline",
    "$\\alpha$ {{ 7*7 }} {% raw %}",
    "../../etc/passwd",
    "C:\\temp\\%s",
    "<!-- comment",
    "naïve ]]> café",
)


class Elements(HTMLParser):
    """The elements of a page and the text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.inside = "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside not in ("script", "style") else ""


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def classes_of(page: str) -> Any:
    return json.loads(re.search(r'id="classes-data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]


def _signs(parts: list[series.Series]) -> list[findings.Finding]:
    return findings.everything(parts, judge(parts), [], ())


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path, str]:
    """Light and heavy runs of two seeds each, and their report."""
    root = tmp_path_factory.mktemp("four")
    runs = []
    for seed in (0, 1):
        runs.append(Made(NAMES, seed=seed, tests=40).write(root / f"light{seed}"))
        heavy = Made(NAMES, method="full", seed=seed, skill=(0.85, 0.7, 0.1), tests=40)
        runs.append(heavy.write(root / f"heavy{seed}"))
        five = config.resolve(overrides=["evaluation.tte=true"]).evaluation.model_dump()
        Made(NAMES, seed=seed, tests=40).evaluate(root / f"light{seed}" / "eval", five, gain=0.1)
    page = report.write(runs, root / "report")
    return runs, root / "report", page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_seeds_are_taken_together(four: tuple[list[Path], Path, str]) -> None:
    runs, out, _ = four
    found = {(r["series"], r["measure"]): r for r in rows(out / "figures" / "accuracy.csv")}
    for label, folders in (("lift+", runs[::2]), ("full", runs[1::2])):
        values = [made_runs.loaded(folder / "metrics.json")["few"] for folder in folders]
        row = found[label, "few"]
        assert float(row["mean"]) == pytest.approx(np.mean(values), rel=1e-5)
        assert float(row["sd"]) == pytest.approx(np.std(values, ddof=1), rel=1e-5) and row["seeds"] == "2"


def test_every_figure_has_its_files_and_words(four: tuple[list[Path], Path, str]) -> None:
    _, out, page = four
    drawn = re.findall(r'<figure class="card figure" id="figure-(\w+)"', page)
    assert drawn == ["accuracy", "accuracy_by_count", "long_tail", "loss", "lr", "reliability", "tte"]
    for name in drawn:
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert rows(out / "figures" / f"{name}.csv")
        assert f'<title id="{name}-title">' in page and f'<desc id="{name}-desc">' in page
    identifiers = [attributes["id"] for _, attributes in Elements(page).tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_the_page_asks_for_nothing_outside(four: tuple[list[Path], Path, str]) -> None:
    """No address that a browser would load: links lead to the figures' files, pictures are in the page."""
    _, out, page = four
    for tag, attributes in Elements(page).tags:
        for key in ("src", "href", "xlink:href"):
            target = attributes.get(key)
            assert target is None or target.startswith(("#", "data:")) or (out / target).is_file(), (tag, target)
        assert not any(key.startswith("on") for key in attributes)
    assert "@import" not in page and not re.search(r"url\((?!#)", page)


def test_failure_signs_are_found(four: tuple[list[Path], Path, str]) -> None:
    _, out, page = four
    text = Elements(page).text
    assert "Tail poor" in text and "full has" in text and "lift+ trains fewer weights" in text
    gains = {r["measure"]: r for r in rows(out / "figures" / "tte.csv")}
    gain = float(gains["overall"]["gain"])
    assert gain > 2 and f"five crops change overall accuracy by {gain:+.1f} ± " in text
    assert re.search(r"liftplus eval \S+heavy0 evaluation\.tte=true", text), "it says how to test the other runs"


def test_no_gain_from_coinciding_crops(tmp_path: Path) -> None:
    run = Made(NAMES).write(tmp_path / "run")
    Made(NAMES).evaluate(run / "eval", {"tte": True, "expand": 24})
    found = _signs(series.grouped([read.run(run)]))
    (sign,) = (one for one in found if one.section == "tte")
    assert sign.sign == "bad" and "multiple of the patch size 8" in sign.text and "Try expand=28" in sign.text


@pytest.mark.slow
def test_promises_of_a_calibrated_run_are_shown(tmp_path: Path) -> None:
    """Those of its last test; a group without pictures has a dash."""
    run = Made(NAMES).write(tmp_path / "run")
    for number, coverage in enumerate((12.3, 90.1)):
        test = run / f"eval-{number}"
        Made(NAMES).evaluate(test, {"tte": False})
        cell = {"pictures": 1200, "coverage": coverage, "size": 2.34, "empty": 0.0}
        promised = {"promised_coverage": 90.0, "sets": {"group": {"overall": cell, "many": cell, "mean_class": 89.0}}}
        about = made_runs.loaded(test / "metrics.json") | {"calibration": promised}
        (test / "metrics.json").write_text(json.dumps(about))
        os.utime(test / "metrics.json", (number, number))
    page = report.write([run], tmp_path / "out").read_text(encoding="utf-8")
    assert "Sets of classes that promise 90 %" in page and "90.1 % with 2.3 (1,200)" in page and "12.3 %" not in page
    assert "Sets of classes" not in report.write([Made(NAMES).write(tmp_path / "b")], tmp_path / "o").read_text("utf-8")


@pytest.mark.slow
def test_levels_above_the_classes_are_shown(tmp_path: Path) -> None:
    """Over seeds and for both numbers of crops; names are shown as they are."""
    runs = []
    for seed, right in enumerate((80.0, 84.0)):
        run = Made(NAMES, overrides=(f"seed={seed}",)).write(tmp_path / f"run{seed}")
        Made(NAMES).evaluate(run / "eval", {"tte": True, "expand": 24})
        for folder, gain in ((run, 0.0), (run / "eval", 5.0)):
            one = {"groups": 1234, "overall": right + gain, "mean_group": 70.0 + gain}
            about = made_runs.loaded(folder / "metrics.json") | {"levels": {"<b>order": one, "genus": {"groups": None}}}
            (folder / "metrics.json").write_text(json.dumps(about))
        runs.append(run)
    rows = content.levels(series.grouped([read.run(run) for run in runs]))
    assert [(row["crops"], row["cells"]) for row in rows] == [
        ("one", ["<b>order", "1,234", "82.0 ± 2.8", "70.0 ± 0.0"]),
        ("one", ["genus", "–", "–", "–"]),
        ("five", ["<b>order", "1,234", "87.0 ± 2.8", "75.0 ± 0.0"]),
        ("five", ["genus", "–", "–", "–"]),
    ]
    page = report.write(runs, tmp_path / "out").read_text(encoding="utf-8")
    assert "Levels above the classes" in page and "82.0 ± 2.8" in page and "&lt;b&gt;order" in page
    assert "Levels above" not in report.write([Made(NAMES).write(tmp_path / "b")], tmp_path / "o").read_text("utf-8")


def test_slow_convergence(tmp_path: Path) -> None:
    slow = Made(NAMES, overrides=("head_init=random",)).write(tmp_path / "slow")
    lines = [json.loads(line) | {"loss": 9 / k} for k, line in enumerate((slow / "log.jsonl").open(), 1)]
    (slow / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    parts = series.grouped([read.run(Made(NAMES).write(tmp_path / "quick")), read.run(slow)])
    assert "semantic" in parts[0].label and "random" in parts[1].label
    (sign,) = (one for one in _signs(parts) if one.title == "Slow convergence")
    assert "loss of 9.00" in sign.text and "in epoch 3" in sign.text and "starts from random" in sign.text


@pytest.mark.parametrize("epochs", [1, 2, 5, 40])
def test_epochs_are_counted_in_whole_numbers(tmp_path: Path, epochs: int) -> None:
    run = Made(NAMES).write(tmp_path / "run")
    entry = json.loads((run / "log.jsonl").open().readline())
    lines = [json.dumps(entry | {"epoch": number}) for number in range(1, epochs + 1)]
    (run / "log.jsonl").write_text("\n".join(lines) + "\n")
    drawn = figures.curves(series.grouped([read.run(run)]), "loss")
    assert drawn is not None
    axes = drawn.figure.axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks and all(float(tick).is_integer() for tick in ticks)


def test_a_label_names_differing_parts_before_their_options(tmp_path: Path) -> None:
    plain = Made(NAMES).write(tmp_path / "plain")
    other = Made(NAMES, overrides=("head_init=random", "augment=lift")).write(tmp_path / "other")
    labels = [part.label for part in series.grouped([read.run(plain), read.run(other)])]
    assert labels[0].startswith("lift+ (head_init=semantic, augment=mda, ")
    assert labels[1] == "lift+ (head_init=random, augment=lift)"


def test_hostile_names_stay_names(tmp_path: Path) -> None:
    """As class names, as the data's name and in the command; in HTML, in the script's data, in CSV."""
    about = {"command": f"liftplus train --data '{HOSTILE[1]}'", "data": {"name": HOSTILE[0], "notes": [HOSTILE[2]]}}
    run = Made(HOSTILE, source=HOSTILE[1], skill=(0.2, 0.2, 0.2), about=about).write(tmp_path / "a & <b>")
    path = report.write([run], tmp_path / "out")
    page = path.read_text(encoding="utf-8")
    found = Elements(page)
    assert [tag for tag, _ in found.tags].count("script") == 2 and not any(tag == "b" and a for tag, a in found.tags)
    assert not any(attributes.get("src") == "x" for _, attributes in found.tags)
    assert HOSTILE[0] in found.text and about["command"] in found.text
    assert [row[0] for row in classes_of(page)["rows"]] == list(HOSTILE)
    assert [row["Class"] for row in rows(path.parent / "figures" / "classes.csv")] == list(HOSTILE)
    assert {r["true"] for r in rows(path.parent / "figures" / "confused_pairs.csv")} <= set(HOSTILE)
    assert html.escape(HOSTILE[0]) in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a & <b>", "out"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("metrics.json", None, "metrics.json is missing"),
        ("metrics.json", "{", "metrics.json is damaged"),
        ("metrics.json", '{"overall": NaN}', "metrics.json is damaged (overall is not a number)"),
        ("per_class.csv", "class,id\n0,0\n", "per_class.csv is damaged (column or key 'group' is missing)"),
        ("confusion.csv", "true,predicted,images\n0,x,1\n", "confusion.csv is damaged"),
        ("predictions.csv", None, "predictions.csv is missing"),
        ("predictions.csv", b"\xff\xfe\x00", "predictions.csv is damaged"),
        ("log.jsonl", None, "log.jsonl has no epoch"),
        ("log.jsonl", "not json\n", "log.jsonl has no epoch"),
        ("config.json", "[1]", "config.json is damaged (it is not a JSON object)"),
        ("config.json", None, "config.json is missing"),
    ],
)
def test_a_damaged_file_is_told(name: str, text: str | bytes | None, told: str, tmp_path: Path) -> None:
    run = Made(NAMES).write(tmp_path / "run")
    (run / name).unlink()
    if text is not None:
        (run / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    (problem,) = read.run(run).problems
    assert told in problem and str(run) in problem


@pytest.mark.slow
def test_damaged_files_cost_their_parts_only(tmp_path: Path) -> None:
    parts = {"metrics.json": "accuracy", "predictions.csv": "reliability", "log.jsonl": "loss", "config.json": None}
    for name, figure in parts.items():
        run = Made(NAMES).write(tmp_path / name / "run")
        (run / name).write_text("{")
        said: list[str] = []
        page = Elements(report.write([run], tmp_path / name / "out", say=said.append).read_text(encoding="utf-8"))
        assert any(name in text and text in page.text for text in said)
        left = {path.stem for path in (tmp_path / name / "out" / "figures").glob("*.png")}
        assert "long_tail" in left and figure not in left and "Cost and record" in page.text


def test_what_is_refused(tmp_path: Path) -> None:
    run = Made(NAMES).write(tmp_path / "run")
    with pytest.raises(UserError, match="There is no run folder"):
        report.write([tmp_path / "gone"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a run"):
        report.write([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(UserError, match="holds something other than a report"):
        report.write([run], run)
    other = Made(NAMES[:9]).write(tmp_path / "other")
    with pytest.raises(UserError, match=r"different classes \(24 and 9\)"):
        report.write([run, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    before = (run / "config.json").read_bytes()
    assert report.write([run], run / "report") == report.write([run, run], run / "report")
    assert (run / "config.json").read_bytes() == before


def test_an_earlier_report_is_replaced(tmp_path: Path) -> None:
    report.write([Made(NAMES).write(tmp_path / "a")], tmp_path / "out")
    (tmp_path / "out" / "figures" / "notes.txt").write_text("mine")
    bare = Made(NAMES, method="zeroshot", overrides=("epochs=0",)).write(tmp_path / "b")
    report.write([bare], tmp_path / "out")
    left = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert "notes.txt" in left and "loss.png" not in left and "accuracy.png" in left


@pytest.mark.slow
def test_8142_classes_stay_small(tmp_path: Path) -> None:
    names = [f"Genus{k % 900} species number {k} of the insects" for k in range(8142)]
    runs = [Made(names, method=m, tests=1).write(tmp_path / m) for m in ("lift+", "full")]
    page = report.write(runs, tmp_path / "out")
    assert page.stat().st_size < 4e6
    assert len(classes_of(page.read_text(encoding="utf-8"))["rows"]) == 8142


def test_runs_that_share_a_method_are_told_apart(tmp_path: Path) -> None:
    runs = [Made(NAMES, overrides=(f"lr={lr}",)).write(tmp_path / f"r{lr}") for lr in (0.1, 0.2)]
    shutil.copytree(runs[0], tmp_path / "copy")  # the same run twice is no second seed
    found = series.grouped([read.run(run) for run in [*runs, tmp_path / "copy"]])
    assert [len(one.runs) for one in found] == [1, 1, 1]
    assert len({one.label for one in found}) == 3 and "lr=0.2" in found[1].label


def test_calibration_in_closed_form() -> None:
    """Two bins: 0.9 with 3 of 4 right, 0.1 with none of 1: ECE = (4 * 0.15 + 1 * 0.1) / 5."""
    chances = np.array([0.9, 0.9, 0.9, 0.9, 0.1])
    found = series.calibration(chances, np.array([True, True, True, False, False]))
    assert found.ece == pytest.approx(100 * (4 * 0.15 + 0.1) / 5)
    assert found.confidence == pytest.approx(74) and found.accuracy == pytest.approx(60)
    exact = series.calibration(np.ones(7), np.ones(7, dtype=bool))
    assert exact.ece == 0 and exact.bins == ((14 / 15, 7, 1.0, 1.0),)


def test_distances_are_those_of_all_pairs() -> None:
    values, labels = torch.randn(11, 5), torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2, 4, 4])
    found, directions, n = features.within(values, labels, 5)
    assert found[0] is None and found[3] is None and n.tolist() == [1, 3, 5, 0, 2]
    for k in (1, 2, 4):
        part = values[labels == k].double()
        pairs = [1 - F.cosine_similarity(part[i], part[j], dim=0) for i in range(len(part)) for j in range(i)]
        assert found[k] == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-9)
    held = [0, 1, 2, 4]
    means = [F.normalize(F.normalize(values[labels == k].double(), dim=-1).sum(0), dim=0) for k in held]
    pairs = [1 - means[i] @ means[j] for i in range(4) for j in range(i)]
    assert features.between(directions, n) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-9)
    assert features.between(directions[:1], n[:1]) is None


def test_pairs_and_likeness_are_what_they_say(tmp_path: Path) -> None:
    """Histograms against every pair formed; the map's classes from frequent to rare; both drawn."""
    values = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(60) % 4
    labels[labels == 3] = 2
    labels[-1] = 3  # a single picture makes no pair
    shares = features.pair_shares(values, labels, ["many", "many", "few", "few"])
    unit = torch.nn.functional.normalize(values.double(), dim=-1)

    def of_class(k: int) -> torch.Tensor:
        own = unit[labels == k]
        pairs = [1 - own[i] @ own[j] for i in range(len(own)) for j in range(i)]
        at = torch.stack(pairs).clamp(0, 1.2) / 1.2 * 40
        return torch.bincount(at.long().clamp(max=39), minlength=40) / len(pairs)

    assert shares["few"] == pytest.approx(of_class(2).tolist())
    assert shares["many"] == pytest.approx(((of_class(0) + of_class(1)) / 2).tolist())
    assert features.spaced([5, 90, 1, 7], [True, True, True, False]) == (1, 0, 2)
    many = features.spaced(list(range(500, 0, -1)), [True] * 500)
    assert (len(many), many[0], many[-1]) == (40, 0, 499) and len(set(many)) == 40
    one = features.Distances(
        "full", (0.2,) * 3, (0.3,) * 3, 0.5, {"train few": shares["few"]}, (1, 0), ((1.0, 0.5), (0.25, 0.75))
    )
    drawn = {chart.name: chart for chart in feature_figures.charts([one], [90, 50, 3], [chart.LineStyle.of(0)])}
    assert [row[1:] for row in drawn["class_likeness"].rows] == [[1, 1, 1.0], [1, 0, 0.5], [0, 1, 0.25], [0, 0, 0.75]]
    assert [row[4] for row in drawn["distance_histograms"].rows] == list(shares["few"])
    for name in ("class_likeness", "distance_histograms"):
        assert chart.save(drawn[name], tmp_path).startswith("<svg") and (tmp_path / f"{name}.png").is_file()


def test_words_about_features_follow_the_numbers() -> None:
    counts = (300, 300, 5, 5)
    bare = features.Distances("bare backbone", (0.3,) * 4, (0.31,) * 4, 0.5)
    heavy = features.Distances("full", (0.2, 0.2, 0.05, 0.05), (0.25, 0.25, 0.4, 0.4), 0.9)
    light = features.Distances("lift+", (0.25,) * 4, (0.27,) * 4, 0.7)
    found = findings.heaviness([bare, heavy, light], counts)
    assert [one.sign for one in found] == ["bad", "good"]
    assert "0.35 farther apart" in found[0].text and "0.01" in found[0].text and "too heavy" in found[0].text


def test_the_command_of_a_run_makes_it_again() -> None:
    given = ["lr=0.5", "tuner=lora+ssf", "tuner.lora.rank=3", "loss=focal", "loss.gamma=1.5", "seed=4"]
    run = config.resolve(data="some folder/x.zip", method="lift", overrides=given)
    line = content.alone(run.to_dict())
    assert line is not None
    words = shlex.split(line)
    assert words[:8] == [
        "liftplus",
        "train",
        "--data",
        "some folder/x.zip",
        "--backbone",
        "mini_clip",
        "--method",
        "lift",
    ]
    assert config.resolve(data=words[3], backbone=words[5], method=words[7], overrides=words[8:]) == run


@pytest.mark.parametrize(
    "given", [(), ("lr=0.05", "epochs=1"), ("tuner=lora", "head_init=class_mean"), ("recipe=paper",)]
)
def test_the_command_of_a_run_leaves_out_what_its_recipe_chose(given: tuple[str, ...]) -> None:
    named = {"data": "photos", "backbone": "mini_clip", "method": "lift+", "recipe": "auto"}
    asked = config.resolve(**named, overrides=given)
    chosen = {"train": {"batch_size": 16, "lr": 0.007, "schedule": "step"}, "head_init": {"name": "mix"}}
    settled = asked.to_dict()
    for key in asked.automatic:
        section, _, leaf = key.partition(".")
        if section == "head_init":
            settled[section] = chosen[section]
        elif leaf in chosen.get(section, {}):
            settled[section][leaf] = chosen[section][leaf]
    line = content.alone(settled)
    assert line is not None
    words = shlex.split(line)
    assert not any(word.startswith(("train.batch_size", "train.schedule", "head_init.")) for word in words[8:])
    assert words[8:] or not given
    assert config.resolve(**named, overrides=words[8:]) == asked


@pytest.mark.parametrize(
    ("counts", "ratio"), [((3, 2), "1.5"), ((13, 3, 0), "4.3"), ((12000, 7), "1,714"), ((5, 5), "1")]
)
def test_the_imbalance_ratio_is_not_rounded_away(tmp_path: Path, counts: tuple[int, ...], ratio: str) -> None:
    about = {"data": {"name": "made up", "train_counts": list(counts), "notes": []}}
    run = read.run(Made([f"kind {k}" for k in counts], about=about).write(tmp_path / "run"))
    assert content.groups(run)[1].endswith(f"an imbalance ratio of {ratio}.")


def test_drawings_take_the_pages_colours(tmp_path: Path) -> None:
    figure, (axes,) = chart.canvas()
    axes.plot([1, 2], color=chart.SERIES[0], label='<b>&" 🐙')
    chart.legend(figure, axes)
    svg = chart.save(chart.Chart("x", "A <title>", "words & more", ("a",), [(1.0,)], figure), tmp_path)
    assert "var(--s0)" in svg and chart.SERIES[0] not in svg and chart.INK not in svg
    assert "&lt;b&gt;&amp;" in svg and "A &lt;title&gt;" in svg and "DejaVu" not in svg


def test_the_styles_of_series_are_pairwise_different() -> None:
    lines = [chart.LineStyle.of(place) for place in range(400)]
    assert len({(one.colour, one.marker, str(one.dash)) for one in lines}) == 400
    assert len({(one.colour, one.hatch) for one in lines[:40]}) == 40
    assert len({one.colour for one in lines[:10]}) == len({one.marker for one in lines[:10]}) == 10
    swatches = [chart.swatch(place) for place in range(40)]
    assert [chart.SERIES[one["colour"]] for one in swatches] == [one.colour for one in lines[:40]]
    assert [chart.HATCHES[one["pattern"]] for one in swatches] == [one.hatch for one in lines[:40]]


def test_the_axes_keep_their_height_above_many_names() -> None:
    heights = []
    for count in (4, 40):
        figure, (axes,) = chart.canvas()
        for place in range(count):
            axes.plot([1, 2], **chart.LineStyle.of(place).line, label=f"a run with quite a long name, number {place}")
        chart.legend(figure, axes)
        figure.draw_without_rendering()
        heights.append(axes.get_position().height * figure.get_size_inches()[1])
    assert heights[1] > 0.9 * heights[0] > 1


# Machado, Oliveira & Fernandes 2009: what full protanopia and deuteranopia see, of linear RGB.
SIGHT = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def _lab(colour: str, sight: Any) -> Any:
    """CIELAB of a colour as it is seen."""
    rgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.clip(np.array(sight) @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(xyz / [0.9505, 1, 1.089])
    return np.array([116 * y, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_the_colours_of_series_differ_also_to_the_colour_blind(sight: str) -> None:
    css = (Path(chart.__file__).parent / "page.css").read_text(encoding="utf-8")
    palettes = [re.findall(r"--s\d+: (#[0-9a-f]{6});", line) for line in css.splitlines() if "--s0:" in line]
    assert palettes[0] == list(chart.SERIES) and palettes[1] == palettes[2] and len(palettes[1]) == 10
    for palette in palettes[:2]:
        seen = [_lab(colour, SIGHT[sight]) for colour in palette]
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 10  # 2 is just visible


@pytest.mark.slow
def test_help_and_default_folder(command: Any, tmp_path: Path) -> None:
    Made(NAMES).write(tmp_path / "runs" / "a")
    Made(NAMES, seed=1).write(tmp_path / "runs" / "b")
    ended = command("report", "runs/a")
    assert ended.code == 0, ended.err
    assert "runs/a/report/report.html" in ended.out and "No pictures" not in ended.err
    ended = command("report", "runs/a", "runs/b")
    assert ended.code == 0 and os.path.join("runs", "report", "report.html") in ended.out
    ended = command("report", "nothing")
    assert ended.code == 2 and "There is no run folder" in ended.err


@pytest.mark.slow
def test_real_runs_with_features_and_pictures(photos: Path, command: Any, tmp_path: Path) -> None:
    """From training to the page: pictures of confused classes, features under each model, kept for the next time."""
    quick = ("epochs=1", "workers=0", "train.batch_size=8", "lr=1e-6", "device=cpu", "precision=fp32")
    assert command("train", "--data", photos, "--method", "full", "--out", "runs/full", *quick).code == 0
    assert command("zeroshot", "--data", photos, "--out", "runs/bare", "device=cpu", "precision=fp32").code == 0
    ended = command("report", "runs/bare", "runs/full", "--features")
    assert ended.code == 0 and "Note" not in ended.err, ended.err
    out = tmp_path / "runs" / "report"
    found = {(r["model"], r["train_images"]): r for r in rows(out / "figures" / "intra_class_distance.csv")}
    for count in ("12", "5", "2"):  # at that learning rate the tuned backbone is still the bare one
        bare, full = found["bare backbone (zeroshot)", count], found["full", count]
        for key in ("train_distance", "test_distance"):
            assert float(full[key]) == pytest.approx(float(bare[key]), abs=1e-3) and 0 < float(bare[key]) < 2
    page = (out / "report.html").read_text(encoding="utf-8")
    wrong = sum(int(r["images"]) for r in rows(tmp_path / "runs/full/confusion.csv") if r["true"] != r["predicted"])
    assert ("data:image/jpeg;base64," in page) == bool(wrong + len(rows(out / "figures" / "confused_pairs.csv")))
    cost = {r["run"]: r for r in rows(out / "figures" / "cost.csv")}
    assert cost["full"]["memory"].endswith("MiB") and int(cost["full"]["tuned weights"].replace(",", "")) > 1e6
    assert "liftplus train --data" in page and "Train and test still agree" in page
    before = (out / "features.json").stat().st_mtime_ns
    assert command("report", "runs/bare", "runs/full", "--features").code == 0
    assert (out / "features.json").stat().st_mtime_ns == before
    shutil.rmtree(photos)
    ended = command("report", "runs/bare", "runs/full", "--features")
    assert ended.code == 0 and "Features could not be computed" in ended.err
    assert "No pictures are shown" in (out / "report.html").read_text(encoding="utf-8")


def test_a_lone_run_is_compared_with_the_measured_pairs(tmp_path: Path) -> None:
    """By its start, where that is from all training pictures; not beside other trained runs, which show it better."""
    start = {"split": "val", "held_out": 60.0, "pictures": 160, "training": 50.0, "mean_class": 31.25}
    start |= {"weights": 2_719_296}

    def weights(*made: Made) -> list[str]:
        runs = [one.write(tmp_path / f"{len(list(tmp_path.iterdir()))}") for one in made]
        parts = series.grouped([read.run(folder) for folder in runs])
        return [found.text for found in _signs(parts) if found.title == "Light or full tuning"]

    mixed = Made(NAMES, overrides=("head_init=mix",), about={"start": start})
    (text,) = weights(mixed)
    assert (
        text.startswith("Before training it had 31.2 % in the mean over classes on 160 val pictures. Full tuning")
        and "an imbalance of 500" in text
    )
    assert weights(Made(NAMES, overrides=("head_init=semantic",), about={"start": start})) == []
    assert weights(Made(NAMES, overrides=("head_init=mix",))) == []
    assert weights(Made(NAMES, overrides=("head_init=mix",), about={"start": start | {"mean_class": None}})) == []
    assert weights(Made(NAMES, overrides=("head_init=mix",), about={"start": start | {"weights": None}})) == []
    assert weights(Made(NAMES, overrides=("head_init=mix",), about={"start": "damaged"})) == []
    assert weights(mixed, Made(NAMES, method="full")) == []
