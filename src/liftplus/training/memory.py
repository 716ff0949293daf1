"""How much device memory a training step or a test takes: a dry run on tensors that have shapes but no contents.

The real classifier, loss and optimiser run under PyTorch's `FakeTensorMode`, prepared for the device and the precision
that are asked about, while the bytes of all living tensors are added up. No weights are read and no GPU is needed.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from liftplus.backbones import catalogue
from liftplus.backbones.normalise import Normalise
from liftplus.backbones.unfilled import Unfilled
from liftplus.config import RunConfig
from liftplus.machine.runtime import Runtime
from liftplus.model.classifier import Classifier
from liftplus.model.losses import LossModule
from liftplus.training.momentum import Momentum
from liftplus.training.patch_dropout import PatchDropout

OVERHEAD = 700_000_000
"""Bytes that CUDA's context, its libraries' workspaces and the allocator's rounding take beside the tensors. Between
0.4 and 0.9 GB by card and driver: an allowance, not a prediction."""
USABLE = 0.95
"""Share of a GPU's free memory that tensors can fill: the allocator leaves gaps between them."""
BATCHES = (8, 16, 32, 64, 128, 256)
"""Batch sizes of the table."""
SAMPLES = (8, 48, 256)
"""Batch sizes of the dry runs. Memory is a straight line in the batch size as long as its peak stays at one place;
where the peak moves, from the backbone to the logits of thousands of classes, say, the line bends upwards."""


