"""Lists of names: complete, and printed without importing anything heavy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest

from liftplus import names, registry
from liftplus.backbones import catalogue
from liftplus.data import sources
from liftplus.reproduce import catalogue as experiments
from liftplus.reproduce import needs
from liftplus.reproduce.needs import Outline
from liftplus.reproduce.plan import Plan

from .conftest import Command

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "timm", "open_clip", "transformers", "sklearn", "scipy", "matplotlib", "PIL")
LIGHT = "|".join(
    (
        *("--help", "--version", "info", "info --json", "data --help", "train --help", "report --help"),
        *("reproduce list", "reproduce list --json", "reproduce list small", "compare --help", "classes --help"),
        *(["info --find dinov3"] if names.backbones() is not None else []),
    )
)
SCRIPT = """
import sys
from liftplus import cli
from liftplus.commands import completion
completion.backbones(""), completion.methods(""), completion.experiments(""), completion.data("")
for command in sys.argv[2].split("|"):
    sys.argv = ["liftplus", *command.split()]
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code, command
    found = [name for name in sys.argv[0:0] + HEAVY if name in sys.modules]
    assert not found, (command, found)
"""


def test_commands_that_print_names_import_nothing_heavy() -> None:
    code = SCRIPT.replace("sys.argv[0:0] + HEAVY", repr(list(HEAVY)))
    done = subprocess.run([sys.executable, "-c", code, "-", LIGHT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "adaptformer" in done.stdout and "openmoji_lt" in done.stdout
    assert names.backbones() is None or "timm/vit_small_patch16_dinov3.lvd1689m" in done.stdout


@pytest.mark.parametrize("kind", registry.HOMES)
def test_parts_are_those_that_are_registered(kind: str) -> None:
    own = {name: part for name, part in registry.discover(kind).items() if part.__module__.startswith("liftplus.")}
    assert names.registered(kind) == {
        name: (part.__doc__ or "").strip().splitlines()[0] for name, part in sorted(own.items())
    }


def test_a_users_own_parts_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "own_head_of_mine.py").write_text(
        "from liftplus.model.heads import Cosine\nfrom liftplus.registry import register\n\n\n"
        "@register('head', 'mine_alone')\nclass Mine(Cosine):\n    'A head of my own.'\n"
    )
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "own_head_of_mine.py"))
    assert names.registered("head")["mine_alone"] == "A head of my own."
    registry._PARTS["head"].pop("mine_alone")


def test_data_sets_are_those_that_are_known() -> None:
    assert set(names.DATA_SETS) == set(sources.KNOWN)


def test_backbones_are_the_libraries() -> None:
    assert names.backbones() in (catalogue.find(""), None)


def test_the_kept_lists_are_of_the_pinned_versions() -> None:
    """scripts/list_pretrained.py writes them anew."""
    kept = json.loads((files("liftplus") / "presets" / names.PRETRAINED).read_text(encoding="utf-8"))
    lines = (ROOT / "constraints.txt").read_text().replace("-", "_")
    pinned = dict(re.findall(r"^(\w+)==(\S+)$", lines, re.MULTILINE))
    for library, entry in kept.items():
        assert entry["version"] == pinned[library]
        if entry["version"] == version(library):
            assert len(entry["names"]) > 50


def test_other_versions_ask_the_libraries(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.setattr(names, "_installed", lambda library: "0.0")
    monkeypatch.setattr(catalogue, "find", lambda pattern: ["timm/asked_vit.tag"])
    assert names.backbones() is None
    ended = command("info", "--find", "VIT")
    assert ended.code == 0 and ended.out == "timm/asked_vit.tag\n"


@pytest.mark.parametrize(
    "part", [pytest.param(slice(None, None, 29)), pytest.param(slice(None), marks=pytest.mark.slow)]
)
def test_an_outline_says_what_the_settings_say(part: slice, tmp_path: Path) -> None:
    chosen = tuple(experiments.load().experiments.values())[part]
    plan = Plan(chosen, tmp_path)
    for one in chosen:
        config = plan.config(one, 0)
        settings = Outline(config.backbone.name, config.train.epochs, tuple(config.tuner), config.data.imbalance_ratio)
        found = plan.outline(one)
        assert (found.epochs, found.imbalance_ratio) == (settings.epochs, settings.imbalance_ratio), one.name
        assert needs.estimate(found, one.source) == needs.estimate(settings, one.source), one.name
        assert needs.memory(found) == needs.memory(settings), one.name
        assert plan.root(one) == (None if config.data.root is None else Path(config.data.root))
        assert plan.source(one) == config.data.source
