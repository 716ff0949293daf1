"""docs/calibration.md from top to bottom: its commands and its Python, on enough pictures to calibrate on."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from doc_pages import blocks, lines, parse

from ..conftest import Command, write_folder

QUICK = ("epochs=1", "train.batch_size=8", "workers=0", "device=cpu", "precision=fp32")


@pytest.mark.slow
def test_the_page(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "photos", {"train": (12, 6, 4), "val": (12, 10, 8), "test": (18, 14, 12)})
    shutil.copytree(tmp_path / "photos" / "val", tmp_path / "labelled_pictures")
    shutil.copytree(tmp_path / "photos" / "test", tmp_path / "new_pictures")
    done = []
    for line in lines("calibration.md"):
        if (step := parse(line)) is None:
            continue
        words = ["0.1" if word == "0.05" else word for word in step.words]  # 0.05 needs 19 pictures in each half
        ended = command(*step.command.split(), *words, *(QUICK if step.command == "train" else ()))
        assert ended.code == 0, (line, ended.err)
        done.append(step.command)
    assert done.count("calibrate") == 4 and done.count("predict") == 2 and "eval" in done
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open(encoding="utf-8")))
    assert len(rows) == 44 and rows[0]["set"].startswith("[")
    code = next(text for kind, text in blocks("calibration.md") if kind == "python").replace("0.05", "0.2")
    capsys.readouterr()
    exec(compile(code, "docs/calibration.md", "exec"), {"__name__": "page"})
    assert capsys.readouterr().out and (tmp_path / "models" / "calibrated" / "calibration.safetensors").is_file()
