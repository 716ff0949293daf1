"""docs/architecture.md: it names what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import reduce
from importlib import import_module

import pytest

from doc_pages import ROOT, page

PAGE = page("architecture.md")
SOURCE = ROOT / "src" / "liftplus"


def test_every_folder_and_file_on_top_is_in_the_table() -> None:
    table = PAGE.split("| folder or file |")[1].split("\n\n")[0]
    told = {name.rstrip("/") for row in table.splitlines() for name in re.findall(r"`([\w./]+)`", row.split("|")[1])}
    there = {path.name for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert there - told <= {"__init__.py", "__main__.py"} and told - there == {"presets", "weights"}


def test_a_picture_goes_through_functions_that_exist() -> None:
    rows = re.findall(r"^\| `([\w/]+)\.py` \| `([\w.]+)` \|", PAGE.split("## One picture")[1], re.MULTILINE)
    assert len(rows) == 10 and len({file for file, _ in rows}) < 10
    for file, name in rows:
        assert callable(reduce(getattr, name.split("."), import_module(f"liftplus.{file.replace('/', '.')}")))


def test_no_source_file_is_ignored_by_git() -> None:
    """An ignored file is left out of lint, of the wheel and of every clone, without a word."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    files = [str(path) for part in ("src", "tests", "benchmarks", "scripts") for path in (ROOT / part).rglob("*.py")]
    told = subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True)
    assert told.stdout == ""
