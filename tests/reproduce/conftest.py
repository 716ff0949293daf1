"""A catalogue of its own and tiny pictures, so that whole plans run in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from liftplus.reproduce import catalogue

TINY = """
[main]
about = "Main"
source = "a paper"
data = [{ name = "photos", data = "photos" }]
backbones = ["mini_clip"]
seeds = 2
[main.variants]
"lift+" = {}
"one_crop" = { settings = ["tte=false"] }
"zeroshot" = { method = "zeroshot" }
[main.expected]
"photos/mini_clip/lift+" = { overall = 0.0, few = [0, 100] }

[losses]
about = "Losses"
data = [{ name = "photos", data = "photos" }]
backbones = ["mini_clip"]
seeds = 1
[losses.variants]
"logit_adjusted" = {}
"cross_entropy" = { settings = ["loss=cross_entropy"] }
"""

CLAIMS = """
[better]
claim = "Adjusting helps"
[[better.tests]]
better = "photos/mini_clip/losses/logit_adjusted"
worse = "photos/mini_clip/losses/cross_entropy"
metric = "overall"
kind = "same"
about = "Same seeds"
[[better.tests]]
better = "photos/mini_clip/lift+"
worse = "photos/mini_clip/zeroshot"
metric = "many"
[[better.untestable]]
what = "On ImageNet-LT"
why = "its pictures are not here"
"""


@pytest.fixture
def tiny(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tables above, which every command reads; the data are in the folder of the test."""
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    (folder / "claims.toml").write_text(CLAIMS, encoding="utf-8")
    real = catalogue.load
    monkeypatch.setattr(catalogue, "load", lambda place=folder: real(place))
    return folder
