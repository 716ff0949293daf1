"""Files that a user names: their paths, their text and the JSON in them; every error is one sentence."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from liftplus.errors import UserError


def place(path: str) -> Path:
    """A path as the user wrote it, with ~ filled in."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path!r} starts in the home folder of an unknown user; write the path in full.") from error


def content(path: Path, what: str) -> bytes:
    """The bytes of a file; `what` is what an error calls it."""
    try:
        return path.read_bytes()
    except (OSError, ValueError, MemoryError) as error:  # a path that holds a zero byte is a ValueError
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"The {what} {path} cannot be read: {reason}.") from error


def decoded(data: bytes, origin: object) -> str:
    """UTF-8 text, with or without a byte order mark; UTF-16 with one, as Excel's "Unicode text" has it."""
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{origin} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error


def text(path: Path, what: str) -> str:
    """The text of a file, with its line ends unchanged."""
    return decoded(content(path, what), path)


class Pairs(tuple[tuple[str, Any], ...]):
    """A JSON object as (key, value) pairs, with duplicate keys kept."""


def json_pairs(source: str, origin: object) -> Any:
    """The value of a JSON text, its objects as `Pairs`."""
    return _parsed(source, origin, Pairs)


def json_value(source: str, origin: object, *, distinct: bool = False) -> Any:
    """The value of a JSON text; with `distinct`, a key that an object holds twice is refused."""

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if distinct and len(table) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise UserError(f"{origin} has the key {twice!r} twice; keep one of them.")
        return table

    return _parsed(source, origin, as_dict)


def _parsed(source: str, origin: object, made: Callable[[list[tuple[str, Any]]], Any]) -> Any:
    try:
        return json.loads(source, object_pairs_hook=made)
    except (ValueError, RecursionError) as error:  # numbers of over 4300 digits are a ValueError
        raise UserError(f"{origin} is not valid JSON: {error}.") from error


def is_unicode(text: str) -> bool:
    """False for text with lone surrogates, which come from file names of another encoding and from JSON escapes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
