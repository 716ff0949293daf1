"""Whole runs with a trained text side: built, fitted, saved, loaded, described."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from liftplus import checkpoint, config, runtime, train
from liftplus.data import sources
from liftplus.errors import UserError

CPU = runtime.choose("cpu", "fp32")
RUNS = [
    ("tuner=coop", "tuner.coop.start=words"),
    ("tuner=lora", "tuner.lora.side=text"),
    ("tuner=clip_adapter+adaptformer", "tuner.adaptformer.width=4"),
    ("tuner=projection", "tuner.projection.side=image"),
]


@pytest.mark.parametrize("options", RUNS, ids=lambda options: options[0])
def test_run(photos: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    overrides = ["head=joint", *options, "epochs=1", "workers=0", "train.batch_size=8", "evaluation.tte=false"]
    run = config.resolve(data=str(photos), overrides=overrides)
    dataset = sources.load(run.data)
    model = train.build(run, dataset, CPU)
    reads_text = any(tuner.side != "image" for tuner in run.tuner.values())
    assert (model.backbone.text is not None) == reads_text
    images = torch.randn(2, 3, model.backbone.facts.image_size, model.backbone.facts.image_size)
    before = model(images).detach()
    train.fit(model, run, dataset, CPU)
    after = model(images).detach()
    assert not torch.equal(before, after)
    checkpoint.save_model(tmp_path, model, run, dataset)
    assert torch.equal(checkpoint.load_model(tmp_path, CPU).model(images), after)


def test_the_default_head_is_refused(photos: Path) -> None:
    run = config.resolve(data=str(photos), overrides=["tuner=coop", "workers=0"])
    with pytest.raises(UserError, match="head=joint"):
        train.build(run, sources.load(run.data), CPU)
