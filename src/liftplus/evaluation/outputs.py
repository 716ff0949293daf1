"""What a classifier says of pictures, by way of the cache where that helps: predictions, or logits with features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from liftplus.config import EvaluationConfig
from liftplus.evaluation.features import Cache, bare, image_features
from liftplus.evaluation.inference import (
    PLAIN,
    Answering,
    SplitReader,
    TopK,
    best,
    collect,
    crops,
    predict,
    refuse_not_finite,
)
from liftplus.machine.runtime import Runtime
from liftplus.model.classifier import Classifier


class WithFeatures(nn.Module):
    """Images [B, 3, R, R] -> logits and features [B, C + D], fp32."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        features = self.model.backbone(images)
        return torch.cat([self.model(features).float(), features.float()], dim=-1)

    @contextmanager
    def class_features_kept(self) -> Iterator[None]:
        """See `Classifier.class_features_kept`."""
        with self.model.class_features_kept():
            yield


def outputs(
    model: Classifier, reader: SplitReader, evaluation: EvaluationConfig, runtime: Runtime, cache: Cache
) -> tuple[Tensor, Tensor]:
    """Logits [N, C] and features [N, D], averaged over crops, fp32, on the CPU, in the split's order.

    Features of a bare backbone go through the cache. An unreadable picture has meaningless values if the reader
    collects such pictures.

    Raises:
        DivergedError: an output is not finite.
    """
    rows = _kept(model, reader, evaluation, runtime, cache)
    if rows is None:
        facts = model.backbone.facts
        view = crops(evaluation, facts)
        both = collect(WithFeatures(model), reader, view, facts, runtime, evaluation.batch_size)
        logits, features = both[:, : -model.backbone.dim], both[:, -model.backbone.dim :]
    else:
        logits, features = logits_of(model, rows, evaluation.batch_size, runtime), rows.mean(1)
    for part in (logits, features):
        refuse_not_finite(part, runtime, len(part))
    return logits.clone(), features.clone()


def predict_once(
    model: Classifier,
    reader: SplitReader,
    evaluation: EvaluationConfig,
    runtime: Runtime,
    cache: Cache,
    how: Answering = PLAIN,
) -> TopK:
    """`inference.predict` with the same bits; if the backbone is bare, its features go through the cache."""
    rows = _kept(model, reader, evaluation, runtime, cache)
    if rows is None:
        return predict(model, reader, evaluation, model.backbone.facts, runtime, how)
    if runtime.job.size > 1:
        rows = rows[runtime.job.part(len(rows))]
    return best(logits_of(model, rows, evaluation.batch_size, runtime), evaluation, runtime, len(reader.split), how)


def _kept(
    model: Classifier, reader: SplitReader, evaluation: EvaluationConfig, runtime: Runtime, cache: Cache
) -> Tensor | None:
    """Features [N, crops, D] through the cache; None for a tuned backbone, or if unreadable pictures are collected."""
    if not cache.on or reader.unreadable is not None or not bare(model):
        return None
    view = crops(evaluation, model.backbone.facts)
    return image_features(cache, model.backbone, reader, view, runtime, evaluation.batch_size)


@torch.inference_mode()
def logits_of(model: Classifier, rows: Tensor, batch_size: int, runtime: Runtime) -> Tensor:
    """Logits fp32 [N, C], averaged over crops, from features [N, crops, D]."""
    parts = []
    for part in rows.split(batch_size):
        with runtime.autocast():
            out = model(part.to(runtime.device).flatten(0, 1))
        parts.append(out.float().unflatten(0, part.shape[:2]).mean(1).cpu())
    return torch.cat(parts)
