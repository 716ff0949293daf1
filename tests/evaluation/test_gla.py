"""Generalized Logit Adjustment: the pre-training prior, and the sum of both logits without their priors."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from liftplus import config
from liftplus.data.dataset import DataSet
from liftplus.errors import UserError
from liftplus.evaluation import gla, priors
from liftplus.machine import runtime
from liftplus.report import read
from liftplus.runs import debiasing, execution, opening, testing
from liftplus.training import checkpoint

from ..conftest import Command

CPU = runtime.choose("cpu", "fp32")
# p(x | k) [C, X], in tenths: what a class looks like in a world of five pictures.
TENTHS = torch.tensor([[5, 2, 1, 1, 1], [1, 1, 5, 1, 2], [1, 1, 1, 6, 1], [2, 3, 1, 1, 3]])


@pytest.mark.parametrize("prior", [[0.7, 0.2, 0.06, 0.04], [0.25] * 4, [0.001, 0.009, 0.09, 0.9]])
@pytest.mark.parametrize("repeats", [[1, 1, 1, 1], [13, 5, 2, 1]])
def test_a_planted_prior_is_found(prior: list[float], repeats: list[int]) -> None:
    """Logits of a model that knows the world under a prior; however often classes come in training."""
    logits = (TENTHS.double().log() + torch.tensor(prior, dtype=torch.float64).log()[:, None]).T
    pictures, labels = [], []
    for k, times in enumerate(repeats):
        for x, count in enumerate((times * TENTHS[k]).tolist()):
            pictures += count * [x]
            labels += count * [k]
    found = gla.pretraining_prior(logits[pictures] + torch.randn(len(labels), 1), torch.tensor(labels))
    torch.testing.assert_close(found, torch.tensor(prior, dtype=torch.float64), rtol=1e-4, atol=1e-7)


def risk(log_q: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> float:
    """The paper's risk in plain numpy: mean over classes of the mean cross-entropy of its pictures."""
    total = 0.0
    for k in np.unique(labels):
        rows = logits[labels == k] - log_q
        total += np.mean(np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1)) + rows.max(1) - rows[:, k])
    return total / len(np.unique(labels))


def test_it_is_the_least_of_the_risk() -> None:
    generator = np.random.default_rng(0)
    logits, labels = (
        20 * generator.normal(size=(60, 7)),
        generator.choice(7, 60, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05]),
    )
    labels[:7] = range(7)
    found = gla.pretraining_prior(torch.tensor(logits), torch.tensor(labels)).log().numpy()
    assert np.exp(found).sum() == pytest.approx(1)
    least = risk(found, logits, labels)
    assert least < risk(np.zeros(7), logits, labels) - 0.1
    for _ in range(50):
        assert risk(found + generator.normal(scale=0.1, size=7), logits, labels) > least


def test_classes_without_pictures_get_the_geometric_mean() -> None:
    logits, labels = torch.randn(40, 5) * 3, torch.arange(40) % 3
    found = gla.pretraining_prior(logits, labels)
    alone = gla.pretraining_prior(logits[:, :3], labels)
    torch.testing.assert_close(found[:3] / found[:3].sum(), alone)
    torch.testing.assert_close(found[3:].log(), found[:3].log().mean().expand(2))
    one = gla.pretraining_prior(logits, torch.zeros(40, dtype=torch.long))
    torch.testing.assert_close(one, torch.full((5,), 0.2, dtype=torch.float64))


def test_far_apart_logits_leave_it_finite() -> None:
    """One picture a class, each surely right; and each surely wrong."""
    sure = 1e3 * torch.eye(4)
    for logits in (sure, sure.roll(1, 0), sure.double() * 10):
        found = gla.pretraining_prior(logits, torch.arange(4))
        assert found.isfinite().all() and (found > 0).all()


QUICK = ("epochs=1", "train.batch_size=8", "workers=0", "device=cpu", "precision=fp32")


