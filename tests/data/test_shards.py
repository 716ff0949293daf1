"""A prepared copy: the same classes, splits and keys; WebDataset reads it; faults end in one sentence."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from liftplus.data import shards
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet
from liftplus.data.images import UnreadableImage
from liftplus.data.shards import Recipe, ShardStore
from liftplus.data.sources import load
from liftplus.errors import UserError

from ..conftest import Command, picture


def prepared(photos: Path, folder: Path, size: int = 64) -> tuple[DataSet, DataSet]:
    """The photos, some of them large JPEGs, and their copy."""
    for index in range(3):
        picture((30, 170, 60), index, (300 + index, 200)).save(photos / "train" / "green hill" / f"big{index}.jpg")
    original = load(DataConfig(source=str(photos)))
    shards.write(original, folder, Recipe(size))
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
    shards.write(load(DataConfig(source=str(photos))), tmp_path / "small", Recipe(40))
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
    assert again.code == 2 and "exists already" in again.err
    options = ("--method", "linear_probe", "epochs=1", "workers=0")
    trained = command("train", "--data", str(tmp_path / "copy"), "--out", str(tmp_path / "run"), *options)
    assert trained.code == 0, trained.err
    assert "test/blue sky/0.png" in (tmp_path / "run" / "predictions.csv").read_text()


def test_a_broken_picture_leaves_nothing_behind(photos: Path, tmp_path: Path) -> None:
    (photos / "train" / "red_square" / "3.png").write_bytes(b"broken")
    with pytest.raises(UnreadableImage, match=r"3\.png"):
        shards.write(load(DataConfig(source=str(photos))), tmp_path / "copy", Recipe())
    assert not list(tmp_path.glob("copy*"))
    shards.write(load(DataConfig(source=str(photos), unreadable="skip")), tmp_path / "copy", Recipe())
    assert load(DataConfig(source=str(tmp_path / "copy"))).counts() == (2, 5, 11)


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
