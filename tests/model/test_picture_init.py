"""Starts from pictures: what they take, what they decide and say, and how a run begins with them."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from liftplus import config, registry
from liftplus.errors import UserError
from liftplus.model.closed_form import Gathering
from liftplus.model.closed_form import Ridge as Closed
from liftplus.model.head_init import HeadInit, InitContext, LinearProbe, Stream
from liftplus.model.heads import Cosine, LayerNorm, Linear
from liftplus.model.picture_init import Auto, Discriminants, Mix, Ridge, _Contest, judges, observed, ranks, sampled

from ..conftest import Command


def context(x: Tensor, y: Tensor, classes: int, batch: int = 7) -> InitContext:
    """A backbone that is only as wide as it says, and features that stream."""

    def few(shots: int) -> tuple[Tensor, Tensor]:
        chosen = ranks(y) < shots
        return x[chosen], y[chosen]

    def stream(shots: int | None) -> Stream:
        features, labels = few(len(y) if shots is None else shots)
        return Stream(labels, lambda: zip(features.split(batch), labels.split(batch), strict=True))

    backbone: Any = SimpleNamespace(dim=x.shape[1])
    names = [f"class {k}" for k in range(classes)]
    return InitContext(backbone, names, few, torch.Generator().manual_seed(0), stream=stream)


def clusters(counts: list[int], dim: int = 8, spread: float = 0.1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    centres = torch.randn(len(counts), dim, generator=generator)
    return centres[y] + spread * torch.randn(len(y), dim, generator=generator), y


def test_ridge_fits_what_the_head_sees() -> None:
    """Unit features for the cosine head, normed ones for LayerNorm's; features as they are for a linear one."""
    x, y = clusters([9, 5, 2])
    for head in (Cosine(), LayerNorm(), Linear()):
        gathering = Gathering(torch.bincount(y), 8)
        gathering.add(head.view(x), y)
        start = head.start(context(x, y, 3), Ridge(gamma=0.3))
        torch.testing.assert_close(start.rows, Closed(gathering.statistics()).rows(0.3).float())
        assert start.bias is None


def test_classes_without_images_get_random_unit_rows() -> None:
    x, y = clusters([9, 5, 2])
    for init in (Ridge(), Auto()):
        rows = Cosine().rows(context(x, y, 5), init)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
        assert (F.normalize(x, dim=-1) @ rows[:3].T).argmax(1).equal(y)


@pytest.mark.parametrize("name", ["ridge", "lda", "auto"])
@pytest.mark.parametrize("counts", [[1], [1, 1, 1], [2, 1], [3, 0, 2], [300, 1]])
def test_any_counts_give_finite_rows(name: str, counts: list[int]) -> None:
    x, y = clusters(counts)
    init = registry.get("head_init", name)()
    assert isinstance(init, HeadInit)
    start = Linear().start(context(x, y, len(counts)), init)
    assert start.rows.shape == (len(counts), 8) and start.rows.isfinite().all()
    assert (start.bias is not None) == (name == "lda")


def test_lda_gives_biases() -> None:
    x, y = clusters([30, 5, 2])
    start = Linear().start(context(x, y, 3), Discriminants())
    assert start.bias is not None and start.bias.any()
    assert (x @ start.rows.T + start.bias).argmax(1).equal(y)


def test_auto_says_what_it_took_and_from_what() -> None:
    """Two classes share a direction that says nothing, which ridge sees through and class means do not."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(4).repeat(30)
    x = torch.eye(8)[y] * 0.5 + 3 * torch.randn(120, 1, generator=generator) * torch.eye(8)[7] + 1.0
    x = x + 0.1 * torch.randn(120, 8, generator=generator)
    made = context(x, y, 4)
    rows = Cosine().rows(made, Auto())
    (said,) = made.notes
    assert said.startswith("head_init=auto took ridge: ") and "linear_probe" in said and "class_mean" in said
    torch.testing.assert_close(rows, Cosine().rows(context(x, y, 4), Ridge()))


def test_auto_takes_another_start_where_that_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ridge has no privilege beyond its margin."""
    x, y = clusters([6, 6, 6])
    monkeypatch.setattr("liftplus.model.picture_init.Ridge.rows", lambda self, context: torch.ones(3, 8))
    made = context(x, y, 3)
    rows = Cosine().rows(made, Auto())
    assert "took linear_probe" in made.notes[0] or "took class_mean" in made.notes[0]
    assert (F.normalize(x, dim=-1) @ rows.T).argmax(1).equal(y)


