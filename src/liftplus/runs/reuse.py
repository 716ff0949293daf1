"""Make a run once: start it, continue it, or find it finished in its folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from liftplus.backbones import catalogue, mini_clip
from liftplus.config import EvaluationConfig, RunConfig, from_dict, saved
from liftplus.data.dataset import DataSet
from liftplus.errors import InUseError, UserError
from liftplus.machine import disk
from liftplus.runs import changes, debiasing, execution, testing
from liftplus.runs.opening import Session
from liftplus.training import checkpoint

METRICS, PREDICTIONS = "metrics.json", "predictions.csv"  # a test writes the predictions last
TESTS, GLA = "tests", "gla"


def finished(folder: Path, config: RunConfig, dataset: DataSet) -> bool:
    """Whether the folder holds a finished run with these settings, this data and these backbone weights.

    Raises:
        UserError: it holds a run with other ones, or something that is not a run.
    """
    if _is_new(folder):
        return False
    about = disk.read_json(folder / changes.CONFIG, "config", "data")
    differing = changes.changes(from_dict(saved(about["config"])), config)
    if about.get("changed"):
        differing.append("some were changed when it was resumed")
    found = about["data"].get("fingerprints", {})
    for split in dataset.splits.keys() & found.keys():
        if found[split] != dataset.fingerprint(split):
            differing.append(f"the {split} split has other images")
    weights = about.get("backbone_identity")
    if weights is not None and catalogue.identity(config.backbone) not in (weights, None):
        differing.append(f"{config.backbone.name} had other weights.{mini_clip.place_of(weights)}".rstrip("."))
    if differing:
        raise UserError(
            f"{str(folder)!r} holds a run with other settings: {'; '.join(differing[:4])}. Give the same settings, or "
            "another folder with --out."
        )
    ended = changes.trained(folder)
    return ended and (folder / PREDICTIONS).is_file()


def _is_new(folder: Path) -> bool:
    """Whether no run was begun in the folder yet. A folder that holds something else is an error."""
    if (folder / changes.CONFIG).is_file():
        return False
    try:
        disk.refuse_existing(folder)
    except UserError:
        if not (folder / changes.CONFIG).is_file():  # another process may have written it meanwhile
            raise
        return False
    return True


def run(session: Session, dataset: DataSet, folder: Path, split: str = "test") -> dict[str, Any]:
    """Do what is missing of the run in the folder (training, test), and return its metrics.json.

    Raises:
        InUseError: another process is working on it.
        UserError: the folder holds something else.
    """
    if finished(folder, session.config, dataset):
        return metrics(folder)
    if _is_new(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with disk.locked(folder):  # raises InUseError before a model is built for nothing
        pass
    session, model = session.start(dataset, folder)
    try:
        execution.train_run(session, dataset, model, folder, split)
    except InUseError:
        raise
    except UserError:
        if not finished(folder, session.config, dataset):  # another process may have finished it meanwhile
            raise
    return metrics(folder)


def test_folder(folder: Path, evaluation: EvaluationConfig) -> Path:
    """The folder for a test with these settings: the run's folder for the run's own ones, else one inside it."""
    begun = from_dict(saved(disk.read_json(folder / changes.CONFIG, "config")["config"])).evaluation
    own, wanted = (settings.model_dump(mode="json") for settings in (begun, evaluation))
    other = [f"{key}={json.dumps(wanted[key])}" for key in wanted if own[key] != wanted[key] and key != "batch_size"]
    return folder / TESTS / re.sub(r"[^\w.=+-]+", "_", "+".join(other)) if other else folder


def tested(session: Session, dataset: DataSet, folder: Path, *, gla: bool = False) -> Path:  # noqa: PT028
    """Test a finished run with the session's `evaluation.*`, if not done yet; returns the folder of the test.

    Args:
        gla: whether to add debiased zero-shot logits.
    """
    inside = test_folder(folder, session.config.evaluation)
    if gla:
        inside = folder / TESTS / (GLA if inside == folder else f"{inside.name}+{GLA}")
    if (inside / PREDICTIONS).is_file():
        return inside
    inside.mkdir(parents=True, exist_ok=True)
    with disk.locked(inside):
        if not (inside / PREDICTIONS).is_file():
            trained = checkpoint.load_model(folder, session.runtime, session.config.backbone)
            beside = debiasing.zeroshot(session, trained, other_data=False) if gla else None
            about = {} if beside is None else {"gla": {"pictures": beside.pictures}}
            model = None if beside is None else beside.model
            testing.test(session, trained.model, dataset, "test", dataset.counts(), inside, about, model)
            if beside is not None:
                beside.write(inside, trained)
    return inside


def metrics(folder: Path) -> dict[str, Any]:
    """The content of a tested run's metrics.json."""
    found: dict[str, Any] = disk.read_json(folder / METRICS, "overall", "split", "evaluation")
    return found
