"""What is passed over in folders and archives: links that lead twice to one place, and the litter of systems."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from liftplus.data.stores import FolderStore, ZipStore
from liftplus.errors import UserError

Grow = Callable[[Path, dict[str, int]], Path]
Png = Callable[..., bytes]


@pytest.fixture
def pool(tmp_path: Path, grow: Grow) -> Path:
    return grow(tmp_path / "pool", {"cat": 2, "dog": 1})


def linked(root: Path, links: dict[str, object]) -> FolderStore:
    """A folder of links: name to what it leads to."""
    for name, target in links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            (root / name).symlink_to(str(target))
        except OSError:
            pytest.skip("this system makes no links")
    return FolderStore(root)


def test_linked_class_folders_are_read(tmp_path: Path, pool: Path) -> None:
    members = linked(tmp_path / "d", {"cat": pool / "cat", "dog": pool / "dog"}).members()
    assert members.files == ("cat/0.png", "cat/1.png", "dog/0.png")
    assert members.notes == ()
    (tmp_path / "e").symlink_to(tmp_path / "d")
    assert FolderStore(tmp_path / "e").members().files == members.files


@pytest.mark.parametrize("target", [".", "..", "cat", "../pool"])
def test_links_to_what_is_read_or_above_are_left_out_and_told(pool: Path, target: str) -> None:
    members = linked(pool, {"again": target}).members()
    assert members.files == ("cat/0.png", "cat/1.png", "dog/0.png")
    assert members.notes[0].startswith("1 link to folders that are read already or lie above was left out: 'again'")


def test_a_loop_behind_a_link_ends(tmp_path: Path, pool: Path) -> None:
    linked(pool / "cat", {"self": ".", "up": ".."})
    members = linked(tmp_path / "d", {"cat": pool / "cat", "dog": pool / "dog"}).members()
    assert members.files == ("cat/0.png", "cat/1.png", "dog/0.png")
    assert "2 links to folders" in members.notes[0]


@pytest.mark.parametrize(
    "links", [{"train/cat": "cat", "test/cat": "cat"}, {"train": "", "test": ""}, {"a": "cat", "b": "", "c": "dog"}]
)
def test_two_links_to_one_folder_are_refused(tmp_path: Path, pool: Path, links: dict[str, str]) -> None:
    store = linked(tmp_path / "d", {name: pool / target for name, target in links.items()})
    with pytest.raises(UserError, match=r"lead to the same folder, .*pool.* would count twice"):
        store.members()


def test_links_that_lead_nowhere(tmp_path: Path, pool: Path) -> None:
    store = linked(tmp_path / "d", {"cat": pool / "cat", "dog": pool / "gone"})
    with pytest.raises(UserError, match=r"dog is a link to .*gone, which does not exist"):
        store.members()
    with pytest.raises(UserError, match=r"a is a link to b, which does not exist|b is a link to a"):
        linked(tmp_path / "loop", {"a": "b", "b": "a"}).members()
    # A picture is named by whoever reads it, or left out with unreadable=skip.
    assert linked(tmp_path / "e", {"cat/1.png": "gone.png"}).members().files == ("cat/1.png",)


def test_pictures_that_links_show_twice_are_told(tmp_path: Path, pool: Path) -> None:
    picture = pool / "cat" / "0.png"
    members = linked(tmp_path / "d", {"train/cat/a.png": picture, "test/cat/b.png": picture}).members()
    assert members.files == ("test/cat/b.png", "train/cat/a.png")
    assert members.notes == (
        "1 linked file is a picture under another name too, such as 'train/cat/a.png' and "
        "'test/cat/b.png'; they count as two.",
    )
    assert "'new/1.png' and 'cat/0.png'" in linked(pool, {"new/1.png": "../cat/0.png"}).members().notes[0]


SYSTEM = ("lost+found", "$RECYCLE.BIN", "System Volume Information", ".Trash-1000", "FOUND.000", "#recycle", "@eaDir")


@pytest.mark.parametrize(
    "name", [*SYSTEM, "LOST.DIR", "RECYCLER", ".ipynb_checkpoints", "__pycache__", ".Spotlight-V100"]
)
def test_system_folders_are_no_classes(tmp_path: Path, grow: Grow, png: Png, name: str) -> None:
    grow(tmp_path / "d", {"cat": 1, "dog": 1, name: 1, f"cat/{name}": 1})
    members = FolderStore(tmp_path / "d").members()
    assert members.files == ("cat/0.png", "dog/0.png") and members.empty_folders == ()
    assert members.notes == (f"Hidden folders and those of systems were left out: {name!r}.",)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for key in ("cat/0.png", "dog/0.png", f"{name}/0.png"):
            archive.writestr(key, png())
    assert ZipStore(tmp_path / "x.zip").members() == members


def test_classes_that_sound_like_a_system(tmp_path: Path, grow: Grow) -> None:
    grow(tmp_path, {"lost and found": 1, "recycle": 1, "found": 1, "icon": 1})
    assert len(FolderStore(tmp_path).members().files) == 4


def test_a_system_folder_that_may_not_be_listed(tmp_path: Path, grow: Grow, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, {"cat": 1, "lost+found": 0})
    real = os.scandir

    def guarded(path: str) -> object:
        if "lost+found" in str(path):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert FolderStore(tmp_path).members().files == ("cat/0.png",)
