"""A plan: the chosen experiments, with the folders of their data and runs, and their settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from liftplus import names
from liftplus.errors import UserError
from liftplus.reproduce import needs
from liftplus.reproduce.catalogue import Experiment
from liftplus.reproduce.needs import Outline

if TYPE_CHECKING:
    from liftplus.config import RunConfig

ABOUT = "reproduce.json"
DATA_ROOT = Path("data")
# With changes.FREE, settings that may differ between the runs of one folder: they say where and how fast a run is made.
PLACES = ("data.root", "precision", "cache", "deterministic", "train.micro_batch", "evaluation.batch_size")


@dataclass(frozen=True)
class Plan:
    """Experiments, with the user's settings for all of them.

    Attributes:
        experiments: in the order of the catalogue.
        out: folder of all runs.
        data_root: contains a folder for each data set, under its name.
        seeds: runs of each experiment, with seeds 0 to N-1; None for the catalogue's number.
        overrides: key=value pairs, which win over the experiments' own.
    """

    experiments: tuple[Experiment, ...]
    out: Path
    data_root: Path = DATA_ROOT
    seeds: int | None = None
    overrides: tuple[str, ...] = ()

    def jobs(self) -> list[tuple[int, Experiment]]:
        """All tests. Seed 0 of all experiments comes first, so that each has a figure soon."""
        counts = [self.seeds or one.seeds for one in self.experiments]
        return [
            (seed, one)
            for seed in range(max(counts, default=0))
            for one, count in zip(self.experiments, counts, strict=True)
            if seed < count
        ]

    def folder(self, experiment: Experiment, seed: int) -> Path:
        """The folder of an experiment's run. Experiments with the same training share it."""
        return self.out / f"{experiment.training}-seed{seed}"

    def settings(self, experiment: Experiment, seed: int) -> list[str]:
        """The key=value pairs of a run, in the order in which they apply."""
        trains = names.presets("methods")[experiment.method]["train"]["epochs"]
        still = () if trains else ("train.epochs=0",)
        own = [*experiment.data_settings, *experiment.settings]
        return [*self.place(experiment), *own, *self.overrides, *still, f"seed={seed}"]

    def place(self, experiment: Experiment) -> list[str]:
        """The key=value pairs for the paths of the experiment's data."""
        folder, need = self.root(experiment), needs.data(experiment.source)
        if folder is None:
            return []
        named = [f"data.class_names={folder / need.class_names}"] if need and need.class_names else []
        return [f"data.root={folder}", *named]

    def root(self, experiment: Experiment) -> Path | None:
        """The folder of the experiment's data; None for data that are not in such a folder."""
        if not needs.has_root(experiment.source):
            return None
        given = {key: value for key, _, value in (pair.partition("=") for pair in self.overrides)}
        root = given.get("data.root", given.get("root"))
        return self.data_root / experiment.source if root is None else Path(root)

    def source(self, experiment: Experiment) -> str:
        """The data set's name, or the path of its file."""
        return experiment.source if experiment.source in names.DATA_SETS else str(self.data_root / experiment.source)

    def config(self, experiment: Experiment, seed: int) -> RunConfig:
        """The settings of one run."""
        from liftplus.config import resolve

        given = self.settings(experiment, seed)
        return resolve(
            data=self.source(experiment), backbone=experiment.backbone, method=experiment.method, overrides=given
        )

    def outline(self, experiment: Experiment) -> Outline:
        """The settings of `config` that determine a run's cost, read from presets without importing PyTorch."""
        presets = [
            names.presets("methods")[experiment.method],
            names.presets("data").get(experiment.source, {}).get(experiment.method, {}),
        ]
        found: dict[str, str] = {}
        for preset in presets:
            if (tuners := preset.get("tuner")) is not None:
                found["tuner"] = tuners if isinstance(tuners, str) else "+".join(tuners)
            found |= {"epochs": str(preset["train"]["epochs"])} if "epochs" in preset.get("train", {}) else {}
        for pair in self.settings(experiment, 0):
            key, _, value = pair.partition("=")
            found[key.strip().removeprefix("train.").removeprefix("data.")] = value.strip()
        tuner = tuple(name for name in found["tuner"].split("+") if name != "none")
        ratio = found.get("imbalance_ratio", "none")
        known = None if ratio.lower() in ("none", "null") else float(ratio)
        return Outline(experiment.backbone, int(float(found["epochs"])), tuner, known)

    def command(self, experiment: Experiment, seed: int = 0) -> str:
        """The command that makes one run by itself."""
        own = [*self.place(experiment), *experiment.data_settings, *experiment.settings, *self.overrides]
        words = ["liftplus train", "--data", self.source(experiment), "--backbone", experiment.backbone]
        words += ["--method", experiment.method] if experiment.method != "lift+" else []
        return " ".join([*words, *(_quoted(pair) for pair in own), f"seed={seed}"])

    def check(self) -> None:
        """Check the user's settings.

        Raises:
            UserError: a setting belongs to the experiments, or differs from that of the folder's runs.
        """
        from liftplus.config import full_key

        sources = list(dict.fromkeys(one.source for one in self.experiments))
        keys = {pair: full_key(pair.partition("=")[0]) for pair in self.overrides}
        for pair, key in keys.items():
            if key in ("seed", "method", "data.source", "backbone.name"):
                raise UserError(
                    f"{pair!r} cannot be set here, because the experiments set it. Use --seeds for the number of seeds."
                )
        for pair, key in keys.items():
            if key == "data.root" and len(sources) > 1:
                raise UserError(
                    f"{pair!r} was given for several data sets. Give --data-root DIR, with a folder for each: "
                    f"{', '.join(sources)}."
                )
        begun = changed_settings(self.out)
        mine = _counting(self.overrides)
        if begun is not None and _in_full(begun) != _in_full(mine):
            raise UserError(
                f"{str(self.out)!r} holds runs made with {' '.join(begun) or 'no settings of their own'}; now given: "
                f"{' '.join(mine) or 'none'}. Give the same settings, or another folder with --out."
            )

    def note(self) -> None:
        """Record in the folder the user's settings for all of its runs."""
        from liftplus.machine import disk

        self.out.mkdir(parents=True, exist_ok=True)
        with disk.locked(self.out, disk.PATIENCE):
            disk.write_json(self.out / ABOUT, {"settings": _counting(self.overrides)})


def changed_settings(out: Path) -> list[str] | None:
    """The user's key=value pairs for all runs of a folder; None if it has no runs."""
    from liftplus.machine import disk

    path = out / ABOUT
    return list(disk.read_json(path, "settings")["settings"]) if path.is_file() else None


def _counting(overrides: Sequence[str]) -> list[str]:
    """The settings that change results."""
    from liftplus.config import full_key
    from liftplus.runs.changes import FREE

    places = (*FREE, *PLACES)
    return sorted(pair for pair in overrides if full_key(pair.partition("=")[0]) not in places)


def _in_full(overrides: Sequence[str]) -> list[str]:
    """The same settings with their full keys."""
    from liftplus.config import full_key

    return sorted(f"{full_key(key)}={value}" for key, _, value in (pair.partition("=") for pair in overrides))


def _quoted(pair: str) -> str:
    return pair if re.fullmatch(r"[\w.=+/:,-]+", pair) else "'" + pair.replace("'", "'\\''") + "'"
