"""The parts that docs/add-a-tuner.md writes, loaded as it tells; whatever a test registers is gone after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from doc_pages import PARTS, ROOT
from liftplus import registry


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test registers is gone after it."""
    monkeypatch.delenv(registry.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for kind in registry.HOMES:
        registry.discover(kind)
    parts = {kind: dict(members) for kind, members in registry._PARTS.items()}
    modules = set(sys.modules)
    registry._load_announced.cache_clear()
    yield
    for kind, members in parts.items():
        registry._PARTS[kind].clear()
        registry._PARTS[kind].update(members)
    for name in set(sys.modules) - modules:
        origin = getattr(sys.modules[name], "__file__", None) or ""
        if not origin.startswith((str(ROOT), sys.prefix, sys.base_prefix)):
            del sys.modules[name]
    registry._load_announced.cache_clear()


@pytest.fixture
def written(own_registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The page's files, loaded the way it tells."""
    paths = [tmp_path / name for name in PARTS]
    for path in paths:
        path.write_text(PARTS[path.name], encoding="utf-8")
    monkeypatch.setenv(registry.VARIABLE, ",".join(map(str, paths)))
    return paths
