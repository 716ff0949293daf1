"""`data inspect` and the start of `train` on a list as long as iNaturalist 2018's, another build beside this one.

    python benchmarks/large_list.py --base OTHER/src --repeats 1 --out benchmarks/results/cpu-large-list.json

It makes a folder of small JPEGs, no two alike, in a long tail of classes, and the list that names them. A few are
planted: empty, cut off, damaged in the header, no picture at all, doubles. `--side` and `--pictures` make fewer and
larger ones; `--photos` copies real JPEGs of a folder or zip instead of noise. Every command is a fresh process; the
builds take turns. The rows of `inspect` give wall and CPU seconds, peak memory, and whether all that was planted was
found; `inspect again` begins with what the one before it kept on disk, `kept_bytes`. The rows of `train` give the
seconds to the end of the first step with this list and with 1,000 of its pictures, both with all classes;
`run_folder_bytes` is what the run folder holds by then.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import harness
import startup
from liftplus.data.config import DataConfig
from liftplus.data.sources import load
from liftplus.data.stores import ByteStore
from liftplus.machine import runtime

CLASSES, PICTURES = 8142, 437_513  # of iNaturalist 2018's training split
FEW = 1000
TEMPLATES = 200
# By way of a small process: a process counts the memory of the one that it was forked from as its own.
LAUNCHER = """
import json, os, subprocess, sys, time
began = time.perf_counter()
child = subprocess.Popen(sys.argv[2:])
_, status, used = os.wait4(child.pid, 0)
seconds = time.perf_counter() - began
peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
figures = {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_bytes": peak}
with open(sys.argv[1], "w") as out:
    json.dump(figures, out)
sys.exit(os.waitstatus_to_exitcode(status))
"""
KEYS = ["train.epochs=1", "recipe=paper", "device=cpu", "train.workers=0"]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = harness.parser(__doc__)
    parser.add_argument("--base", type=Path, help="the src folder of another build")
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--side", type=int, default=32, help="pixels")
    parser.add_argument("--photos", help="a data set whose JPEGs are copied instead")
    parser.add_argument("--keep", type=Path, help="make the pictures here and leave them")
    parser.add_argument("--parts", nargs="*", default=("inspect", "train"))
    parser.set_defaults(repeats=1)
    return parser.parse_args(argv)


def counts(pictures: int, classes: int) -> list[int]:
    """Pictures of each class, at least one: a geometric tail from 500 to 1, scaled."""
    shares = 500.0 ** -np.linspace(0, 1, classes)
    ends = np.rint(np.cumsum(shares) / shares.sum() * (pictures - classes)).astype(int)
    return [1 + int(size) for size in np.diff(ends, prepend=0)]


def jpegs(args: argparse.Namespace) -> list[bytes]:
    """What the pictures are made of."""
    if args.photos:
        dataset = load(DataConfig(source=args.photos))
        assert isinstance(dataset.store, ByteStore)
        found = [dataset.store.read(key) for key in dataset.splits["train"].keys]
        return [data for data in found if data.startswith(b"\xff\xd8\xff")][:TEMPLATES]
    rng = np.random.default_rng(0)
    made = []
    for _ in range(TEMPLATES):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        out = io.BytesIO()
        coarse.resize((args.side, args.side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=75)
        made.append(out.getvalue())
    return made


def numbered(data: bytes, number: int) -> bytes:
    """The same picture with a comment that no other has."""
    comment = f"{number:08d}".encode()
    return data[:2] + b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment + data[2:]


def make(folder: Path, args: argparse.Namespace) -> dict[str, int]:
    """Write pictures and lists; returns how many of each kind were planted."""
    templates = jpegs(args)
    rows, number = [], 0
    for label, size in enumerate(counts(args.pictures, args.classes)):
        (folder / f"{label:04d}").mkdir(parents=True)
        for _ in range(size):
            key = f"{label:04d}/{number:06d}.jpg"
            (folder / key).write_bytes(numbered(templates[number % len(templates)], number))
            rows.append((key, label))
            number += 1
    rng = np.random.default_rng(1)
    chosen = [rows[k][0] for k in sorted(rng.choice(len(rows), 60, replace=False))]
    for key in chosen[:10]:
        (folder / key).write_bytes(b"")
    for key in chosen[10:20]:  # at the end
        whole = (folder / key).read_bytes()
        (folder / key).write_bytes(whole[: len(whole) - 12])
    for key in chosen[20:30]:  # in the middle
        whole = (folder / key).read_bytes()
        (folder / key).write_bytes(whole[: len(whole) * 2 // 3])
    for key in chosen[30:40]:  # in the table of Huffman codes
        whole = (folder / key).read_bytes()
        place = whole.index(b"\xff\xc4") + 5
        (folder / key).write_bytes(whole[:place] + b"\xff" * 16 + whole[place + 16 :])
    for key, other in zip(chosen[40:50], chosen[50:60], strict=True):
        shutil.copyfile(folder / key, folder / other)
    sound = [row for row in rows if row[0] not in set(chosen[:40])]  # training stops at a picture that it cannot read
    for name, listed in (("whole", rows), ("all", sound), ("few", sound[:: max(1, len(sound) // FEW)][:FEW])):
        (folder / f"{name}.txt").write_text("".join(f"{key} {label}\n" for key, label in listed))
    (folder / "names.txt").write_text("".join(f"kind {label}\n" for label in range(args.classes)))
    return {"unreadable": 40, "duplicates": 10}


def timed(command: Sequence[str], source: Path | None) -> tuple[str, dict[str, float]]:
    """What a fresh Python prints, its wall and CPU seconds, and the largest memory of one process of it."""
    environment = os.environ | {"PYTHONPATH": str(source or Path(__file__).parents[1] / "src")}
    with tempfile.NamedTemporaryFile("r") as figures:
        given = [sys.executable, "-c", LAUNCHER, figures.name, sys.executable, *command]
        ended = subprocess.run(given, stdout=subprocess.PIPE, text=True, env=environment, check=False)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)[-200:]} failed: {ended.stdout[-2000:]}")
        used: dict[str, float] = json.load(figures)
    return ended.stdout, used


def inspected(folder: Path, cache: str, source: Path | None, planted: dict[str, int]) -> dict[str, float]:
    """One run of `data inspect` with this folder for caches; all that was planted must be found."""
    os.environ["LIFTPLUS_CACHE"] = cache
    text, used = timed(["-m", "liftplus", "data", "inspect", "--data", str(folder / "whole.txt"), "--json"], source)
    found = json.loads(text)
    assert {name: len(found[name]) for name in planted} == planted, {name: len(found[name]) for name in planted}
    kept = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
    return used | {"kept_bytes": float(kept)}


def first_step(folder: Path, name: str) -> dict[str, float]:
    """One run of `train` up to the end of its first step."""
    with tempfile.TemporaryDirectory() as run:
        data = ["--data", str(folder / f"{name}.txt"), "--backbone", "mini_clip", "--out", f"{run}/run"]
        names = f"data.class_names={folder}/names.txt"
        text, used = timed(["-c", startup.CHILD, "", str(time.time()), "train", *data, *KEYS, names], None)
        size = sum(path.stat().st_size for path in Path(run).rglob("*") if path.is_file())
        return used | json.loads(text.splitlines()[-1]) | {"run_folder_bytes": float(size)}


def rows(args: argparse.Namespace, folder: Path, record: dict[str, Any]) -> None:
    """All runs in turns; the record is written after each."""
    planted = make(folder, args)
    record["planted"] = planted
    builds = {"base": args.base, "this": None} if args.base else {"this": None}
    taken: dict[str, list[dict[str, float]]] = {}

    def note(name: str, used: dict[str, float]) -> None:
        taken.setdefault(name, []).append(used)
        print(name, {key: harness.significant(value) for key, value in used.items()}, flush=True)
        record["rows"] = [
            {"name": name, "turns": len(runs)} | {key: harness.spread([run[key] for run in runs]) for key in runs[0]}
            for name, runs in taken.items()
        ]
        harness.write(args.out, record)

    for _ in range(args.repeats):
        for name, source in builds.items() if "inspect" in args.parts else ():
            with tempfile.TemporaryDirectory() as cache:
                note(f"inspect, {name}", inspected(folder, cache, source, planted))
                if source is None:
                    note("inspect again", inspected(folder, cache, source, planted))
        for name in ("few", "all") if "train" in args.parts else ():
            note(f"train, {name}", first_step(folder, name))
    compared = (("inspect, base", "inspect, this"), ("inspect, this", "inspect again"), ("train, all", "train, few"))
    for name, other in compared:
        if name in taken and other in taken:
            pairs = zip(taken[name], taken[other], strict=True)
            record[f"{name} / {other}"] = harness.spread([one["seconds"] / two["seconds"] for one, two in pairs])
    harness.write(args.out, record)


def main() -> None:
    args = parse()
    record = harness.about(args, runtime.choose("cpu"))
    if args.keep:
        rows(args, args.keep, record)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows(args, Path(folder), record)


if __name__ == "__main__":
    main()
