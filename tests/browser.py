"""Chromium without a window, for the tests of the page and for the pictures in docs/."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


def missing() -> str | None:
    """What is not installed, or None."""
    wanted = ("chromium", "chromedriver")
    gone = [name for name in wanted if shutil.which(name) is None]
    return f"{' and '.join(gone)} not installed" if gone else None


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A browser with a new profile, its console and network watched."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.binary_location = str(shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(
        executable_path=shutil.which("chromedriver"), env={**os.environ, "HOME": str(profile)}
    )
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


def look(driver: Any, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
    """A screen of that size in CSS pixels, and the system's colours."""
    size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})


def picture(driver: Any, path: Path, whole: bool = False) -> None:
    """What the screen shows, or the whole page, as PNG."""
    taken = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole} | _clip(driver, whole)
    )
    path.write_bytes(base64.b64decode(taken["data"]))


def _clip(driver: Any, whole: bool) -> dict[str, Any]:
    if not whole:
        return {}
    width, height = driver.execute_script("return [innerWidth, document.documentElement.scrollHeight]")
    return {"clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}}
