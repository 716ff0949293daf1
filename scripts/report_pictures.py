"""Pictures of a report for docs/images: `python scripts/report_pictures.py REPORT.html`, with Chromium installed."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import browser  # noqa: E402

# Name, width and height, dark, and what stands at the top.
SHOTS = (
    ("desktop-light", (1280, 1100), False, "summary"),
    ("desktop-dark", (1280, 1100), True, "data"),
    ("phone-light", (390, 844), False, "summary"),
    ("phone-dark", (390, 844), True, "accuracy"),
)


def main(page: Path, out: Path) -> None:
    """Take all pictures, in few colours so that they stay small."""
    with tempfile.TemporaryDirectory() as profile, browser.chromium(Path(profile)) as driver:
        for name, size, dark, section in SHOTS:
            browser.look(driver, *size, dark=dark, scale=1 if size[0] > 600 else 2)
            driver.get(page.resolve().as_uri())
            driver.execute_script("document.getElementById(arguments[0]).scrollIntoView(true)", section)
            target = out / f"report-{name}.png"
            browser.picture(driver, target)
            with Image.open(target) as image:
                image.convert("RGB").quantize(128).save(target, optimize=True)
            print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), ROOT / "docs" / "images")
