"""The site builds without a warning, asks for nothing from elsewhere, and shows its equations."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from doc_pages import ROOT

pytest.importorskip("mkdocs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    ended = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0 and "WARNING" not in ended.stderr, ended.stderr
    return folder


@pytest.mark.slow
def test_nothing_comes_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"(.*?)\"", text)
        loaded += re.findall(r"<link[^>]*rel=\"(?:stylesheet|preconnect|icon)\"[^>]*href=\"(.*?)\"", text)
        loaded += re.findall(r"<link[^>]*href=\"([^\"]*)\"[^>]*rel=\"(?:stylesheet|preconnect|icon)\"", text)
        assert loaded and not [address for address in loaded if "//" in address], page.name


@pytest.mark.slow
def test_equations_are_shown(site: Path) -> None:
    text = (site / "method.html").read_text(encoding="utf-8")
    assert text.count("<math") > 20
    article = re.sub(r"<code.*?</code>", "", text[text.index("<article") : text.index("</article>")], flags=re.DOTALL)
    assert "arithmatex" not in text and "\\frac" not in text and "$" not in article