def test_the_mean_over_classes_has_its_standard_error() -> None:
    """Two classes, of one picture and of four: 1 / 2 and 1 / 8 are the pictures' weights."""
    contest = _Contest(context(*clusters([1, 4]), 2), torch.zeros(5, 8), torch.tensor([0, 1, 1, 1, 1]))
    middle, error = contest.mean(torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    assert middle == pytest.approx(1 / 2 + 1 / 8)
    squares = (1 / 4) * (3 / 8) ** 2 + (1 / 64) * ((3 / 8) ** 2 + 3 * (5 / 8) ** 2)
    assert error == pytest.approx(math.sqrt(squares))


def test_auto_keeps_the_ridge_where_another_start_may_be_ahead_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 18 pictures more is 6 points: more than the margin, and about one standard error."""
    x, y = clusters([6, 6, 6])
    answers = {"ridge": [1.0] * 17 + [0.0], "linear_probe": [1.0] * 18, "class_mean": [0.0] * 18}
    monkeypatch.setattr(
        "liftplus.model.picture_init._Contest.right",
        lambda self, init, parts: torch.tensor(answers[init.name], dtype=torch.float64),
    )
    made = context(x, y, 3)
    Cosine().rows(made, Auto())
    assert "took ridge" in made.notes[0]
    answers["ridge"][:4] = [0.0] * 4
    made = context(x, y, 3)
    Cosine().rows(made, Auto())
    assert "took linear_probe" in made.notes[0]


def test_a_logistic_regression_that_has_not_converged_is_a_note_and_no_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    x, y = clusters([30, 5, 2], spread=1.0)
    made = context(x, y, 3)
    Linear().rows(made, LinearProbe(max_iterations=2))
    assert (
        len(made.notes) == 1 and "stopped after 2 iterations" in made.notes[0] and "max_iterations=20" in made.notes[0]
    )
    whole = context(x, y, 3)
    Linear().rows(whole, LinearProbe(max_iterations=5000))
    assert not whole.notes and not recwarn.list


def test_samples_hold_small_classes_whole() -> None:
    y = torch.tensor([0] * 50 + [1] * 3 + [2] * 7)
    chosen = sampled(y, 15, torch.Generator().manual_seed(0))
    assert torch.bincount(y[chosen]).tolist() == [6, 3, 6]
    assert chosen.equal(chosen.sort()[0])
    assert sampled(y, 1000, torch.Generator()).equal(torch.arange(60))


def test_judges_are_several_of_a_class() -> None:
    """Of more classes than can be judged some are, with ten pictures each; a class of one never is."""
    y = torch.cat([torch.arange(500).repeat_interleave(20), torch.arange(500, 600)])
    chosen = judges(y, 1000, torch.Generator().manual_seed(0))
    assert sorted(torch.bincount(y[chosen]).unique().tolist()) == [0, 10]
    assert len(chosen) == 1000 and int(y[chosen].max()) < 500
    assert judges(torch.arange(5), 100, torch.Generator()).tolist() == []


def test_lda_needs_a_head_with_a_bias(photos: Path, command: Command) -> None:
    ended = command("train", "--data", photos, "head_init=lda", "epochs=1", "device=cpu")
    assert ended.code == 2 and "head=cosine has no bias" in ended.err and "head=linear" in ended.err


def test_closed_form_is_a_run_without_training(photos: Path, command: Command, tmp_path: Path) -> None:
    """Nothing is trained, everything is right on planes of colour, and the model file gives the same again."""
    options = ("device=cpu", "precision=fp32", "workers=0")
    ended = command("train", "--data", photos, "--method", "closed_form", "--out", "run", "--json", *options)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["overall"] == 100.0 and found["seconds"] == 0
    ended = command("eval", "run", "--json", *options)
    assert ended.code == 0 and json.loads(ended.out)["overall"] == 100.0


def test_linear_discriminants_start_a_run(photos: Path, command: Command, tmp_path: Path) -> None:
    options = ("head=linear", "head_init=lda", "tuner=none", "epochs=0", "device=cpu", "precision=fp32", "workers=0")
    ended = command("train", "--data", photos, "--out", "run", "--json", *options)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["overall"] == 100.0


def test_pictures_alone_where_nothing_reads_names() -> None:
    run = config.resolve(backbone="resnet50", method="closed_form")
    assert isinstance(run.head_init, Ridge) and run.train.epochs == 0
    assert any("head_init=ridge stands in" in said for said in config.replaced(run))
    assert isinstance(config.resolve(backbone="mini_clip", method="closed_form").head_init, Mix)
    assert config.resolve(backbone="resnet50").head_init.name == "class_mean"


def test_mix_needs_names(photos: Path) -> None:
    x, y = clusters([3, 3])
    made = context(x, y, 2)
    made.backbone.text_encoder = lambda purpose: (_ for _ in ()).throw(UserError("no text"))  # type: ignore[method-assign]
    with pytest.raises(UserError):
        Mix().rows(made)


def test_features_pass_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pictures leave statistics and a small sample behind, whatever their number."""
    monkeypatch.setattr("liftplus.model.picture_init.JUDGED", 50)
    monkeypatch.setattr("liftplus.model.picture_init.LEAST", 10)
    living: list[weakref.ref[Tensor]] = []

    def stream(shots: int | None) -> Stream:
        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(40):
                features = torch.randn(100, 8)
                living.append(weakref.ref(features))
                yield features, torch.arange(100) % 5

        return Stream(torch.arange(4000) % 5, batches)

    made = replace(context(torch.randn(5, 8), torch.arange(5), 5), stream=stream)
    statistics, sample = observed(made, made.images(None))
    assert statistics.counts.tolist() == [800] * 5 and sample.features.shape == (50, 8)
    assert sum(one() is not None for one in living) <= 1
