"""Findings are kept for the next time: the same ones, and none of a picture that may be another by now."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from liftplus.data import each_picture, file_facts, identity, kept_facts, shards, workers
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet, Split
from liftplus.data.file_facts import Facts
from liftplus.data.inspection import Inspection, inspect
from liftplus.data.kept_facts import KeptFacts, Slip
from liftplus.data.sources import load
from liftplus.data.stores import FolderStore, ZipStore

from ..conftest import Command
from .conftest import encoded
from .test_inspection import faulty

__all__ = ["faulty"]

forks = pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="no process is forked here")


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As if all files had been left alone for a while; what is kept lies apart from the pictures."""
    monkeypatch.setattr(identity, "SETTLED", -math.inf)
    monkeypatch.setenv("LIFTPLUS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read whole."""
    names: list[str] = []
    whole = file_facts.of_bytes

    def noted(data: bytes, name: str) -> Facts:
        names.append(name)
        return whole(data, name)

    monkeypatch.setattr(file_facts, "of_bytes", noted)
    return names


def seen(source: Path, **settings: Any) -> Inspection:
    """What the command finds."""
    return inspect(load(DataConfig(source=str(source))), kept=KeptFacts.of(True), **settings)


def anew(source: Path) -> Inspection:
    return inspect(load(DataConfig(source=str(source))))


def file() -> Path:
    path = KeptFacts.of(True).path
    assert path is not None
    return path


def test_the_second_time_nothing_is_read_but_what_is_damaged(faulty: Path, read: list[str]) -> None:
    Image.fromarray(np.full((8, 8), 300, np.uint16)).save(faulty / "train/a/dark.tif")
    Image.fromarray(np.array([[0.5, -9999, np.nan, -2]], np.float32)).save(faulty / "train/a/low.tif")
    known = anew(faulty)
    assert known.duplicates and known.unreadable and len(known.notes) > 2
    read.clear()
    assert seen(faulty) == known and len(read) == 16
    read.clear()
    assert seen(faulty) == known
    assert {os.path.basename(name) for name in read} == {"broken.jpg", "empty.jpg"}


@forks
def test_the_same_by_processes(faulty: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]) -> None:
    known = anew(faulty)
    monkeypatch.setattr(each_picture, "MANY", 2)
    monkeypatch.setattr(each_picture, "_CHUNK", 3)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    kept = KeptFacts.of(True)
    assert [inspect(load(DataConfig(source=str(faulty))), kept=kept) for _ in range(2)] == [known, known]
    assert kept.found == 11 and not kept.notes


