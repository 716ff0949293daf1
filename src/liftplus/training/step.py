"""One optimiser step, and the watch over losses, weights and outputs that are not finite."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from liftplus.backbones.normalise import Normalise
from liftplus.config import RunConfig
from liftplus.data.dataset import DataSet
from liftplus.data.loader import Batch
from liftplus.errors import DivergedError, RunFailedError
from liftplus.machine.runtime import Runtime
from liftplus.model.classifier import Classifier
from liftplus.model.losses import LossModule
from liftplus.training import layer_decay, memory
from liftplus.training.checkpoint import sound
from liftplus.training.momentum import descent
from liftplus.training.patch_dropout import PatchDropout
from liftplus.words import counted

READ_EVERY = 20
"""Steps between two reads of the loss from the device."""
LOOKED_AT = 16
"""Most pictures whose outputs are checked before weights are saved."""


class Step:
    """One optimiser step: normalise, forward, loss, backward, update; returns the loss, still on the device.

    In a job of several processes each gets its share of each batch; loss and update are those of the whole batch.
    """

    def __init__(
        self,
        model: Classifier,
        config: RunConfig,
        dataset: DataSet,
        runtime: Runtime,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.model, self.config, self.runtime, self.job = model, config, runtime, runtime.job
        self.rate, self.slowed = config.train.lr, 1.0
        self.advice = partial(memory.advice, config, dataset.num_classes, runtime)
        self.micro = config.train.micro_batch or config.train.batch_size
        loss = config.loss.for_head(model.head)
        self.loss: LossModule = loss.build(torch.tensor(dataset.counts()), dataset.class_names)
        self.loss.to(runtime.device, torch.float32)
        with runtime.autocast():
            self.patches = PatchDropout(model.backbone, config.train.keep)
        self.forward = runtime.compiled(model, adds=self.micro < config.train.batch_size)
        self.normalise = Normalise(model.backbone.facts).to(runtime.device)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.decays = layer_decay.multiples(model, config.train.layer_decay)
        self.rates = {name: rate for name, rate in (rates or {}).items() if name in self.trained}
        self.optimiser = descent(
            self._groups(),
            runtime.device,
            lr=config.train.lr,
            momentum=config.train.momentum,
            weight_decay=config.train.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        self.watch = Watch(model, dataset.splits["train"].keys, runtime, self.micro)
        self.checked = False

    def _groups(self) -> list[dict[str, Any]]:
        """Groups of trained weights: one for each layer's rate, the whole rate first, then one per measured rate."""
        plain: dict[float, list[nn.Parameter]] = {}
        for name, p in self.trained.items():
            if name not in self.rates:
                plain.setdefault(self.decays.get(name, 1.0), []).append(p)
        groups: list[dict[str, Any]] = [
            {"params": plain[decay], "multiple": decay} for decay in sorted(plain, reverse=True)
        ]
        return groups + [
            {"params": [self.trained[n]], "multiple": rate * self.decays.get(n, 1.0), "of": n}
            for n, rate in self.rates.items()
        ]

    def set_rate(self, lr: float) -> None:
        """Use this learning rate from the next step on."""
        self.rate = lr * self.slowed
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * group["multiple"]

    def restart(self, start: dict[str, Tensor], slowed: float) -> None:
        """Take over learned weights as at the start of a run, with all rates multiplied by `slowed`."""
        self.model.load_learned(start)
        self.optimiser.state.clear()
        self.watch.forget()
        self.slowed = slowed

    def __call__(self, batch: Batch) -> Tensor:
        try:
            total = self._gradients(batch)
        except torch.OutOfMemoryError as error:
            raise self._short_of_memory(len(batch.labels)) from error
        if not self.checked and len(batch.labels):
            self._check_gradients()
        self._add_up(total)
        if self.watch.sound(total, batch, self.rate):
            self.scaler.step(self.optimiser)  # type: ignore[arg-type]  # Momentum has all that it uses
            self.scaler.update()
        self.optimiser.zero_grad()
        return total

    def _short_of_memory(self, images: int) -> RunFailedError:
        """The error when memory ran out, with a prediction of what would fit if there is one."""
        advice = None
        with suppress(Exception):  # a prediction that fails must not hide what happened
            advice = self.advice()
        return RunFailedError(
            f"The device ran out of memory with {counted(min(self.micro, images), 'image')} at a time. "
            + (
                advice
                or f"Try train.micro_batch={max(1, self.micro // 2)}, which gives the same result, or "
                "backbone.grad_checkpointing=true."
            )
        )

    def _gradients(self, batch: Batch) -> Tensor:
        """Forward and backward over the batch's pieces; returns this process's share of the batch's loss."""
        total = torch.zeros((), device=self.runtime.device)
        truth = batch.labels.to(self.runtime.device, non_blocking=True)
        whole = self.loss.batch_weight(truth)
        self.job.add([whole])
        if not len(truth):  # a batch smaller than the number of processes
            return total
        pieces = zip(batch.images.split(self.micro), truth.split(self.micro), strict=True)
        for number, (images, labels) in enumerate(pieces):
            images = images.to(self.runtime.device, non_blocking=True)
            seeds = batch.seeds[number * self.micro :][: self.micro]
            with self.patches.on(self.patches.draw(seeds, self.micro, self.runtime.device)), self.runtime.autocast():
                logits = self.forward(self.normalise(images))
            # A piece counts by its share of the batch's weights, as its images do in the loss of the whole batch.
            loss = self.loss(logits, labels) * (self.loss.batch_weight(labels) / whole)
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

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Learned weights and momentum by name, on the CPU; the state of the gradient scaler."""
        tensors = {f"model.{name}": value for name, value in self.model.learned_state().items()}
        for name, p in self.trained.items():
            momentum = self.optimiser.state[p].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum.detach().cpu().contiguous()
        values: dict[str, Any] = {"scaler": self.scaler.state_dict()}
        if self.rates:
            values["rates"] = self.rates
        if self.slowed != 1.0:
            values["slowed"] = self.slowed
        return tensors, values

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
        self.slowed = values.get("slowed", 1.0)
        # The rates that were measured when the run began: another machine may round them differently.
        self.rates |= values.get("rates", {})
        for group in self.optimiser.param_groups:
            if "of" in group:
                group["multiple"] = self.rates[group["of"]] * self.decays.get(group["of"], 1.0)


class Watch:
    """Finds what is not finite: losses, without waiting for the device, and weights before they are saved.

    On the CPU, where reading costs nothing, a step whose loss is not finite changes no weight; on a GPU it is found at
    the next `check`, before anything is saved.
    """

    def __init__(self, model: Classifier, keys: Sequence[str], runtime: Runtime, piece: int) -> None:
        self.model, self.keys, self.runtime, self.piece = model, keys, runtime, piece
        self.steps = 0
        self.broken = torch.full((), -1, device=runtime.device)  # number of the first step that broke
        # As many batches as may pass before the next check.
        self.recent: deque[tuple[Batch, float]] = deque(maxlen=1 if self.reads_freely else READ_EVERY)

    def sound(self, loss: Tensor, batch: Batch, lr: float) -> bool:
        """Note a step's loss; False where it is known not to be finite."""
        self.recent.append((batch, lr))
        finite = torch.isfinite(loss)
        self.broken = torch.where((self.broken < 0) & ~finite, self.steps, self.broken)
        self.steps += 1
        return loss.device.type != "cpu" or bool(finite)

    def forget(self) -> None:
        """Start anew."""
        self.steps = 0
        self.broken.fill_(-1)
        self.recent.clear()

    @property
    def reads_freely(self) -> bool:
        """Whether looking at the loss after every step costs nothing."""
        return self.broken.device.type == "cpu"

    def look(self, epoch: int, number: int, *, waits: bool, keeps: bool) -> None:
        """After a step, the `number`-th of its epoch from 1: raise where something is not finite.

        Args:
            waits: whether to wait for the device.
            keeps: whether the weights are about to be saved.
        """
        if waits or keeps or self.reads_freely:
            self.check(epoch, number)
        if keeps:
            self.check_weights(epoch, number)

    def check(self, epoch: int, number: int) -> None:
        """Raise where a loss since the last check was not finite; `number` is the last step's in its epoch, from 1."""
        first = int(self.broken)
        if first < 0:
            return
        behind = self.steps - 1 - first
        self._stop("The loss is not finite in", *self.recent[-1 - behind], epoch, number - behind)

    def check_weights(self, epoch: int, number: int) -> None:
        """Raise where the last step left weights that are not finite, or that give outputs that are not.

        The loss of a step is that of the weights before it, so without this look they would be saved.
        """
        if not self.recent:
            return
        batch, lr = self.recent[-1]
        finite = all(sound(p.detach()) for p in self.model.trainable())
        if finite and len(batch.labels):
            finite = bool(self._outputs(batch.images[: min(self.piece, LOOKED_AT)]).isfinite().all())
        if any(self.runtime.job.greatest(int(not finite))):
            what = "The weights or their outputs are not finite any more after"
            self._stop(what, batch, lr, epoch, number)

    def _stop(self, what: str, batch: Batch, lr: float, epoch: int, number: int) -> None:
        """Raise with the step, its pictures and the module with the largest activation."""
        parts = self.runtime.job.from_all((batch.indices.tolist(), self._largest_activation(batch)))
        files = [self.keys[index] for indices, _ in parts for index in indices]
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        largest, name = max(found for _, found in parts)
        precise = "." if self.runtime.precision == "fp32" else ", or use precision=fp32."
        raise DivergedError(
            f"{what} epoch {epoch + 1}, step {number}, at learning rate {lr:g}. The batch "
            f"has {', '.join(files[:3])}{more}; its largest activation is {largest:.3g}, given by {name}. "
            f"Nothing was saved since. Lower train.lr{precise}"
        )

    @torch.no_grad()
    def _outputs(self, images: Tensor) -> Tensor:
        """The model's logits for pictures from the loader; the model is not changed."""
        normalise = Normalise(self.model.backbone.facts).to(self.runtime.device)
        with self.runtime.autocast():
            logits: Tensor = self.model(normalise(images.to(self.runtime.device)))
        return logits

    @torch.no_grad()
    def _largest_activation(self, batch: Batch) -> tuple[float, str]:
        """The largest activation and its module: the first one whose output is not finite, else the largest one."""
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
            self._outputs(batch.images)
        finally:
            for handle in handles:
                handle.remove()
        return next((item for item in found if math.isinf(item[0])), None) or max(found)
