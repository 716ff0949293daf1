"""Training: the same bits again, exact accumulation, frozen weights that stay, errors before harm."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import liftplus
from liftplus import config, registry
from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone
from liftplus.config import RunConfig
from liftplus.data import sources
from liftplus.data.dataset import DataSet, Split
from liftplus.errors import UserError
from liftplus.machine import runtime
from liftplus.runs import opening
from liftplus.training import assembly, checkpoint, loop, step

CPU = runtime.choose("cpu", "fp32")

PINNED = {
    "lift+": (0.771059, 0.174183),
    "lift": (0.589572, 0.090319),
    "linear_probe": (3.599312, 1.185403),
    "full": (3.312414, 0.332290),
}


def run_config(photos: Path, *overrides: str, method: str = "lift+") -> RunConfig:
    return config.resolve(data=str(photos), method=method, overrides=["epochs=2", "train.batch_size=8", *overrides])


def trained(photos: Path, *overrides: str, method: str = "lift+") -> tuple[dict[str, torch.Tensor], loop.Fit]:
    run = run_config(photos, *overrides, method=method)
    dataset = sources.load(run.data)
    model = assembly.build(run, dataset, CPU)
    fitted = loop.fit(model, run, dataset, CPU)
    return model.learned_state(), fitted


def test_same_seed_same_bits_with_any_number_of_workers(photos: Path) -> None:
    alone, one = trained(photos, "workers=0")
    shared, two = trained(photos, "workers=2")
    assert one.losses == two.losses
    assert alone.keys() == shared.keys()
    assert all(torch.equal(alone[name], shared[name]) for name in alone)
    other, _ = trained(photos, "workers=0", "seed=1")
    assert any(not torch.equal(alone[name], other[name]) for name in alone)


@pytest.mark.slow
def test_patches_left_out_depend_on_the_pictures_alone(photos: Path) -> None:
    given = ("keep=0.5", "head_init=random")
    alone, one = trained(photos, "workers=0", *given)
    shared, two = trained(photos, "workers=2", *given)
    assert one.losses == two.losses and all(torch.equal(alone[name], shared[name]) for name in alone)
    _, pieces = trained(photos, "workers=0", "micro_batch=3", "grad_checkpointing=true", *given)
    assert pieces.losses == pytest.approx(one.losses, rel=1e-4)
    _, whole = trained(photos, "workers=0", "head_init=random")
    assert whole.losses != pytest.approx(one.losses, rel=1e-3)


def test_accumulation_is_exact_also_for_the_short_last_batch(photos: Path) -> None:
    whole, one = trained(photos, "workers=0")
    pieces, two = trained(photos, "workers=0", "micro_batch=3")
    assert one.losses == pytest.approx(two.losses, rel=1e-5)
    for name, value in whole.items():
        assert torch.allclose(value, pieces[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("name", sorted(set(registry.discover("loss")) - {"lade"}))
def test_accumulation_is_exact_for_every_loss(photos: Path, name: str) -> None:
    """lade is left out: its regulariser takes each piece for a batch."""
    given = ("workers=0", "epochs=1", f"loss={name}", 'class_weights={"blue sky": 5}')
    whole, one = trained(photos, *given)
    pieces, two = trained(photos, *given, "micro_batch=3")
    assert one.losses == pytest.approx(two.losses, rel=1e-5)
    for key, value in whole.items():
        assert torch.allclose(value, pieces[key], rtol=1e-4, atol=1e-6), key


def test_class_weights_reach_the_loss_and_unknown_classes_are_refused(photos: Path) -> None:
    plain, _ = trained(photos, "workers=0", "epochs=1")
    heavy, _ = trained(photos, "workers=0", "epochs=1", 'class_weights={"blue sky": 50}')
    assert any(not torch.equal(plain[name], heavy[name]) for name in plain)
    run = run_config(photos, 'class_weights={"blue skies": 2}')
    with pytest.raises(UserError, match=r"Unknown class .*'blue skies'\. Did you mean 'blue sky'"):
        assembly.check(run, sources.load(run.data))


@pytest.mark.slow
def test_resampled_runs_are_the_same_with_any_number_of_workers(photos: Path) -> None:
    alone, one = trained(photos, "workers=0", "sampler=class_balanced", "loss=cross_entropy")
    shared, two = trained(photos, "workers=2", "sampler=class_balanced", "loss=cross_entropy")
    assert one.losses == two.losses
    assert all(torch.equal(alone[name], shared[name]) for name in alone)
    _, instance = trained(photos, "workers=0", "loss=cross_entropy")
    assert instance.losses != one.losses


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        (("sampler=class_balanced",), True),
        (("sampler=progressive", "loss=lade"), True),
        (("sampler=square_root", "loss=balanced_softmax"), True),
        (("sampler=class_balanced", "tau=0"), False),
        (("sampler=class_balanced", "loss=cross_entropy"), False),
        ((), False),
    ],
)
def test_a_note_where_sampler_and_loss_both_rebalance(photos: Path, given: tuple[str, ...], warned: bool) -> None:
    run = run_config(photos, *given)
    dataset = sources.load(run.data)
    told = opening.notes(run, dataset, assembly.build(run, dataset, CPU))
    assert any("both correct for class imbalance" in note for note in told) == warned


@pytest.mark.parametrize("given", [("lift+", "width=8"), ("lift", "width=8"), ("linear_probe",), ("full",)])
def test_every_method_learns_and_leaves_frozen_weights_alone(photos: Path, given: tuple[str, ...]) -> None:
    # Of a bottleneck of one unit, the default for three classes, the ReLU may never let a gradient through.
    run = run_config(photos, "workers=0", "epochs=4", "lr=0.01", *given[1:], method=given[0])
    dataset = sources.load(run.data)
    model = assembly.build(run, dataset, CPU)
    before = {part: {n: p.detach().clone() for n, p in values.items()} for part, values in model.partition().items()}
    names = set(dict(model.named_parameters()))
    assert set().union(*before.values()) == names
    assert sum(len(values) for values in before.values()) == len(names)
    fitted = loop.fit(model, run, dataset, CPU)
    after = dict(model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before["frozen"].items())
    assert all(not torch.equal(value, after[name]) for name, value in (before["tuned"] | before["head"]).items())
    assert fitted.losses[-1] < fitted.losses[0]


def test_cosine_schedule() -> None:
    by_epoch = config.resolve(overrides=["epochs=4", "lr=0.1"])
    assert loop.rate(by_epoch, 0, 0.5) == 0.1
    assert loop.rate(by_epoch, 2, 0.9) == pytest.approx(0.05)
    assert loop.rate(by_epoch, 3, 0.0) == pytest.approx(0.05 * (1 + math.cos(0.75 * math.pi)))
    by_step = config.resolve(overrides=["epochs=4", "lr=0.1", "train.schedule=step"])
    assert loop.rate(by_step, 2, 0.5) == pytest.approx(0.05 * (1 + math.cos(math.pi * 2.5 / 4)))


def test_a_broken_loss_stops_the_run(photos: Path) -> None:
    with pytest.raises(UserError, match=r"loss is not finite in epoch \d.*learning rate"):
        trained(photos, "workers=0", "lr=1e30", "epochs=6", method="full")


def test_class_without_training_images_is_trained_with_a_finite_prior(photos: Path) -> None:
    run = run_config(photos, "workers=0")
    dataset = sources.load(run.data)
    kept = [i for i, label in enumerate(dataset.splits["train"].labels) if label != 2]
    split = dataset.splits["train"]
    thinned = DataSet(
        "thin",
        dataset.class_names,
        dataset.class_ids,
        {"train": Split([split.keys[i] for i in kept], [split.labels[i] for i in kept])},
        dataset.store,
    )
    for init in ("semantic", "class_mean", "linear_probe", "random"):
        changed = config.changed(run.to_dict(), [f"head_init={init}"])
        model = assembly.build(changed, thinned, CPU)
        assert torch.isfinite(model.head.weight).all()
        assert torch.allclose(model.head.weight.norm(dim=1), torch.ones(3), atol=1e-5)
        assert all(math.isfinite(loss) for loss in loop.fit(model, changed, thinned, CPU).losses)


def test_saved_model_gives_the_same_bits(photos: Path, tmp_path: Path) -> None:
    run = run_config(photos, "workers=0")
    dataset = sources.load(run.data)
    model = assembly.build(run, dataset, CPU)
    loop.fit(model, run, dataset, CPU)
    (tmp_path / "run").mkdir()
    checkpoint.save_model(tmp_path / "run", model, run, dataset)
    again = checkpoint.load_model(tmp_path / "run", CPU)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model(images), again.model(images))
    assert again.class_names == dataset.class_names
    assert again.train_counts == dataset.counts()
    assert again.config == run
    assert (tmp_path / "run" / checkpoint.FILE).stat().st_size < 300_000


def test_a_saved_run_keeps_its_pooling(photos: Path, tmp_path: Path) -> None:
    run = run_config(
        photos,
        "workers=0",
        "backbone.name=timm/test_vit.r160_in1k",
        "pretrained=false",
        "image_size=64",
        "pooling=mean",
        "head_init=class_mean",
    )
    dataset = sources.load(run.data)
    model = assembly.build(run, dataset, CPU)
    checkpoint.save_model(tmp_path, model, run, dataset)
    again = checkpoint.load_model(tmp_path, CPU)
    assert again.model.backbone.facts.pooling == again.config.backbone.pooling == "mean"
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = model.backbone.image.forward_features(images)  # type: ignore[operator]
        assert torch.equal(again.model.backbone(images), tokens[:, 1:].mean(1))
        assert torch.equal(model(images), again.model(images))


def test_semantic_initialisation_needs_words(photos: Path) -> None:
    for name, number in (("red_square", "0"), ("green hill", "1"), ("blue sky", "2")):
        for split in ("train", "test"):
            (photos / split / name).rename(photos / split / number)
    with pytest.raises(UserError, match=r"only numbers.*data\.class_names=FILE, or choose head_init=class_mean"):
        trained(photos)
    _, fitted = trained(photos, "head_init=class_mean", "workers=0")
    assert fitted.losses[-1] < 3


def test_short_run_losses_are_pinned(photos: Path) -> None:
    # A change of these figures is a change of the method: seed 0, fp32, two epochs of three batches.
    # They are of Pillow's pixels; the fast path rounds otherwise.
    for decode, within in (("exact", 1e-3), ("fast", 5e-3)):
        for method, pinned in PINNED.items():
            given = ["workers=0", "lr=0.02", f"data.decode={decode}", "interpolation=bicubic", "name=mini_clip_v1"]
            _, fitted = trained(photos, *given, method=method)
            assert fitted.losses == pytest.approx(pinned, rel=within), (method, decode)


@pytest.mark.parametrize(
    ("head", "scale"), [("cosine", 25.0), ("cosine.scale", 7.0), ("linear", 25.0), ("joint", None)]
)
def test_margins_of_ldam_have_the_heads_own_scale(photos: Path, head: str, scale: float | None) -> None:
    """Of head=joint that is CLIP's own, exp(logit_scale)."""
    own = ("head.scale=7",) if head == "cosine.scale" else (f"head={head}",)
    run = run_config(photos, "loss=ldam", "workers=0", *own)
    dataset = sources.load(run.data)
    model = assembly.build(run, dataset, CPU)
    rarity = torch.tensor(dataset.counts()).double() ** -0.25
    expected = (scale or model.head.scale) * 0.5 * rarity / rarity.max()  # type: ignore[operator]
    assert scale is not None or abs(float(model.head.scale) - 25) > 1  # type: ignore[arg-type]
    torch.testing.assert_close(step.Step(model, run, dataset, CPU).loss.margin, expected.float())


