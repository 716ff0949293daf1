"""The registry's ways in: files, modules, announced packages."""

from __future__ import annotations

import multiprocessing
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from doc_pages import PARTS, page
from liftplus import registry
from liftplus.errors import UserError

from ..conftest import Command

pytestmark = pytest.mark.usefixtures("own_registry")


def test_a_package_announces_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_package.py").write_text(PARTS["ia3.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    asked = []

    def announced(group: str) -> list[EntryPoint]:
        asked.append(group)
        return [EntryPoint("ia3", "their_package", group)]

    monkeypatch.setattr(registry, "entry_points", announced)
    assert registry.get("tuner", "ia3").__module__ == "their_package"
    registry.get("loss", "focal")
    assert asked == ["liftplus.parts"]
    announcement = re.search(
        r"```toml\n\[project\.entry-points\.\"(.*?)\"\]\nia3 = \"(.*?)\"\n```", page("add-a-tuner.md")
    )
    assert announcement and announcement[1] == registry.GROUP


def test_a_package_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint("theirs", "gone_package", group)])
    for _ in range(2):
        with pytest.raises(UserError, match=r"entry point theirs = gone_package of liftplus\.parts .*No module named"):
            registry.get("tuner", "lora")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import liftplus\n1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def broken(:\n", "SyntaxError: .*line 1"),
        ("import package_that_is_not_there\n", "ModuleNotFoundError: No module named 'package_that_is_not_there'"),
        ("from liftplus.registry import register\nregister('tuners', 'x')\n", "Unknown kind .*'tuners'.*'tuner'"),
        (
            "from liftplus.registry import Component, register\n"
            "@register('tuner', 'lora')\nclass Mine(Component):\n    pass\n",
            r"Two .* tuner 'lora': liftplus\.tuners\.lora\.LoRA and mine\.Mine\. .*another name",
        ),
    ],
)
def test_a_file_that_fails_is_named(text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "mine.py"))
    with pytest.raises(UserError, match=rf"mine\.py', which LIFTPLUS_PARTS names, cannot be loaded: {reason}"):
        registry.discover("tuner")
    monkeypatch.delenv(registry.VARIABLE)
    assert registry.get("tuner", "lora").__module__ == "liftplus.tuners.lora"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("gone.py", "no file .*gone.py"),
        ("gone", "'gone'. To load a file, give its path"),
        ("json.py", "another module"),
    ],
)
def test_names_that_lead_nowhere(given: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(registry.VARIABLE, given)
    with pytest.raises(UserError, match=reason):
        registry.discover("loss")


def test_the_command_line_tells_of_a_broken_part(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.VARIABLE, "gone.py")
    ended = command("info")
    assert ended.code == 2 and "Error: 'gone.py', which LIFTPLUS_PARTS names" in ended.err


def test_importing_again_is_allowed(written: list[Path]) -> None:
    before = registry.get("tuner", "ia3")
    del sys.modules["ia3"]
    registry._load_announced.cache_clear()
    after = registry.get("tuner", "ia3")
    assert after is not before and after.__module__ == before.__module__ == "ia3"
    assert len(written) == 3


def test_files_beside_each_other_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks, doubled commas and a module by name are fine; a folder of one's own is found by its path from here."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "ia3.py").write_text(PARTS["ia3.py"], encoding="utf-8")
    (tmp_path / "by_name.py").write_text(PARTS["repeat_factor.py"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(registry.VARIABLE, " parts/ia3.py,, by_name ")
    assert "ia3" in registry.discover("tuner")
    assert "repeat_factor" in registry.discover("sampler")


@pytest.mark.slow
def test_parts_from_a_file_reach_spawned_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "from liftplus.data.transforms import NoAugment",
        "from liftplus.registry import register",
        "@register('augment', 'still')",
        "class Still(NoAugment):",
        "    '''Nothing changes.'''",
    ]
    (tmp_path / "still.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "still.py"))
    part = registry.get("augment", "still")()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(repr, (part,)) == "Still()"
