"""What predict is given becomes rows: in the order given, as many as given, nothing else taken for a picture."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from liftplus.errors import UserError
from liftplus.runs import inputs


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """new/a.png, new/b.JPG, new/deep/c.png, and what is no picture between them."""
    monkeypatch.chdir(tmp_path)
    for name in ("new/a.png", "new/b.JPG", "new/deep/c.png", "new/.thumbs/a.png", "new/photo.jpg/photo.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (len(name), 0, 0)).save(name)
    for junk in ("desktop.ini", "._b.JPG", "Thumbs.db", "notes.txt"):
        Path("new", junk).write_bytes(b"junk")
    return tmp_path


FOUND = ["new/a.png", "new/b.JPG", "new/deep/c.png", "new/photo.jpg/photo.jpg"]


def test_a_folder_called_like_a_picture_is_a_folder(place: Path) -> None:
    assert list(inputs.read(["new"]).names) == FOUND
    assert list(inputs.read(["new/photo.jpg"]).names) == ["new/photo.jpg/photo.jpg"]
    assert inputs.read(["new"]).notes == (
        "Hidden folders and those of systems were left out: '.thumbs'.",
        "1 file in new does not end like an image and was left out: 1 .txt.",
    )


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        (["new/a.png", "new/a.png", "new/deep/c.png", "new/a.png"], [0, 0, 2, 0]),
        (["new/deep", "new/a.png", "new/deep"], [2, 0, 2]),
        (["new/photo.jpg", "new/*.png"], [3, 0]),
        (["new/*"], [0, 1]),
        (["new/d*"], [2]),
        (["new/**/*.[pj]*g"], [0, 2, 3]),
        (["new/**"], [0, 1, 2, 3]),
    ],
)
def test_rows_come_as_given(place: Path, given: list[str], rows: list[int]) -> None:
    found = inputs.read(given)
    assert list(found.names) == [FOUND[k] for k in rows]
    assert len(found) == len(set(found.keys)) == len(rows)
    store = pickle.loads(pickle.dumps(found.store))
    assert [store.read(key) for key in found.keys] == [Path(FOUND[k]).read_bytes() for k in rows]


@pytest.mark.parametrize("form", ["new.zip", "new.tar", "new.TAR.GZ", "new.tgz"])
def test_archives_are_read_like_the_folder(place: Path, form: str) -> None:
    import tarfile

    if form.endswith("zip"):
        with zipfile.ZipFile(form, "w") as archive:
            for name in sorted(Path("new").rglob("*")):
                archive.write(name)
    else:
        with tarfile.open(form, "w:gz" if form.lower().endswith("gz") else "w") as archive:
            archive.add("new")
    found = inputs.read([form, FOUND[0]])
    assert list(found.names) == [*(f"{form}:{name}" for name in FOUND), FOUND[0]]
    assert [found.store.read(key) for key in found.keys] == [Path(p).read_bytes() for p in [*FOUND, FOUND[0]]]
    assert any("1 .txt" in note for note in found.notes)


LINES = "new/a.png\nnew/deep/c.png\nnew/a.png\n"


@pytest.mark.parametrize(
    "data",
    [
        LINES.encode(),
        LINES.replace("\n", "\r\n").encode("utf-8-sig"),
        LINES.encode("utf-16"),
        LINES.replace("\n", "\0").encode(),
        LINES.replace("\n", "\n\n").rstrip().encode(),
        b"new/a.png 0\nnew/deep/c.png\t12\n  new/a.png  7\n",
        b"\"new/a.png\"\n'new/deep/c.png'\n./new/a.png\n",
        b"new\\a.png\nnew\\deep\\c.png\n/new/a.png\n",
    ],
    ids=["lines", "windows", "powershell", "print0", "blank", "labels", "quotes", "slashes"],
)
def test_lists_in_the_forms_that_people_write(place: Path, data: bytes) -> None:
    Path("list.txt").write_bytes(data)
    Path("paths").write_bytes(data)
    for found in (inputs.read(["list.txt"]), inputs.read(["paths"]), inputs.read(["-"], lambda: data)):
        assert [os.path.normpath(name) for name in found.complete().names] == [FOUND[k] for k in (0, 2, 0)]


def test_a_list_elsewhere_is_read_from_its_own_folder_or_from_here(place: Path) -> None:
    lists = place / "lists"
    lists.mkdir()
    (lists / "a.txt").write_text("new/a.png\nnew/b.JPG\n")
    found = inputs.read(["lists/a.txt"]).complete()
    assert list(found.names) == FOUND[:2]
    assert found.notes == ("Paths in lists/a.txt are taken from the current folder.",)
    for name in FOUND[:2]:
        (lists / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (5, 5)).save(lists / name, "PNG")
    found = inputs.read(["lists/a.txt"]).complete()
    assert list(found.names) == [f"lists/{name}" for name in FOUND[:2]]
    assert found.notes == ("Paths in lists/a.txt are taken from the folder of lists/a.txt.",)
    (lists / "b.txt").write_text(f"{place / 'new' / 'a.png'}\nnew/b.JPG\n")
    assert inputs.read(["lists/b.txt"]).names[0] == str(place / "new" / "a.png")


def test_a_line_that_names_nothing_is_a_row_and_refused_unless_skipped(place: Path) -> None:
    Path("list.txt").write_text("new/a.png\nnew/gone.png\nnew/deep\n")
    found = inputs.read(["list.txt"])
    assert list(found.names) == ["new/a.png", "new/gone.png", "new/deep"]
    with pytest.raises(UserError, match=r"list.txt, line 2 names 'new/gone.png', which is no file. 1 more"):
        found.complete()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "names no image"),
        ("gone.png", "names no image"),
        ("new/*.gif", "names no image"),
        ("empty", "names no image"),
        ("-", "names no image"),
        ("t.csv", "is a table"),
        ("p.7z", "Unpack it"),
        ("bad.zip", "cannot be opened as a zip"),
        ("empty.txt", "empty.txt is empty"),
        ("new/notes.txt", "No line of new/notes.txt names a file. The first line is 'junk'"),
        ("new/desktop.ini", "name no image"),
        ("~nobody-of-that-name/x.png", "unknown user"),
    ],
)
def test_what_names_no_picture_is_told(place: Path, given: str, said: str) -> None:
    Path("empty").mkdir()
    for name in ("t.csv", "p.7z", "bad.zip", "empty.txt"):
        Path(name).write_text("\n")
    with pytest.raises(UserError, match=said):
        inputs.read([given])


def test_junk_that_a_shell_names_is_passed_over(place: Path) -> None:
    found = inputs.read(["new/a.png", "new/desktop.ini", "new/deep"])
    assert list(found.names) == [FOUND[0], FOUND[2]]
    assert found.notes == ("new/desktop.ini was left out: the operating system makes such files.",)


def test_each_path_is_one_file(place: Path) -> None:
    assert list(inputs.each(["new/a.png", "new/a.png"]).names) == ["new/a.png"] * 2
    for wrong, said in (("new", "is a folder"), ("new/*.png", "does not exist")):
        with pytest.raises(UserError, match=f"Path 1, .*{said}"):
            inputs.each(["new/a.png", wrong])


def test_the_home_folder_is_filled_in(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    assert list(inputs.read(["~/new/a.png"]).names) == [str(place / "new/a.png")]
