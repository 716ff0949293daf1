"""The npm package onnxruntime-web for tests: a made-up one, or the real one, which CI must have."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from liftplus.errors import UserError
from liftplus.publishing import onnxruntime_web

FILES = {onnxruntime_web.SCRIPT: b"export const env = {};", onnxruntime_web.BINARY: b"\0asm" + bytes(1000)}


def made_up(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """An archive as npm makes it, whose two files liftplus takes for the right ones."""
    monkeypatch.setattr(
        onnxruntime_web, "HASHES", {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    )
    return archive(folder / onnxruntime_web.ARCHIVE, {"README.md": b"read me", **FILES})


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


def real(cache: Path) -> None:
    """Have npm bring the package into a cache. Without npm or its registry the test is skipped, and fails in CI."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIFTPLUS_CACHE", str(cache))
        try:
            onnxruntime_web.found(None, print)
        except UserError as error:
            if os.environ.get("CI"):
                pytest.fail(f"{error} CI must not leave these tests out")
            pytest.skip(str(error))
