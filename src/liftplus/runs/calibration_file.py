"""The calibration of a run in its folder: written whole, and used only with the weights, crops and prior it is for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liftplus.calibration.calibrated import Calibration
from liftplus.calibration.sets import Known
from liftplus.calibration.unknown import Reference
from liftplus.config import EvaluationConfig, from_dict
from liftplus.config import saved as saved_config
from liftplus.data.contents import Contents
from liftplus.data.dataset import Store, listing
from liftplus.errors import UserError
from liftplus.evaluation import priors
from liftplus.machine import disk
from liftplus.runs.opening import Session
from liftplus.training import checkpoint
from liftplus.training.checkpoint import Trained

FILE = "calibration.safetensors"


@dataclass(frozen=True)
class Saved:
    """A calibration and what it is for.

    Attributes:
        calibration: the calibration itself.
        about: data, split and number of its pictures; crops, prior and weights of the model; what was `measured`.
        used: what its pictures are recognised by.
    """

    calibration: Calibration
    about: dict[str, Any]
    used: Contents

    def has(self, store: Store, keys: Sequence[str]) -> Tensor:
        """Which of these pictures it was calibrated on, by the content of their files, bool [N]."""
        return torch.from_numpy(self.used.hold(store, keys))

    def moved(self, weights: str) -> Saved:
        """A copy for the same model in a file whose weights have this digest."""
        return replace(self, about=self.about | {"weights": weights})

    def pictures(self, source: str) -> str:
        """The options that name its pictures, as the command takes them for a run on this data source."""
        data, split, share = (self.about[key] for key in ("data", "split", "share"))
        own = data == source
        words = ("" if own else f" --data {data}") + (
            "" if split == ("val" if own else "test") else f" --split {split}"
        )
        return words + ("" if share is None else f" --share {share:g}")

    def misfit(self, session: Session, trained: Trained) -> str | None:
        """Why it does not hold for a model and its settings, and what to do, in one sentence; None if it does."""
        run, evaluation = trained.folder, session.config.evaluation
        own = trained.config.evaluation
        words = _words(crops_of(evaluation)) if crops_of(evaluation) != crops_of(own) else []
        words += [f"prior={evaluation.prior}"] if evaluation.prior != own.prior else []
        pictures = self.pictures(trained.config.data.source)
        again = f"Run `{' '.join([f'liftplus calibrate {run}{pictures}', *words])}` again"
        if self.about["weights"] != trained.digest:
            return f"The calibration of {str(run)!r} was made for other weights. {again}."
        if self.about["crops"] != crops_of(evaluation):
            return (
                f"The calibration of {str(run)!r} is for other crops of a picture "
                f"({', '.join(_words(self.about['crops']))}). {again}, or give those settings here."
            )
        prior = priors.stood_for(session.config, trained.class_names, trained.train_counts, evaluation.prior)
        same = torch.allclose(prior, self.calibration.known.log_prior.double(), rtol=0, atol=1e-6)
        if self.about["prior"] != evaluation.prior or not same:
            return (
                f"The calibration of {str(run)!r} is for prior={self.about['prior']}, and here the prior is "
                f"{evaluation.prior}. {again}, or use that prior here."
            )
        return None


def crops_of(evaluation: EvaluationConfig) -> dict[str, Any]:
    """The settings that decide on the crops."""
    margin = "expand" if evaluation.tte else "one_crop_expand"
    return {"tte": evaluation.tte, margin: getattr(evaluation, margin), "resize": evaluation.resize}


def _words(crops: dict[str, Any]) -> list[str]:
    return [f"{key}={str(value).lower()}" for key, value in crops.items() if value is not None]


def left_behind(runs: Sequence[Path], out: Path) -> list[str]:
    """A note that the calibrations of runs do not go to one of other weights that is made of them; none without any.

    Args:
        runs: folders, or model files in them.
        out: the folder of the other run.
    """
    kept = {run: folder for run in runs if ((folder := run.parent if run.is_file() else run) / FILE).is_file()}
    if not kept:
        return []
    run, folder = next(iter(kept.items()))
    options: list[str] = []
    with suppress(UserError):  # a damaged one says nothing of itself
        if (saved := read(folder)) is not None:
            config = checkpoint.read_about(run)["config"]
            before = from_dict(saved_config(config)).evaluation
            options = [saved.pictures(config["data"]["source"]).strip()]
            options += _words(saved.about["crops"]) if saved.about["crops"] != crops_of(before) else []
            options += [f"prior={saved.about['prior']}"] if saved.about["prior"] != before.prior else []
    again = " ".join(["liftplus calibrate", str(out), *filter(None, options)])
    return [
        f"{str(out)!r} has other weights than {listing(list(map(str, kept)))}, so the calibration from there does not "
        f"hold and was not copied. Run `{again}` for sets of classes, unknown pictures and calibrated probabilities."
    ]


def write(folder: Path, saved: Saved) -> Path:
    """Write a calibration into a run's folder; an earlier one is replaced."""
    found = saved.calibration
    tensors = {
        "used.sizes": torch.from_numpy(saved.used.sizes),
        "used.digests": torch.from_numpy(saved.used.digests),
        "known.own": found.known.own,
        "known.labels": found.known.labels,
        "known.log_prior": found.known.log_prior,
        "known.weights": found.known.weights,
        "scored": found.scored,
    }
    if found.reference is not None:
        tensors |= {f"reference.{name}": value.contiguous() for name, value in vars(found.reference).items()}
    about = saved.about | {
        "format": checkpoint.FORMAT,
        "temperature": found.temperature,
        "score": found.score,
        "scales": found.scales,
        "judged": found.judged,
        "train_counts": found.known.train_counts,
    }
    with disk.locked(folder):
        checkpoint.write_tensors(folder / FILE, tensors, about)
    return folder / FILE