def touched(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def same_size_and_time(path: Path) -> None:
    about = path.stat()
    data = path.read_bytes()
    path.write_bytes(encoded((200, 0, 0)).ljust(len(data), b"\0")[: len(data)])
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def replaced(path: Path) -> None:
    path.with_suffix(".new").write_bytes(encoded((1, 2, 3), (9, 9)))
    os.replace(path.with_suffix(".new"), path)


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def linked(path: Path) -> None:
    target = path.parent.parent.parent / "elsewhere.png"
    target.write_bytes(encoded((9, 9, 9), (4, 4)))
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("change", [touched, same_size_and_time, replaced, damaged, linked])
def test_a_picture_that_may_be_another_is_read_anew(
    change: Callable[[Path], None], tmp_path: Path, grow: Callable[..., Path], read: list[str]
) -> None:
    photos = grow(tmp_path / "photos", {"train/a": 3, "train/b": 2})
    seen(photos)
    change(photos / "train/a/1.png")
    read.clear()
    found = seen(photos)
    assert read == [str(photos / "train/a/1.png")]
    assert found == anew(photos)


def test_a_picture_that_vanished_is_told(tmp_path: Path, grow: Callable[..., Path]) -> None:
    photos = grow(tmp_path / "photos", {"a": 3, "b": 2})
    dataset = load(DataConfig(source=str(photos)))
    inspect(dataset, kept=KeptFacts.of(True))
    (photos / "a/1.png").unlink()
    found = inspect(dataset, kept=KeptFacts.of(True))
    assert [broken.place.key for broken in found.unreadable] == ["a/1.png"]
    (photos / "a/1.png").write_bytes(encoded("blue"))
    assert not inspect(dataset, kept=KeptFacts.of(True)).unreadable


def test_what_changed_just_now_is_not_kept(
    tmp_path: Path, grow: Callable[..., Path], read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = grow(tmp_path / "photos", {"a": 3, "b": 2})
    monkeypatch.setattr(identity, "SETTLED", 2.0)
    seen(photos)
    assert not file().exists()
    long_ago = identity.stamp

    def stamp(path: str) -> identity.Stamp:
        about = long_ago(path)
        return about if path.endswith("1.png") else about._replace(changed=0, entry=0)

    monkeypatch.setattr(identity, "stamp", stamp)
    seen(photos)
    read.clear()
    seen(photos)
    assert sorted(map(os.path.basename, read)) == ["1.png", "1.png"]


def test_what_changes_while_it_is_read_is_read_anew(
    tmp_path: Path, grow: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = grow(tmp_path / "photos", {"a": 3, "b": 2})
    reading = FolderStore.read

    def changing(store: FolderStore, key: str) -> bytes:
        data = reading(store, key)
        if key == "a/1.png":
            replaced(photos / key)
        return data

    with monkeypatch.context() as during:
        during.setattr(FolderStore, "read", changing)
        seen(photos)
    found = seen(photos)
    assert found.widths == (7, 7, 9) and found == anew(photos)


def zipped(path: Path, photos: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(photos.rglob("*.png")):
            archive.write(name, name.relative_to(photos))
    return path


def tarred(path: Path, photos: Path) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        archive.add(photos, ".")
    return path


def listed(path: Path, photos: Path) -> Path:
    names = [name.relative_to(path.parent).as_posix() for name in sorted(photos.rglob("*.png"))]
    path.write_text("".join(f"{name} {ord(name.split('/')[-2])}\n" for name in names))
    return path


def prepared(path: Path, photos: Path) -> Path:
    shards.write(load(DataConfig(source=str(photos))), path, shards.CopyOptions(16, 95))
    return path


def boxed(path: Path, photos: Path) -> Path:
    names = sorted(photos.rglob("*.png"))
    images = [
        {"id": k, "file_name": str(name.relative_to(photos.parent)), "width": 40, "height": 40}
        for k, name in enumerate(names)
    ]
    boxes = [{"id": k, "image_id": k, "category_id": k % 2, "bbox": [1, 1, 20, 20]} for k in range(len(names))]
    kinds = [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": kinds}))
    return path


@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((zipped, "p.zip"), (tarred, "p.tar"), (tarred, "p.tgz")),
        *((listed, "p.txt"), (prepared, "small"), (boxed, "p.json")),
    ],
)
def test_pictures_of_every_kind_of_source(
    make: Callable[[Path, Path], Path], name: str, tmp_path: Path, read: list[str]
) -> None:
    photos = tmp_path / "photos"
    rng = np.random.default_rng(0)

    def write() -> DataSet:
        for number in range(6):
            place = photos / "ab"[number % 2] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(place)
        source = make(tmp_path / name, photos)
        return load(DataConfig(source=str(source), boxes=make is boxed))

    dataset = write()
    known = inspect(dataset)
    assert inspect(dataset, kept=KeptFacts.of(True)) == known
    read.clear()
    kept = KeptFacts.of(True)
    assert inspect(dataset, kept=kept) == known
    assert (read, kept.found) == ([], 6)
    if name == "small":
        for part in (tmp_path / name).iterdir():
            part.unlink()
        (tmp_path / name).rmdir()
    other = write()
    kept = KeptFacts.of(True)
    assert inspect(other, kept=kept) == inspect(other)
    assert kept.found == 0


def test_pictures_in_parquet(tmp_path: Path, read: list[str]) -> None:
    pytest.importorskip("pyarrow")
    from .test_tables import hugging_face

    path = hugging_face(tmp_path / "train-00000-of-00001.parquet", encoded, [0, 1] * 3)
    known = seen(path)
    read.clear()
    assert seen(path) == known and not read
    dataset = load(DataConfig(source=str(path)))
    os.utime(path, (1, 1))
    assert inspect(dataset, kept=KeptFacts.of(True)) == known
    assert len(read) == 6, "the copy may be of another table"


def test_an_archive_that_was_replaced_after_it_was_opened_is_not_relied_on(
    tmp_path: Path, grow: Callable[..., Path]
) -> None:
    path = zipped(tmp_path / "p.zip", grow(tmp_path / "photos", {"a": 3, "b": 2}))
    store = ZipStore(path)
    keys = store.members().files
    assert None not in kept_facts.slips(store, keys, ["whole"] * len(keys))
    os.utime(path, (1, 1))
    assert set(kept_facts.slips(store, keys, ["whole"] * len(keys))) == {None}


def test_an_interrupted_inspection_goes_on(faulty: Path, read: list[str]) -> None:
    def stopped(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        seen(faulty, progress=stopped)
    first = set(read)
    read.clear()
    assert seen(faulty) == anew(faulty)
    with sqlite3.connect(file()) as kept:
        assert kept.execute("SELECT count(*) FROM facts").fetchone() == (11,)
    assert len(first) >= 6


def test_another_way_of_judging_makes_old_facts_void(
    faulty: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen(faulty)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    read.clear()
    seen(faulty)
    assert len(read) == 14
    for library in ("pillow", "simplejpeg"):
        monkeypatch.setattr(kept_facts, "version", lambda name, other=library: "0.1" if name == other else "1")
        kept_facts._judged_by.cache_clear()
        read.clear()
        seen(faulty)
        assert len(read) == 14, library
    kept_facts._judged_by.cache_clear()


def test_our_own_code_is_part_of_the_key() -> None:
    for name in kept_facts._CODE:
        assert (Path(kept_facts.__file__).parent / name).is_file()
    assert {"file_facts.py", "images.py", "pictures.py"} <= set(kept_facts._CODE)


def test_a_damaged_picture_is_named_as_it_is_called_now(
    faulty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen(faulty)
    monkeypatch.chdir(tmp_path)
    reasons = [broken.reason for broken in seen(Path(".")).unreadable]
    assert reasons and not any(str(tmp_path) in reason for reason in reasons)


@pytest.mark.parametrize("flags", list(product([False, True], repeat=4)))
@pytest.mark.parametrize("white", [None, 1.0, 65535.0])
def test_facts_come_back_as_they_were(flags: tuple[bool, ...], white: float | None) -> None:
    dark, pale, below, missing = flags
    for digest in (None, bytes(range(16))):
        facts = Facts(digest, "", "I;16", (70_000, 3), dark, pale, white, below, missing)
        row = kept_facts._packed(b"m" * 16, facts)
        assert kept_facts._unpacked(b"m" * 16, row) == facts
        assert kept_facts._unpacked(b"n" * 16, row) is None
        for place in range(len(row)):
            assert kept_facts._unpacked(b"m" * 16, row[:place] + bytes([row[place] ^ 4]) + row[place + 1 :]) is None
            assert kept_facts._unpacked(b"m" * 16, row[:place]) is None


def flipped(seed: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data, rng = bytearray(path.read_bytes()), random.Random(seed)
        for _ in range(40):
            data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        path.write_bytes(data)

    return change


def garbage(path: Path) -> None:
    path.write_bytes(b"no data base" * 999)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE facts (name TEXT)")


@pytest.mark.parametrize("change", [garbage, cut, emptied, foreign, *map(flipped, range(6))])
def test_a_damaged_file_of_facts_changes_nothing(change: Callable[[Path], None], faulty: Path) -> None:
    known = seen(faulty)
    change(file())
    assert [seen(faulty), seen(faulty)] == [known, known]  # the first may find some rows that go with the file
    kept = KeptFacts.of(True)
    dataset = load(DataConfig(source=str(faulty)))
    assert inspect(dataset, kept=kept) == known
    assert kept.found == 11 and not kept.notes, "it was made anew"


@pytest.mark.parametrize("place", ["a file", "a folder", "/proc/none"])
def test_facts_that_cannot_be_kept_are_told(
    place: str, faulty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "/proc/none" and not os.path.isdir("/proc/self"):
        pytest.skip("this system has no such folder")
    monkeypatch.setenv("LIFTPLUS_CACHE", str(tmp_path / "x" if place != "/proc/none" else place))
    if place == "a file":
        (tmp_path / "x").write_text("")
    elif place == "a folder":
        file().mkdir(parents=True)
    kept = KeptFacts.of(True)
    assert inspect(load(DataConfig(source=str(faulty))), kept=kept) == anew(faulty)
    assert len(kept.notes) == 1 and "could not be kept in" in kept.notes[0]


def connecting(monkeypatch: pytest.MonkeyPatch, *pragmas: str) -> None:
    connect = sqlite3.connect

    def limited(*args: Any, **options: Any) -> sqlite3.Connection:
        made = connect(*args, **options)
        for pragma in pragmas:
            made.execute(f"PRAGMA {pragma}")
        return made

    monkeypatch.setattr(sqlite3, "connect", limited)


@pytest.mark.parametrize(("pragma", "reason"), [("max_page_count=1", "full"), ("query_only=1", "readonly")])
def test_a_full_disk_and_a_read_only_one(
    pragma: str, reason: str, faulty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = anew(faulty)
    connecting(monkeypatch, pragma)
    kept = KeptFacts.of(True)
    assert inspect(load(DataConfig(source=str(faulty))), kept=kept) == known
    assert reason in kept.notes[0]


def test_a_read_only_file_still_serves(faulty: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]) -> None:
    known = seen(faulty)
    connecting(monkeypatch, "query_only=1")
    read.clear()
    kept = KeptFacts.of(True)
    assert inspect(load(DataConfig(source=str(faulty))), kept=kept) == known
    assert len(read) == 3 and not kept.notes


def test_a_file_in_use_is_waited_for_and_then_left_alone(faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = seen(faulty)
    monkeypatch.setattr(kept_facts, "_PATIENCE", 0.05)
    other = sqlite3.connect(file(), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    kept = KeptFacts.of(True)
    assert inspect(load(DataConfig(source=str(faulty))), kept=kept) == known
    assert kept.found == 0 and "locked" in kept.notes[0]
    other.execute("ROLLBACK")
    other.close()


def rows(start: int, stop: int) -> Iterator[tuple[Slip, Facts]]:
    for number in range(start, stop):
        own = number.to_bytes(16, "big")
        yield Slip(own[::-1], own), Facts(own, "", "RGB", (number, 1))


def keep(path: Path, start: int, stop: int) -> None:
    with KeptFacts(path) as kept:
        for slip, facts in rows(start, stop):
            kept.add(slip, facts)
    assert not kept.notes, kept.notes


@forks
def test_two_processes_keep_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_facts, "_BATCH", 50)
    path = tmp_path / "facts.sqlite"
    both = [multiprocessing.Process(target=keep, args=(path, start, start + 1500)) for start in (0, 1000)]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    assert [one.exitcode for one in both] == [0, 0]
    wanted = list(rows(0, 2500))
    assert kept_facts.look_up(path, [slip for slip, _ in wanted]) == [facts for _, facts in wanted]


def test_a_killed_process_leaves_what_it_had_written(tmp_path: Path) -> None:
    """Half a write is undone: as long as its journal lies there, the file counts as it was before."""
    path = tmp_path / "facts.sqlite"
    keep(path, 0, 500)
    code = (
        "import os, sqlite3, sys; kept = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "kept.execute('PRAGMA cache_size=1'); kept.execute('BEGIN IMMEDIATE');"
        "kept.execute('UPDATE facts SET row = zeroblob(300)'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert (tmp_path / "facts.sqlite-journal").exists()
    wanted = list(rows(0, 500))
    assert kept_facts.look_up(path, [slip for slip, _ in wanted]) == [facts for _, facts in wanted]


def test_the_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_facts, "LIMIT", 200_000)
    monkeypatch.setattr(kept_facts, "_BATCH", 500)
    clock = iter(range(10**6))
    monkeypatch.setattr(kept_facts.time, "time", lambda: next(clock))
    path = tmp_path / "facts.sqlite"
    keep(path, 0, 10_000)
    assert path.stat().st_size < 400_000
    wanted = list(rows(9_000, 10_000))
    assert kept_facts.look_up(path, [slip for slip, _ in wanted]) == [facts for _, facts in wanted], "the newest stay"


def test_leaving_out_what_is_damaged_uses_what_was_found(faulty: Path, read: list[str]) -> None:
    config = DataConfig(source=str(faulty), unreadable="skip")
    known = load(config)
    seen(faulty)
    read.clear()
    again = load(config, kept=KeptFacts.of(True))
    assert (again.splits, again.notes) == (known.splits, known.notes)
    assert {os.path.basename(name) for name in read} == {"broken.jpg", "empty.jpg"}


def test_names_that_are_no_unicode(tmp_path: Path, read: list[str]) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (tmp_path / name).write_bytes(encoded("red"))
    except OSError:
        pytest.skip("this system takes no such names")
    dataset = DataSet("x", ("a", "b"), ("a", "b"), {"train": Split([name], [0])}, FolderStore(tmp_path))
    for _ in range(2):
        assert not inspect(dataset, kept=KeptFacts.of(True)).unreadable
    assert len(read) == 1


def test_headers_alone(faulty: Path, read: list[str]) -> None:
    (faulty / "train/a/cut.png").write_bytes(encoded((7, 7, 7), (60, 60))[:-30])
    found = seen(faulty, whole=0)
    assert read == []
    assert [broken.place.key for broken in found.unreadable] == [
        *("train/a/broken.jpg", "train/a/empty.jpg", "train/b/empty.jpg")
    ]
    assert found.modes == {"RGB": 11, "L": 1} and found.widths == (7, 7, 60) and not found.duplicates
    assert "Not checked: damage behind an intact header, equal files" in found.notes[-1]
    kept = KeptFacts.of(True)
    assert inspect(load(DataConfig(source=str(faulty))), kept=kept, whole=0) == found
    assert kept.found == 12
    assert seen(faulty) == anew(faulty), "what headers say is not taken for more"
    assert "train/a/cut.png" in [broken.place.key for broken in anew(faulty).unreadable]


def test_a_sample(faulty: Path, read: list[str]) -> None:
    (faulty / "train/a/cut.png").write_bytes(encoded((7, 7, 7), (60, 60))[:-30])
    found = seen(faulty, whole=14)
    assert found.sample is not None and len(read) == found.sample.drawn == 14
    assert found.sample.hidden == ("train/a/cut.png" in [broken.place.key for broken in found.unreadable])
    assert len(found.unreadable) == 3 + found.sample.hidden
    assert "(seed 0)" in found.notes[-2] and "Clopper" in found.notes[-1]
    assert seen(faulty, whole=14) == found
    assert seen(faulty, whole=15).sample is None, "all are read whole"


def test_long_headers_and_those_at_the_end(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 20), "red")
    blocks = image.copy()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    out = io.BytesIO()
    blocks.save(out, "JPEG", icc_profile=bytes(200_000))
    (tmp_path / "a/long.jpg").write_bytes(out.getvalue())
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "b/end.tif")
    Image.fromarray(noise).save(tmp_path / "b/whole.webp", lossless=True)
    found = seen(tmp_path, whole=0)
    assert not found.unreadable and found.widths == (30, 300, 300) == anew(tmp_path).widths


def test_the_command(photos: Path, command: Command) -> None:
    bare = command("data", "inspect", "--data", photos, "cache=false")
    assert bare.code == 0 and not file().exists()
    first, second = (command("data", "inspect", "--data", photos) for _ in range(2))
    assert first.out == second.out == bare.out
    assert "not changed since" not in first.err
    assert "25 pictures have not changed since the last inspection" in second.err and "cache=false" in second.err
    headers = command("data", "inspect", "--data", photos, "--read", "headers", "--json")
    assert '"drawn": 0' in headers.out
    some = command("data", "inspect", "--data", photos, "--read", "5")
    assert "5 pictures were drawn at random (seed 0) and read completely" in some.out


@pytest.mark.parametrize("given", ["--read=0", "--read=some", "--read=-3", "--read=1e3", "--no-files --read=9"])
def test_what_cannot_be_meant_is_refused(given: str, photos: Path, command: Command) -> None:
    ended = command("data", "inspect", "--data", photos, *given.split())
    assert ended.code == 2 and "--read" in ended.err
