#!/usr/bin/env bash
# wandb 0.31.0, offline: `run.finish()` comes back before the run's file is written.
#
# Guess: after `finish()` an offline run lies complete on the disk, so that the next line may read, copy or pack it.
# Behaviour: in about one of 30 runs `run-ID.wandb` holds its header of 7 bytes alone when `finish()` returns; the
# logged values arrive a moment later, when the background service has written them. Nothing says so: the exit code is
# 0 and no call waits for the file. A script that copies the folder straight away copies an empty run.
# Way out: end the process first (its exit waits for the service), or read until the record of the end is there.
#
# Seen with Python 3.11 on Linux: "run 5: 7 bytes after finish(), 1469 half a second later".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet wandb==0.31.0
cd "$folder"
cat > probe.py <<'PROBE'
import sys
import time
from pathlib import Path

import wandb

for number in range(400):
    run = wandb.init(project="probe", mode="offline", dir=".", settings=wandb.Settings(console="off", silent=True))
    run.log({"loss": 0.5})
    run.finish()
    (file,) = Path("wandb").glob(f"offline-run-*/run-{run.id}.wandb")
    at_once = file.stat().st_size
    time.sleep(0.5)
    later = file.stat().st_size
    if at_once < later:
        print(f"run {number}: {at_once} bytes after finish(), {later} half a second later")
        sys.exit(0)
print("in 400 runs every file was complete when finish() returned: the behaviour has changed")
sys.exit(1)
PROBE
WANDB_SILENT=true "$folder/venv/bin/python" probe.py
