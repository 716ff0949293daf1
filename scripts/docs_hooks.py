"""MkDocs hooks: reference pages made from the code, equations as MathML, links that leave the docs folder."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

import docs_reference

ROOT = Path(__file__).resolve().parents[1]

# Pages that are made, not written, and a page that lies beside the weights it describes.
MADE = {"commands.md": docs_reference.commands, "settings.md": docs_reference.settings}
CARD = "src/liftplus/weights/mini_clip.md"

_OUTSIDE = re.compile(r"\[[^\]\n]+\]\(\.\./([^)\s]+)\)")
_MATH = re.compile(
    r'<span class="arithmatex">\\\((?P<inline>.*?)\\\)</span>'
    r'|<div class="arithmatex">\s*\\\[(?P<block>.*?)\\\]\s*</div>',
    re.DOTALL,
)


def on_config(config: Any) -> Any:
    """A page that mkdocs.yml does not place comes under More, so that no page is lost."""
    placed = {*re.findall(r"[\w-]+\.md", str(config.nav)), *MADE}
    if others := [path.name for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in placed]:
        config.nav.append({"More": others})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add what is made from the code."""
    for name, make in MADE.items():
        files.append(File.generated(config, name, content=make()))
    card = (ROOT / CARD).read_text(encoding="utf-8")
    files.append(File.generated(config, "mini_clip.md", content=card))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Files beside the docs folder are named, not linked; the card is a page of the site."""
    return _OUTSIDE.sub(r"`\1`", markdown.replace(f"(../{CARD})", "(mini_clip.md)"))


def on_page_content(content: str, **_: Any) -> str:
    """Equations become MathML, which browsers show without a script or a font of ours."""
    return _MATH.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    if match["block"] is None:
        return convert(html.unescape(match["inline"]).strip(), display="inline")
    return f'<div class="equation">{convert(html.unescape(match["block"]).strip(), display="block")}</div>'
