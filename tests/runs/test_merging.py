"""Runs merged: means of weights, weights between a run and its start, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import liftplus
from liftplus import config
from liftplus.backbones import mini_clip
from liftplus.errors import UserError
from liftplus.machine import runtime
from liftplus.runs import execution, merging, opening
from liftplus.training import checkpoint

from ..conftest import Command, write_folder

CPU = runtime.choose("cpu", "fp32")
QUICK = ("epochs=1", "train.batch_size=8", "tte=false", "workers=0", "device=cpu", "precision=fp32", "cache=false")


def trained(photos: Path, folder: Path, *overrides: str, method: str = "lift+") -> Path:
    settings = config.resolve(data=str(photos), method=method, overrides=[*QUICK, *overrides])
    session = opening.Session(settings, CPU)
    dataset = session.data()
    session, model = session.start(dataset)
    execution.train_run(session, dataset, model, folder)
    return folder


def state(folder: Path) -> dict[str, Tensor]:
    return checkpoint.read_model(folder)[1]


@pytest.fixture
def two(photos: Path, tmp_path: Path) -> tuple[Path, Path]:
    return tuple(trained(photos, tmp_path / name, f"seed={seed}") for seed, name in enumerate(("one", "two")))  # type: ignore[return-value]


@pytest.fixture
def begun(photos: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two runs without training."""
    return tuple(
        trained(photos, tmp_path / name, "epochs=0", f"seed={seed}") for seed, name in enumerate(("one", "two"))
    )  # type: ignore[return-value]


@pytest.mark.slow
def test_a_mean_and_what_reads_it(two: tuple[Path, Path], command: Command, tmp_path: Path) -> None:
    """The plain mean, tested in its folder as training does it; every command takes the folder."""
    ended = command("merge", *two, "--out", "mean", "--json")
    assert ended.code == 0, ended.err
    assert "The runs differ in seed. The merged run" in ended.err.replace("\n", " ")
    (one, about), other, mean = (state(two[0]), checkpoint.read_about(two[0])), state(two[1]), state(tmp_path / "mean")
    for name, value in mean.items():
        assert value.dtype == one[name].dtype
        torch.testing.assert_close(value, ((one[name].double() + other[name].double()) / 2).float(), rtol=0, atol=0)
    told = json.loads(ended.out)
    assert told["folder"] == "mean" and told["overall"] == pytest.approx(
        json.loads((tmp_path / "mean" / "metrics.json").read_text())["overall"]
    )
    now = checkpoint.read_about(tmp_path / "mean")
    assert now["edits"] == [{"merged": [str(run) for run in two], "shares": [0.5, 0.5], "start": 0.0}]
    assert now["train_counts"] == about["train_counts"] and "weights" not in now
    for words in (
        ("eval", "mean", "--json"),
        ("predict", "mean", "photos/test", "--one-crop", "--json"),
        ("classes", "add", "mean", "mud", "--out", "more"),
        ("report", "mean", "one", "--out", "page.html"),
        ("merge", "mean", "one", "--out", "again", "--no-test"),
    ):
        ended = command(*words)
        assert ended.code == 0, (words, ended.err)
    assert not (tmp_path / "again" / "metrics.json").exists()


