"""Classes added to a finished run from a few pictures each."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from liftplus.machine import runtime
from liftplus.model import added_row
from liftplus.model.added_row import Choice, Old
from liftplus.model.closed_form import Ridge, Sample
from liftplus.training import checkpoint

from ..conftest import Command, picture

OPTIONS = ("device=cpu", "precision=fp32", "workers=0", "tte=false")
TRAINED = ("epochs=1", "train.batch_size=8")


def pictures(folder: Path, count: int, colour: tuple[int, int, int] = (230, 220, 40)) -> Path:
    folder.mkdir(parents=True)
    for k in range(count):
        picture(colour, 900 + k).save(folder / f"{k}.png")
    return folder


@pytest.fixture
def run(photos: Path, command: Command, tmp_path: Path) -> Path:
    ended = command("train", "--data", photos, "--out", "run", "head_init=ridge", *TRAINED, *OPTIONS)
    assert ended.code == 0, ended.err
    return tmp_path / "run"


def load(folder: Path) -> checkpoint.Trained:
    return checkpoint.load_model(folder, runtime.choose("cpu", "fp32"))


@pytest.mark.slow
@pytest.mark.parametrize("text", ["--text", "--no-text"])
def test_added_from_pictures(text: str, run: Path, photos: Path, command: Command, tmp_path: Path) -> None:
    """The new class is found again, the old rows are the same bits, and the new run stands alone."""
    pictures(tmp_path / "yellow", 5)
    more = pictures(tmp_path / "more", 4)
    ended = command("classes", "add", "run", "yellow thing", "yellow/", "--out", "plus", "--json", text)
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    assert said["added"] == ["yellow thing"] and said["classes"][0]["pictures"] == 5
    assert said["classes"][0]["own"] == 100.0 and 0 <= said["classes"][0]["harm"] < 0.5
    before, after = load(run), load(tmp_path / "plus")
    assert torch.equal(after.model.head.weight[:3], before.model.head.weight)
    assert after.train_counts == (*before.train_counts, 5) and after.class_names[3] == "yellow thing"
    shutil.rmtree(run)
    shutil.rmtree(photos / "train")
    ended = command("predict", "plus", more, photos / "test" / "blue sky", "--out", "p.json")
    assert ended.code == 0, ended.err
    found = [entry["top"][0]["class"] for entry in json.loads((tmp_path / "p.json").read_text())]
    assert found[:4] == ["yellow thing"] * 4 and "yellow thing" not in found[4:]
    # Statistics came along, so a further class needs neither the old run nor its pictures.
    pictures(tmp_path / "white", 1, (250, 250, 250))
    ended = command("classes", "add", "plus", "white", "white/0.png", "--out", "more2")
    assert ended.code == 0 and "white: 1 picture." in ended.out
    assert re.search(r"Older classes lose an estimated 0\.[0-4] points", ended.out.replace("\n", " "))
    assert len(load(tmp_path / "more2").class_names) == 5


@pytest.mark.slow
def test_old_pictures_are_needed_where_no_statistics_were_kept(
    run: Path, photos: Path, command: Command, tmp_path: Path
) -> None:
    pictures(tmp_path / "yellow", 2)
    photos.rename(tmp_path / "moved")
    ended = command("classes", "add", "run", "yellow", "yellow/", "--out", "plus")
    assert ended.code == 2 and "has no statistics" in ended.err and "--data" in ended.err
    assert not (tmp_path / "plus").exists()
    ended = command("classes", "add", "run", "yellow", "yellow/", "--out", "plus", "--data", "moved")
    assert ended.code == 0, ended.err


@pytest.mark.slow
def test_names_and_pictures_together(run: Path, command: Command, tmp_path: Path) -> None:
    """One class from its name, one from pictures, in the order given."""
    pictures(tmp_path / "yellow", 2)
    ended = command("classes", "add", "run", "purple cloud", "yellow", "--out", "plus", "--json")
    assert ended.code == 2 and "could be a class name, but it is also a folder here" in ended.err
    ended = command("classes", "add", "run", "purple cloud", "lemon", "./yellow", "--out", "plus", "--json")
    assert ended.code == 0, ended.err
    assert [one["pictures"] for one in json.loads(ended.out)["classes"]] == [0, 2]
    assert load(tmp_path / "plus").train_counts[3:] == (0, 2)
    ended = command("classes", "add", "run", "lemon", "yelow", "--out", "misspelt")
    assert ended.code == 0 and "2 more classes: 'lemon', 'yelow'." in ended.out.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["yellow/"], "without a class name before it"),
        (["lemon", "nowhere/"], "There is no 'nowhere/'"),
        (["lemon", "./nowhere/x.png"], "There is no"),
        (["lemon", "empty/"], "names no image"),
        (["red square", "yellow/"], "Two classes would be called"),
        (["lemon", "yellow/", "lemon", "yellow/"], "given twice"),
        (["lemon", "plum", "yellow/", "--no-text"], "'lemon' has no pictures, and --no-text was given"),
        (["lemon", "--no-text"], "Leave --no-text out"),
        (["RED square", "yellow/"], "Two classes would be called"),
        (["plum ", "yellow/"], "begins or ends with a blank"),
        (["lemon", "broken/"], "broken/0.png"),
    ],
)
def test_what_cannot_be_added_is_refused(
    words: list[str], said: str, photos: Path, command: Command, tmp_path: Path
) -> None:
    options = ("epochs=0", "head_init=class_mean", "tuner=none", *OPTIONS)
    assert command("train", "--data", photos, "--out", "run", *options).code == 0
    pictures(tmp_path / "yellow", 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.png").write_bytes(b"no picture")
    ended = command("classes", "add", "run", *words, "--out", "plus")
    assert ended.code == 2 and said in ended.err.replace("\n", " "), ended.err
    assert not (tmp_path / "plus").exists()


@pytest.mark.slow
def test_a_picture_given_twice_counts_once(run: Path, command: Command, tmp_path: Path) -> None:
    """Else its twin would stay when it is left out."""
    folder = pictures(tmp_path / "yellow", 2)
    shutil.copy(folder / "0.png", folder / "again.png")
    ended = command("classes", "add", "run", "lemon", "yellow/", "yellow/1.png", "--out", "plus")
    assert ended.code == 0 and "2 pictures" in ended.out and "2 equal pictures left out" in ended.out, ended.out
    assert load(tmp_path / "plus").train_counts[3:] == (2,)


def test_other_heads_are_refused(photos: Path, command: Command, tmp_path: Path) -> None:
    options = ("epochs=0", "head=linear", "head_init=lda", "tuner=none", *OPTIONS)
    assert command("train", "--data", photos, "--out", "run", *options).code == 0
    pictures(tmp_path / "yellow", 2)
    ended = command("classes", "add", "run", "yellow thing", "yellow/", "--out", "plus")
    assert ended.code == 2 and "The run's head is 'linear'" in ended.err and "cosine" in ended.err


def features(classes: int, each: int, dim: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(classes).repeat_interleave(each)
    x = torch.randn(classes, dim, generator=generator)[y] + 0.4 * torch.randn(len(y), dim, generator=generator)
    return F.normalize(x, dim=-1).double(), y


def test_rows_are_those_of_the_ridge_on_top_of_what_old_rows_share() -> None:
    x, y = features(6, 10)
    old, new = y < 5, y == 5
    known = Old(
        F.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(1)).double(), dim=-1), Sample(x, y)
    )
    made = added_row.rows(
        added_row.gathered(x[old], y[old], 5),
        x[new],
        added_row.bases(known, None),
        [Choice(0.1, 2.0), Choice(1.0, 0.5)],
    )
    everything, mean = Ridge(added_row.gathered(x, y, 6)), known.rows.mean(0)
    expected = torch.stack([mean + 2 * everything.rows(0.1)[5], mean + everything.rows(1.0)[5] / 2])
    torch.testing.assert_close(made, F.normalize(expected, dim=-1))


def test_more_harm_allowed_makes_a_row_that_its_pictures_like_better() -> None:
    """Classes that lie close, so that a new one must take from them."""
    x, y = features(6, 30)
    x = F.normalize(x + 0.6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double(), dim=-1)
    old, new = y < 5, y == 5
    statistics = added_row.gathered(x[old], y[old], 5)
    known = Old(Ridge(statistics).rows(0.1), Sample(x[old], y[old]))
    rows = [added_row.fit(known, statistics, x[new][:5], None, most).row for most in (0.0, 0.03, 1.0)]
    likes = [float((added_row.margin(x[new][5:], row, known.rows) > 0).double().mean()) for row in rows]
    harms = [float(added_row.harm(known, row)) for row in rows]
    assert likes == sorted(likes) and likes[0] < likes[-1]
    assert harms[0] <= harms[1] <= 0.03 < harms[2]


@pytest.mark.parametrize("count", [1, 5])
def test_the_row_takes_its_own_and_harms_little(count: int) -> None:
    """With the old rows those of a ridge, a sixth class is right and the others stay so."""
    x, y = features(6, 30)
    old, new = y < 5, y == 5
    statistics = added_row.gathered(x[old], y[old], 5)
    known = Old(Ridge(statistics).rows(0.1), Sample(x[old], y[old]))
    made = added_row.fit(known, statistics, x[new][:count], None)
    assert float((added_row.margin(x[new][count:], made.row, known.rows) > 0).double().mean()) > 0.9
    assert float(added_row.harm(known, made.row)) <= 0.01
    assert made.own is None if count == 1 else made.own == 1.0


def test_harm_counts_what_was_right_before() -> None:
    rows = torch.eye(3).double()
    sample = Sample(torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 1, 0]]).double(), torch.tensor([0, 0, 1]))
    new = F.normalize(torch.tensor([[1.0, 1.0, 0]]), dim=-1).double()
    # The second picture was wrong before and costs nothing; neither other one scores higher with the new row.
    assert float(added_row.harm(Old(rows, sample), new)) == pytest.approx(0, abs=1e-9)
    assert float(added_row.harm(Old(rows, sample), 2 * new)) == pytest.approx((0.5 + 1) / 2)
    # With equal scores half of each picture is lost.
    assert float(added_row.harm(Old(rows, sample), 2**0.5 * new)) == pytest.approx((0.5 + 1) / 4)


@pytest.mark.parametrize("accuracy", [0.9, 0.5, 0.2])
def test_features_moved_to_where_unseen_ones_lie_have_that_accuracy(accuracy: float) -> None:
    """Mean over classes, of which some have few pictures; lengths stay."""
    x, y = features(8, 40, dim=32)
    keep = torch.cat([torch.arange(40 * k, 40 * k + 40 // (k + 1)) for k in range(8)])
    x, y = 3 * x[keep], y[keep]
    rows = Ridge(added_row.gathered(x, y, 8)).rows(0.01)

    def right(sample: Sample) -> float:
        found = (sample.features @ rows.T).argmax(1) == y
        return sum(float(found[y == k].double().mean()) for k in range(8)) / 8

    before = Sample(x, y)
    assert right(before) > 0.95
    moved = added_row.as_unseen(before, rows, accuracy)
    torch.testing.assert_close(moved.features.norm(dim=-1), x.norm(dim=-1))
    assert accuracy - 1 / 8 / 5 - 1e-9 <= right(moved) <= accuracy + 1e-9
    assert torch.equal(added_row.as_unseen(before, rows, 1.0).features, x)
    assert torch.equal(added_row.as_unseen(moved, rows, right(moved) + 0.01).features, moved.features)


def test_estimated_harm_is_that_on_unseen_pictures() -> None:
    """Rows that know their training pictures by heart: what these lose says nothing, moved features do."""
    x, y = features(12, 40, dim=64)
    x = F.normalize(x + 0.35 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double(), dim=-1)
    old, seen = y < 11, torch.arange(len(y)) % 8 == 0
    statistics = added_row.gathered(x[old & seen], y[old & seen], 11)
    rows = Ridge(statistics).rows(1e-6)
    train, test = Sample(x[old & seen], y[old & seen]), Sample(x[old & ~seen], y[old & ~seen])
    accuracy = float((test.features @ rows.T).argmax(1).eq(test.labels).double().mean())
    moved = added_row.as_unseen(train, rows, accuracy)
    new = added_row.rows(
        statistics,
        x[~old & seen],
        added_row.bases(Old(rows, train), None),
        [Choice(0.1, weight) for weight in (1, 2, 4)],
    )
    by_seen, by_moved, true = (added_row.harm(Old(rows, part), new) for part in (train, moved, test))
    assert accuracy < 0.9 and (train.features @ rows.T).argmax(1).eq(train.labels).all()
    assert ((by_moved - true).abs() < (by_seen - true).abs()).all()


def test_single_pictures_everywhere() -> None:
    """Nothing can be left out or come back, and the row still takes its own picture."""
    x, y = features(4, 1)
    known = Old(x[:3], Sample(x[:3], y[:3]))
    made = added_row.fit(known, added_row.gathered(x[:3], y[:3], 3), x[3:], None)
    assert made.own is None and float(added_row.margin(x[3:], made.row, known.rows)) > 0


@pytest.mark.slow
def test_statistics_of_other_weights_are_not_taken(run: Path, command: Command, tmp_path: Path) -> None:
    """A file that belongs to another run is as good as none."""
    pictures(tmp_path / "yellow", 2)
    assert command("classes", "add", "run", "lemon", "yellow/", "--out", "plus").code == 0
    shutil.copy(tmp_path / "plus" / "statistics.safetensors", run)
    ended = command("classes", "add", "run", "plum", "yellow/", "--out", "plus2", "--json")
    assert ended.code == 0, ended.err
    assert load(tmp_path / "plus2").class_names[3:] == ("plum",)
    about: Any = json.loads((tmp_path / "plus2" / "config.json").read_text())
    assert about["edits"][0]["pictures"] == [2]
