"""How the C library hands out memory while tensors come and go on a CPU."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's parameters in glibc's malloc.h
_LARGEST_BLOCK, _LARGEST_REST = 2**30, 2**31 - 1
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


@cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones; True where that was done.

    glibc gives blocks of more than 32 MiB back to the system when they are freed, and whatever is free at the heap's
    end. A training step frees and asks for the same blocks again and again, and each time the system maps and clears
    page after page. The process's peak stays as it is; only what it holds between steps grows.

    Other C libraries are left alone, and so is a process whose environment has settings of its own for this.
    """
    asked = any(name in os.environ for name in _OWN_SETTINGS) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if asked or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # glibc before 2.35 takes at most 32 MiB for the first, and ignores more.
    mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
    return bool(mallopt(_TRIM_THRESHOLD, _LARGEST_REST))
