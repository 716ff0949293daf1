"""Which runs a report is about: folders of `compare`, `sweep` and `reproduce`, paths of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import liftplus
from liftplus import report
from liftplus.errors import UserError
from liftplus.report import folders
from made_runs import Made

NAMES = tuple(f"class {k}" for k in range(4))


def made(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Made(NAMES, seed=seed).write(root / name)
    return root


def names(given: list[Path]) -> list[str]:
    return [path.name for path in folders.chosen(given)[0]]


@pytest.mark.slow
def test_the_folder_of_a_comparison_stands_for_its_runs(tmp_path: Path, command: Any) -> None:
    made(tmp_path / "cmp", "lift+-seed0", "lift+-seed1")
    (tmp_path / "cmp" / "lift+-seed0" / "tests").mkdir()
    Made(NAMES).evaluate(tmp_path / "cmp" / "lift+-seed0" / "tests" / "tte=false", {"tte": False})
    (tmp_path / "cmp" / "full-seed0").mkdir()
    (tmp_path / "cmp" / "full-seed0" / "config.json").write_text("{}")
    (tmp_path / "cmp" / "compare.json").write_text("{}")
    ended = command("report", "cmp")
    assert ended.code == 0, ended.err
    assert "cmp/report/report.html" in ended.out and "full-seed0" in ended.err and "not been tested" in ended.err
    assert "2 runs, 2 seeds each" in (tmp_path / "cmp" / "report" / "report.html").read_text(encoding="utf-8")
    assert command("report", "cmp").code == 0, "the report inside is no run"
    assert names([tmp_path / "cmp", tmp_path / "cmp" / "lift+-seed1"]) == ["lift+-seed0", "lift+-seed1"]


def test_a_sweep_is_reported_by_its_runs_on_the_test_split(tmp_path: Path) -> None:
    made(tmp_path, "trial-000", "trial-001", "test-seed0")
    (tmp_path / "sweep.json").write_text("{}")
    found, notes = folders.chosen([tmp_path])
    assert [path.name for path in found] == ["test-seed0"] and "trial-*" in notes[0]
    made(tmp_path / "other", "trial-000")
    (tmp_path / "other" / "sweep.json").write_text("{}")
    found, notes = folders.chosen([tmp_path / "other"])
    assert [path.name for path in found] == ["trial-000"] and "validation split" in notes[0]


def test_reproduces_folder_goes_deeper(tmp_path: Path) -> None:
    made(tmp_path, "data/mini_clip/lift+-seed0", "data/mini_clip/full-seed0")
    for level in ("data/mini_clip", "data", "."):
        assert names([tmp_path / level]) == ["full-seed0", "lift+-seed0"]


def test_a_file_of_a_run_stands_for_the_run(tmp_path: Path) -> None:
    made(tmp_path, "run")
    assert names([tmp_path / "run" / "metrics.json"]) == ["run"]
    assert folders.beside([tmp_path / "run" / "metrics.json"]) == tmp_path / "run" / "report"


def test_folders_without_a_finished_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(UserError, match="is not a run"):
        folders.chosen([tmp_path])
    (tmp_path / "a" / "b" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="none has been tested"):
        folders.chosen([tmp_path])
    Made(NAMES).write(tmp_path / "x" / "one")
    Made(NAMES[:3]).write(tmp_path / "x" / "two")
    with pytest.raises(UserError, match="different classes"):
        report.write(tmp_path / "x", tmp_path / "out")


def test_from_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `import liftplus` alone."""
    monkeypatch.delattr(liftplus, "report")
    assert liftplus.report.write is report.write
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = liftplus.nothing


@pytest.mark.slow
def test_text_and_paths_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Made(NAMES).write(tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert report.write([str(run)], str(tmp_path / "a")) == tmp_path / "a" / "report.html"
    assert report.write(str(run), tmp_path / "b").is_file() and report.write(run, tmp_path / "c").is_file()
    assert report.write("~/run", "~/d") == tmp_path / "d" / "report.html"
