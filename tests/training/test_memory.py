"""Predicted memory against the memory of real steps: counted tensor by tensor, and as the system sees the process."""

from __future__ import annotations

import gc
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from liftplus import config
from liftplus.backbones import catalogue
from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet, Split
from liftplus.data.loader import Batch
from liftplus.errors import UserError
from liftplus.machine.runtime import Runtime
from liftplus.model.classifier import Classifier
from liftplus.training import memory
from liftplus.training.step import Step

from ..conftest import Command

CLASSES = 101


class NoPictures:
    """A store of a data set that is only counted."""

    def image(self, key: str) -> Image.Image:
        raise AssertionError(key)


def planned(backbone: str, *overrides: str) -> RunConfig:
    return config.resolve(backbone=backbone, overrides=["head_init=random", *overrides])


def real_step(run: RunConfig, runtime: Runtime, classes: int = CLASSES) -> tuple[Step, Callable[[], Batch]]:
    """A step on random weights that has momentum already, and a maker of batches."""
    backbone = catalogue.load(run.backbone, weights=False)
    head = run.head.build(backbone, classes)
    torch.nn.init.normal_(head.weight)
    model = Classifier(backbone, dict(run.tuner), head, classes)
    backbone.text = None
    model.put(runtime)
    names = tuple(f"class {k}" for k in range(classes))
    train = Split([str(k) for k in range(classes)], list(range(classes)))
    step = Step(model, run, DataSet("counted", names, names, {"train": train}, NoPictures()), runtime)
    count, size = run.train.batch_size, backbone.facts.image_size

    def batch() -> Batch:
        pictures = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
        return Batch(pictures, torch.arange(count) % classes, torch.arange(count), seeds=torch.arange(count))

    step(batch())
    return step, batch


def counted(run: RunConfig, precision: str) -> int:
    """Bytes of the tensors of a real step at the highest."""
    step, batch = real_step(run, Runtime(torch.device("cpu"), precision))
    momentum = [state["momentum_buffer"] for state in step.optimiser.state.values()]
    pictures = batch()
    held = [*step.model.parameters(), *step.model.buffers(), *step.loss.buffers(), *momentum, pictures.images]
    with memory.Living(held) as living:
        step(pictures)
    return living.highest


CASES: list[tuple[str, str, list[str]]] = [
    ("mini_clip", "fp32", ["train.batch_size=4"]),
    ("mini_clip", "fp32", ["train.batch_size=32"]),
    ("mini_clip", "fp32", ["train.batch_size=32", "grad_checkpointing=true"]),
    ("mini_clip", "fp32", ["train.batch_size=32", "micro_batch=8"]),
    ("mini_clip", "fp32", ["train.batch_size=16", "tuner=full"]),
    ("mini_clip", "fp32", ["train.batch_size=32", "keep=0.5"]),
    ("mini_clip", "fp32", ["train.batch_size=32", "keep=0.5", "grad_checkpointing=true"]),
]
SLOW_CASES: list[tuple[str, str, list[str]]] = [
    (name, "fp32", ["train.batch_size=12", f"grad_checkpointing={saving}"])
    for name in (
        "timm/vit_tiny_patch16_224.augreg_in21k",
        "timm/resnet18.a1_in1k",
        "timm/convnext_atto.d2_in1k",
        "timm/efficientnet_b0.ra_in1k",
    )
    for saving in ("false", "true")
]
# Products and convolutions in bf16 take up to a minute on a CPU without units for it.
SLOW_CASES += [
    ("mini_clip", "bf16", ["train.batch_size=2"]),
    ("timm/vit_tiny_patch16_224.augreg_in21k", "bf16", ["train.batch_size=4"]),
    ("timm/resnet18.a1_in1k", "bf16", ["train.batch_size=4"]),
]


@pytest.mark.parametrize(
    ("backbone", "precision", "overrides"), CASES + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES]
)
def test_prediction_is_within_15_percent_of_the_tensors_of_a_real_step(
    backbone: str, precision: str, overrides: list[str]
) -> None:
    run = planned(backbone, *overrides)
    predicted = memory.training(run, CLASSES, "cpu", precision).tensors(run.train.micro_batch or run.train.batch_size)
    assert predicted == pytest.approx(counted(run, precision), rel=0.15)


RESIDENT = """
import json, sys, torch
sys.path.insert(0, {root!r})
from tests.training.test_memory import planned, real_step
from liftplus.machine.runtime import Runtime, peak_memory
torch.set_num_threads(1)
run = planned({backbone!r}, *{overrides!r})
one = run.model_copy(update={{"train": run.train.model_copy(update={{"batch_size": 1}})}})
cpu = Runtime(torch.device("cpu"), "fp32")
first = real_step(one, cpu)
before = peak_memory(cpu.device)
step, batch = real_step(run, cpu)
step(batch())
print(json.dumps(peak_memory(cpu.device) - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as Linux tells it")
@pytest.mark.parametrize("saving", ["false", "true"])
def test_prediction_is_within_15_percent_of_what_the_system_gives_the_process(saving: str) -> None:
    """The first step of one image warms libraries and allocator up; from there on what is added is the step's."""
    overrides = ["train.batch_size=32", f"grad_checkpointing={saving}"]
    backbone = "timm/vit_tiny_patch16_224.augreg_in21k"
    code = RESIDENT.format(root=str(Path(__file__).parents[2]), backbone=backbone, overrides=overrides)
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    need = memory.training(planned(backbone, *overrides), CLASSES, "cpu", "fp32")
    assert need.tensors(32) == pytest.approx(json.loads(done.stdout), rel=0.15)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("saving", ["false", "true"])