def test_shares_weigh_the_runs(two: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = map(state, two)
    all_of_one = liftplus.merge(two, tmp_path / "first", shares=(3, 0))
    assert all(torch.equal(value, one[name]) for name, value in state(tmp_path / "first").items())
    assert all_of_one.class_names == ("blue sky", "green hill", "red square")
    liftplus.merge(two, tmp_path / "both", shares=(1, 3))
    for name, value in state(tmp_path / "both").items():
        torch.testing.assert_close(value, one[name] / 4 + 3 * other[name] / 4, rtol=1e-6, atol=1e-7)


START = ("lr=1e-12", "weight_decay=0")


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("lift+", ("tuner=lora", "head_init=mix")),
        ("lift+", ("head=joint", "tuner=coop", "tuner.coop.places=[0]")),
        ("full+", ("backbone.interpolation=bilinear",)),
        ("linear_probe", ()),
        ("full", ("sampler=class_balanced", "val_share=0.3")),
    ],
)
def test_the_start_is_what_training_began_with(
    photos: Path, tmp_path: Path, method: str, given: tuple[str, ...]
) -> None:
    """A run that has not moved is its own start, wherever its rows, its modules and its splits are from."""
    run = trained(photos, tmp_path / "run", "seed=5", *START, *given, method=method)
    liftplus.merge([run], tmp_path / "start", start=1)
    for name, value in state(tmp_path / "start").items():
        torch.testing.assert_close(value, state(run)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_between_a_run_and_its_start(two: tuple[Path, Path], tmp_path: Path) -> None:
    """Of two runs, each with its own start."""
    for name, start in (("zero", 1.0), ("quarter", 0.25)):
        liftplus.merge(two, tmp_path / name, start=start)
    starts = [tmp_path / f"start{k}" for k in range(2)]
    for run, place in zip(two, starts, strict=True):
        liftplus.merge([run], place, start=1)
    tuned, begun = list(map(state, two)), list(map(state, starts))
    assert any(not torch.equal(begun[0][name], begun[1][name]) for name in begun[0])
    for name, value in state(tmp_path / "quarter").items():
        expected = sum(0.75 * t[name].double() + 0.25 * b[name].double() for t, b in zip(tuned, begun, strict=True)) / 2
        torch.testing.assert_close(value, torch.as_tensor(expected).float(), rtol=1e-6, atol=1e-7)


def refused(runs: Any, tmp_path: Path, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        liftplus.merge(runs, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("tuner=lora",), "their tuners differ, 'adaptformer' and 'lora'"),
        (("tuner.adaptformer.width=3",), "their settings of the tuner differ, adaptformer: width: None and 3"),
        (("tuner=none",), "their tuners differ, 'adaptformer' and 'none'"),
        (("head=linear",), "their heads differ, name: 'cosine' and 'linear'"),
        (("interpolation=bilinear",), "their settings of the backbone differ, interpolation: None and 'bilinear'"),
        (("backbone.pretrained=false",), "their settings of the backbone differ, pretrained: True and False"),
        (("scale=30",), "their heads differ, scale: 25.0 and 30.0"),
    ],
)
def test_other_models_are_refused(photos: Path, tmp_path: Path, overrides: tuple[str, ...], said: str) -> None:
    one = trained(photos, tmp_path / "one", "epochs=0")
    other = trained(photos, tmp_path / "other", "epochs=0", *overrides)
    found = refused([one, other], tmp_path)
    assert said in found and "Give runs with the same backbone, tuner, head and classes." in found


def test_other_classes_and_other_splits_are_refused(photos: Path, tmp_path: Path, command: Command) -> None:
    one = trained(photos, tmp_path / "one", "epochs=0")
    assert command("classes", "rename", one, "blue sky=sea", "--out", "renamed").code == 0
    assert "their classes differ, 'blue sky' and 'sea'" in refused([one, tmp_path / "renamed"], tmp_path)
    assert command("classes", "add", one, "mud", "--out", "more").code == 0
    assert "their numbers of classes differ, 3 and 4" in refused([one, tmp_path / "more"], tmp_path)
    drawn = write_folder(tmp_path / "undrawn", {"all": (10, 10, 10)}) / "all"
    runs = [trained(drawn, tmp_path / f"run{seed}", "epochs=0", f"split_seed={seed}") for seed in range(2)]
    assert "their test splits have different pictures" in refused(runs, tmp_path)
    # The other run was trained on the pictures that this one keeps for validation.
    held = trained(photos, tmp_path / "held", "epochs=0", "val_share=0.2")
    for pair in ([held, one], [one, held]):
        assert "their val splits have different pictures" in refused(pair, tmp_path)


def test_shares_and_starts_that_are_none(begun: tuple[Path, Path], tmp_path: Path, command: Command) -> None:
    assert "Only one run was given" in refused(begun[:1], tmp_path)
    assert "No run was given" in refused([], tmp_path)
    assert "is given twice" in refused([begun[0], begun[1] / ".." / "one"], tmp_path)
    assert "from 0 (tuned) to 1" in refused(begun, tmp_path, start=1.5)
    assert "from 0 (tuned) to 1" in refused(begun, tmp_path, start=float("nan"))
    assert "2 runs and 1 shares were given" in refused(begun, tmp_path, shares=(1,))
    for shares in ((0, 0), (1, -1), (float("inf"), 1)):
        assert "numbers of at least 0, not all of them 0" in refused(begun, tmp_path, shares=shares)
    assert "holds no trained model" in refused([begun[0], tmp_path / "nowhere"], tmp_path)
    ended = command("merge", *begun, "--out", "out", "--shares", "1;2")
    assert ended.code == 2 and "--shares is '1;2'. Give one number per run" in ended.err
    assert command("merge", *begun, "--out", begun[0]).code == 2


