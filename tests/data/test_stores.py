"""Folder, zip, tar and array behave alike, travel to workers and refuse hostile members."""

from __future__ import annotations

import io
import os
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from liftplus.data.arrays import ArrayStore
from liftplus.data.images import UnreadableImage
from liftplus.data.stores import FileStore, FolderStore, TarStore, ZipStore, open_store
from liftplus.errors import UserError

FILES = {"b/2.png": (2, 0, 0), "a/ünï cödé 猫.png": (1, 0, 0), "a/10.png": (3, 0, 0)}
LITTER = ["__MACOSX/a/._1.png", ".hidden/x.png", "a/.DS_Store", "a/Thumbs.db"]


def make(kind: str, root: Path, png: Callable[..., bytes]) -> FileStore:
    content = {name: png(colour) for name, colour in FILES.items()} | dict.fromkeys(LITTER, b"x")
    if kind == "folder":
        for name, data in content.items():
            (root / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "in" / name).write_bytes(data)
        return FolderStore(root / "in")
    if kind == "zip":
        with zipfile.ZipFile(root / "in.zip", "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return ZipStore(root / "in.zip")
    path = root / f"in.{kind}"
    with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo("./" + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return TarStore(path)


@pytest.fixture(params=["folder", "zip", "tar", "tar.gz"])
def store(request: pytest.FixtureRequest, tmp_path: Path, png: Callable[..., bytes]) -> FileStore:
    return make(request.param, tmp_path, png)


def test_members_are_sorted_and_clean(store: FileStore) -> None:
    assert store.members().files == tuple(sorted(FILES))


def test_images_and_pickling(store: FileStore) -> None:
    for name, colour in FILES.items():
        assert store.image(name).getpixel((0, 0)) == colour
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read("b/2.png") == store.read("b/2.png")
    assert copy.members().files == store.members().files


def test_missing(store: FileStore) -> None:
    assert store.missing(["a/10.png", "a/11.png"]) == ["a/11.png"]
    with pytest.raises(UnreadableImage, match=r"a/11\.png cannot be read"):
        store.read("a/11.png")


def test_open_store_picks_the_kind(store: FileStore) -> None:
    assert type(open_store(store.path)) is type(store)


def test_constructors_do_no_work(tmp_path: Path) -> None:
    for cls in (FolderStore, ZipStore, TarStore):
        broken = cls(tmp_path / "nothing")
        with pytest.raises(UserError):
            broken.members()


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_damaged_archives(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b garbage" * 20)
    with pytest.raises(UserError, match="cannot be opened as a"):
        open_store(tmp_path / name).members()


def test_truncated_tar_gz(tmp_path: Path, png: Callable[..., bytes]) -> None:
    store = make("tar.gz", tmp_path, png)
    whole = Path(store.path).read_bytes()
    Path(store.path).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be opened as a tar"):
        TarStore(store.path).members()


def test_tar_gz_leaves_nothing_behind(tmp_path: Path, png: Callable[..., bytes]) -> None:
    store = make("tar.gz", tmp_path, png)
    assert isinstance(store, TarStore)
    assert "compressed" in store.members().notes[0]
    plain = store._plain
    assert plain is not None
    assert os.path.exists(plain)
    copy = pickle.loads(pickle.dumps(store))
    del store
    assert not os.path.exists(plain)
    assert copy.image("b/2.png").size == (7, 5)  # unpacked anew


def test_hostile_zip(tmp_path: Path, png: Callable[..., bytes]) -> None:
    link = zipfile.ZipInfo("cat/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("/etc/a.png", "../up.png", "cat/../../up.png", "C:\\x.png", "cat/1.png", "cat\\..\\..\\a.png"):
            archive.writestr(name, png())
        archive.writestr(link, "/etc/passwd")
    members = ZipStore(tmp_path / "x.zip").members()
    assert members.files == ("cat/1.png",)
    assert "unsafe names" in members.notes[0]
    assert "and 3 more" in members.notes[0]


def test_hostile_tar(tmp_path: Path, png: Callable[..., bytes]) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("/etc/a.png", "../up.png", "cat/1.png"):
            info = tarfile.TarInfo(name)
            info.size = len(png())
            tar.addfile(info, io.BytesIO(png()))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("cat/special.png")
            info.type = kind
            info.linkname = "/etc/passwd"
            tar.addfile(info)
    store = TarStore(tmp_path / "x.tar")
    assert store.members().files == ("cat/1.png",)
    assert "unsafe" in store.members().notes[0]
    with pytest.raises(UnreadableImage):
        store.read("../up.png")


def test_damaged_member_is_noticed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"A" * 100)
    data = (tmp_path / "x.zip").read_bytes().replace(b"A" * 100, b"A" * 50 + b"B" * 50)
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(UnreadableImage, match=r"a\.png cannot be read: Bad CRC"):
        ZipStore(tmp_path / "x.zip").read("a.png")


def test_member_that_claims_to_be_empty_is_noticed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"A" * 100)
    data = bytearray((tmp_path / "x.zip").read_bytes())
    entry = data.index(b"PK\1\2")
    data[entry + 24 : entry + 28] = bytes(4)
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(UnreadableImage, match="Bad CRC"):
        ZipStore(tmp_path / "x.zip").read("a.png")


def test_zip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liftplus.data.archives.LARGEST", 10_000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * 20_000)
    with pytest.raises(UnreadableImage, match="unpack"):
        ZipStore(tmp_path / "x.zip").read("a.png")


def test_encrypted_member_is_passed_over(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"1")
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    members = ZipStore(tmp_path / "x.zip").members()
    assert members.files == ()
    assert "encryption" in members.notes[0]


def test_folder_links_are_followed_once(tmp_path: Path, png: Callable[..., bytes]) -> None:
    (tmp_path / "real" / "cat").mkdir(parents=True)
    (tmp_path / "real" / "cat" / "1.png").write_bytes(png())
    (tmp_path / "data").mkdir()
    try:
        (tmp_path / "data" / "cat").symlink_to(tmp_path / "real" / "cat", target_is_directory=True)
        (tmp_path / "data" / "loop").symlink_to(tmp_path / "data", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    assert FolderStore(tmp_path / "data").members().files == ("cat/1.png",)


def test_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "data" / "bare").mkdir(parents=True)
    assert FolderStore(tmp_path / "data").members().empty_folders == ("bare",)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.mkdir("bare")
        archive.mkdir("full")
        archive.writestr("full/1.txt", "x")
    assert ZipStore(tmp_path / "x.zip").members().empty_folders == ("bare",)


def test_array_store() -> None:
    images = np.zeros((3, 4, 6, 3), dtype=np.uint8)
    images[2] = (7, 8, 9)
    store = pickle.loads(pickle.dumps(ArrayStore(images, "numbers")))
    assert store.image("2").getpixel((0, 0)) == (7, 8, 9)
    assert store.image("2").size == (6, 4)
    assert store.read("0") == store.read("1") != store.read("2")
    with pytest.raises(UnreadableImage, match=r"numbers\[3\]"):
        store.image("3")


@pytest.mark.parametrize("context", [pytest.param("spawn", marks=pytest.mark.slow), "fork"])
def test_zip_in_two_workers(tmp_path: Path, png: Callable[..., bytes], context: str) -> None:
    if context == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    content = {f"{i:03}.png": png((i, i, i), (8, 8)) + bytes(i) for i in range(60)}
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    store = ZipStore(tmp_path / "x.zip")
    keys = list(store.members().files)  # opens the parent's handle, which a forked worker must not share
    loader = DataLoader(keys, batch_size=None, num_workers=2, collate_fn=store.read, multiprocessing_context=context)
    assert list(loader) == [content[key] for key in keys]
