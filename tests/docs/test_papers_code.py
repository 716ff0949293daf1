"""docs/papers-code.md: what its tables say is ours resolves to what it says; reproduce.md has published figures."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest

from doc_pages import named, page
from liftplus import config
from liftplus.names import presets
from liftplus.reproduce import catalogue

ROWS = [
    [cell.strip() for cell in row.strip("|").split(" | ")]
    for row in re.findall(r"^\|.*\|$", page("papers-code.md"), re.MULTILINE)
    if not row.startswith(("|---", "| theirs", "| LIFT |"))
]
OURS = [code for row in ROWS for code in re.findall(r"`([^`]+)`", row[-1])]
SETTINGS = [code for code in OURS if re.match(r"'?[a-z_.]+=", code)]


def test_settings_resolve() -> None:
    assert len(SETTINGS) > 60
    for code in SETTINGS:
        resolves(code)


def resolves(code: str) -> None:
    """A cell of ours gives the settings that it shows."""
    run = config.resolve(data="x", backbone="clip_vit_b16", overrides=shlex.split(code))
    flat = config.flat(run)
    for word in shlex.split(code):
        key, _, value = word.partition("=")
        if key == "tuner":
            assert "+".join(run.tuner) == value
        else:
            shown = flat[f"{key}.name" if f"{key}.name" in flat else key]
            told = shown if isinstance(shown, str) else json.dumps(shown)
            assert told in (value, f"{value}.0")


@pytest.mark.parametrize("code", [code for code in OURS if code not in SETTINGS])
def test_other_entries_are_words_of_the_command_line(code: str) -> None:
    words = code.split()
    methods = presets("methods")
    if words[0] == "liftplus":
        assert named(words[1]) is not None
    options = {name for option in named("train").params for name in option.opts} | {"--split"}
    assert {word for word in words if word.startswith("--")} <= options
    if "--method" in words:
        assert words[words.index("--method") + 1] in methods
    if "--backbone" in words:
        assert words[words.index("--backbone") + 1] in presets("backbones")
    if "--data" in words:
        overrides = [word.replace("FOLDER", "x") for word in words if "=" in word]
        config.resolve(data=words[words.index("--data") + 1], overrides=overrides)
    known = {"50", "10", "fp32", "mlp", "both", "species", "log.jsonl"}  # further values of the entry before them
    assert words[0] in ("liftplus", *options, *known), code


def test_defaults_are_theirs() -> None:
    """The first rows show LIFT's and LIFT+'s defaults; the presets have the same."""
    told = {row[-1].strip("`"): row for row in ROWS}
    for method, column in (("lift", 0), ("lift+", 1)):
        train: Any = config.resolve(data="x", backbone="clip_vit_b16", method=method).train
        assert told["train.epochs=5"][column] == f"`num_epochs {train.epochs}`"
        assert told["train.lr=0.02"][column] == f"`lr {train.lr:g}`"
        assert told["train.batch_size=128"][column] == f"`batch_size {train.batch_size}`"


def test_reproduced_figures() -> None:
    """The page's table has the catalogue's figures, and the preset's line those of its experiment."""
    expected = {one.name: one.expected for one in catalogue.load().experiments.values() if one.group == "papers"}
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]*\d[^|]*) \|$", page("reproduce.md"), re.MULTILINE)
    told = {name: [float(number) for number in re.findall(r"\d+\.\d", cell)] for name, cell in rows}
    assert told == {
        name: [number for value in figures.values() for number in dict.fromkeys(value)]
        for name, figures in expected.items()
        if figures
    }
    preset = re.findall(r"[\d.]+", presets("methods")["lift+"]["expected"])
    assert [float(number) for number in preset] == told["imagenet_lt/clip_vit_b16/lift+"]
