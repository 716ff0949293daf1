"""Every command line on every page: it exists, its options exist, its key=value pairs resolve."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click import ClickException

import docs_reference
from doc_pages import LANGUAGES, PAGES, PARTS, ROOT, Line, blocks, lines, named, page, parse
from liftplus import config, registry
from liftplus.backbones import catalogue
from liftplus.errors import UserError
from liftplus.reproduce import catalogue as catalogue_of_experiments
from liftplus.reproduce.plan import Plan
from liftplus.runs import changes
from liftplus.studies import compare, space

OF_A_RUN = ("eval", "calibrate", "predict", "serve", "export")  # their key=value pairs change a finished run's settings
VARIABLES = {registry.VARIABLE, "LIFTPLUS_WEIGHTS", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES"}


@pytest.mark.parametrize("name", list(PAGES))
def test_blocks_say_what_they_are(name: str) -> None:
    """A block without a language would escape every test here."""
    assert {language for language, _ in blocks(name)} <= set(LANGUAGES)


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("name", list(PAGES))
def test_lines(name: str) -> None:
    """A page at a time, as loading the parts of docs/add-a-tuner.md costs more than a line does."""
    wrong = {}
    for line in lines(name):
        try:
            check(line)
        except (AssertionError, ClickException, UserError) as error:
            wrong[line] = str(error)
    assert not wrong


def check(line: str) -> None:
    """Raises what is wrong with a line."""
    parsed = parse(line)
    if parsed is None:
        other(line)
        return
    assert set(parsed.environment) <= VARIABLES
    assert set(filter(None, parsed.environment.get(registry.VARIABLE, "").split(","))) <= set(PARTS)
    resolved(parsed)
    if find := parsed.values.get("find"):
        assert catalogue.find(find)


def resolved(line: Line) -> None:
    """Whatever the line sets is a setting with an allowed value."""
    values = line.values
    overrides = [*(values.get("overrides") or ()), *(values.get("change") or ())]
    given: dict[str, Any] = {key: values[key] for key in ("data", "backbone") if values.get(key)}
    if str(given.get("backbone")).startswith("hf/"):  # what it is stands on the hub
        assert re.fullmatch(r"hf/[\w.-]+/[\w.-]+", given.pop("backbone"))
    method = values.get("method") or "lift+"
    if line.command.startswith("reproduce"):
        words = values.get("words") or values.get("names") or ()
        pairs = tuple(word for word in words if re.match(r"[\w.]+=", word))
        chosen = catalogue_of_experiments.load().select([word for word in words if word not in pairs])
        if line.command == "reproduce run":
            plan = Plan(tuple(chosen), Path("none"), values["data_root"], values["seeds"], pairs)
            plan.check()
            plan.config(chosen[0], 0)
    elif line.command == "sweep":
        space.read(values["data"], values["backbone"], method, overrides, fixed=(*changes.FREE, "method"))
    elif line.command == "compare":
        entries = tuple(compare.entries(values["methods"]))
        compare.Comparison(values["data"], values["backbone"], entries, values["seeds"], tuple(overrides)).check()
    elif line.command in OF_A_RUN:
        config.changed(config.resolve(**given).to_dict(), overrides)
    else:
        config.resolve(**given, method=method, overrides=overrides)


def other(line: str) -> None:
    """A line that is not liftplus's own is of a kind that can be checked."""
    words = [word for word in line.split() if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    elif words[:2] == ["pip", "install"]:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        for extras in re.findall(r"\[([\w,-]+)\]", line):
            assert set(extras.split(",")) <= set(known)
    elif words[0] == "curl":
        assert words[-1].startswith("http://localhost:8000/")  # test_serve.py runs it
    elif words[0] == "python":
        script = words[words.index("pytest") + 1] if "pytest" in words else words[1]
        assert (ROOT / script).is_file()
        source = (ROOT / script).read_text(encoding="utf-8")
        if "pytest" not in words:
            imported = [
                ROOT / "benchmarks" / f"{found}.py" for found in re.findall(r"^(?:from|import) (\w+)", source, re.M)
            ]
            source += "".join(path.read_text(encoding="utf-8") for path in imported if path.is_file())
            assert all(f'"{option}"' in source for option in re.findall(r"--[\w-]+", line)), line
    else:
        assert is_slurm(line), f"teach this test what {line!r} is"


def is_slurm(line: str) -> bool:
    return line.startswith("first=$(scontrol ")


def prose(name: str) -> str:
    """A page without its blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", page(name), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", list(PAGES))
def test_commands_within_sentences(name: str) -> None:
    """`liftplus …` in running text names commands and options that exist."""
    text = prose(name)
    for code in re.findall(r"`(?:\w+=\S+ )?liftplus ([^`]+)`", text):
        words = [word for word in code.split() if word.islower() and word.isalpha()]
        found = next((named(" ".join(words[:n])) for n in (2, 1) if named(" ".join(words[:n]))), None)
        assert found is not None or code.split()[0] in ("…", "COMMAND", "--help"), code
        spellings = {name for option in getattr(found, "params", ()) for name in (*option.opts, *option.secondary_opts)}
        assert set(re.findall(r"--[a-z][\w-]*", code)) <= spellings | {"--help"}, code
        assert all(catalogue.find(word) for word in re.findall(r"--find (\w+)", code)), code


@pytest.mark.parametrize("name", [name for name in PAGES if name != "log.md"])
def test_keys_within_sentences(name: str) -> None:
    """`section.key=…` in running text is a setting."""
    text = prose(name)
    sections = "data|backbone|train|evaluation|head|head_init|loss|augment|sampler"
    known = set(re.findall(r"^\| `([\w.]+)` \|", docs_reference.settings(), re.MULTILINE))
    for key in re.findall(rf"`((?:{sections}|tuner\.\w+)\.\w+)(?:=[^`]*)?`", text):
        is_file = key.endswith((".py", ".md", ".toml", ".json", ".txt", ".safetensors"))
        assert key in known or is_file or key.startswith("tuner.NAME."), key


def test_reference_pages_hold_everything(tmp_path: Path) -> None:
    made = docs_reference.commands()
    assert re.findall(r"^## liftplus (.+)$", made, re.MULTILINE) == [
        name for name, _ in docs_reference.leaves(named(""))
    ]
    for wanted in ("`--per-class`", "liftplus data inspect", "`--tte`, `--one-crop`"):
        assert wanted in made
    settings = docs_reference.settings()
    flat = config.flat(config.resolve(data="x"))
    keys = {key for key in flat if not key.endswith(".name") or key == "backbone.name"}
    assert keys <= set(re.findall(r"^\| `([\w.]+)` \|", settings, re.MULTILINE))
    for kind in docs_reference.KINDS:
        for part in registry.discover(kind):
            assert f"### {part} {{ #{kind}-{part} }}" in settings