def test_a_start_that_is_not_known_is_refused(begun: tuple[Path, Path], photos: Path, tmp_path: Path) -> None:
    liftplus.merge(begun, tmp_path / "mean")
    assert "changed or merged after training" in refused([tmp_path / "mean"], tmp_path, start=0.5)
    (tmp_path / "alone").mkdir()
    shutil.copy(begun[0] / checkpoint.FILE, tmp_path / "alone" / "model.safetensors")
    assert "has no record of its training pictures" in refused([tmp_path / "alone"], tmp_path, start=0.5)
    with pytest.MonkeyPatch.context() as changed:
        changed.setitem(mini_clip.WEIGHTS, "mini_clip", mini_clip.WEIGHTS["mini_clip_v1"])
        assert "was trained on other weights of 'mini_clip'" in refused(begun[:1], tmp_path, start=0.5)
    photos.rename(tmp_path / "moved")
    assert "Give their path with --data" in refused(begun[:1], tmp_path, start=0.5)
    liftplus.merge(begun[:1], tmp_path / "found", start=0.5, **{"data.source": str(tmp_path / "moved")})
    next((tmp_path / "moved" / "train" / "blue sky").iterdir()).unlink()
    gone = refused(begun[:1], tmp_path, start=0.5, **{"data.source": str(tmp_path / "moved")})
    assert "are not the ones that it was trained on" in gone


def test_a_mean_without_its_data_is_made_and_not_tested(
    begun: tuple[Path, Path], photos: Path, tmp_path: Path, command: Command
) -> None:
    photos.rename(tmp_path / "moved")
    ended = command("merge", *begun, "--out", "mean")
    assert ended.code == 0 and "mean was not tested. The path" in ended.err.replace("\n", " ")
    assert command("merge", *begun, "--out", "tested", "--data", "moved").code == 0
    assert (tmp_path / "tested" / "predictions.csv").is_file()


def test_counts_of_classes_are_the_largest(tmp_path: Path) -> None:
    """As where runs saw different cuts of the same pictures."""
    photos = write_folder(tmp_path / "photos", {"train": (9, 4, 2), "test": (1, 1, 1)})
    one = trained(photos, tmp_path / "one", "epochs=0")
    less = write_folder(tmp_path / "less", {"train": (3, 4, 3), "test": (1, 1, 1)})
    shutil.rmtree(less / "test")
    shutil.copytree(photos / "test", less / "test")
    other = trained(less, tmp_path / "other", "epochs=0")
    model = liftplus.merge([one, other], tmp_path / "mean")
    names = ("blue sky", "green hill", "red square")
    assert dict(zip(model.class_names, model.trained.train_counts, strict=True)) == dict(
        zip(names, (3, 4, 9), strict=True)
    )
    assert json.loads((tmp_path / "mean" / "config.json").read_text())["data"]["train_counts"] == [3, 4, 9]


def test_splits_that_were_drawn_come_along(tmp_path: Path) -> None:
    drawn = write_folder(tmp_path / "undrawn", {"all": (10, 10, 10)}) / "all"
    runs = [trained(drawn, tmp_path / f"run{seed}", "epochs=0", f"seed={seed}") for seed in range(2)]
    liftplus.merge(runs, tmp_path / "mean")
    assert (tmp_path / "mean" / "splits.json").read_text() == (runs[0] / "splits.json").read_text()


def test_a_model_card_does_not_say_that_classes_were_changed(begun: tuple[Path, Path], tmp_path: Path) -> None:
    from liftplus.publishing import model_card

    liftplus.merge(begun, tmp_path / "mean")
    about, record = checkpoint.read_about(tmp_path / "mean"), json.loads((tmp_path / "mean/config.json").read_text())
    card = model_card.write("me/mean", about, record, None, None)
    assert "This model was not tested.\n" in card and "mean of the weights of 2 runs" in card
    assert merging.Part.read(tmp_path / "mean", config.from_dict(about["config"])).folder == tmp_path / "mean"