def test_features_that_are_not_finite_are_told_before_training(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_config(photos, "workers=0", "head_init=class_mean", "cache=false")
    features = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, images: features(self, images) * torch.nan)
    with pytest.raises(UserError, match="gives features that are not finite"):
        assembly.build(run, sources.load(run.data), CPU)


@pytest.mark.parametrize("start", ["semantic", "random"])
def test_a_broken_image_tower_is_told_where_the_start_reads_no_picture(
    photos: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """Without training nothing else would look at it before it is saved."""
    load = catalogue.load

    def broken(*given: Any, **options: Any) -> Backbone:
        backbone = load(*given, **options)
        next(backbone.image.parameters()).data.view(-1)[0] = torch.nan
        return backbone

    monkeypatch.setattr(catalogue, "load", broken)
    with pytest.raises(UserError, match="gives features that are not finite"):
        liftplus.fit(photos, epochs=0, head_init=start, cache=False, workers=0, device="cpu")


@pytest.mark.parametrize(
    ("method", "rate"),
    [
        ("full", 1e30),
        ("linear_probe", 1e30),  # each number is finite, the norm of a row is not, and cosines would all be 0
        ("linear_probe", 1e20),
    ],
)
def test_fit_in_memory_never_ends_with_what_the_last_step_broke(photos: Path, method: str, rate: float) -> None:
    given = {"precision": "fp32", "workers": 0, "tte": False, "device": "cpu", "train.batch_size": 32}
    with pytest.raises(UserError, match="not finite any more"):
        liftplus.fit(photos, method=method, lr=rate, epochs=1, **given)  # type: ignore[arg-type]