def read(folder: Path) -> Saved | None:
    """The calibration in a run's folder; None if there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        about, tensors = checkpoint.read_tensors(path)
        counts = tuple(about["train_counts"])
        own = {name: tensors[f"known.{name}"] for name in ("own", "labels", "log_prior", "weights")}
        reference = None
        if "reference.centre" in tensors:
            parts = (tensors[f"reference.{one.name}"] for one in fields(Reference))
            reference = Reference(*parts)
        scales = {name: (float(mean), float(deviation)) for name, (mean, deviation) in about["scales"].items()}
        calibration = Calibration(
            float(about["temperature"]),
            Known(train_counts=counts, **own),
            about["score"],
            scales,
            reference,
            tensors["scored"],
            about["judged"],
        )
        used = Contents(tensors["used.sizes"].numpy(), tensors["used.digests"].numpy())
        known = {key: about[key] for key in _ABOUT}
        known["crops"] = {**known["crops"], "resize": known["crops"].get("resize", "short_side")}  # a later setting
        return Saved(calibration, known, used)
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} is damaged, or this version of liftplus did not write it. Delete it, or run `liftplus "
            f"calibrate {folder}` again."
        ) from error


_ABOUT = ("data", "split", "share", "pictures", "crops", "prior", "weights", "measured", "command", "versions")


def fitting(session: Session, trained: Trained, *, required: bool = False) -> tuple[Saved | None, str | None]:
    """The calibration that holds for a run with these settings, and a note on what is done with probabilities.

    Args:
        required: whether the caller cannot do without.

    Raises:
        UserError: it is required and there is none, or none that holds; or its file is damaged.
    """
    saved = read(trained.folder) if trained.digest else None
    if saved is None:
        if required:
            raise UserError(
                f"The run in {str(trained.folder)!r} is not calibrated, and sets and unknown pictures need that. Run "
                f"`liftplus calibrate {trained.folder}` first."
            )
        return None, None
    reason = saved.misfit(session, trained)
    if reason is None:
        pictures = saved.about["pictures"]
        return saved, (
            f"Probabilities have temperature {saved.calibration.temperature:.3g}, by the run's calibration on "
            f"{pictures:,} pictures."
        )
    if required:
        raise UserError(reason)
    return None, f"Probabilities are not calibrated here. {reason}"
