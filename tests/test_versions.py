"""The oldest versions that are allowed are those that `make lowest` tests."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_bounds_are_the_versions_that_are_tested() -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = about["project"]["optional-dependencies"].values()
    wanted = [*about["project"]["dependencies"], *(one for extra in extras for one in extra)]
    bounds = dict(found.groups() for one in wanted if (found := re.match(r"([\w-]+)>=([\d.]+)", one)))
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    assert len(bounds) > 20 and bounds.items() <= tested.items()
