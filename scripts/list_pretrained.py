"""Write presets/pretrained.json: the names of pretrained backbones that the installed timm and open_clip know.

    python scripts/list_pretrained.py

To be run when constraints.txt takes another version of either; tests/test_names.py tells.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from liftplus import names
from liftplus.backbones import catalogue
from liftplus.machine import disk

LIBRARIES = {"timm": "timm/", "open_clip_torch": "open_clip/"}
PATH = Path(names.__file__).parent / "presets" / names.PRETRAINED


def listed() -> dict[str, dict[str, object]]:
    """Version and names of each library."""
    everything = catalogue.find("/")
    return {
        library: {"version": version(library), "names": [name for name in everything if name.startswith(start)]}
        for library, start in LIBRARIES.items()
    }


if __name__ == "__main__":
    disk.write_json(PATH, listed())
