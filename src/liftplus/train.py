"""Build a classifier for a data set and fit it: data, backbone, tuner, head, initialisation, loss, optimiser."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone
from liftplus.checkpoint import Keeper, Position
from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet, Split
from liftplus.data.loader import Batch, Loader, TrainView, seeded
from liftplus.data.transforms import CentreCrop
from liftplus.errors import UserError
from liftplus.evaluate import Normalise, Reading, collect
from liftplus.head_init import InitContext, centres, class_prompts
from liftplus.losses import LossModule
from liftplus.model import Classifier
from liftplus.runtime import Progress, Runtime, Silent

READ_EVERY = 20


def build(config: RunConfig, dataset: DataSet, runtime: Runtime, progress: Progress | None = None) -> Classifier:
    """The classifier with its head initialised, on the device, ready for the first step."""
    check(config, dataset)
    backbone = catalogue.load(config.backbone)
    runtime.place(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = config.head.build(backbone, dataset.num_classes)
        context = InitContext(
            backbone,
            dataset.class_names,
            plain_features(config, dataset, backbone, runtime, progress),
            seeded(config.seed, -1),
        )
        rows = config.head.rows(context, config.head_init)
        head.weight.data.copy_(rows)
        model = Classifier.assemble(
            backbone,
            dict(config.tuner),
            head,
            class_prompts(config.head_init, dataset.class_names),
            centre=centres(config.head_init),
        )
    if config.train.epochs and not any(True for _ in model.trainable()):
        raise UserError(
            "Nothing is left to train: the tuner is none and the head is frozen. Use epochs=0, or another tuner."
        )
    runtime.place(model)
    return model


def check(config: RunConfig, dataset: DataSet) -> None:
    """Refuse what cannot work before any long work starts."""
    if "train" not in dataset.splits or not len(dataset.splits["train"]):
        raise UserError(f"Data set {dataset.name!r} has no training images.")
    config.loss.weights_of(dataset.class_names)
    reads_names = [
        key
        for key, used in (
            ("head=joint", config.head.name == "joint"),
            ("head_init=semantic", config.head_init.name == "semantic"),
        )
        if used
    ]
    if reads_names and not dataset.named:
        instead = "" if "head=joint" in reads_names else ", or choose head_init=class_mean"
        raise UserError(
            f"The classes of {dataset.name!r} have no names, only numbers, so {reads_names[0]} has nothing to read. "
            f"Give data.class_names=FILE{instead}."
        )


def plain_features(
    config: RunConfig, dataset: DataSet, backbone: Backbone, runtime: Runtime, progress: Progress | None
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """A function that gives bare features of at most k training images a class, short side and centre crop R."""

    def features(shots: int) -> tuple[Tensor, Tensor]:
        train = dataset.splits["train"]
        chosen = first_of_each(train, shots, seeded(config.seed, -2))
        split = Split([train.keys[i] for i in chosen], [train.labels[i] for i in chosen])
        view = CentreCrop(backbone.facts.image_size, backbone.facts.interpolation, margin=0)
        reading = Reading(
            dataset.store, split, config.train.workers, progress, label="Features for the first classifier"
        )
        out = collect(backbone, reading, view, backbone.facts, runtime, config.evaluation.batch_size)
        return out.clone(), torch.tensor(split.labels)

    return features


def first_of_each(split: Split, shots: int, generator: torch.Generator) -> list[int]:
    """Indices of at most `shots` images a class, drawn at random, in ascending order."""
    left: dict[int, int] = {}
    chosen = []
    for index in torch.randperm(len(split), generator=generator).tolist():
        taken = left.get(split.labels[index], 0)
        if taken < shots:
            left[split.labels[index]] = taken + 1
            chosen.append(index)
    return sorted(chosen)


@dataclass(frozen=True)
class Fit:
    """What training took and how its loss went, one entry an epoch."""

    losses: tuple[float, ...]
    seconds: float


def fit(
    model: Classifier,
    config: RunConfig,
    dataset: DataSet,
    runtime: Runtime,
    *,
    progress: Progress | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    keeper: Keeper | None = None,
) -> Fit:
    """Train in place with SGD and a cosine learning rate (METHOD, section Training).

    Args:
        log: called with a record at the end of each epoch.
        keeper: saves the state and brings a saved one back; training goes on from there, bit for bit.

    Several processes of one job take their parts of every batch and come to the same weights; each has its own keeper,
    and the leader's state is that of all.
    """
    loader, step = _loader(model, config, dataset, runtime), Step(model, config, dataset, runtime)
    epochs = config.train.epochs
    at = step.alike(Position() if keeper is None else keeper.restore(step))
    clock, done = time.perf_counter() - at.seconds, at.epoch * len(loader) + at.step
    with (progress or Silent()).task("Training", epochs * len(loader), done) as advance:
        for epoch in range(at.epoch, epochs):
            total = torch.tensor(at.total, device=runtime.device)
            for number, batch in enumerate(loader.epoch(epoch, at.step), at.step + 1):
                step.set_rate(rate(config, epoch, (number - 1) / len(loader)))
                total += step(batch)
                read = number % READ_EVERY == 0 or number == len(loader)
                pause = keeper is not None and number < len(loader) and keeper.due()
                if read or pause or step.watch.reads_freely:
                    step.watch.check(epoch, number)
                advance(**({"epoch": epoch + 1, "loss": float(total) / number} if read else {}))
                if keeper is not None and pause:
                    seconds = time.perf_counter() - clock
                    keeper.save(step, replace(at, epoch=epoch, step=number, total=float(total), seconds=seconds))
            at = Position(epoch + 1, 0, 0.0, (*at.losses, float(total) / len(loader)), time.perf_counter() - clock)
            if log is not None:
                log({"epoch": at.epoch, "loss": at.losses[-1], "lr": step.rate, "seconds": round(at.seconds, 2)})
            if keeper is not None:
                keeper.save(step, at)
    return Fit(at.losses, at.seconds)


def _loader(model: Classifier, config: RunConfig, dataset: DataSet, runtime: Runtime) -> Loader:
    train, facts = dataset.splits["train"], model.backbone.facts
    view = TrainView(config.augment, facts.image_size, facts.interpolation, config.train.epochs, config.seed)
    return Loader(
        dataset.store,
        train,
        view,
        batch_size=config.train.batch_size,
        workers=config.train.workers,
        order=config.sampler.order(train.labels, config.train.epochs, config.seed),
        pin=runtime.device.type == "cuda",
        job=runtime.job,
    )


def rate(config: RunConfig, epoch: int, share: float) -> float:
    """Cosine decay to 0 over the epochs; `share` of the epoch counts only where the schedule goes by step."""
    done = (epoch + (share if config.train.schedule == "step" else 0.0)) / config.train.epochs
    return config.train.lr * (1 + math.cos(math.pi * done)) / 2


class Step:
    """One optimiser step: normalise, forward, loss, backward, update; returns the loss, still on the device.

    Of a job of several processes each is given its part of the batch; loss and update are those of the whole.
    """

    def __init__(self, model: Classifier, config: RunConfig, dataset: DataSet, runtime: Runtime) -> None:
        self.model, self.runtime, self.job = model, runtime, runtime.job
        self.micro = config.train.micro_batch or config.train.batch_size
        loss = config.loss.for_head(config.head)
        self.loss: LossModule = loss.build(torch.tensor(dataset.counts()), dataset.class_names)
        self.loss.to(runtime.device, torch.float32)
        self.normalise = Normalise(model.backbone.facts).to(runtime.device)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimiser = torch.optim.SGD(
            self.trained.values(),
            lr=config.train.lr,
            momentum=config.train.momentum,
            weight_decay=config.train.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        self.watch = Watch(model, dataset.splits["train"].keys, runtime)
        self.checked = False

    @property
    def rate(self) -> float:
        """The present learning rate."""
        return float(self.optimiser.param_groups[0]["lr"])

    def set_rate(self, lr: float) -> None:
        """Use this learning rate from the next step on."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr

    def __call__(self, batch: Batch) -> Tensor:
        try:
            total = self._gradients(batch)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"The device ran out of memory with {min(self.micro, len(batch.labels))} images at a time. Try "
                f"train.micro_batch={max(1, self.micro // 2)}, which gives the same result, or "
                "backbone.grad_checkpointing=true."
            ) from error
        if not self.checked and len(batch.labels):
            self._check_gradients()
        self._add_up(total)
        if self.watch.sound(total, batch, self.rate):
            self.scaler.step(self.optimiser)
            self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        return total

    def _gradients(self, batch: Batch) -> Tensor:
        """Forward and backward over the batch's pieces; this process's share of the batch's loss."""
        total = torch.zeros((), device=self.runtime.device)
        truth = batch.labels.to(self.runtime.device, non_blocking=True)
        whole = self.loss.total_weight(truth)
        self.job.add([whole])
        if not len(truth):  # a batch smaller than the number of processes
            return total
        for images, labels in zip(batch.images.split(self.micro), truth.split(self.micro), strict=True):
            images = images.to(self.runtime.device, non_blocking=True)
            with self.runtime.autocast():
                logits = self.model(self.normalise(images))
            # A piece counts by its share of the batch's weights, as its images do in the loss of the whole batch.
            loss = self.loss(logits, labels) * (self.loss.total_weight(labels) / whole)
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _add_up(self, loss: Tensor) -> None:
        """Make gradients and loss those of the whole batch, in one exchange between the processes."""
        if self.job.size == 1:
            return
        for p in self.trained.values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        self.job.add([loss, *(p.grad for p in self.trained.values() if p.grad is not None)])

    def _check_gradients(self) -> None:
        silent = [name for name, p in self.trained.items() if p.grad is None]
        if silent:
            raise AssertionError(f"trainable weights without a gradient after the first step: {silent}")
        self.checked = True

    def alike(self, position: Position) -> Position:
        """Make every process's weights, momentum and position the leader's."""
        if self.job.size == 1:
            return position
        (tensors, values), position = self.job.from_leader(lambda: (self.state(), position))
        if not self.job.leads:
            self.load_state(tensors, values)
        return position

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Learned weights and momentum by name, on the CPU; the state of the gradient scaler."""
        tensors = {f"model.{name}": value for name, value in self.model.learned_state().items()}
        for name, p in self.trained.items():
            momentum = self.optimiser.state[p].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum.detach().cpu().contiguous()
        return tensors, {"scaler": self.scaler.state_dict()}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "momentum": {}}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = value
        self.model.load_learned(parts["model"])
        for name, p in self.trained.items():
            if name in parts["momentum"]:
                self.optimiser.state[p]["momentum_buffer"] = parts["momentum"][name].to(p, copy=True)
        self.scaler.load_state_dict(values["scaler"])


class Watch:
    """Looks out for losses that are not finite, without waiting for the device.

    On the CPU, where reading costs nothing, such a step changes no weight; on a GPU it is found at the next `check`,
    before anything is saved.
    """

    def __init__(self, model: Classifier, keys: Sequence[str], runtime: Runtime) -> None:
        self.model, self.keys, self.runtime = model, keys, runtime
        self.steps = 0
        self.broken = torch.full((), -1, device=runtime.device)  # number of the first step that broke
        # As many batches as may pass before the next look.
        self.recent: deque[tuple[Batch, float]] = deque(maxlen=1 if self.reads_freely else READ_EVERY)

    def sound(self, loss: Tensor, batch: Batch, lr: float) -> bool:
        """Note a step's loss; False where it is known not to be finite."""
        self.recent.append((batch, lr))
        finite = torch.isfinite(loss)
        self.broken = torch.where((self.broken < 0) & ~finite, self.steps, self.broken)
        self.steps += 1
        return loss.device.type != "cpu" or bool(finite)

    @property
    def reads_freely(self) -> bool:
        """Whether looking at the loss after every step costs nothing."""
        return self.broken.device.type == "cpu"

    def check(self, epoch: int, number: int) -> None:
        """Raise where a loss since the last check was not finite; `number` is the last step's in its epoch, from 1."""
        first = int(self.broken)
        if first < 0:
            return
        behind = self.steps - 1 - first
        batch, lr = self.recent[-1 - behind]
        parts = self.runtime.job.from_all((batch.indices.tolist(), self._largest_activation(batch)))
        files = [self.keys[index] for indices, _ in parts for index in indices]
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        largest, name = max(found for _, found in parts)
        raise UserError(
            f"The loss is not finite in epoch {epoch + 1}, step {number - behind}, at learning rate {lr:g}. The batch "
            f"has {', '.join(files[:3])}{more}; its largest activation is {largest:.3g}, given by {name}. "
            "Nothing was saved since. Lower train.lr, or use precision=fp32."
        )

    @torch.no_grad()
    def _largest_activation(self, batch: Batch) -> tuple[float, str]:
        """With the module that gives it: the first one whose output is not finite, else the one with the largest."""
        if not len(batch.labels):
            return 0.0, ""
        found: list[tuple[float, str]] = []

        def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(_module: nn.Module, _args: Any, out: Any) -> None:
                if isinstance(out, Tensor) and out.is_floating_point():
                    found.append((float(torch.nan_to_num(out.float(), nan=math.inf).abs().max()), name))

            return hook

        leaves = [(name, module) for name, module in self.model.named_modules() if not any(module.children())]
        handles = [module.register_forward_hook(look(name)) for name, module in leaves]
        try:
            normalise = Normalise(self.model.backbone.facts).to(self.runtime.device)
            with self.runtime.autocast():
                self.model(normalise(batch.images.to(self.runtime.device)))
        finally:
            for handle in handles:
                handle.remove()
        return next((item for item in found if math.isinf(item[0])), None) or max(found)


def trained_parameters(model: nn.Module) -> int:
    """Number of trainable weights, the head's included."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