@pytest.mark.parametrize("images", [32, 128])
@pytest.mark.parametrize("backbone", ["clip_vit_b16", "timm/resnet50.a1_in1k"])
@pytest.mark.parametrize("compiling", ["auto", "off"])
def test_prediction_is_within_15_percent_on_a_gpu(backbone: str, images: int, saving: str, compiling: str) -> None:
    run = planned(backbone, f"train.batch_size={images}", f"grad_checkpointing={saving}", f"compile={compiling}")
    runtime = Runtime(torch.device("cuda"), "bf16", compiles=compiling == "auto")
    gc.collect()
    before = torch.cuda.memory_allocated()  # by other tests of this process
    step, batch = real_step(run, runtime)
    torch.cuda.reset_peak_memory_stats()
    step(batch())
    need = memory.training(run, CLASSES, "cuda", "bf16")
    assert need.tensors(images) == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=0.15)


MEASURED = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["memory", "memory_large"])
@pytest.mark.parametrize("card", ["h100", "h200"])
def test_prediction_is_within_15_percent_of_what_was_measured_on_a_gpu(card: str, stage: str) -> None:
    """Peaks of compiled steps in a file that benchmarks/all.py wrote."""
    found = json.loads((MEASURED / f"gpu-{card}.json").read_text(encoding="utf-8"))["stages"][stage]
    name = {"vit_b16": "clip_vit_b16", "vit_l14_336": "clip_vit_l14_336"}[found["work"]["model"]]
    classes, width = found["work"]["classes"], found["work"]["width"]
    for row in found["rows"]:
        saving = f"grad_checkpointing={str(row['checkpointing']).lower()}"
        need = memory.training(planned(name, f"tuner.adaptformer.width={width}", saving), classes, "cuda", "bf16")
        assert need.tensors(row["batch"]) == pytest.approx(row["peak_bytes"], rel=0.15), row


def test_a_compiled_model_keeps_no_copies_in_fp32() -> None:
    """Of what the norms read: two tensors a block, which three norms copy."""
    dry_runs = [
        memory.DryRun(planned("mini_clip", f"compile={way}"), CLASSES, "cuda", "bf16") for way in ("auto", "off")
    ]
    compiled, eager = (dry_run.peak(dry_run.step, 128) for dry_run in dry_runs)
    depth, tokens, width = 6, 65, 192
    assert eager - compiled == pytest.approx((3 * 4 - 2 * 2) * depth * 128 * tokens * width, rel=0.15)


@pytest.mark.slow
def test_a_compiled_model_keeps_nothing_of_what_frozen_batch_norms_read() -> None:
    """The outputs of all convolutions behind the first tuned site, in fp32; trained norms need them."""
    name, images = "timm/resnet18.a1_in1k", 32
    sizes: dict[str, int] = {}
    dry_run = memory.DryRun(planned(name), CLASSES, "cpu", "fp32")
    for key, module in dry_run.model.backbone.image.named_modules():
        if isinstance(module, torch.nn.Conv2d) and key != "conv1" and not key.startswith("layer1.0"):
            module.register_forward_hook(lambda _m, _a, out, key=key: sizes.update({key: out[0].numel()}))
    dry_run.peak(dry_run.test, 1, learning=False)
    saved = {}
    for tuner in ("conv_adapter", "norm"):
        ways = [planned(name, f"tuner={tuner}", f"compile={way}") for way in ("auto", "off")]
        dry_runs = [memory.DryRun(run, CLASSES, "cuda", "fp32") for run in ways]
        compiled, eager = (dry_run.peak(dry_run.step, images) for dry_run in dry_runs)
        saved[tuner] = eager - compiled
    assert saved["conv_adapter"] == pytest.approx(4 * images * sum(sizes.values()), rel=0.15)
    assert saved["norm"] == 0


def test_memory_is_a_straight_line_in_the_batch_size() -> None:
    run = planned("mini_clip")
    need = memory.training(run, CLASSES, "cuda", "bf16")
    dry_run = memory.DryRun(run, CLASSES, "cuda", "bf16")
    assert dry_run.peak(dry_run.step, 200) == pytest.approx(need.tensors(200), rel=0.01)
    assert need.most(need.tensors(200)) in (199, 200, 201)
    assert need.most(1000) == 0


def test_memory_grows_with_the_logits_of_the_classes() -> None:
    """At 256 images: fp32 logits and what the loss keeps of them, from 1 to 6 values an image and class."""
    dry_runs = [memory.DryRun(planned("mini_clip", "width=4"), classes, "cuda", "bf16") for classes in (100, 8142)]
    few, many = (dry_run.peak(dry_run.step, 256) for dry_run in dry_runs)
    rows = 8042 * 192 * 4
    assert 4 * 256 * 8042 < many - few < 6 * 4 * 256 * 8042 + 6 * rows


