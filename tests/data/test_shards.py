"""A prepared copy: the same classes, splits and keys; WebDataset reads it; faults end in one sentence."""

from __future__ import annotations

import io
import json
import math
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from liftplus.data import identity, shards
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet
from liftplus.data.images import UnreadableImage
from liftplus.data.shards import CopyOptions, ShardStore
from liftplus.data.sources import load
from liftplus.errors import UserError

from ..conftest import Command, picture


def prepared(photos: Path, folder: Path, size: int = 64) -> tuple[DataSet, DataSet]:
    """The photos, some of them large JPEGs, and their copy."""
    for index in range(3):
        picture((30, 170, 60), index, (300 + index, 200)).save(photos / "train" / "green hill" / f"big{index}.jpg")
    original = load(DataConfig(source=str(photos)))
    shards.write(original, folder, CopyOptions(size))
    return original, load(DataConfig(source=str(folder)))


def test_copy_has_the_same_classes_splits_and_keys(photos: Path, tmp_path: Path) -> None:
    before, after = prepared(photos, tmp_path / "copy")
    assert (after.class_names, after.class_ids) == (before.class_names, before.class_ids)
    assert list(after.splits) == list(before.splits)
    for split, part in before.splits.items():
        assert after.fingerprint(split) == before.fingerprint(split)
        for key in part.keys:
            width, height = before.store.image(key).size
            copy = after.store.image(key)
            assert min(copy.size) == min(64, width, height)
            assert abs(copy.width / copy.height - width / height) < 0.03
    assert not list(tmp_path.glob("*.partial"))


def test_small_files_are_kept_as_they_are_and_lossless_ones_stay_so(photos: Path, tmp_path: Path) -> None:
    before, after = prepared(photos, tmp_path / "copy", size=70)
    small, big = "train/red_square/0.png", "train/green hill/big0.jpg"
    assert isinstance(after.store, ShardStore)
    assert after.store.read(small) == (photos / small).read_bytes()
    assert Image.open(io.BytesIO(after.store.read(big))).size == (105, 70)
    by_hand = before.store.image(big).resize((105, 70), Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(after.store.image(big), int) - np.asarray(by_hand, int))
    assert difference.mean() < 4  # of coding at quality 95; the pictures are noise
    shrunk = prepared_png(photos, tmp_path)
    assert shrunk == np.asarray(before.store.image(small).resize((46, 40), Image.Resampling.BICUBIC)).tobytes()


def prepared_png(photos: Path, tmp_path: Path) -> bytes:
    shards.write(load(DataConfig(source=str(photos))), tmp_path / "small", CopyOptions(40))
    return load(DataConfig(source=str(tmp_path / "small"))).store.image("train/red_square/0.png").tobytes()


