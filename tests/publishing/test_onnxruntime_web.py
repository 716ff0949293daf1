"""The runtime for browsers: from a folder, an archive or npm, always the files that were tested; else one sentence."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

import web_runtime
from doc_pages import page
from liftplus.errors import UserError
from liftplus.publishing import onnxruntime_web
from liftplus.publishing.onnxruntime_web import ARCHIVE, BINARY, SCRIPT, Runtime
from web_runtime import FILES

EXPECTED = Runtime(FILES[SCRIPT], FILES[BINARY])


def quiet(said: str) -> None:
    """For sentences that a test does not read."""


def npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """The only program that there is."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_folder_and_an_archive_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = web_runtime.made_up(monkeypatch, tmp_path)
    assert onnxruntime_web.found(archive, quiet) == EXPECTED
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    assert onnxruntime_web.found(tmp_path / "unpacked", quiet) == EXPECTED
    assert onnxruntime_web.found(tmp_path / "unpacked" / "package", quiet) == EXPECTED


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web_runtime.made_up(monkeypatch, tmp_path)
    (tmp_path / "text.tgz").write_text("no archive")
    (tmp_path / "folder").mkdir()
    given = {
        tmp_path / "nowhere.tgz": "No such file",
        tmp_path / "text.tgz": "cannot be read as the package",
        tmp_path / "folder": f"has no {SCRIPT}",
        web_runtime.archive(tmp_path / "half.tgz", {SCRIPT: FILES[SCRIPT]}): f"has no {BINARY}",
        web_runtime.archive(tmp_path / "old.tgz", {**FILES, BINARY: b"older"}): f"{BINARY} in .* is not that of",
    }
    for place, said in given.items():
        with pytest.raises(UserError, match=said) as refused:
            onnxruntime_web.found(place, quiet)
        assert str(refused.value).endswith(f"`npm pack {onnxruntime_web.PACKAGE}` fetches it.")
    whole = (tmp_path / ARCHIVE).read_bytes()
    for end in (10, len(whole) // 2):
        (tmp_path / "cut.tgz").write_bytes(whole[:end])
        with pytest.raises(UserError, match="--runtime"):
            onnxruntime_web.found(tmp_path / "cut.tgz", quiet)


def test_npm_brings_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = web_runtime.made_up(monkeypatch, tmp_path)
    copies = f'for last; do :; done; echo "$@" >> {tmp_path}/asked; /bin/cp {archive} "$last"'
    npm(tmp_path / "bin", monkeypatch, copies)
    told: list[str] = []
    for _ in range(2):
        assert onnxruntime_web.found(None, told.append) == EXPECTED
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    assert asked.startswith(f"pack {onnxruntime_web.PACKAGE} --ignore-scripts ")
    assert len(told) == 1 and str(tmp_path / "cache") in told[0]
    kept = tmp_path / "cache" / "onnxruntime-web"
    assert [path.name for path in kept.iterdir()] == [ARCHIVE]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'npm error network is unreachable' >&2; exit 1", "network is unreachable"),
        ("exit 3", "exit code 3"),
        ("exit 0", "exit code 0"),
        ('for last; do :; done; echo other > "$last"/' + ARCHIVE, "cannot be read as the package"),
    ],
)
def test_what_npm_cannot_bring_is_not_kept(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm(tmp_path / "bin", monkeypatch, script)
    with pytest.raises(UserError, match=said):
        onnxruntime_web.found(None, quiet)
    assert os.listdir(tmp_path / "cache" / "onnxruntime-web") == []


def test_without_npm_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"npm is not installed.*`npm pack onnxruntime-web@.*--runtime"):
        onnxruntime_web.found(None, quiet)
    assert not (tmp_path / "cache").exists()


def test_the_documentation_names_this_version() -> None:
    named = re.findall(r"onnxruntime-web[ @-](\d[\d.]*\d)", page("export.md"))
    assert len(named) >= 3 and set(named) == {onnxruntime_web.VERSION}


def test_licences_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    texts = onnxruntime_web.licences()
    assert b"Permission is hereby granted" in texts["LICENSE"] and len(texts["ThirdPartyNotices.txt"]) > 10_000
    monkeypatch.setattr(onnxruntime_web, "files", lambda _name: tmp_path)
    with pytest.raises(UserError, match="pip install"):
        onnxruntime_web.licences()
