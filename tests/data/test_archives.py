"""Archives from strangers: hostile names, bombs and damage. Nothing is written or read outside, nothing is lost."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import random
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liftplus.data.config import DataConfig
from liftplus.data.images import UnreadableImage
from liftplus.data.sources import load
from liftplus.data.stores import FileStore, FolderStore, TarStore, ZipStore, open_store
from liftplus.errors import UserError

Png = Callable[..., bytes]
deep = pytest.mark.parametrize("examples", [40, pytest.param(1000, marks=pytest.mark.slow)])
HOSTILE = ("/etc/x.png", "//x.png", "../x.png", "a/../../x.png", "..\\x.png", "\\x.png", "C:\\x.png", "c:/x.png")
HARMLESS = (
    "cat/1.png",
    "猫/ü.png",
    "a b/,\";'.png",
    "CON/nul.png",
    "$(id)/`x`.png",
    "<b>/&.png",
    "x..y/1.png",
)


def write_zip(path: Path, content: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return path


def write_tar(path: Path, content: Sequence[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in content:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Path]:
    """A folder; afterwards nothing else may lie beside it, and no file of the system may be new."""
    (tmp_path / "in").mkdir()
    yield tmp_path / "in"
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert {path.suffix for path in (tmp_path / "in").iterdir()} <= {".zip", ".tar", ".gz", ".bz2"}


@deep
@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_is_counted_is_what_was_written(guarded: Path, write: Callable[..., Path], examples: int) -> None:
    letters = st.characters(codec="utf-8", exclude_characters="\0")
    names = st.sampled_from((*HOSTILE, *HARMLESS)) | st.text(letters, min_size=1, max_size=12).map(lambda x: x + ".png")

    def body(drawn: list[str]) -> None:
        content = [(name, f"{i} {name}".encode()) for i, name in enumerate(drawn)]
        store = open_store(write(guarded / f"x{'.zip' if write is write_zip else '.tar'}", content))
        members = store.members()
        last = {name.removeprefix("./") if write is write_tar else name: data for name, data in content}
        assert all(store.read(name) == last[name] for name in members.files)
        assert not set(members.files) & set(HOSTILE)
        assert set(members.files) >= set(drawn) & set(HARMLESS)
        for name in set(HOSTILE) - set(last):
            with pytest.raises(UnreadableImage):  # an absolute name must not reach the disk either
                store.read(name)
        if set(drawn) & set(HOSTILE):
            assert any("unsafe names" in note for note in members.notes)

    search(st.lists(names, min_size=1, max_size=6), examples, body)


def search(strategy: st.SearchStrategy[list[str]], examples: int, body: Callable[[list[str]], None]) -> None:
    wanted = settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    wanted(given(strategy)(body))()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_duplicates_count_once_and_are_said(guarded: Path, write: Callable[..., Path], png: Png) -> None:
    content = [("a/1.png", b"old"), ("a/1.png", png("blue")), ("b/1.png", png())]
    store = open_store(write(guarded / f"x{'.zip' if write is write_zip else '.tar'}", content))
    assert store.members().files == ("a/1.png", "b/1.png")
    assert any(
        note.startswith("1 archive member was left out") and "same name" in note for note in store.members().notes
    )
    assert store.image("a/1.png").getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_names_may_start_at_the_folder_itself(guarded: Path, write: Callable[..., Path], png: Png) -> None:
    content = [(f"./{folder}/{i}.png", png((i, 0, 0))) for folder in ("cat", "dog") for i in range(2)]
    dataset = load(DataConfig(source=str(write(guarded / f"x{'.zip' if write is write_zip else '.tar'}", content))))
    assert dataset.class_ids == ("cat", "dog")
    assert all(dataset.store.image(key).size == (7, 5) for key in dataset.splits["train"].keys)


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_very_deep_names_take_little_time(guarded: Path, write: Callable[..., Path], png: Png) -> None:
    deepest = "d/" * 30_000
    content = [(f"{deepest}{folder}/{i}.png", png((i, 0, 0))) for folder in "ab" for i in range(4)]
    path = write(guarded / f"x{'.zip' if write is write_zip else '.tar'}", content)
    started = time.monotonic()
    dataset = load(DataConfig(source=str(path), test_share=0.25))
    assert sum(dataset.counts()) + sum(dataset.counts("test")) == 8
    assert dataset.class_ids == ("a", "b")
    assert time.monotonic() - started < 30


def test_devices_links_and_hostile_folders_in_a_tar(guarded: Path, png: Png) -> None:
    with tarfile.open(guarded / "x.tar", "w") as archive:
        for name in ("cat/1.png", "dog/1.png"):
            info = tarfile.TarInfo(name)
            info.size = len(png())
            archive.addfile(info, io.BytesIO(png()))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE):
            info = tarfile.TarInfo(f"cat/{kind.decode()}.png")
            info.type, info.linkname, info.devmajor, info.devminor = kind, "/dev/zero", 1, 5
            archive.addfile(info)
        for name in ("../up", "/abs", "C:\\evil"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
    members = TarStore(guarded / "x.tar").members()
    assert members.files == ("cat/1.png", "dog/1.png")
    assert members.empty_folders == ()
    assert "and 5 more" in members.notes[0]


def test_pictures_in_nested_archives_are_not_counted(guarded: Path, png: Png) -> None:
    inner = write_zip(guarded / "inner.zip", [("cat/2.png", png())]).read_bytes()
    write_zip(guarded / "x.zip", [("cat/1.png", png()), ("dog/1.png", png("blue")), ("cat/inner.zip", inner)])
    dataset = load(DataConfig(source=str(guarded / "x.zip")))
    assert sum(dataset.counts()) == 2
    assert any("1 .zip" in note for note in dataset.notes)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_that_lie_about_their_size(guarded: Path, method: int) -> None:
    """The header says 10 bytes, the stream holds 60 MB: reading stops early, with a checksum that is wrong."""
    path = write_zip(guarded / "x.zip", [("a.png", bytes(60_000_000))], method)
    data = path.read_bytes().replace((60_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(data)
    with pytest.raises(UnreadableImage, match=r"a\.png cannot be read"):
        ZipStore(path).read("a.png")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_method_reads_whole_members(guarded: Path, method: int) -> None:
    data = random.Random(0).randbytes(100_000) + bytes(100_000)
    assert ZipStore(write_zip(guarded / "x.zip", [("a", data), ("b", b"")], method)).read("a") == data
    assert ZipStore(guarded / "x.zip").read("b") == b""


@pytest.mark.parametrize("opener", [gzip.open, bz2.open])
def test_bombs_of_compressed_tars(
    guarded: Path, opener: Callable[..., io.IOBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liftplus.data.archives.LARGEST", 10_000)
    monkeypatch.setattr("tempfile.tempdir", str(guarded))
    with opener(guarded / "x.tar.gz", "wb") as file:
        for _ in range(20):
            file.write(bytes(1 << 20))
    with pytest.raises(UserError, match="archive bomb"):
        TarStore(guarded / "x.tar.gz").members()
    assert [path.name for path in guarded.iterdir()] == ["x.tar.gz"]  # nothing unpacked remains


def headers(path: Path) -> list[int]:
    with tarfile.open(path) as archive:
        return [info.offset for info in archive]


def test_no_damaged_tar_is_read_in_part(guarded: Path) -> None:
    """tarfile alone would end at a damaged header, in silence."""
    path = write_tar(guarded / "x.tar", [(f"c/{i}.png", bytes(600)) for i in range(5)])
    good = path.read_bytes()
    for start in headers(path):
        for place in (start, start + 130, start + 150, start + 400):
            path.write_bytes(good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
            with pytest.raises(UserError, match="cannot be opened as a tar"):
                TarStore(path).members()
    for end in range(0, 512 * 3 * 5, 256):
        path.write_bytes(good[:end])
        try:
            members = TarStore(path).members()
        except UserError:
            continue
        assert "lacks the end mark" in members.notes[0]


def test_headers_of_negative_and_huge_size_end(guarded: Path) -> None:
    """The first would send tarfile round for ever (CVE-2025-8194), the second would take all memory."""
    for size in (-512, -1024, -(1 << 40), 1 << 40, 1 << 70):
        for kind in (tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("a/1.png")
            info.size, info.type = size, kind
            header = info.tobuf(tarfile.GNU_FORMAT)
            for data in (header * 3 + bytes(1024), header[:512] + bytes(1024)):
                (guarded / "x.tar").write_bytes(data)
                attempt(TarStore(guarded / "x.tar"))
    info = tarfile.TarInfo("x/" * 20)
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 0
    (guarded / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) * 3000 + bytes(1024))
    attempt(TarStore(guarded / "x.tar"))


def attempt(store: FileStore) -> int:
    """How many members can be read; whatever cannot is refused with a sentence."""
    read = 0
    try:
        for name in store.members().files:
            try:
                store.read(name)
                read += 1
            except UnreadableImage as error:
                if not str(error).endswith("."):
                    pytest.fail(f"no sentence: {error}")
    except UserError as error:
        if not str(error).endswith("."):
            pytest.fail(f"no sentence: {error}")
    return read


@deep
@pytest.mark.parametrize("kind", ["zip", "zip64", "tar", "gnu", "tar.gz"])
def test_damaged_archives_are_refused_or_right(guarded: Path, kind: str, examples: int) -> None:
    content = [(f"c{i}/{'long' * 40}{i}.png", f"{i}".encode() * 50) for i in range(4)]
    path = guarded / f"x.{'zip' if 'zip' in kind else 'tar.gz' if kind == 'tar.gz' else 'tar'}"
    if "zip" in kind:
        write_zip(path, content, zipfile.ZIP_DEFLATED if kind == "zip" else zipfile.ZIP_LZMA)
    else:
        write_tar(path, content, tarfile.GNU_FORMAT if kind == "gnu" else tarfile.PAX_FORMAT)
        if kind == "tar.gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
    good, whole = path.read_bytes(), dict(content)
    for seed in range(examples * 3):
        rng = random.Random(seed)
        data = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.choice((0, 255, rng.randrange(256)))
        path.write_bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))])
        store = open_store(path)
        attempt(store)
        if kind in ("zip", "tar.gz") and Path(store.path).is_file():
            try:
                right = {name: store.read(name) for name in store.members().files if name in whole}
            except UserError:
                continue
            assert all(whole[name] == found for name, found in right.items())  # both carry checksums


def test_pipes_and_devices_in_folders_are_no_pictures(tmp_path: Path, png: Png) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(png((len(folder), 0, 0)))
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no pipes in folders")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "b" / "round.png").symlink_to("/nowhere/at/all.png")
    dataset = load(DataConfig(source=str(tmp_path), unreadable="skip"))
    assert sum(dataset.counts()) == 2
    assert any(note.startswith("3 images that cannot be read") for note in dataset.notes)


def test_folders_deeper_than_the_stack(tmp_path: Path) -> None:
    place, depth = os.getcwd(), 1100
    os.chdir(tmp_path)  # the whole path is too long for one call
    try:
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("x.png").write_bytes(b"x")
        assert len(FolderStore(tmp_path).members().files) == 1
        os.unlink("x.png")
        for _ in range(depth):  # or pytest could not clear up
            os.chdir("..")
            os.rmdir("d")
    finally:
        os.chdir(place)


def test_a_huge_file_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnreadableImage, match="over 1 GiB"):
        FolderStore(tmp_path).read("x.png")


def test_zip_links_are_left_out(guarded: Path, png: Png) -> None:
    link = zipfile.ZipInfo("cat/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(guarded / "x.zip", "w") as archive:
        archive.writestr("cat/1.png", png())
        archive.writestr(link, "/etc/passwd")
    assert ZipStore(guarded / "x.zip").members().files == ("cat/1.png",)
