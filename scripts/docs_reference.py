"""Pages of reference made from the code: every command, every setting."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer
from pydantic import BaseModel

from liftplus import config, registry
from liftplus.cli import app

HIDDEN = {"help", "install_completion", "show_completion"}
KINDS = tuple(registry.HOMES)
TITLES = {
    "tuner": "Tuners",
    "loss": "Losses",
    "sampler": "Samplers",
    "head": "Heads",
    "head_init": "First rows of the classifier",
    "augment": "Augmentations",
}


def commands() -> str:
    """Markdown about every command: usage, arguments, options."""
    parts = [
        "# Every command\n",
        "Made from the command line itself; `liftplus COMMAND --help` says the same. "
        "`KEY=VALUE` stands for any of the [settings](settings.md).\n",
    ]
    for name, command in leaves(typer.main.get_command(app)):
        parts.append(f"## liftplus {name}\n\n{prose(command.help)}\n")
        parts.append(f"```text\n{usage(name, command)}\n```\n")
        parts.append(_parameters(command))
    return "\n".join(parts)


def leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Each command that does something, by its words."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, inner in command.commands.items():
        if not inner.hidden:
            yield from leaves(inner, f"{name} {word}".strip())


def usage(name: str, command: Any) -> str:
    """The line that begins the command's help."""
    arguments = [
        f"{' '.join(_spellings(p))}{'...' if p.nargs == -1 and not p.metavar else ''}"
        for p in command.params
        if p.param_type_name == "argument"
    ]
    return " ".join(["liftplus", name, "[OPTIONS]", *arguments])


def _parameters(command: Any) -> str:
    rows = ["| | | by default |", "|---|---|---|"]
    for parameter in command.params:
        if parameter.name in HIDDEN or getattr(parameter, "hidden", False):
            continue
        names = ", ".join(f"`{word}`" for word in _spellings(parameter))
        rows.append(f"| {names} | {prose(getattr(parameter, 'help', ''))} | {_default(parameter)} |")
    return "\n".join(rows) + "\n" if len(rows) > 2 else ""


def _spellings(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        return [parameter.metavar or parameter.name.upper()]
    return [*parameter.opts, *parameter.secondary_opts]


def _default(parameter: Any) -> str:
    if parameter.required:
        return "needed"
    value = parameter.default
    if callable(value) or value in (None, (), [], False) or "Sentinel" in type(value).__name__:
        return ""
    if parameter.secondary_opts:
        return f"`{parameter.opts[0]}`"
    return f"`{value}`"


def settings() -> str:
    """Markdown about every key that `key=value` reaches, with its default and what it means."""
    run = config.RunConfig()
    parts = [
        "# Every setting\n",
        "`key=value` on the command line; made from the code. A key may be written without its section while only one "
        "section has it: `epochs=3` is `train.epochs=3`. Lists and tables are JSON: `'layers=[0, 1]'`. "
        "Methods, backbones and known data sets change some defaults; "
        "`config.json` in a run folder says what was used.\n",
        "## The run\n",
        _table(run, "", [key for key, value in run if not isinstance(value, BaseModel) and key != "tuner"]),
    ]
    for section, value in run:
        if section in KINDS or not isinstance(value, BaseModel):
            continue
        parts += [f"## {section}\n", _table(value, f"{section}.", list(type(value).model_fields))]
    for kind in KINDS:
        parts.append(f"## {TITLES.get(kind, kind)}\n\n`{kind}=NAME` chooses one.\n")
        for name in sorted(registry.discover(kind)):
            parts.append(_part(kind, name))
    return "\n".join(parts)


def _part(kind: str, name: str) -> str:
    part: Any = registry.get(kind, name)
    prefix = f"tuner.{name}." if kind == "tuner" else f"{kind}."
    fields = list(part.model_fields)
    about = prose(inspect.getdoc(part))
    return f"### {name} {{ #{kind}-{name} }}\n\n{about}\n\n{_table(part(), prefix, fields) if fields else ''}"


def _table(owner: BaseModel, prefix: str, fields: list[str]) -> str:
    rows = ["| key | by default | |", "|---|---|---|"]
    for field in fields:
        about = type(owner).model_fields[field].description
        rows.append(f"| `{prefix}{field}` | {_shown(getattr(owner, field))} | {prose(about)} |")
    return "\n".join(rows) + "\n"


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"`{value!r}`".replace("'", "").replace("|", "\\|") if value != "" else ""


def prose(text: str | None) -> str:
    """A docstring or help text as Markdown that shows it as it is, paragraphs kept out of tables' way."""
    words = " ".join((text or "").split())
    return re.sub(r"([|*_\[\\$])", r"\\\1", html.escape(words, quote=False))