def trained(photos: Path, folder: Path, *overrides: str) -> tuple[opening.Session, DataSet]:
    session = opening.Session(config.resolve(data=str(photos), overrides=[*QUICK, *overrides]), CPU)
    dataset = session.data()
    session, model = session.start(dataset)
    execution.train_run(session, dataset, model, folder)
    return session, dataset


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [("tte=false",), ("loss=cross_entropy", "evaluation.expand=12")])
def test_both_logits_without_their_priors(photos: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """By hand: tuned logits and what takes the training prior off, zero-shot logits less log pi_p, over all crops."""
    session, dataset = trained(photos, tmp_path / "run", *overrides)
    run = checkpoint.load_model(tmp_path / "run", CPU)
    debiased = debiasing.zeroshot(session, run, other_data=False)
    assert debiased.pictures == sum(dataset.counts())
    from liftplus.evaluation.inference import SplitReader, collect, crops

    facts = run.model.backbone.facts
    reader = SplitReader(dataset.store, dataset.splits["test"], 0)

    def logits(model: torch.nn.Module) -> Tensor:
        return collect(model, reader, crops(session.config.evaluation, facts), facts, CPU)

    run.model.shift, shift, debiased.model.shift = None, debiased.model.shift, None
    taken_off = priors.shift(session.config, run.class_names, run.train_counts, "uniform")
    assert taken_off is not None and shift is not None
    torch.testing.assert_close(shift.double(), debiased.prior.log().mean() - debiased.prior.log())
    expected = logits(run.model) + taken_off + logits(debiased.model) + shift
    debiased.model.shift = shift
    found, metrics = testing.measure(session, run.model, dataset, "test", run.train_counts, debiased.model)
    chances = expected.softmax(-1)
    torch.testing.assert_close(found.probabilities, chances.gather(1, found.classes), rtol=1e-4, atol=1e-6)
    assert metrics.images == len(chances)
    plain, _ = testing.measure(session, run.model, dataset, "test", run.train_counts)
    assert not torch.equal(plain.probabilities, found.probabilities)


def test_the_command(photos: Path, tmp_path: Path, command: Command) -> None:
    """Its own folder says how it was tested, the report takes it for no test with the other number of crops."""
    trained(photos, tmp_path / "run", "tte=false")
    ended = command("eval", "run", "--gla", "--five-crops", "--json")
    assert ended.code == 0, ended.err
    folder = Path(json.loads(ended.out)["folder"])
    assert json.loads((folder / "metrics.json").read_text())["gla"] == {"pictures": 19}
    with (folder / debiasing.FILE).open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == ["blue sky", "green hill", "red square"]
    assert sum(float(row["prior"]) for row in rows) == pytest.approx(1)
    assert read.run(tmp_path / "run").other_crops is None
    assert command("eval", "run", "--five-crops", "resize=square").code == 0
    assert read.run(tmp_path / "run").other_crops is None, "squashed pictures are no test of the crops"
    assert command("eval", "run", "--five-crops").code == 0
    found = read.run(tmp_path / "run").other_crops
    assert found is not None and found.folder.name == "eval-3"
    moved = photos.rename(tmp_path / "moved")
    ended = command("eval", "run", "--gla", "--data", moved)
    assert ended.code == 2 and "training pictures, but these cannot be read" in ended.err.replace("\n", " ")
    assert not (tmp_path / "run" / "eval-4").exists()


def test_a_backbone_without_text_is_refused(photos: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    session, _ = trained(photos, tmp_path / "run", "epochs=0")
    run = checkpoint.load_model(tmp_path / "run", CPU)
    tower = run.config.backbone.model_copy(update={"name": "efficientnet_lite0"})
    run = replace(run, config=run.config.model_copy(update={"backbone": tower}))
    with pytest.raises(UserError, match=r"has no text tower\. Use CLIP"):
        debiasing.zeroshot(session, run, other_data=False)
