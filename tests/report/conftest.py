"""A browser for the tests that open the page; in CI it must be there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

import browser


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    reason = browser.missing()
    if reason and os.environ.get("CI"):
        pytest.fail(f"{reason}; CI must not leave these tests out")
    if reason:
        pytest.skip(reason)
    with browser.chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found
