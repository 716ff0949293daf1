"""The machine: device, precision, seeds, and how long work reports its progress."""

from __future__ import annotations

import os
import platform
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn

from liftplus.errors import UserError
from liftplus.machine.parallel import ALONE, Job
from liftplus.words import counted
from liftplus.words import duration as duration

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
        """Of matrix products and of frozen weights."""
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
        """Choose the attention kernel and memory layout that are fast here, wherever the model is now."""
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        # EfficientNet-Lite0 at 96 px on one core: 1.3 times the training steps, 1.6 times the forward passes.
        if len(convolutions) > 1:
            model.to(memory_format=torch.channels_last)
        elif self.device.type == "cuda":
            for convolution in filter(cuts_into_patches, convolutions):
                convolution.forward = PatchProduct(convolution)  # type: ignore[method-assign]
        # On CPU the fused bf16 attention has a slow backward pass: at 65 tokens the step takes 1.4 times as long.
        fused = not (self.device.type == "cpu" and self.precision == "bf16")
        fuse_attention(model, fused)


def fuse_attention(model: nn.Module, fused: bool) -> None:
    """Whether timm's attention runs in PyTorch's one kernel, or as two products and a softmax."""
    for module in model.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            module.fused_attn = fused  # type: ignore[assignment]


def choose(device: str = "auto", precision: str = "auto", job: Job = ALONE, compiling: str = "auto") -> Runtime:
    """Resolve "auto": a GPU where there is one; bf16 where the device computes in it, else fp16 (GPU) or fp32 (CPU);
    compiled models on a GPU.

    Of a job of several processes each takes the GPU of its number.
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
            "started on it. Give torchrun --nproc-per-node that number, or use device=cpu."
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


def cuts_into_patches(convolution: nn.Conv2d) -> bool:
    """Whether its windows tile the picture, as in a ViT's patch embedding."""
    plain = convolution.padding in ((0, 0), "valid") and convolution.dilation == (1, 1) and convolution.groups == 1
    return plain and convolution.kernel_size == convolution.stride


class PatchProduct:
    """Stands in for the `forward` of a convolution that cuts into patches: the same sums, as one matrix product.

    Convolution kernels for three input channels leave most of a GPU idle: on an H200 that of ViT-B/16 took a tenth of
    the forward pass, for less than a hundredth of its arithmetic.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        self.convolution = convolution

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        high, wide = self.convolution.kernel_size
        rows, columns = input.shape[-2] // high, input.shape[-1] // wide
        cut = input[..., : rows * high, : columns * wide].unflatten(-1, (columns, wide)).unflatten(-3, (rows, high))
        patches = cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        out = F.linear(patches, self.convolution.weight.flatten(1), self.convolution.bias)
        return out.transpose(1, 2).unflatten(2, (rows, columns))


class Compiled:
    """A model as a function of one batch, made faster by torch.compile; it runs as it is where that fails.

    A smaller batch, as the last of an epoch, is filled up to the size of the first one with pictures whose outputs are
    dropped, since another size would be compiled anew.

    With `graphs` the kernels of a batch are recorded once and launched together from then on, which saves the time that
    Python takes to launch them one by one. Gradients must be used up before the next call: PyTorch's graphs (up to 2.11
    at least) return them in memory that the next call writes over (PyTorch issue 169545).
    """

    def __init__(self, model: nn.Module, compiler: Callable[..., Any] = torch.compile, *, graphs: bool = False) -> None:
        self.model, self.graphs = model, graphs
        own = _OWN.setdefault(model, {})
        if graphs not in own:
            options = {"mode": "reduce-overhead"} if graphs else {}
            own[graphs] = compiler(_function(), dynamic=False, **options)
        self.forward: Callable[..., Any] = partial(own[graphs], model)
        self.tried, self.full = False, 0

    def __call__(self, images: torch.Tensor) -> Any:
        count, self.full = len(images), max(self.full, len(images))
        if count < self.full and self.forward is not self.model:
            images = torch.cat([images, images[-1:].expand(self.full - count, *images.shape[1:])])
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        out = self.forward(images) if self.tried else self._first(images)
        return out[:count].clone() if self.graphs else out[:count]  # a graph's next run writes over its outputs

    def _first(self, images: torch.Tensor) -> Any:
        self.tried = True
        try:
            with warnings.catch_warnings():
                # Heads compute in fp32 on purpose.
                warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
                return self.forward(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail with exceptions of every kind
            warnings.warn(f"torch.compile failed ({_first_line(error)}); the model runs without it.", stacklevel=3)
            self.forward = self.model
            return self.model(images)


_OWN: WeakKeyDictionary[nn.Module, dict[bool, Callable[..., Any]]] = WeakKeyDictionary()
"""What was compiled for each model, without and with graphs."""


def _function() -> Callable[..., Any]:
    """Runs a model on images, with code of its own.

    torch.compile keeps what it made by code object, eight of each. Models share the code of their class and take two
    each, to train and to test, so in a process that trains one after the other the fifth could run uncompiled.
    """

    def forward(model: nn.Module, images: torch.Tensor) -> Any:
        return model(images)

    return FunctionType(forward.__code__.replace(), forward.__globals__, "forward")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def command_line() -> str:
    """The command that started this process, as a shell would take it."""
    return shlex.join([os.path.basename(sys.argv[0]) or "python", *sys.argv[1:]])


def forget_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now on, where the system allows that."""
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


class Progress(Protocol):
    """How long work reports itself; the command line shows a bar, the library is silent."""

    def task(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        """A piece of work of `total` steps, of which some may be done already."""
        ...


class Advance(Protocol):
    """Called after every step, with running figures to show."""

    def __call__(self, **figures: float) -> None: ...


class Silent:
    """Progress that nobody sees."""

    @contextmanager
    def task(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        def advance(**figures: float) -> None:
            return None

        yield advance


def replaceable() -> list[int]:
    """Of SIGINT and SIGTERM those whose handler Python can put back: one that a C library set it cannot."""
    return [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not None]


class StopRequest:
    """Whether the user or the system asked the process to end: the first SIGINT or SIGTERM is noted, a second acts.

    In a job of several processes a second one changes nothing: Slurm sends one to each process and to torchrun, which
    passes it on, and kills after half a minute.

    A context manager, of use in the main thread; elsewhere signals keep their effect.
    """

    def __init__(self, job: Job = ALONE) -> None:
        self.job = job
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """True once asked."""
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in replaceable()}
        return self

    def __exit__(self, *_error: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _frame: object) -> None:
        self.signal = number
        if self.job.size == 1:
            self._restore()