@pytest.mark.slow
def test_vit_l14_at_336_trains_in_16_gb_at_batch_32() -> None:
    """With gradient checkpointing, or in two micro batches; 1,000 classes, AdaptFormer, bf16."""
    large = ["image_size=336", "train.batch_size=32"]
    saving = memory.training(planned("clip_vit_l14", *large, "grad_checkpointing=true"), 1000, "cuda", "bf16")
    assert saving.total(32) < 16e9
    plain = memory.training(planned("clip_vit_l14", *large, "micro_batch=16"), 1000, "cuda", "bf16")
    assert plain.total(16) < 16e9


@pytest.mark.slow
def test_info_prints_the_memory_and_gives_it_as_json(command: Command) -> None:
    shown = command("info", "--backbone", "mini_clip", "--memory", "num_classes=50")
    assert shown.code == 0 and "Predicted memory of a training step on a GPU in bf16" in shown.out
    told = json.loads(
        command("info", "--backbone", "mini_clip", "--memory", "--json", "num_classes=50", "device=cpu").out
    )["memory"]
    assert told["device"] == "cpu" and told["overhead"] == 0
    rows = told["training"]
    assert [row["images"] for row in rows] == list(memory.BATCHES)
    assert all(row["grad_checkpointing"] < row["plain"] for row in rows)
    run = config.resolve(backbone="mini_clip", overrides=["num_classes=50"])
    assert rows[2]["plain"] == memory.training(run, 50, "cpu", "bf16").tensors(32)


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Runtime]:
    """A runtime on a GPU that is not there, with this many bytes free for the run."""

    def make(room: int) -> Runtime:
        free = int(room / memory.USABLE)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device=None: (free // 4, 2 * free))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device=None: free - free // 4)
        return Runtime(torch.device("cuda"), "bf16")

    return make


@pytest.mark.parametrize("images", [20, 700])
@pytest.mark.slow
def test_thousands_of_classes_bend_the_line(images: int) -> None:
    """The peak moves from the small backbone to the logits; no batch size is predicted far too low for it."""
    run = planned("mini_clip", "train.batch_size=128")
    need = memory.training(run, 8142, "cuda", "bf16")
    dry_run = memory.DryRun(run, 8142, "cuda", "bf16")
    peak = dry_run.peak(dry_run.step, images)
    assert 0.95 * peak <= need.tensors(images) <= 1.15 * peak


@pytest.mark.slow
def test_advice_names_the_micro_batch_or_the_option_that_fits(small_gpu: Callable[[int], Runtime]) -> None:
    run = planned("mini_clip", "train.batch_size=128")
    pieces = run.model_copy(update={"train": run.train.model_copy(update={"micro_batch": 1})})
    need = memory.training(pieces, CLASSES, "cuda", "bf16")
    advice = memory.advice(run, CLASSES, small_gpu(need.tensors(40) + 1000))
    assert advice is not None and "train.micro_batch=40 fits" in advice
    tight = small_gpu(need.tensors(1) - 1)
    advice = memory.advice(run, CLASSES, tight)
    assert advice is not None and "backbone.grad_checkpointing=true with train.micro_batch=" in advice
    advice = memory.advice(run, CLASSES, small_gpu(1000))
    assert advice is not None and "not even single images" in advice
    assert memory.advice(run, CLASSES, Runtime(torch.device("cpu"), "bf16")) is None


def test_a_step_out_of_memory_passes_the_advice_on(monkeypatch: pytest.MonkeyPatch) -> None:
    step, batch = real_step(planned("mini_clip", "train.batch_size=4"), Runtime(torch.device("cpu"), "fp32"))

    def exhausted(_images: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step.model, "forward", exhausted)
    with pytest.raises(UserError, match=r"ran out of memory with 4 images at a time\. Try train\.micro_batch=2"):
        step(batch())
    monkeypatch.setattr(step, "advice", lambda: "By prediction train.micro_batch=3 fits.")
    with pytest.raises(UserError, match=r"4 images at a time\. By prediction train\.micro_batch=3 fits"):
        step(batch())
    monkeypatch.setattr(step, "advice", lambda: 1 / 0)
    with pytest.raises(UserError, match=r"Try train\.micro_batch=2"):
        step(batch())


SEEN = ("2.8", "2.15")
"""Versions of PyTorch that the forecast was run with."""


def test_the_private_parts_of_pytorch_are_there() -> None:
    """The forecast has no public way to see a step's tensors without their contents."""
    told = (
        f"PyTorch {torch.__version__} lacks what training/memory.py takes from its inside, seen in {', '.join(SEEN)}."
    )
    for name in (
        "torch._subclasses.fake_tensor.FakeTensorMode",
        "torch.utils._python_dispatch.TorchDispatchMode",
        "torch.utils._pytree.tree_leaves",
        "torch._C._autograd._top_saved_tensors_default_hooks",
    ):
        assert callable(pkgutil.resolve_name(name)), told
