"""Timing of several ways to do the same work side by side in one process; what every benchmark's JSON says of itself.

Contenders take turns (A B C A B C …), so that a machine that slows down slows them all, and ratios are taken turn by
turn.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from liftplus.machine import disk, runtime

# Names of the contenders, in every table.
OURS, GRAPHS = "liftplus", "liftplus, compile=graphs"
HALF = "liftplus, train.keep=0.5"
FP32, FP16 = "plain fp32 loop", "plain fp16 autocast loop"
PEFT = "timm + peft LoRA"  # and its precision

# Dense bf16/fp16 FLOP/s with fp32 accumulation, from NVIDIA's data sheets (H100, H200, A100, L40S, Ada architecture
# white paper for the 4090); the first name that the device's name contains counts.
DATA_SHEET = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        name: what tables call it.
        work: does it once; must not wait for the device by itself more than its real use would.
        images: images of one call.
        flops: useful floating-point operations of one call, where known.
    """

    name: str
    work: Callable[[], object]
    images: int
    flops: float | None = None


def settle(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    contenders: Sequence[Contender],
    device: torch.device,
    *,
    warm_up: int = 2,
    repeats: int = 7,
    calls: int = 1,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds a call of each contender, one value a turn; each turn times `calls` calls between two waits.

    `clock` may be `time.process_time`, which counts the CPU time of all threads: of use with one thread on a machine
    that others use too.

    After the first turn no further one begins that would probably end later than `seconds` from now.
    """
    assert len({contender.name for contender in contenders}) == len(contenders), "contenders are told apart by name"
    start = time.perf_counter()
    for contender in contenders:
        for _ in range(warm_up):
            contender.work()
        settle(device)
    taken: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    turn = time.perf_counter()
    for number in range(repeats):
        now = time.perf_counter()
        if number >= 1 and now - start + (now - turn) / number > seconds:
            break
        for contender in contenders:
            settle(device)
            began = clock()
            for _ in range(calls):
                contender.work()
            settle(device)
            taken[contender.name].append((clock() - began) / calls)
    return taken


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes and median absolute deviation."""
    middle = statistics.median(values)
    away = statistics.median(abs(value - middle) for value in values)
    return {name: significant(v) for name, v in zip(_SPREAD, (middle, min(values), max(values), away), strict=True)}


_SPREAD = ("median", "min", "max", "mad")


def significant(value: float, digits: int = 4) -> float:
    """Rounded to so many significant digits."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))


def ratio(baseline: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """How many times faster than the baseline, turn by turn."""
    return spread([before / now for before, now in zip(baseline, seconds, strict=True)])


def compare(
    contenders: Sequence[Contender],
    device: torch.device,
    *,
    baseline: str,
    peak: float | None = None,
    **timing: Any,
) -> list[dict[str, Any]]:
    """Rows of a table: seconds, images/s, times the baseline's speed, useful FLOP/s and share of `peak`.

    `timing` is what `interleaved` takes.
    """
    taken = interleaved(contenders, device, **timing)
    rows = []
    for contender in contenders:
        seconds = taken[contender.name]
        middle = statistics.median(seconds)
        row: dict[str, Any] = {
            "name": contender.name,
            "images": contender.images,
            "turns": len(seconds),
            "seconds": spread(seconds),
            "images_per_second": significant(contender.images / middle),
        }
        if baseline in taken:
            row["times_baseline"] = ratio(taken[baseline], seconds)
        if contender.flops is not None:
            row["useful_flops"] = contender.flops
            row["flops_per_second"] = significant(contender.flops / middle)
            row["share_of_peak"] = None if peak is None else significant(contender.flops / middle / peak, 3)
        rows.append(row)
    return rows


@dataclass
class Undisturbed:
    """How much of the machine this process had between entering and leaving: CPU time over wall time and threads.

    On a CPU well below 1 means that something else was running, and that the times are not to be trusted.
    """

    share: float = 0.0

    def __enter__(self) -> Undisturbed:
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_error: object) -> None:
        wall, own = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        self.share = significant(own / wall / torch.get_num_threads(), 3)


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Largest number of bytes in tensors while `work` runs.

    On a GPU all that the allocator handed out, weights included. On a CPU what is allocated on top of what is there
    when it begins, by the profiler's record of every allocation.
    """
    if device.type == "cuda":
        settle(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        settle(device)
        return torch.cuda.max_memory_allocated(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def matmul_peak(device: torch.device, precision: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """FLOP/s of the fastest of a few products of square matrices: what the matrix units reach at best."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device).to(runtime.DTYPES[precision])
    work = Contender("product", lambda: a @ a, 1)
    seconds = interleaved([work], device, warm_up=1, repeats=15, calls=10 if device.type == "cuda" else 1, clock=clock)
    return 2 * side**3 / min(seconds["product"])


def peak(args: argparse.Namespace, chosen: runtime.Runtime) -> dict[str, Any]:
    """The peak that shares refer to: the data sheet's for a known GPU in 16 bits, else the measured one."""
    device, precision = chosen.device, chosen.precision
    measured = matmul_peak(device, precision, timing(args, device)["clock"])
    out = {"precision": precision, "measured": significant(measured), "source": "best of 15 square matrix products"}
    if device.type == "cuda" and precision != "fp32":
        name = torch.cuda.get_device_name(device)
        sheet = next((value for known, value in DATA_SHEET.items() if known in name), None)
        if sheet is not None:
            return out | {"used": sheet, "source": f"NVIDIA data sheet of {name}, dense"}
    return out | {"used": out["measured"]}


def multiplies_bf16() -> bool:
    """Whether this CPU has units for products in bf16; others emulate them."""
    return runtime.choose("cpu").precision == "bf16"


def hardware(device: torch.device) -> dict[str, Any]:
    """Processor, cores, vector units and GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    out: dict[str, Any] = {
        "cpu": runtime.processor(),
        "cores": cores,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "bf16_on_cpu": multiplies_bf16(),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        out |= {"gpu": facts.name, "gpu_gib": round(facts.total_memory / 2**30, 1)}
    return out


def about(args: argparse.Namespace, chosen: runtime.Runtime) -> dict[str, Any]:
    """What a result has to say of itself."""
    extra = {}
    for name in ("peft", "transformers"):
        try:
            extra[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "command": " ".join([*_limits(), "python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_shown, sys.argv[1:])]),
        "date": date.today().isoformat(),
        "settings": {key: _plain(value) for key, value in vars(args).items()},
        "hardware": hardware(chosen.device),
        "versions": runtime.describe(chosen) | extra,
    }


def _limits() -> list[str]:
    """What the environment asks of the libraries that compute."""
    return [f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith(("ONEDNN_", "MKL_"))]


def _plain(value: Any) -> Any:
    """As JSON has it: it knows no paths and no infinity."""
    if isinstance(value, Path):
        return value.name
    return None if value == math.inf else value


def _shown(argument: str) -> str:
    """An absolute path says more about the machine than about the command."""
    return Path(argument).name if argument.startswith("/") else argument


def write(out: Path | None, record: Mapping[str, Any]) -> None:
    """Write what there is so far."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        disk.write_json(out, dict(record))


def parser(text: str | None) -> argparse.ArgumentParser:
    """Options that all benchmarks have."""
    out = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--device", default="auto", help="auto, cpu or cuda")
    out.add_argument("--precision", default="auto", help="of liftplus; auto takes what the device computes in")
    out.add_argument("--out", type=Path, help="where the JSON goes")
    out.add_argument("--repeats", type=int, default=7)
    out.add_argument("--warm-up", type=int, default=2)
    out.add_argument("--seconds", type=float, default=math.inf, help="begin no further turn after so long")
    out.add_argument("--cpu-time", action="store_true", help="CPU seconds; for one thread on a machine that is in use")
    out.add_argument("--calls", type=int, help="calls a timed turn; by default 1 on a CPU and 10 on a GPU")
    return out


def timing(args: argparse.Namespace, device: torch.device, calls: int = 10) -> dict[str, Any]:
    """What `interleaved` takes, as the options say; `calls` a turn on a GPU unless they say otherwise."""
    calls = args.calls or (calls if device.type == "cuda" else 1)
    clock = time.process_time if args.cpu_time else time.perf_counter
    return {"warm_up": args.warm_up, "repeats": args.repeats, "calls": calls, "seconds": args.seconds, "clock": clock}


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a row, for whoever watches."""
    for row in rows:
        line = f"{row['name']:34} {row['images_per_second']:>10,.5g} images/s"
        if "times_baseline" in row:
            line += f"  x {row['times_baseline']['median']:.3g}"
        if row.get("share_of_peak") is not None:
            line += f"  {row['flops_per_second'] / 1e12:.3g} TFLOP/s, {row['share_of_peak']:.1%} of peak"
        if "peak_bytes" in row:
            line += f"  {row['peak_bytes'] / 2**30:.2f} GiB"
        print(line, flush=True)
