"""The user's paths: fill in `~` everywhere, and find the one folder for caches."""

from __future__ import annotations

import os
import re
from pathlib import Path

import platformdirs

_PATH = re.compile(r"((?:-{1,2}|)[\w.+-]+=)?(~.*)", re.DOTALL)


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~` filled in."""
    return Path(os.path.expanduser(path))


def expanded_word(word: str) -> str:
    """A word of the command line with `~` filled in; shells do not do so behind `=` or within quotes."""
    found = _PATH.fullmatch(word)
    return word if found is None else (found[1] or "") + os.path.expanduser(found[2])


def cache_folder() -> Path:
    """Folder of files that can be made or fetched again: $LIFTPLUS_CACHE, else the system's cache folder."""
    given = os.environ.get("LIFTPLUS_CACHE")
    return expanded(given) if given else platformdirs.user_cache_path("liftplus", appauthor=False, opinion=False)
