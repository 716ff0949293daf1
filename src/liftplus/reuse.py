"""A run that is made once: in its folder it is begun, gone on with, or found finished."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from liftplus import checkpoint, results, runs
from liftplus.config import RunConfig, from_dict
from liftplus.data.dataset import DataSet
from liftplus.errors import UserError
from liftplus.runs import Session

METRICS, LAST = "metrics.json", "predictions.csv"  # the latter is the last file that a test writes
ONE_CROP = "one_crop"


def finished(folder: Path, config: RunConfig, dataset: DataSet) -> bool:
    """Whether the folder holds a finished run of these settings on this data.

    Raises:
        UserError: it holds a run of others, or something that is no run.
    """
    if not (folder / runs.CONFIG).is_file():
        results.refuse_existing(folder)
        return False
    about = results.read_json(folder / runs.CONFIG, "config", "data")
    differing = runs.changes(from_dict(about["config"]), config)
    found = about["data"].get("fingerprints", {})
    for split in dataset.splits.keys() & found.keys():
        if found[split] != dataset.fingerprint(split):
            differing.append(f"the {split} split has other images")
    if differing:
        raise UserError(
            f"{str(folder)!r} holds a run with other settings: {'; '.join(differing[:4])}. Give the same ones, or "
            "another folder with --out."
        )
    ended = (folder / checkpoint.FILE).is_file() and not (folder / checkpoint.STATE).is_file()
    return ended and (folder / LAST).is_file()


def run(session: Session, dataset: DataSet, folder: Path, split: str = "test") -> dict[str, Any]:
    """Train and test in the folder what is not done yet; what its metrics.json says."""
    if not finished(folder, session.config, dataset):
        if not (folder / runs.CONFIG).is_file():
            results.new_folder(folder)
        runs.train_run(session, dataset, session.model(dataset), folder, split)
    return metrics(folder)


def one_crop(session: Session, dataset: DataSet, folder: Path) -> dict[str, Any]:
    """The test of a finished run again, with one crop in place of five; its figures, and files in a folder inside."""
    inside = folder / ONE_CROP
    if not (inside / LAST).is_file():
        trained = checkpoint.load_model(folder, session.runtime, session.config.backbone)
        evaluation = session.config.evaluation.model_copy(update={"tte": False})
        again = replace(session, config=session.config.model_copy(update={"evaluation": evaluation}))
        inside.mkdir(exist_ok=True)
        runs.test(again, trained.model, dataset, "test", dataset.counts(), inside, {})
    return metrics(inside)


def metrics(folder: Path) -> dict[str, Any]:
    """Figures of a tested run."""
    found: dict[str, Any] = results.read_json(folder / METRICS, "overall", "split", "evaluation")
    return found
