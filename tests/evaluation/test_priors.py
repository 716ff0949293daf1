"""Priors in use: by Bayes' rule, from what each loss and sampler makes a model learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from liftplus.config import RunConfig, resolve
from liftplus.errors import UserError
from liftplus.evaluation import priors

from ..conftest import Command

COUNTS = [70, 19, 3]
NAMES = ("ant", "bee", "cat")
# p(x | k) [C, X] of a world of five pictures, none of them impossible.
LIKELIHOOD = torch.tensor([[5, 3, 1, 1, 1], [1, 2, 4, 1, 3], [1, 1, 1, 6, 2]], dtype=torch.float64)
LIKELIHOOD /= LIKELIHOOD.sum(1, keepdim=True)


def posterior(prior: Tensor) -> Tensor:
    """p(k | x) [X, C]."""
    both = (prior[:, None] * LIKELIHOOD).T
    return both / both.sum(1, keepdim=True)


def learned(config: RunConfig, counts: list[int]) -> Tensor:
    """The logits [X, C] of a model with a free logit for each picture and class, at the least expected loss."""
    shown = torch.tensor(counts).double()
    if config.sampler.name != "instance":
        shown = torch.ones(3, dtype=torch.float64)  # class_balanced
    joint = (shown / shown.sum())[:, None] * LIKELIHOOD
    loss = config.loss.build(torch.tensor(counts), NAMES)
    logits = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=300, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def expected() -> Any:
        optimiser.zero_grad()
        total: Any = 0.0
        for k in range(3):
            labels = torch.full((5,), k)
            each = loss.each(logits, labels) * loss.image_weights(labels, torch.float64)
            total = total + (joint[k] * each).sum()
        total.backward()
        return total

    optimiser.step(expected)
    return logits.detach()


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss=logit_adjusted"],
        ["loss=logit_adjusted", "tau=0.6"],
        ["loss=balanced_softmax"],
        ["loss=cross_entropy"],
        ["loss=reweight"],
        ["loss=class_balanced", "beta=0.9"],
        ["loss=cross_entropy", 'class_weights={"cat": 3}'],
        ["loss=logit_adjusted", "sampler=class_balanced"],
        ["loss=cross_entropy", "sampler=class_balanced"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("given", ["training", "uniform", {"ant": 1, "bee": 2, "cat": 5}])
def test_posterior_by_bayes(overrides: list[str], given: Any, tmp_path: Path) -> None:
    config = resolve(overrides=overrides)
    assert config.loss.gives_posterior and priors.note(config, "uniform") is None
    if given == "training":
        wanted = torch.tensor(COUNTS).double()
    else:
        wanted = torch.ones(3).double() if given == "uniform" else torch.tensor([1.0, 2.0, 5.0]).double()
    if isinstance(given, dict):
        (tmp_path / "prior.json").write_text(json.dumps(given))
        given = str(tmp_path / "prior.json")
    shift = priors.shift(config, NAMES, COUNTS, given)
    assert shift is not None
    found = (learned(config, COUNTS) + shift).softmax(-1)
    torch.testing.assert_close(found, posterior(wanted / wanted.sum()), rtol=1e-4, atol=1e-5)


def test_logit_adjusted_is_uniform_already() -> None:
    shift = priors.shift(resolve(), NAMES, COUNTS, "uniform")
    assert shift is not None
    torch.testing.assert_close(shift - shift[0], torch.zeros(3))
    assert priors.shift(resolve(), NAMES, COUNTS, "as_trained") is None


def test_zero_shot_logits_count_as_balanced(tmp_path: Path) -> None:
    config = resolve(method="zeroshot")
    shift = priors.shift(config, NAMES, COUNTS, "training")
    torch.testing.assert_close(shift, (torch.tensor(COUNTS) / sum(COUNTS)).log())


def test_a_prior_of_zero_rules_a_class_out(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"ant": 3, "bee": 0, "cat": 1.5}')
    shift = priors.shift(resolve(), NAMES, COUNTS, str(tmp_path / "p.json"))
    assert shift is not None and shift.isfinite().all()
    chances = (torch.tensor([0.0, 90.0, 0.0]) + shift).softmax(-1)
    torch.testing.assert_close(chances, torch.tensor([2 / 3, 0, 1 / 3]))


def test_a_class_without_training_images_has_a_finite_prior() -> None:
    for loss in ("logit_adjusted", "cross_entropy", "reweight", "class_balanced", "lade"):
        for given in ("training", "uniform"):
            shift = priors.shift(resolve(overrides=[f"loss={loss}"]), NAMES, [70, 19, 0], given)
            assert shift is not None and shift.isfinite().all()


@pytest.mark.parametrize("loss", ["focal", "ldam", "lade"])
def test_losses_without_a_closed_form_are_told(loss: str) -> None:
    told = priors.note(resolve(overrides=[f"loss={loss}"]), "training")
    assert told is not None and loss in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"ant": 1, "bee": 1}', "lacks 1 of 3 classes: cat"),
        ('{"ant": 1, "bee": 1, "cta": 1}', "Did you mean 'cat'"),
        ('{"ant": 1, "bee": -1, "cat": 1}', "'bee'"),
        ('{"ant": 1, "bee": "many", "cat": 1}', "'bee'"),
        ('{"ant": 0, "bee": 0, "cat": 0}', "0 for every class"),
        ("[1, 2, 3]", "is a list"),
        ("{", "cannot be read"),
    ],
)
def test_what_is_no_prior_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UserError, match=said):
        priors.shift(resolve(), NAMES, COUNTS, str(tmp_path / "p.json"))
    with pytest.raises(UserError, match="as_trained, training, uniform"):
        priors.shift(resolve(), NAMES, COUNTS, "unifrom")


def test_prediction_and_test_take_it(photos: Path, command: Command, tmp_path: Path) -> None:
    quick = ("epochs=1", "train.batch_size=8", "tte=false", "workers=0", "device=cpu", "precision=fp32")
    refused = command("train", "--data", photos, "--out", "run", *quick, "evaluation.prior=nothing.json")
    assert refused.code == 2 and "nothing.json" in refused.err
    assert command("train", "--data", photos, "--out", "other", *quick).code == 0
    (tmp_path / "only.json").write_text('{"blue sky": 1, "green hill": 0, "red square": 0}')
    ended = command("eval", "other", "--json", "evaluation.prior=only.json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["overall"] == pytest.approx(100 / 3, abs=0.01)
    command("predict", "other", photos / "test", "--prior", "only.json", "--out", "p.json", "--top-k", 1)
    found = json.loads((tmp_path / "p.json").read_text())
    assert {guess["top"][0]["class"] for guess in found} == {"blue sky"}


def test_names_that_several_classes_bear_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"ant": 3, "bee": 1}')
    with pytest.raises(UserError, match="Several classes are called 'ant'"):
        priors.shift(resolve(), ("ant", "ant", "bee"), COUNTS, str(tmp_path / "p.json"))
