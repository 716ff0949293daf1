"""Many short runs in one process keep no memory, no open files and no threads."""

from __future__ import annotations

import os
import statistics
import threading
from pathlib import Path

import pytest

from .conftest import Command, write_folder

RUNS, FIRST, LAST = 200, 10, 20
STATUS = Path("/proc/self/status")


def resident() -> int:
    """Memory in use, in KiB."""
    return int(next(line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmRSS")))


def held() -> tuple[int, int]:
    """Open files and threads."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="the system does not tell a process's memory this way")
def test_two_hundred_runs(tmp_path: Path, command: Command) -> None:
    """Each trains, tests and writes a folder; every twentieth reads with a loader worker; some fail."""
    write_folder(tmp_path / "photos", {"train": (2, 2, 1), "test": (1, 1, 1)})
    (tmp_path / "bad").mkdir()
    write_folder(tmp_path / "bad", {"train": (2, 2, 1), "test": (1, 1, 1)})
    (tmp_path / "bad" / "test" / "blue sky" / "0.png").write_bytes(b"broken")
    memory, others = [], []
    for number in range(RUNS):
        data, code = ("bad", 2) if number % 10 == 7 else ("photos", 0)
        workers = int(number % 20 == 5)
        given = (f"workers={workers}", "epochs=1", "train.batch_size=8", f"seed={number}", "tte=false", "device=cpu")
        ended = command("train", "--data", data, "--out", f"run{number}", *given)
        assert ended.code == code, ended.err
        memory.append(resident())
        others.append(held())
    before, after = statistics.median(memory[FIRST : FIRST + LAST]), statistics.median(memory[-LAST:])
    print(
        f"{before / 1024:.0f} MiB after {FIRST} runs, {after / 1024:.0f} MiB after {RUNS}; {others[FIRST]} {others[-1]}"
    )
    assert after <= 1.05 * before
    assert max(others[-LAST:]) <= max(others[FIRST : FIRST + LAST])
