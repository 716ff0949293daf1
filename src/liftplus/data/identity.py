"""Tell whether pictures have changed without reading them: the key of what was computed from them."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections.abc import Sequence

from liftplus.data.dataset import Store

SETTLED = 2.0
"""Seconds that a file must be unchanged before it has an identity: some file systems store times no finer."""


class Trace:
    """A digest of facts about pictures; `newest` is the last change of any of their files, in nanoseconds."""

    def __init__(self) -> None:
        self.digest, self.newest = hashlib.sha256(), 0

    def text(self, text: str) -> None:
        """Add a text."""
        self.digest.update(text.encode(errors="surrogateescape"))

    def file(self, path: str) -> None:
        """Add a file's path, size and times."""
        about = os.stat(path)
        self.text(f"{os.path.abspath(path)}\0{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}\n")
        self.newest = max(self.newest, about.st_mtime_ns, about.st_ctime_ns)


def identity(store: Store, keys: Sequence[str]) -> str | None:
    """A digest that changes when any of the pictures changes; None where that is uncertain.

    Each store's `trace` adds its facts. Stores without one, and files that changed just now, have no identity.
    """
    kind = type(store)
    if "trace" not in vars(kind):  # a subclass may read other pictures than the class whose method it inherits
        return None
    trace = Trace()
    trace.text(repr((kind.__name__, _options(store))))
    try:
        vars(kind)["trace"](store, trace, keys)
    except (OSError, ValueError, IndexError, KeyError, zipfile.BadZipFile):
        return None  # reading the picture reports the reason
    if time.time() - trace.newest / 1e9 < SETTLED:
        return None
    trace.text("\0".join(keys))
    return trace.digest.hexdigest()


def _options(store: Store) -> dict[str, object]:
    """A store's own settings, such as how it decodes."""
    plain = (str, int, float, bool, type(None))
    return {name: value for name, value in vars(store).items() if name[0] != "_" and isinstance(value, plain)}