class Living(TorchDispatchMode):
    """Counts the bytes of living tensors while it is on: now, and at the peak.

    A storage counts once, from the operator that makes it until no tensor and no saved activation needs it. What a
    kernel allocates for itself is not counted.
    """

    def __init__(self, held: Sequence[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.highest = 0, 0
        self._known: set[int] = set()
        for tensor in held:
            self._add(tensor)

    def __torch_dispatch__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        self._known.add(key)
        self.now += size
        self.highest = max(self.highest, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _AsOnGPU(TorchFunctionMode):
    """Makes tensors on "cpu" take the memory that they would take on a GPU: fused attention, and autocast's rule.

    Without a GPU, PyTorch has no backward pass over tensors on "cuda". What differs for memory: on a GPU autocast
    computes norms and softmax in fp32. A compiled model casts inside the kernel and keeps no fp32 copy. It keeps no
    input of a frozen batch norm either, whose gradient needs only the scale.
    """

    def __init__(self, autocasts: bool, compiles: bool) -> None:
        super().__init__()
        self.autocasts, self.compiles = autocasts, compiles

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        casts = self.autocasts and torch.is_autocast_enabled("cpu")
        if func is F.scaled_dot_product_attention and len(args) >= 3 and args[0].ndim == 4:
            parts = [x.to(torch.get_autocast_dtype("cpu")) if casts else x for x in args[:3]]
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts)[0]
        if self.compiles and func is F.batch_norm and _is_fixed(*args, **options):
            return args[0] * _like_channels(args[2], args[0])
        # A compiled block that is computed again in the backward pass (PyTorch marks it by hooks) keeps more than that.
        again = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
        if casts and (again or not self.compiles) and func in _IN_FP32:
            args = tuple(x.float() if isinstance(x, Tensor) else x for x in args)
            options = {key: x.float() if isinstance(x, Tensor) else x for key, x in options.items()}
        return func(*args, **options)


def _is_fixed(
    _x: Tensor, _mean: Any, _var: Any, weight: Tensor | None, bias: Tensor | None, training: bool, *_: Any, **__: Any
) -> bool:
    """Whether a batch norm is a scale and a shift that are not trained."""
    return not training and not any(p is not None and p.requires_grad for p in (weight, bias))


def _like_channels(values: Tensor, pictures: Tensor) -> Tensor:
    return values.view(-1, *[1] * (pictures.ndim - 2)).to(pictures.dtype)


_IN_FP32 = (F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax)


@dataclass(frozen=True)
class Need:
    """Peak bytes of device memory, by the number of images at a time.

    Attributes:
        weights: all weights and buffers.
        learning: gradients and momentum of the trained weights.
        points: (images, bytes) of the dry runs, in ascending order; the bytes include weights and learning.
    """

    weights: int
    learning: int
    points: tuple[tuple[int, int], ...]

    def tensors(self, images: int) -> int:
        """Bytes of all tensors: on the line through the two nearest dry runs."""
        lines = pairwise(self.points)
        last = (self.points[-2], self.points[-1])
        (few, low), (many, high) = next((line for line in lines if images <= line[1][0]), last)
        return max(self.weights + self.learning, low + -(-(high - low) * (images - few) // (many - few)))

    def total(self, images: int) -> int:
        """Bytes on a GPU that nothing else uses, with the allowance `OVERHEAD`."""
        return self.tensors(images) + OVERHEAD

    def most(self, room: int) -> int:
        """Most images whose tensors fit into so many bytes; 0 where not even one does."""
        return bisect_right(range(1, 1 << 20), room, key=self.tensors)


def unloaded(config: RunConfig, classes: int) -> Classifier:
    """The classifier without weights, on the meta device."""
    backbone = catalogue.without_weights(config.backbone)
    with torch.device("meta"), Unfilled():
        head = config.head.build(backbone, classes)
        model = Classifier(backbone, dict(config.tuner), head, classes)
        if not model.reads_text:
            backbone.text = None
        return model


def training(config: RunConfig, classes: int, device: str, precision: str) -> Need:
    """The memory of a training step, by the images at a time (train.micro_batch, else train.batch_size).

    Args:
        config: backbone, tuner, head and loss; gradient checkpointing counts.
        classes: number of classes.
        device: "cuda" or "cpu"; it need not be here.
        precision: bf16, fp16 or fp32.
    """
    dry_run = DryRun(config, classes, device, precision)
    pieces = config.train.micro_batch is not None and config.train.micro_batch < config.train.batch_size
    return dry_run.need(lambda images: dry_run.step(images, adds=pieces), learning=True)


def testing(config: RunConfig, classes: int, device: str, precision: str) -> Need:
    """The memory of a test, by the images a batch (evaluation.batch_size), all their crops together."""
    dry_run = DryRun(config, classes, device, precision)
    return dry_run.need(dry_run.test, learning=False)


def advice(config: RunConfig, classes: int, runtime: Runtime) -> str | None:
    """What would fit into this GPU's memory, as a sentence; None on other devices.

    Read just after a step ran out of memory: what this process holds itself counts as free.
    """
    if runtime.device.type != "cuda":
        return None
    room = int((torch.cuda.mem_get_info(runtime.device)[0] + torch.cuda.memory_reserved(runtime.device)) * USABLE)
    own = -(-config.train.batch_size // runtime.job.size)  # this process's part of a batch
    tried = min(config.train.micro_batch or own, own)
    split = config.model_copy(update={"train": config.train.model_copy(update={"micro_batch": 1})})
    saving = {"backbone": config.backbone.model_copy(update={"grad_checkpointing": True})}
    ways = [("", split), ("backbone.grad_checkpointing=true", split.model_copy(update=saving))]
    for option, run in ways[config.backbone.grad_checkpointing :]:
        fits = min(training(run, classes, "cuda", runtime.precision).most(room), tried)
        if fits == tried and not option:
            continue  # it did not fit, so this prediction is wrong
        settings = [text for text in (option, "" if fits == own else f"train.micro_batch={fits}") if text]
        if fits:
            return (
                f"By prediction {' with '.join(settings)} fits into the {room / 1e9:.1f} GB that are free for it, and "
                "gives the same result."
            )
    return (
        f"By prediction not even single images fit into the {room / 1e9:.1f} GB that are free for it. Choose a "
        "smaller backbone, a smaller backbone.image_size, or another device."
    )


def table(config: RunConfig, classes: int) -> dict[str, Any]:
    """Predicted bytes by images at a time, with and without gradient checkpointing, and of a test batch.

    On a CPU if the configuration names it; otherwise on a GPU, even if this machine has none.
    """
    device = "cpu" if config.device == "cpu" else "cuda"
    precision = "bf16" if config.precision == "auto" else config.precision
    ways = {}
    for saving in (False, True):
        backbone = config.backbone.model_copy(update={"grad_checkpointing": saving})
        ways[saving] = training(config.model_copy(update={"backbone": backbone}), classes, device, precision)
    test = testing(config, classes, device, precision)
    out: dict[str, Any] = {
        "device": device,
        "precision": precision,
        "weights": ways[False].weights,
        "gradients_and_momentum": ways[False].learning,
        "overhead": OVERHEAD if device == "cuda" else 0,
        "training": [
            {"images": n, "plain": ways[False].tensors(n), "grad_checkpointing": ways[True].tensors(n)} for n in BATCHES
        ],
        "testing": {"images": config.evaluation.batch_size, "bytes": test.tensors(config.evaluation.batch_size)},
    }
    if device == "cuda" and torch.cuda.is_available():
        room = int(torch.cuda.mem_get_info()[0] * USABLE) - OVERHEAD
        out["largest_here"] = {"plain": ways[False].most(room), "grad_checkpointing": ways[True].most(room)}
    return out


class DryRun:
    """A classifier whose tensors are shapes only; training and test steps run on it to measure their memory."""

    def __init__(self, config: RunConfig, classes: int, device: str, precision: str) -> None:
        self.config, self.classes, self.device = config, classes, device
        self.here = Runtime(torch.device("cpu"), precision)
        self.model = unloaded(config, classes)
        there = Runtime(torch.device(device), precision)
        there.prepare(self.model)
        self.model.backbone.store_frozen(there.dtype)
        loss = config.loss.for_head(self.model.head).model_copy(update={"class_weights": None})
        self.loss: LossModule = loss.build(torch.full((classes,), 100)).float()
        self.normalise = Normalise(self.model.backbone.facts)
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        with self.fake:
            for module in (self.model, self.loss, self.normalise):
                pretend(module)
            if self.model.reads_text:
                self._read()
            with self.here.autocast():
                self.patches = PatchDropout(self.model.backbone, config.train.keep)
            self.trained = [p for p in self.model.parameters() if p.requires_grad]
            self.momentum = [torch.empty_like(p) for p in self.trained]

    def _read(self) -> None:
        """Class prompts of the full context length, the longest that names could make."""
        encoder = self.model.backbone.text_encoder("memory")
        encoder.texts = [[""]] * self.classes
        encoder.ids = torch.empty(self.classes, encoder.tower.context_length, dtype=torch.long)

    def need(self, run: Callable[[int], None], *, learning: bool) -> Need:
        """Peaks of the dry runs."""
        weights = sum(tensor.nbytes for tensor in self._held())
        trained = sum(p.nbytes for p in self.trained) if learning else 0
        points = tuple((images, self.peak(run, images, learning=learning)) for images in SAMPLES)
        return Need(weights, 2 * trained, points)

    def peak(self, run: Callable[[int], None], images: int, *, learning: bool = True) -> int:
        """Peak bytes of all tensors while `run(images)` runs."""
        living = Living([*self._held(), *self.loss.buffers(), *(self.momentum if learning else [])])
        with ExitStack() as stack:
            stack.enter_context(self.fake)
            if self.device != "cpu":
                stack.enter_context(_AsOnGPU(self.here.precision != "fp32", self.config.compile != "off"))
            stack.enter_context(living)
            run(images)
        return living.highest

    def _held(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]

    def step(self, images: int, *, adds: bool = False) -> None:
        """Forward, loss, backward and update as `step.Step` does them; `adds`: gradients of an earlier piece exist."""
        about, groups = self.config.train, [{"params": self.trained}]
        # One weight after the other, as on the CPU; on a GPU the fused update needs as little.
        optimiser = Momentum(groups, lr=about.lr, momentum=about.momentum, weight_decay=about.weight_decay)
        for p, momentum in zip(self.trained, self.momentum, strict=True):
            optimiser.state[p]["momentum_buffer"] = momentum
            p.grad = torch.empty_like(p) if adds else None
        labels = torch.empty(images, dtype=torch.long)
        pictures = self._pictures(images)
        with self.patches.on(torch.empty(images, self.patches.count, dtype=torch.long)), self.here.autocast():
            logits = self.model(self.normalise(pictures))
        loss = self.loss(logits, labels)
        # loss.backward() would turn `_AsOnGPU` off, and blocks would be computed again by other rules.
        start = (torch.ones_like(loss),)
        _engine_run_backward((loss,), start, False, False, (), allow_unreachable=True, accumulate_grad=True)
        optimiser.step()
        optimiser.zero_grad()

    @torch.no_grad()
    def test(self, images: int) -> None:
        """One batch as `inference.predict` runs it."""
        pictures = self._pictures(images * (5 if self.config.evaluation.tte else 1))
        with self.model.class_features_kept(), self.here.autocast():
            out = self.model(self.normalise(pictures))
        out.float()

    def _pictures(self, count: int) -> Tensor:
        size = self.model.backbone.facts.image_size
        return torch.empty(count, 3, size, size, dtype=torch.uint8)


def pretend(model: nn.Module) -> None:
    """Replace a model's tensors by ones without contents; called under `FakeTensorMode`."""

    def empty(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)

    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(p) not in made:
                made[id(p)] = nn.Parameter(empty(p), p.requires_grad)
            setattr(module, name, made[id(p)])
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if id(buffer) not in made:
                made[id(buffer)] = empty(buffer)
            setattr(module, name, made[id(buffer)])
