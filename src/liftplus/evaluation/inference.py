"""Run a classifier over a split, with one crop or five, and give probabilities and metrics."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from liftplus.backbones.base import Facts
from liftplus.backbones.normalise import Normalise
from liftplus.config import EvaluationConfig
from liftplus.data.dataset import Split, Store
from liftplus.data.loader import FixedView, Loader
from liftplus.data.transforms import CentreCrop, Crops, FiveCrops
from liftplus.errors import DivergedError
from liftplus.evaluation.levels import Level
from liftplus.evaluation.metrics import Metrics, accuracies, ranked
from liftplus.machine.progress import Progress, Silent
from liftplus.machine.runtime import Runtime
from liftplus.words import counted


@dataclass(frozen=True)
class TopK:
    """Results for N images, in the split's order.

    Attributes:
        classes: the top-k class indices, best first, int64 [N, k].
        probabilities: their softmax probabilities, fp32 [N, k].
        groups: the best group at each level that was asked for, int64 [N, L]; None without levels.
        sums: the summed probability of its classes, fp32 [N, L]; None without levels.
    """

    classes: Tensor
    probabilities: Tensor
    groups: Tensor | None = None
    sums: Tensor | None = None


@dataclass(frozen=True)
class Answering:
    """How answers are made of logits.

    Attributes:
        temperature: what logits are divided by for the probabilities. It does not change which classes are best.
        levels: levels above the classes, L of them, at which the best group is wanted too.
    """

    temperature: float = 1.0
    levels: tuple[Level, ...] = ()


PLAIN = Answering()


def crops(evaluation: EvaluationConfig, facts: Facts) -> CentreCrop | FiveCrops:
    """The crops for testing, by the evaluation settings."""
    if evaluation.tte:
        return FiveCrops(facts.image_size, evaluation.expand, facts.interpolation, evaluation.resize)
    return CentreCrop(facts.image_size, facts.interpolation, evaluation.one_crop_expand, evaluation.resize)


def coinciding_grids(evaluation: EvaluationConfig, facts: Facts) -> str | None:
    """A warning if the five crops share one patch grid, which removes most of their gain; else None."""
    patch = facts.patch_size
    if not evaluation.tte or patch is None or evaluation.expand % patch:
        return None
    return (
        f"evaluation.expand={evaluation.expand} is a multiple of the patch size {patch}: the patch grids of the five "
        f"crops coincide and test-time ensembling gains little. Try expand={evaluation.expand + patch // 2}."
    )


@dataclass(frozen=True)
class SplitReader:
    """A split to run over, and how to read it.

    Attributes:
        store, split: the pictures.
        workers: number of loader processes; by default it depends on the number of cores.
        progress: gets a call for every batch.
        label: the title of the progress bar.
        unreadable: collects the key and the reason of each picture that cannot be decoded. If None, such a picture is
            an error.
    """

    store: Store
    split: Split
    workers: int | None = None
    progress: Progress | None = None
    label: str = "Testing"
    unreadable: dict[str, str] | None = None


class CropOutputs:
    """A model as a function of the pictures of one batch; its value is the model's outputs for each crop."""

    def __init__(self, model: nn.Module, view: Crops, facts: Facts, runtime: Runtime) -> None:
        self.view, self.runtime = view, runtime
        self.normalise, self.forward = Normalise(facts).to(runtime.device), runtime.compiled(model)
        # Without this, a classifier with a trained text side encodes its class prompts for every batch.
        self.kept: Callable[[], AbstractContextManager[None]] = getattr(model, "class_features_kept", nullcontext)

    def __call__(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Outputs fp32 [B, crops, ...], on the device.

        Args:
            images, sizes: of the pictures, as in `Batch`.
        """
        device = self.runtime.device
        crops = self.view.cut(images.to(device, non_blocking=True), sizes.to(device, non_blocking=True))
        with self.runtime.autocast():
            out: Tensor = self.forward(self.normalise(crops.flatten(0, 1)))
        return out.float().unflatten(0, crops.shape[:2])


@torch.inference_mode()
def collect(
    model: nn.Module,
    reader: SplitReader,
    view: Crops,
    facts: Facts,
    runtime: Runtime,
    batch_size: int = 128,
    *,
    each: bool = False,
) -> Tensor:
    """The model's outputs averaged over crops, fp32 [N, ...], on the CPU, in the split's order.

    In a multi-process job each process runs over its part, and each gets all rows.

    Args:
        each: return every crop's output instead, [N, crops, ...].
    """
    return runtime.job.whole(_outputs(model, reader, view, facts, runtime, batch_size, each=each), len(reader.split))


def _outputs(
    model: nn.Module,
    reader: SplitReader,
    view: Crops,
    facts: Facts,
    runtime: Runtime,
    batch_size: int,
    *,
    each: bool = False,
) -> Tensor:
    """`collect` for this process's part only."""
    split = reader.split if runtime.job.size == 1 else reader.split.taken(runtime.job.part(len(reader.split)))
    loader = Loader(
        reader.store,
        split,
        FixedView(view.picture, skips=reader.unreadable is not None),
        batch_size=batch_size,
        workers=reader.workers,
        pin=runtime.device.type == "cuda",
    )
    outputs = CropOutputs(model, view, facts, runtime)
    parts: list[Tensor] = []
    with outputs.kept(), (reader.progress or Silent()).task(reader.label, len(loader)) as advance:
        for batch in loader.epoch():
            if reader.unreadable is not None:
                reader.unreadable.update((split.keys[k], reason) for k, reason in batch.unreadable.items())
            out = outputs(batch.images, batch.sizes)
            parts.append(out if each else out.mean(1))
            if len(parts) > 1:  # fetch the previous batch only now, so that the device always has work
                parts[-2] = parts[-2].cpu()
            advance()
    return torch.cat([*parts[:-1], *(part.cpu() for part in parts[-1:])])


@torch.inference_mode()
def predict(
    model: nn.Module,
    reader: SplitReader,
    evaluation: EvaluationConfig,
    facts: Facts,
    runtime: Runtime,
    how: Answering = PLAIN,
) -> TopK:
    """The best k classes and their probabilities for every image of a split.

    In a multi-process job each process runs over its part, and each gets all results.

    Raises:
        DivergedError: a logit is not finite.
    """
    logits = _outputs(model, reader, crops(evaluation, facts), facts, runtime, evaluation.batch_size)
    share_unreadable(reader, runtime)
    return best(logits, evaluation, runtime, len(reader.split), how)


def share_unreadable(reader: SplitReader, runtime: Runtime) -> None:
    """Every process of a job learns which pictures were unreadable."""
    if reader.unreadable is not None:
        for noted in runtime.job.from_all(dict(reader.unreadable)):
            reader.unreadable.update(noted)


def best(logits: Tensor, evaluation: EvaluationConfig, runtime: Runtime, count: int, how: Answering = PLAIN) -> TopK:
    """The best k classes and their probabilities for all `count` images, from this process's logits [n, C].

    Raises:
        DivergedError: a logit of any process is not finite.
    """
    refuse_not_finite(logits, runtime, count)
    found: list[tuple[Tensor, ...]] = []
    # With thousands of classes, ranking on the CPU would take as long as the GPU takes for the logits.
    for rows in logits.split(1024):
        chances = rows.to(runtime.device).softmax(-1)
        top = ranked(chances, min(evaluation.top_k, logits.shape[1]))
        if how.temperature != 1:
            chances = (rows.to(runtime.device) / how.temperature).softmax(-1)
        groups = [level.sums(chances).max(1) for level in how.levels]
        above = [torch.stack(part, 1) for part in zip(*((one.indices, one.values) for one in groups), strict=True)]
        found.append(tuple(part.cpu() for part in (top, chances.gather(1, top), *above)))
    return TopK(*(runtime.job.whole(torch.cat(part), count) for part in zip(*found, strict=True)))


def refuse_not_finite(outputs: Tensor, runtime: Runtime, count: int) -> None:
    """Refuse this process's outputs [n, ...] for `count` images if any process's are not all finite numbers.

    Raises:
        DivergedError: some are not.
    """
    strange = int((~outputs.isfinite()).flatten(1).any(1).sum())
    if most := max(runtime.job.greatest(strange)):
        precise = "" if runtime.precision == "fp32" else "Try precision=fp32. "
        raise DivergedError(
            f"The model's outputs are not finite for {most:,} of {counted(count, 'picture')}. {precise}Its weights "
            "diverged in training, or the backbone's file is damaged. Train again with a lower train.lr, or restore "
            "the file."
        )


def score(predictions: TopK, split: Split, train_counts: tuple[int, ...]) -> Metrics:
    """Metrics of the best class of each image, against the split's labels."""
    return accuracies(predictions.classes[:, 0].numpy(), list(split.labels), train_counts)
