"""A browser for the page."""

from __future__ import annotations

from ..report.conftest import driver

__all__ = ["driver"]
