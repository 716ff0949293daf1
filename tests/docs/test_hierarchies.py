"""docs/hierarchies.md from top to bottom, on tiny pictures in the page's own table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from doc_pages import blocks, lines, parse

from ..conftest import Command, table_with_parents, write_folder


@pytest.mark.slow
def test_the_page(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    animals = write_folder(tmp_path / "animals", {"train": (12, 6, 4), "test": (3, 3, 3)})
    table_with_parents(animals)
    done = []
    for line in lines("hierarchies.md"):
        if (step := parse(line)) is None:
            continue
        quick = ("epochs=1", "workers=0", "device=cpu", "precision=fp32") if step.command == "train" else ()
        ended = command(*step.command.split(), *step.words, *quick)
        assert ended.code == 0, (line, ended.err)
        done.append(step.command)
        assert "level parent: 2 groups" in ended.out or step.command != "data inspect"
    assert done == ["data inspect", "train", "classes add", "eval", "predict", "predict"]
    told = json.loads((tmp_path / "runs" / "animals" / "again" / "metrics.json").read_text())
    assert told["levels"]["parent"]["groups"] == 2
    rows = list(csv.DictReader((tmp_path / "by-parent.csv").open()))
    assert len(rows) == 9 and {row["level"] for row in rows} == {"parent"}
    rows = list(csv.DictReader((tmp_path / "sure.csv").open()))
    capsys.readouterr()
    code = next(text for kind, text in blocks("hierarchies.md") if kind == "python")
    exec(compile(code, "docs/hierarchies.md", "exec"), {"__name__": "page"})
    printed = capsys.readouterr().out
    first = [rows[0][key] for key in ("level", "group", "group_probability")]
    assert printed.startswith(f"{first[0]} {first[1]} {first[2][:6]}" if first[0] else "  nan")