def test_webdataset_reads_the_shards(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    webdataset = pytest.importorskip("webdataset")
    monkeypatch.setattr(shards, "_SHARD", 40_000)  # several shards a split
    before, _ = prepared(photos, tmp_path / "copy")
    files = sorted(str(path) for path in (tmp_path / "copy").glob("train-*.tar"))
    assert len(files) > 1
    samples = list(webdataset.WebDataset(files, shardshuffle=False, empty_check=False).decode("pil"))
    train = before.splits["train"]
    assert [sample["json"]["key"] for sample in samples] == list(train.keys)
    assert [sample["cls"] for sample in samples] == list(train.labels)
    assert all("jpg" in sample or "png" in sample for sample in samples)


def test_commands_prepare_and_train(command: Command, photos: Path, tmp_path: Path) -> None:
    ended = command("prepare", "--data", str(photos), "--out", str(tmp_path / "copy"), "--size", "48")
    assert ended.code == 0 and "25 pictures" in ended.out
    again = command("prepare", "--data", str(photos), "--out", str(tmp_path / "copy"))
    assert again.code == 2 and "already exists" in again.err
    options = ("--method", "linear_probe", "epochs=1", "workers=0")
    trained = command("train", "--data", str(tmp_path / "copy"), "--out", str(tmp_path / "run"), *options)
    assert trained.code == 0, trained.err
    assert "test/blue sky/0.png" in (tmp_path / "run" / "predictions.csv").read_text()


def test_a_broken_picture_leaves_nothing_behind(photos: Path, tmp_path: Path) -> None:
    (photos / "train" / "red_square" / "3.png").write_bytes(b"broken")
    with pytest.raises(UnreadableImage, match=r"3\.png"):
        shards.write(load(DataConfig(source=str(photos))), tmp_path / "copy", CopyOptions())
    assert not list(tmp_path.glob("copy*"))
    shards.write(load(DataConfig(source=str(photos), unreadable="skip")), tmp_path / "copy", CopyOptions())
    assert load(DataConfig(source=str(tmp_path / "copy"))).counts() == (2, 5, 11)


class Until:
    """Progress that does something after so many pictures."""

    def __init__(self, count: int, then: Callable[[], object]) -> None:
        self.count, self.then, self.begun = count, then, 0

    @contextmanager
    def task(self, _label: str, _total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        self.begun, number = done, iter(range(done + 1, 1000))

        def advance() -> None:
            if next(number) == self.count:
                self.then()

        yield advance


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures count as left alone, several shards a split, and files are brought up to date now and then."""
    monkeypatch.setattr(identity, "SETTLED", -math.inf)
    monkeypatch.setattr(shards, "_SHARD", 40_000)
    monkeypatch.setattr(shards, "_NOTED", 3)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("way", ["interrupted", "killed"])
def test_a_copy_goes_on_where_it_was_stopped(photos: Path, tmp_path: Path, way: str) -> None:
    """At every third picture: the same bytes as without a stop, and what was there is not copied again."""
    before, _ = prepared(photos, tmp_path / "whole")
    whole, out, kept = files(tmp_path / "whole"), tmp_path / "copy", tmp_path / "kept"
    partial, begun = shards.unfinished(out), []

    def kill() -> None:
        """What a process has handed to the system outlives it."""
        shutil.copytree(partial, kept)

    stops = range(1, sum(map(len, before.splits.values())) + 1, 3)
    for count in stops:
        with suppress(KeyboardInterrupt):
            shards.write(before, out, CopyOptions(64), Until(count, kill if way == "killed" else interrupt))
        if way == "killed":
            shutil.rmtree(out)
            kept.rename(partial)
        assert partial.is_dir() and not out.exists()
        again = Until(0, interrupt)
        shards.write(before, out, CopyOptions(64), again)
        begun.append(again.begun)
        assert files(out) == whole and not partial.exists()
        shutil.rmtree(out)
    # The last picture may be cut short, and is copied again; what was not handed over yet is lost.
    lost = {stop - had for stop, had in zip(stops, begun, strict=True)}
    assert lost == {1} if way == "interrupted" else max(lost) <= 5


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", ["nothing", "quality", "size", "picture", "class", "plan"])
def test_another_copy_begins_anew(photos: Path, tmp_path: Path, change: str) -> None:
    before, _ = prepared(photos, tmp_path / "whole")
    out, red = tmp_path / "copy", photos / "train" / "red_square"
    with pytest.raises(KeyboardInterrupt):
        shards.write(before, out, CopyOptions(64), Until(10, interrupt))
    if change == "picture":
        picture((9, 9, 9), 99, (80, 70)).save(red / "0.png")
    if change == "class":
        for folder in photos.glob("*/red_square"):
            folder.rename(folder.with_name("crimson"))
    if change == "plan":
        (shards.unfinished(out) / "plan.json").write_text("{")
    how = {"quality": CopyOptions(64, quality=90), "size": CopyOptions(48)}.get(change, CopyOptions(64))
    again = Until(0, interrupt)
    shards.write(load(DataConfig(source=str(photos))), out, how, again)
    assert again.begun == (9 if change == "nothing" else 0)
    assert sorted(load(DataConfig(source=str(out))).counts()) == [2, 8, 12]


def test_an_interrupted_command_says_how_to_go_on(
    command: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it can."""
    monkeypatch.setattr(shards._Shards, "add", mock.Mock(side_effect=KeyboardInterrupt))
    for settled, said in ((-math.inf, True), (math.inf, False)):
        monkeypatch.setattr(identity, "SETTLED", settled)
        ended = command("prepare", "--data", str(photos), "--out", str(tmp_path / "copy"))
        assert ended.code == 130
        assert ("copy.partial. Give the same command to continue" in ended.err) is said


def test_damaged_copies_are_refused(photos: Path, tmp_path: Path) -> None:
    _, after = prepared(photos, tmp_path / "copy")
    assert isinstance(after.store, ShardStore)
    key = after.splits["test"].keys[0]
    assert pickle.loads(pickle.dumps(after.store)).read(key) == after.store.read(key)
    with pytest.raises(UnreadableImage, match="no such picture"):
        after.store.read("nothing")
    (tmp_path / "copy" / "test-000000.tar").write_bytes(b"")
    with pytest.raises(UnreadableImage, match="ends too early"):
        after.store.read(key)
    index = tmp_path / "copy" / "index.csv"
    whole = index.read_text()
    for text in ("", "a,b\n", whole[: len(whole) // 2], whole.replace("train", "elsewhere")):
        index.write_text(text)
        with pytest.raises(UserError, match="no complete copy"):
            load(DataConfig(source=str(tmp_path / "copy")))
    index.write_text(whole)
    about = tmp_path / "copy" / "classes.json"
    for value in ([], {}, json.loads(about.read_text()) | {"pictures": 3}):
        about.write_text(json.dumps(value))
        with pytest.raises(UserError, match="no complete copy"):
            load(DataConfig(source=str(tmp_path / "copy")))
