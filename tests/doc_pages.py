"""The documentation as tests read it: its pages, their blocks, the command lines in them."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from liftplus import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": ROOT / "README.md"} | {path.name: path for path in sorted((ROOT / "docs").glob("*.md"))}
LANGUAGES = ("sh", "python", "toml", "text", "json", "csv")

# A torchrun line, up to the module that it starts.
_STARTER = re.compile(r"(?:srun )?torchrun .*? -m (?=liftplus)")


def page(name: str) -> str:
    """The text of a page."""
    return PAGES[name].read_text(encoding="utf-8")


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block of a page, those within lists included."""
    found = re.findall(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```$", page(name), re.MULTILINE | re.DOTALL)
    return [(language, textwrap.dedent(content)) for _, language, content in found]


# Files that docs/add-a-tuner.md tells to save, by name.
PARTS = dict(re.findall(r"^Save this as `(\w+\.py)`:\n\n```python\n(.*?)^```", page("add-a-tuner.md"), re.M | re.S))


def lines(name: str) -> list[str]:
    """Each command line of a page's sh blocks, continued lines joined, comments and blank lines left out."""
    found = []
    for language, content in blocks(name):
        if language == "sh":
            for line in content.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith("#"):
                    found.append(" ".join(line.split("  #")[0].split()))
    return found


@dataclass
class Line:
    """A liftplus command line, parsed by the command line's own parser.

    Attributes:
        command: its words, such as "data inspect".
        words: what follows them.
        values: what the parser made of it, by the command's own parameter names.
        environment: variables set in front of it.
        starter: a torchrun line in front of it, or "".
    """

    command: str
    words: list[str]
    values: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    starter: str = ""


def parse(text: str) -> Line | None:
    """A line that starts liftplus, parsed; None for others. The parser refuses unknown options and wrong values."""
    starter = match[0] if (match := _STARTER.match(text)) else ""
    words = shlex.split(text.removeprefix(starter))
    environment = {}
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    if not words or words.pop(0) != "liftplus":
        return None
    command: Any = typer.main.get_command(cli.app)
    path = []
    while hasattr(command, "commands"):
        path.append(words.pop(0))
        assert path[-1] in command.commands, f"no command {' '.join(path)!r}"
        command = command.commands[path[-1]]
    context = command.make_context(" ".join(path), list(words))
    return Line(" ".join(path), words, context.params, environment, starter)


def named(command: str) -> Any:
    """The click command of these words, None where there is none."""
    found: Any = typer.main.get_command(cli.app)
    for word in command.split():
        found = getattr(found, "commands", {}).get(word)
        if found is None:
            return None
    return found
