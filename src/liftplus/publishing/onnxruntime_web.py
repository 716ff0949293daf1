"""ONNX Runtime for browsers, from the npm package onnxruntime-web: one script and one WebAssembly binary, for CPUs."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from liftplus.errors import UserError
from liftplus.machine.disk import folder_of
from liftplus.machine.paths import cache_folder

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
ARCHIVE = f"onnxruntime-web-{VERSION}.tgz"
"""The file that `npm pack` writes of the package."""
SCRIPT, BINARY = "dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"
HASHES = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    BINARY: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""SHA-256 of the files that are used. Those of 1.23 cannot begin on a page that is opened from disk."""
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")
"""Files of the Python package; the npm package, which is made of the same sources, has none."""


@dataclass(frozen=True)
class Runtime:
    """What a page needs of the package.

    Attributes:
        script: a JavaScript module.
        binary: the WebAssembly that it runs.
    """

    script: bytes
    binary: bytes


def licences() -> dict[str, bytes]:
    """The licence texts by file name. Raises UserError where the installed onnxruntime came without them."""
    try:
        return {name: files("onnxruntime").joinpath(name).read_bytes() for name in LICENCES}
    except OSError as error:
        raise UserError(
            f"The installed onnxruntime lacks {' or '.join(LICENCES)}, which the folder must hold. Install the package "
            "from PyPI: pip install --force-reinstall onnxruntime."
        ) from error


def found(place: Path | None, tell: Callable[[str], None]) -> Runtime:
    """The runtime, from disk or by npm.

    Args:
        place: the package's folder or its .tgz; None takes it from the cache, into which npm brings it once.
        tell: is given a sentence before npm is started.

    Raises:
        UserError: there is no npm and nothing in the cache, npm fails, or the files are not those of `VERSION`.
    """
    return read(_archive(tell) if place is None else place)


def read(place: Path) -> Runtime:
    """The runtime in a folder or in an archive of the package.

    Raises:
        UserError: it has not the two files of `VERSION`.
    """
    try:
        held = _unpacked(place) if place.is_dir() else _packed(place)
    except (OSError, EOFError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{str(place)!r} cannot be read as the package onnxruntime-web ({reason}). {_CURE}") from error
    for name, expected in HASHES.items():
        if name not in held:
            raise UserError(f"{str(place)!r} has no {name} of onnxruntime-web. {_CURE}")
        if hashlib.sha256(held[name]).hexdigest() != expected:
            raise UserError(f"{name} in {str(place)!r} is not that of onnxruntime-web {VERSION}. {_CURE}")
    return Runtime(held[SCRIPT], held[BINARY])


_CURE = f"Give --runtime the folder or the .tgz of the npm package {PACKAGE}; `npm pack {PACKAGE}` fetches it."


def _unpacked(folder: Path) -> dict[str, bytes]:
    root = folder / "package" if (folder / "package").is_dir() else folder  # so it is called in an archive
    return {name: (root / name).read_bytes() for name in HASHES if (root / name).is_file()}


def _packed(archive: Path) -> dict[str, bytes]:
    held = {}
    with tarfile.open(archive) as opened:
        for member in opened:
            name = member.name.partition("/")[2]
            content = opened.extractfile(member) if name in HASHES else None
            if content is not None:
                held[name] = content.read()
                if len(held) == len(HASHES):
                    break
    return held


def _archive(tell: Callable[[str], None]) -> Path:
    """The package in the cache."""
    kept = cache_folder() / "onnxruntime-web" / ARCHIVE
    if kept.is_file():
        return kept
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"The page needs the npm package {PACKAGE}, and npm is not installed. Install npm (apt install npm, brew "
            f"install node), or run `npm pack {PACKAGE}` elsewhere and give its file with --runtime {ARCHIVE}."
        )
    tell(f"npm fetches {PACKAGE} (33 MB) once; it is kept in {str(kept.parent)!r}.")
    folder_of(kept)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".npm-") as folder:
        asked = (npm, "pack", PACKAGE, "--ignore-scripts", "--loglevel=error", "--pack-destination", folder)
        ended = subprocess.run(asked, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        made = Path(folder) / ARCHIVE
        if ended.returncode != 0 or not made.is_file():
            said = " ".join(ended.stderr.split())[-300:] or f"exit code {ended.returncode}"
            raise UserError(f"npm could not fetch {PACKAGE} ({said}). {_CURE}")
        read(made)
        made.replace(kept)
    return kept
