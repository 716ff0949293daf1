"""Get the same bits each time: own random streams, and deterministic kernels on a GPU; both work in threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from liftplus.errors import UserError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_DRAWING = threading.RLock()
_SWITCHING = threading.Lock()
_holders: list[tuple[bool, bool, bool, bool]] = []
"""One entry for each `deterministic` context now open: the switches as they were before the first one."""


@contextmanager
def own_stream(seed: int) -> Iterator[None]:
    """Within this context PyTorch's random numbers are those of `seed`; afterwards the caller's streams go on.

    Libraries draw their first weights from the one generator of the process, so one thread at a time is in here.
    """
    with _DRAWING:
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would leave GPUs' streams moved
            if devices:
                torch.cuda.manual_seed_all(seed)
            yield


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within this context PyTorch uses only algorithms that give the same bits each time; no effect unless `wanted`.

    cuDNN stays on, with its deterministic kernels and without its search for the fastest one. cuBLAS needs a workspace
    of fixed size, which it reads from the environment at its first use in a process.

    Raises:
        UserError: an operation has no such algorithm on this device.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault(WORKSPACE, ":4096:8")
    _switch_on()
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        raise UserError(
            f"deterministic=true cannot be kept: {str(error).split('. ')[0]}. Leave it out, use device=cpu, or choose "
            "another backbone or tuner."
        ) from error
    finally:
        _switch_off()


def _switch_on() -> None:
    """Set the process's switches; the first of several threads saves how they were."""
    cudnn = torch.backends.cudnn
    with _SWITCHING:
        strict = torch.are_deterministic_algorithms_enabled()
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        _holders.append(_holders[0] if _holders else (strict, warns, cudnn.benchmark, cudnn.deterministic))
        torch.use_deterministic_algorithms(True)
        cudnn.benchmark, cudnn.deterministic = False, True


def _switch_off() -> None:
    """Restore the switches, if this is the last of several threads."""
    cudnn = torch.backends.cudnn
    with _SWITCHING:
        strict, warns, *kept = _holders.pop()
        if not _holders:
            torch.use_deterministic_algorithms(strict, warn_only=warns)
            cudnn.benchmark, cudnn.deterministic = kept
