"""The manners of the command line: help, completion, quiet and verbose, exit codes, output for machines."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from liftplus import cli, config, console, names
from liftplus.commands import completion
from liftplus.commands.examples import EXAMPLES
from liftplus.data import sources
from liftplus.training import tracking

from .conftest import Command

QUICK = ("epochs=1", "workers=0", "train.batch_size=8", "tte=false")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal, wide enough; and whatever a test silences speaks again after it."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("_TYPER_FORCE_DISABLE_TERMINAL", "1")
    for stream in (console.out, console.err):
        monkeypatch.setattr(stream, "quiet", False)
    monkeypatch.setattr(console.detail, "quiet", True)


def commands(group: Any = None, prefix: str = "") -> dict[str, Any]:
    """Every command by its full name."""
    found = {}
    for name, one in (group or typer.main.get_command(cli.app)).commands.items():
        found |= commands(one, f"{prefix}{name} ") if hasattr(one, "commands") else {prefix + name: one}
    return found


def test_help_goes_by_the_order_of_the_work(command: Command) -> None:
    ended = command("--help")
    assert ended.code == 0
    places = [ended.out.index(f" {panel} ─") for panel in (cli.LOOK, cli.TRAIN, cli.USE, cli.SHARE)]
    assert places == sorted(places) and "Exit codes: 0 done" in ended.out and "\x1b" not in ended.out
    assert " Commands ─" not in ended.out, "a command without a panel"


@pytest.mark.parametrize("name", commands())
def test_help_of_every_command(name: str, command: Command) -> None:
    """Each says what it does and every option, and ends in commands to copy, which hold."""
    ended = command(*name.split(), "--help")
    about = commands()[name]
    assert ended.code == 0 and (about.help or "").splitlines()[0] in ended.out
    assert all(option.help for option in about.params), [option.name for option in about.params if not option.help]
    for line in EXAMPLES[name]:
        assert line in ended.out
        words = shlex.split(line)[1 + len(name.split()) :]
        assert line.startswith(f"liftplus {name} ") or line == f"liftplus {name}"
        about.make_context(name, list(words))


def test_examples_name_what_there_is() -> None:
    assert set(EXAMPLES) == set(commands())
    for name in ("info", "train", "zeroshot", "eval"):
        for line in EXAMPLES[name]:
            words = [word for word in shlex.split(line) if re.match(r"[\w.]+=", word)]
            config.resolve(overrides=words)


def test_version(command: Command) -> None:
    ended = command("--version")
    assert ended.code == 0 and re.fullmatch(r"liftplus \d+\.\d+\S*\n", ended.out)


def test_quiet_and_verbose_stand_anywhere(photos: Path, command: Command) -> None:
    ended = command("train", "--data", photos, "--out", "a", *QUICK)
    assert "3 classes" in ended.err and "Training" in ended.err and "Settings:" not in ended.err
    for words in (("-q", "zeroshot"), ("zeroshot", "--quiet")):
        ended = command(*words, "--data", photos, "--out", f"b{len(words[0])}")
        assert ended.code == 0 and ended.err == "" and "overall" in ended.out
        console.speak(quiet=False, verbose=False)
    ended = command("eval", "a", "--verbose", "--json")
    assert ended.code == 0 and "device=cpu" in ended.err and "loss.tau=1.0" in ended.err
    assert json.loads(ended.out)["images"] == 6
    ended = command("eval", "nowhere", "-v")
    assert ended.code == 2 and "Traceback" in ended.err and "holds no trained model" in ended.err
    assert "Traceback" not in command("eval", "nowhere").err
    assert "contradict" in command("info", "-q", "-v").err


@pytest.mark.slow
def test_output_for_machines(photos: Path, command: Command, tmp_path: Path) -> None:
    assert json.loads(command("zeroshot", "--data", photos, "--out", "run", "--json").out)["images"] == 6
    found = json.loads(command("predict", "run", photos / "test", "--json", "--top-k", 1).out)
    assert len(found) == 6 and all(len(entry["top"]) == 1 and entry["error"] is None for entry in found)
    ended = command("predict", "run", photos / "test", "--json", "--out", "x.csv")
    assert json.loads(ended.out) == {"file": "x.csv", "images": 6, "unreadable": 0} and (tmp_path / "x.csv").is_file()
    ended = command("prepare", "--data", photos, "--out", "small", "--json")
    assert json.loads(ended.out)["images"] == 25 and json.loads(ended.out)["bytes"] > 0
    assert Path(json.loads(command("report", "run", "--json").out)["page"]).is_file()


def shell(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from liftplus.cli import main; sys.argv[0] = 'liftplus'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=os.environ | variables, check=False
    )


def test_exit_codes() -> None:
    ended = shell("trian")
    assert ended.returncode == 2 and "Did you mean 'train'" in ended.stderr
    fake = "names.parts = lambda: 1 / 0"
    broken = f"from liftplus import names; {fake}; from liftplus.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", broken, "info"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "ZeroDivisionError" in ended.stderr


def test_a_reader_that_goes_away_is_no_mistake() -> None:
    code = "from liftplus import console\nfor _ in range(100_000): console.out.print('line')"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr and process.stdout.readline() == b"line\n"
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(30) == console.READER_GONE and b"Traceback" not in said


def test_completion_of_the_shell() -> None:
    ended = shell(_LIFTPLUS_COMPLETE="complete_bash", COMP_WORDS="liftplus train --backbone clip_vit_b", COMP_CWORD="3")
    assert ended.stdout.split() == ["clip_vit_b32", "clip_vit_b16"]


def test_completion_knows_what_there_is(photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert completion.methods("li") == ["lift+", "lift", "linear_probe", "linear_probe+"]
    assert set(names.DATA_SETS) == set(sources.KNOWN)
    assert set(completion.backbones("")) == set(names.presets("backbones"))
    assert completion.data("open") == ["openmoji_lt"] and completion.data("pho") == ["photos" + os.sep]
    for run in ("runs/a", "runs/deep/b", "c"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / completion.MODEL).touch()
    assert completion.runs("") == ["c", "runs/a", "runs/deep/b"]
    assert completion.runs("runs/") == ["runs/a", "runs/deep/b"] and completion.runs("pho") == ["photos" + os.sep]
    code = "import sys, liftplus.cli, liftplus.commands.completion as c; c.backbones(''); c.runs(''); c.data('');"
    check = "assert not {'torch', 'numpy', 'pydantic', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code + check], check=True)


PAGE = (Path(__file__).resolve().parents[1] / "docs" / "command-line.md").read_text(encoding="utf-8")


def test_commands_of_the_page_are_such() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    first = next(k for k, words in enumerate(lines) if words[0] == "pip")
    install, *rest = lines[first:]
    assert install[:2] == ["pip", "install"] and install[2] == f"liftplus[{','.join(tracking.TRACKERS)}]"
    for words in rest:
        about = commands()[words[1]].make_context(words[1], words[2:])
        chosen = config.resolve(data=about.params["data"], overrides=about.params["overrides"])
        assert set(chosen.track) <= set(tracking.TRACKERS) and chosen.track
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == set(tracking.TRACKERS)
