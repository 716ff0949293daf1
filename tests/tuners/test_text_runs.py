"""Whole runs with a trained text side: built, fitted, saved, loaded, described."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from liftplus import config
from liftplus.data import sources
from liftplus.errors import UserError
from liftplus.machine import runtime
from liftplus.training import assembly, checkpoint, loop

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
    model = assembly.build(run, dataset, CPU)
    reads_text = any(tuner.side != "image" for tuner in run.tuner.values())
    assert (model.backbone.text is not None) == reads_text
    images = torch.randn(2, 3, model.backbone.facts.image_size, model.backbone.facts.image_size)
    before = model(images).detach()
    loop.fit(model, run, dataset, CPU)
    after = model(images).detach()
    assert not torch.equal(before, after)
    checkpoint.save_model(tmp_path, model, run, dataset)
    assert torch.equal(checkpoint.load_model(tmp_path, CPU).model(images), after)


def test_prompts_of_a_trained_text_side_travel_with_it(photos: Path, tmp_path: Path) -> None:
    """A trained text side reads several prompts a class, centred, and needs no file of them to be loaded."""
    file = tmp_path / "descriptors.json"
    table = {"red_square": ["a red {}", "an angular {}"], "green hill": ["grass"], "blue sky": ["a {} with clouds"]}
    file.write_text(json.dumps(table), encoding="utf-8")
    keys = ["head=joint", f"descriptors={file}", "centre=true", "epochs=1", "workers=0", "evaluation.tte=false"]
    run = config.resolve(data=str(photos), overrides=[*keys, "tuner=lora", "tuner.lora.side=text"])
    dataset = sources.load(run.data)
    bare = assembly.build(config.resolve(data=str(photos), overrides=[*keys, "tuner=none", "epochs=0"]), dataset, CPU)
    model = assembly.build(run, dataset, CPU)
    images = torch.randn(2, 3, model.backbone.facts.image_size, model.backbone.facts.image_size)
    assert torch.equal(model(images), bare(images))
    loop.fit(model, run, dataset, CPU)
    checkpoint.save_model(tmp_path, model, run, dataset)
    file.unlink()
    assert torch.equal(checkpoint.load_model(tmp_path, CPU).model(images), model(images))


def test_descriptors_are_not_needed_to_load_a_trained_image_side(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "descriptors.json"
    file.write_text(json.dumps({name: ["{}"] for name in ("red_square", "green hill", "blue sky")}), encoding="utf-8")
    run = config.resolve(data=str(photos), overrides=[f"descriptors={file}", "epochs=0", "workers=0"])
    dataset = sources.load(run.data)
    model = assembly.build(run, dataset, CPU)
    checkpoint.save_model(tmp_path, model, run, dataset)
    file.unlink()
    images = torch.randn(2, 3, model.backbone.facts.image_size, model.backbone.facts.image_size)
    assert torch.equal(checkpoint.load_model(tmp_path, CPU).model(images), model(images))


def test_the_default_head_is_refused(photos: Path) -> None:
    run = config.resolve(data=str(photos), overrides=["tuner=coop", "workers=0"])
    with pytest.raises(UserError, match="head=joint"):
        assembly.build(run, sources.load(run.data), CPU)
