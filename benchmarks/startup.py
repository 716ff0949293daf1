"""Seconds and processor time of a fresh process from its start to the first step of `liftplus train`, stage by stage.

    python benchmarks/startup.py --repeats 3 --out benchmarks/results/startup.json

`without` are packages that the process is told are not installed: those of the development environment that a user need
not have, and that timm and open_clip import where they find them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from liftplus.results import write_json

CHILD = """
import json, os, sys, time
began = time.time()
stages = {}
for absent in filter(None, os.environ["ABSENT"].split(",")):
    sys.modules[absent] = None
def note(name):
    times = os.times()
    stages[name] = {"seconds": round(time.time() - began, 2), "processor": round(times.user + times.system, 2)}
import gc
gc.set_threshold(50_000)  # as `cli.main` does
from liftplus import cli, runs, train
note("imports")
def after(owner, attribute, name, last=False):
    plain = getattr(owner, attribute)
    def wrapped(*args, **kwargs):
        result = plain(*args, **kwargs)
        note(name)
        if last:
            print(json.dumps(stages), flush=True)
            os._exit(0)
        return result
    setattr(owner, attribute, wrapped)
after(runs.Session, "data", "data")
after(runs.Session, "model", "model")
after(train.Step, "__call__", "first step", last=True)
sys.argv = ["liftplus", *sys.argv[1:]]
cli.main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", default="openmoji_lt")
    parser.add_argument("--without", nargs="*", default=["transformers", "wandb"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs = []
    environment = os.environ | {"ABSENT": ",".join(args.without)}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            given = ["train", "--data", args.data, "--out", f"{folder}/run", "train.epochs=1", "device=cpu"]
            ended = subprocess.run(
                [sys.executable, "-c", CHILD, *given], capture_output=True, text=True, check=False, env=environment
            )
        if ended.returncode:
            sys.exit(ended.stderr[-2000:])
        runs.append(json.loads(ended.stdout.splitlines()[-1]))
        runs[-1]["load"] = round(os.getloadavg()[0], 1)
        print(runs[-1], flush=True)
    if args.out is not None:
        about = {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "cores": os.cpu_count(),
            "without": args.without,
        }
        write_json(args.out, about | {"runs": runs})


if __name__ == "__main__":
    main()
