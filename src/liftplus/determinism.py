"""The same bits each time, on a GPU too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from liftplus.errors import UserError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """While this lasts, PyTorch takes only algorithms that give the same bits each time; nothing where not wanted.

    cuDNN stays on, with its deterministic kernels and without its search for the fastest one. cuBLAS needs a workspace
    of fixed size, which it reads from the environment at its first use in a process.

    Raises:
        UserError: an operation has no such algorithm on this device.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault(WORKSPACE, ":4096:8")
    cudnn = torch.backends.cudnn
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    kept = cudnn.benchmark, cudnn.deterministic
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark, cudnn.deterministic = False, True
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
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        cudnn.benchmark, cudnn.deterministic = kept
