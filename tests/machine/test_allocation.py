"""The C library keeps the memory of freed tensors on a CPU, unless the environment asks otherwise."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

CODE = """
import json, resource
import torch
from liftplus.machine import allocation, runtime
def blocks():
    for _ in range(10):
        torch.ones(10 * 2**20)  # 40 MiB
blocks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
blocks()
plain = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
runtime.choose("cpu")
blocks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
blocks()
kept = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps([plain, kept, allocation.keep_freed_memory()]))
"""
GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library hands out memory")


def faults(**settings: str) -> list[int]:
    """Page faults of ten blocks of 40 MiB before and after a CPU was chosen, and whether memory is kept."""
    names = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "THP_MEM_ALLOC_ENABLE")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(names)}
    ran = subprocess.run(
        [sys.executable, "-c", CODE], env=environment | settings, capture_output=True, text=True, check=True
    )
    return json.loads(ran.stdout)


@pytest.mark.slow
@GLIBC
def test_freed_memory_is_used_again_without_new_pages() -> None:
    _, kept, done = faults()
    assert done and kept < 10 * 40 * 2**20 / 4096 / 50


@pytest.mark.slow
@GLIBC
@pytest.mark.parametrize(
    "settings",
    [{"MALLOC_MMAP_THRESHOLD_": "1048576"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"}],
)
def test_settings_of_the_environment_win(settings: dict[str, str]) -> None:
    plain, kept, done = faults(**settings)
    assert not done and kept == pytest.approx(plain, rel=0.2, abs=500)
