"""`~` is the home folder wherever a path is given, and there is one place for caches."""

from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

import liftplus
from liftplus import api, cli, config
from liftplus.backbones import weights
from liftplus.data.labelled import pictures_of
from liftplus.evaluation import features
from liftplus.machine import paths
from liftplus.runs import changes

from ..conftest import Command


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    place = tmp_path / "home"
    place.mkdir()
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("USERPROFILE", str(place))
    monkeypatch.chdir(tmp_path)
    return place


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--out=~/x", "--out=HOME/x"),
        ("-o=~/x", "-o=HOME/x"),
        ("~/pictures/*.jpg", "HOME/pictures/*.jpg"),
        ("~", "HOME"),
        ("weights=~/w.pth", "weights=HOME/w.pth"),
        ("data.root=~/d", "data.root=HOME/d"),
        ("--out=runs/~", "--out=runs/~"),
        ("--out", "--out"),
        ("a~b", "a~b"),
        ("lr=0.1", "lr=0.1"),
        ("a b=~/x", "a b=~/x"),  # a class name, as in `classes rename`
        ("~nobody-of-that-name/x", "~nobody-of-that-name/x"),
    ],
)
def test_words_of_the_command_line(word: str, expected: str, home: Path) -> None:
    assert paths.expanded_word(word) == expected.replace("HOME", str(home))


@pytest.mark.parametrize(
    "command", ["train", "predict", "export", "report", "prepare", "sweep", "compare", "eval", "demo", "pull"]
)
def test_every_command_gets_it(command: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group that all commands belong to fills it in before any of them sees its words."""
    seen: list[list[str]] = []
    base = cli._Commands.__mro__[1]
    monkeypatch.setattr(base, "parse_args", lambda _self, _ctx, args: seen.append(args) or args)
    group = cli._Commands.__new__(cli._Commands)
    group.parse_args(None, [command, "~/in", "--out=~/x", "weights=~/w"])
    assert seen == [[command, f"{home}/in", f"--out={home}/x", f"weights={home}/w"]]


def test_python_gets_it_too(home: Path, photos: Path) -> None:
    photos.rename(home / "ph")
    model = liftplus.fit("~/ph", epochs=0, workers=0, cache=False, out="~/run")
    assert (home / "run" / "model.safetensors").is_file() and (home / "run" / "metrics.json").is_file()
    assert model.save("~/saved") == home / "saved"
    again = liftplus.load("~/saved", device="cpu")
    picture = "~/ph/test/blue sky/0.png"
    assert len(again.predict(picture)) == 1 and len(again.predict([picture])) == 1
    assert not (home.parent / "~").exists()
    assert pictures_of([picture]) == [str(home / "ph/test/blue sky/0.png")]


def test_settings_of_weights(home: Path) -> None:
    (home / "w.pth").touch()
    assert weights.find("x", "~/w.pth", "hub/x", ["a.safetensors"], fetch=False) == home / "w.pth"


def test_a_run_that_was_begun_with_it_goes_on(home: Path) -> None:
    begun = config.resolve(data="~/ph", overrides=["weights=~/w"])
    now = config.resolve(data=f"{home}/ph", overrides=["weights=~/w"])
    assert changes.changes(begun, now) == []
    assert changes.changes(begun, config.resolve(data=f"{home}/other"))


def test_one_place_for_caches(monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("LIFTPLUS_CACHE", "~/c")
    monkeypatch.delenv("LIFTPLUS_WEIGHTS", raising=False)
    assert features.folder() == home / "c" / "features"
    assert weights.put_by_hand("a/b") == home / "c" / "weights" / "a__b"
    monkeypatch.delenv("LIFTPLUS_CACHE")
    own = tmp_path / "Library" / "Caches" / "liftplus"
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_names, **_options: own)
    assert features.folder() == own / "features"
    assert weights.put_by_hand("x") == own / "weights" / "x"
    old = home / ".cache" / "liftplus" / "weights"
    old.mkdir(parents=True)
    (old / "x.pth").touch()
    assert weights.find("x", None, "hub/x", ["a.safetensors"], fetch=False) == old / "x.pth"
    (own / "weights").mkdir(parents=True)
    (own / "weights" / "x.pth").touch()
    assert weights.find("x", None, "hub/x", ["a.safetensors"], fetch=False) == own / "weights" / "x.pth"
    monkeypatch.setenv("LIFTPLUS_WEIGHTS", "~/mine")
    assert weights.put_by_hand("x") == home / "mine" / "x"


def test_where_features_were_they_are(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """On Linux and macOS the folder that earlier versions chose."""
    from platformdirs import macos, unix

    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert unix.Unix("liftplus", appauthor=False, opinion=False).user_cache_dir == "/xdg/liftplus"
    monkeypatch.delenv("XDG_CACHE_HOME")
    theirs = macos.MacOS("liftplus", appauthor=False, opinion=False).user_cache_dir
    assert theirs == str(home / "Library" / "Caches" / "liftplus")


def test_a_bad_command_says_the_folder_in_full(command: Command, home: Path) -> None:
    ended = command("report", "~/nothing", "--out=~/x")
    assert ended.code == 2 and f"{home}/nothing" in ended.err.replace("\n", "")
    assert api.expanded("~/x") == home / "x"
