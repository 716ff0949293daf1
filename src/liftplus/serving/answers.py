"""Answers in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response


def as_json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that holds `content`."""
    # A name may hold half of a surrogate pair, which UTF-8 cannot hold.
    text = json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
    return Response(text, status, headers, "application/json")


def error(status: int, said: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that says what is the matter; 503 also says when to try again."""
    return as_json({"error": said}, status, {**(headers or {}), **({"Retry-After": "1"} if status == 503 else {})})
