"""The machine: device, precision, versions, memory."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from liftplus.errors import UserError
from liftplus.machine import allocation
from liftplus.machine.compiling import Compiled
from liftplus.machine.convolutions import PatchProduct, WideGradient, cuts_into_patches, strides_by_channel
from liftplus.machine.parallel import ALONE, Job
from liftplus.words import counted

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Runtime:
    """Where and in which precision a model runs, and which processes run it together.

    Attributes:
        device, precision: as resolved; the latter is bf16, fp16 or fp32.
        job: the processes.
        compiles: whether models are compiled before they run.
        graphs: whether compiled models are replayed as CUDA graphs.
    """

    device: torch.device
    precision: str
    job: Job = ALONE
    compiles: bool = False
    graphs: bool = False

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in the run's precision; nothing for fp32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision])

    @property
    def dtype(self) -> torch.dtype:
        """Type of matrix products and of frozen weights."""
        return DTYPES[self.precision]

    def compiled(self, model: nn.Module, *, adds: bool = False) -> Callable[..., Any]:
        """The model as a function of one batch; batches of one size compile once.

        Args:
            adds: whether gradients of several calls are added up, which CUDA graphs would get wrong.
        """
        return Compiled(model, graphs=self.graphs and not adds) if self.compiles else model

    def place(self, model: nn.Module) -> None:
        """Move a model here and prepare it."""
        model.to(self.device)
        self.prepare(model)

    def prepare(self, model: nn.Module) -> None:
        """Choose memory layout, attention kernel and ways of convolution that are fast here, wherever the model is."""
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        # EfficientNet-Lite0 at 96 px on one core: 1.3 times the training steps, 1.6 times the forward passes.
        if len(convolutions) > 1:
            model.to(memory_format=torch.channels_last)
        elif self.device.type == "cuda":
            for convolution in filter(cuts_into_patches, convolutions):
                convolution.forward = PatchProduct(convolution)  # type: ignore[method-assign]
        on_cpu_in_bf16 = self.device.type == "cpu" and self.precision == "bf16"
        if on_cpu_in_bf16:
            for convolution in filter(strides_by_channel, convolutions):
                convolution.forward = WideGradient(convolution)  # type: ignore[method-assign]
        # On CPU the fused bf16 attention has a slow backward pass: at 65 tokens the step takes 1.4 times as long.
        fuse_attention(model, not on_cpu_in_bf16)


def fuse_attention(model: nn.Module, fused: bool) -> None:
    """Let attention that supports both run in PyTorch's fused kernel, or else as two products and a softmax."""
    for module in model.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            module.fused_attn = fused  # type: ignore[assignment]


def choose(device: str = "auto", precision: str = "auto", job: Job = ALONE, compiling: str = "auto") -> Runtime:
    """Resolve "auto": a GPU where there is one; bf16 where the device computes in it, else fp16 (GPU) or fp32 (CPU);
    compiled models on a GPU.

    In a job of several processes each takes the GPU of its number.

    Raises:
        UserError: the device, or the precision or compilation on it, cannot be used.
    """
    if job.size > 1:
        device = _own_device(device, job)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("no such kind of device")
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"Device {device!r} cannot be used here ({str(error).splitlines()[0]}). "
            "Allowed: auto, cpu, cuda, cuda:N, mps."
        ) from error
    if precision == "auto":
        precision = _best_precision(chosen)
    if precision == "fp16" and chosen.type == "cpu":
        raise UserError("precision=fp16 needs a GPU. On this device choose bf16 or fp32, or leave precision=auto.")
    if compiling == "graphs" and chosen.type != "cuda":
        raise UserError("compile=graphs needs an NVIDIA GPU. On this device choose on or off, or leave compile=auto.")
    if chosen.type == "cpu":
        allocation.keep_freed_memory()
    compiles = chosen.type == "cuda" if compiling == "auto" else compiling != "off"
    return Runtime(chosen, precision, job, compiles, compiling == "graphs")


def _own_device(device: str, job: Job) -> str:
    """The device of one process among several."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UserError(
            f"device={device} cannot be shared by {job.size} processes. Use device=cuda, where each takes its own GPU, "
            "or device=cpu."
        )
    if device == "cpu":
        return device
    if job.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"This machine has {counted(torch.cuda.device_count(), 'GPU')}, but process {job.local_rank + 1} was "
            "started on it. Give torchrun --nproc-per-node the number of GPUs, or use device=cpu."
        )
    torch.cuda.set_device(job.local_rank)
    return f"cuda:{job.local_rank}"


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return "bf16" if native() else "fp32"
    return "fp32"


def describe(runtime: Runtime) -> dict[str, str]:
    """Versions and hardware, for the record beside every result."""
    names = ("liftplus", "torch", "torchvision", "timm", "open_clip_torch", "numpy", "pillow")
    on_gpu = runtime.device.type == "cuda"
    return {name: version(name) for name in names} | {
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "device": str(runtime.device),
        "hardware": torch.cuda.get_device_name(runtime.device) if on_gpu else processor(),
        "threads": str(torch.get_num_threads()),
        "precision": runtime.precision,
        "processes": str(runtime.job.size),
    }


def processor() -> str:
    """The CPU's name; on Linux with family and model, since cloud machines of several generations share a name."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return name
    found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    fields = {key.strip(): value.strip() for key, value in found.items()}
    if "model name" in fields:
        name = f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"
    return name


def command_line() -> str:
    """The command that started this process, as a shell would take it."""
    return shlex.join([os.path.basename(sys.argv[0]) or "python", *sys.argv[1:]])


def forget_peak_memory(device: torch.device) -> None:
    """Reset the count of `peak_memory`, where the system allows that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Most bytes in use at once: allocated on a GPU, or resident in this process; None where the system keeps no count.

    Loader processes are not counted.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else None
