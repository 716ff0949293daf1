"""The strongest rivals of light fine-tuning on one data set, each with its rates searched and its cost.

    python benchmarks/rivals.py search --data openmoji_lt --rows rivals.jsonl --runs runs/rivals epochs=2
    python benchmarks/rivals.py test --data openmoji_lt --rows rivals.jsonl --runs runs/rivals epochs=2
    python benchmarks/rivals.py table --rows rivals.jsonl
    python benchmarks/rivals.py write --rows benchmarks/results/rivals.jsonl

`search` makes every rival with each of its settings, with a seed that `test` does not use, and measures the validation
split, which must be there (val_share=0.2 draws one). `test` makes each with the best settings and three seeds and
measures the test split. Both append one line a run and leave out those whose line is there. key=value goes to all.
A mean over seeds takes the settings that are best for one run. `write` puts the table into docs/choosing.md.

LT-Soups (Aminbeidokhti et al. 2025, arXiv 2511.10683) is put together from parts: full fine-tunings of one start on
subsets in which no class has more than 2^i times the pictures of the rarest, for i from 0 on until all are in; weights
merged from the start to the most imbalanced by w <- share * w + (1 - share) * w_i; then the classifier trained on all
pictures, the rest frozen. It follows the paper's summaries and published code, not a reading of the paper itself. Where
it differs: SGD in place of AdamW with warm-up, no moving average of weights, one run a subset in place of two.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from liftplus import config
from liftplus.data.dataset import DataSet
from liftplus.data.loader import seeded
from liftplus.machine import runtime
from liftplus.runs import debiasing, merging, reuse, testing
from liftplus.runs.opening import Session
from liftplus.training import assembly, checkpoint, loop
from study import GROUPS, fill, read, spread, with_block

SEARCH_SEED, SEEDS = 1000, (0, 1, 2)
PAGE = Path("docs/choosing.md")
LEAST_STEPS = 100
"""Steps of a run on a subset, at least."""


@dataclass(frozen=True)
class Cost:
    """What a model took: seconds of training, training pictures passed forwards and backwards, passes at a test."""

    seconds: float = 0.0
    pictures: int = 0
    passes: int = 1

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.pictures + other.pictures, max(self.passes, other.passes))


@dataclass(frozen=True)
class Made:
    """A run folder, or a model file, with what it took; `gla` adds debiased zero-shot logits to its tests."""

    folder: Path
    cost: Cost
    gla: bool = False


@dataclass(frozen=True)
class Work:
    """Data, backbone and settings that all rivals share, and the folder of their runs."""

    data: str
    backbone: str
    given: tuple[str, ...]
    runs: Path

    def session(self, method: str, *overrides: str) -> Session:
        """One run's settings on this machine."""
        own = [*self.given, *overrides]
        chosen = config.resolve(data=self.data, backbone=self.backbone, method=method, overrides=own)
        return Session(chosen, runtime.choose(chosen.device, chosen.precision))

    @cached_property
    def dataset(self) -> DataSet:
        """All pictures."""
        return self.session("lift+").data()

    def trained(self, method: str, *overrides: str, data: DataSet | None = None, name: str = "") -> Made:
        """A run, made once."""
        session, dataset = self.session(method, *overrides), data or self.dataset
        folder = self.runs / "-".join([method, *overrides, *([name] if name else [])])
        metrics = reuse.run(session, dataset, folder, "val")
        pictures = session.config.train.epochs * len(dataset.splits["train"])
        return Made(folder, Cost(metrics["seconds"], pictures))

    def merged(self, made: Sequence[Made], name: str, shares: Sequence[float] = (), start: float = 0.0) -> Made:
        """One run of several, at the sum of their costs."""
        folder = self.runs / name
        settings = [config.from_dict(checkpoint.read_about(one.folder)["config"]) for one in made]
        parts = [merging.Part.read(one.folder, own) for one, own in zip(made, settings, strict=True)]
        if not (folder / checkpoint.FILE).is_file():
            session = Session(settings[0], runtime.choose(settings[0].device, settings[0].precision))
            merging.merge(parts, folder, session, shares, start)
        return Made(folder, sum((one.cost for one in made), Cost()))

    def measured(self, made: Made, split: str) -> dict[str, float | None]:
        """Accuracies in percent on a split, by group of classes."""
        session = self.session("lift+")
        trained = checkpoint.load_model(made.folder, session.runtime)
        session = replace(session, config=trained.config.model_copy(update={"data": session.config.data}))
        beside = debiasing.zeroshot(session, trained, other_data=False).model if made.gla else None
        counts = self.dataset.counts()
        _, metrics = testing.measure(session, trained.model, self.dataset, split, counts, beside)
        return {group: getattr(metrics, group) for group in GROUPS}


Choice = dict[str, Any]


def tuned(method: str, work: Work, choice: Choice, seed: int) -> Made:
    """One run with these settings."""
    return work.trained(method, *(f"{key}={value}" for key, value in choice.items()), f"seed={seed}")


def between(work: Work, choice: Choice, seed: int) -> Made:
    """WiSE-FT: full fine-tuning mixed with its start."""
    settings = {key: value for key, value in choice.items() if key != "start"}
    one = tuned("full+", work, settings, seed)
    return work.merged([one], f"between-{choice['start']}-{one.folder.name}", start=choice["start"])


def mean(method: str, work: Work, choice: Choice, seed: int) -> Made:
    """A model soup of three seeds, at three times the cost of one."""
    runs = [tuned(method, work, choice, seed + further) for further in (0, 10_000, 20_000)]
    return work.merged(runs, f"mean-{runs[0].folder.name}")


def with_gla(method: str, work: Work, choice: Choice, seed: int) -> Made:
    """GLA: debiased zero-shot logits are added at test, which is another pass."""
    one = tuned(method, work, choice, seed)
    return Made(one.folder, replace(one.cost, passes=2), gla=True)


def limits(counts: Sequence[int]) -> list[int]:
    """Most pictures a class in each subset: of the rarest class, then twice as many each, until all are in."""
    least, most = min(filter(None, counts)), max(counts)
    return [least * 2**i for i in range(math.ceil(math.log2(most / least)) + 1)]


def shares(runs: int, share: float) -> list[float]:
    """How much the start and each of so many runs count, where w <- share * w + (1 - share) * w_i begins at the start.

    >>> shares(2, 0.5)
    [0.25, 0.25, 0.5]
    """
    return [share**runs, *((1 - share) * share ** (runs - 1 - i) for i in range(runs))]


def lt_soups(work: Work, choice: Choice, seed: int) -> Made:
    """LT-Soups; see the top."""
    own = (f"lr={choice['lr']}", f"seed={seed}")
    train = work.dataset.splits["train"]
    runs = [work.trained("full+", "epochs=0", *own)]
    usual = work.session("full+", *own).config.train
    for i, most in enumerate(limits(work.dataset.counts())):
        few = train.taken(assembly.first_of_each(train, most, seeded(seed, i)))
        part = replace(work.dataset, splits=work.dataset.splits | {"train": few})
        steps = math.ceil(len(few) / usual.batch_size)
        epochs = max(usual.epochs, math.ceil(LEAST_STEPS / steps))
        runs.append(work.trained("full+", f"epochs={epochs}", *own, data=part, name=f"most={most}"))
    name = f"lt_soups-{choice['share']}-lr={choice['lr']}-seed={seed}"
    return retrained(work, work.merged(runs, name, shares(len(runs) - 1, choice["share"])), own)


def retrained(work: Work, made: Made, overrides: Sequence[str]) -> Made:
    """The model with its classifier trained on all pictures and everything else frozen, as a file in its folder."""
    session, path = work.session("full+", *overrides), made.folder / "retrained.safetensors"
    model = checkpoint.load_model(made.folder, session.runtime).model
    names = checkpoint.read_model(made.folder)[1].keys()
    model.head.requires_grad_(True)
    fitted = loop.fit(model, session.config, work.dataset, session.runtime)
    state = {name: value.detach().cpu().contiguous() for name, value in model.named_parameters() if name in names}
    checkpoint.save_model(path, model, session.config, work.dataset, weights=state)
    pictures = session.config.train.epochs * len(work.dataset.splits["train"])
    return Made(path, made.cost + Cost(fitted.seconds, pictures))


@dataclass(frozen=True)
class Rival:
    """How a model is made, and the settings to search."""

    make: Callable[[Work, Choice, int], Made]
    settings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    of: str = ""
    """The rival whose best settings it takes, where it has no search of its own."""

    def choices(self) -> list[Choice]:
        """Every combination of the settings."""
        found: list[Choice] = [{}]
        for key, values in self.settings.items():
            found = [choice | {key: value} for choice in found for value in values]
        return found


Grid = dict[str, tuple[float, ...]]
LIGHT: Grid = {"lr": (0.05, 0.15, 0.4, 1.0)}
HEAVY: Grid = {"lr": (0.01, 0.03, 0.1, 0.3)}
PROBE: Grid = {"lr": (0.3, 1.0, 3.0, 10.0)}
RIVALS = {
    "linear_probe+": Rival(partial(tuned, "linear_probe+"), PROBE),
    "lift+": Rival(partial(tuned, "lift+"), LIGHT),
    "lift+, mean of 3 seeds": Rival(partial(mean, "lift+"), of="lift+"),
    "lift+, GLA": Rival(partial(with_gla, "lift+"), LIGHT),
    "full": Rival(partial(tuned, "full"), HEAVY),
    "full+": Rival(partial(tuned, "full+"), HEAVY),
    "full+, layer decay": Rival(partial(tuned, "full+"), {"lr": (0.03, 0.1, 0.3), "layer_decay": (0.5, 0.7)}),
    "full+, between it and its start": Rival(between, HEAVY | {"start": (0.25, 0.5, 0.75)}),
    "full+, mean of 3 seeds": Rival(partial(mean, "full+"), of="full+"),
    "full+, GLA": Rival(partial(with_gla, "full+"), HEAVY),
    "LT-Soups": Rival(lt_soups, {"lr": (0.01, 0.03, 0.1), "share": (0.3, 0.7, 0.9)}),
}


def best(rows: list[dict[str, Any]], rival: str, about: dict[str, Any]) -> Choice:
    """The settings with the best mean over classes on validation of these data, with this backbone and settings."""
    found = [row for row in rows if (row["stage"], row["rival"]) == ("search", rival) and about.items() <= row.items()]
    missing = [choice for choice in RIVALS[rival].choices() if not any(row["choice"] == choice for row in found)]
    if missing:
        raise SystemExit(f"The search of {rival!r} is not finished: {missing[0]} is missing.")
    chosen: Choice = max(found, key=lambda row: row["mean_class"])["choice"]
    return chosen


def keys(stage: str, names: Sequence[str], rows: Path, work: Work) -> Iterator[dict[str, Any]]:
    """The rows of a stage."""
    about = {"data": work.data, "backbone": work.backbone, "given": list(work.given)}
    for rival in names:
        if stage == "search":
            choices = [] if RIVALS[rival].of else RIVALS[rival].choices()
            made = [(choice, SEARCH_SEED) for choice in choices]
        else:
            made = [(best(read(rows), RIVALS[rival].of or rival, about), seed) for seed in SEEDS]
        yield from (about | {"stage": stage, "rival": rival, "choice": choice, "seed": seed} for choice, seed in made)


def one(key: dict[str, Any], work: Work) -> dict[str, Any]:
    """A rival's accuracies and what it took."""
    made = RIVALS[key["rival"]].make(work, key["choice"], key["seed"])
    cost = {"seconds": round(made.cost.seconds, 1), "epochs": made.cost.pictures / len(work.dataset.splits["train"])}
    measured = work.measured(made, "val" if key["stage"] == "search" else "test")
    return cost | {"test_passes": made.cost.passes} | measured


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Test accuracy in percent, mean and standard deviation over seeds; an epoch is all training pictures once."""
    yield "| rival | settings | seconds | epochs | passes at test | mean over classes | many | medium | few |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for rival in RIVALS:
        mine = [row for row in rows if (row["stage"], row["rival"]) == ("test", rival)]
        if mine:
            chosen = ", ".join(f"{key} {value:g}" for key, value in mine[0]["choice"].items())
            # None stands for a run that was paused while its clock went on.
            seconds = [row["seconds"] for row in mine if row["seconds"] is not None]
            cost = [spread(seconds), f"{mine[0]['epochs']:.1f}", str(mine[0]["test_passes"])]
            cells = [spread([row[group] for row in mine]) for group in ("mean_class", "many", "medium", "few")]
            yield f"| {rival} | {chosen} | {' | '.join([*cost, *cells])} |"


def filled(page: str, rows: Path) -> str:
    """docs/choosing.md with the table of the bundled model anew."""
    return with_block(page, "rivals", "openmoji_lt", "\n".join(table(read(rows))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("search", "test", "table", "write"))
    parser.add_argument("--data", default="openmoji_lt")
    parser.add_argument("--backbone", default="mini_clip")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/rivals"))
    parser.add_argument("--only", action="append", choices=RIVALS, help="one rival, repeatable; by default all")
    parser.add_argument("given", nargs="*", help="key=value for all runs")
    given = parser.parse_intermixed_args()
    if given.stage == "table":
        print("\n".join(table(read(given.rows))))
        return
    if given.stage == "write":
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), given.rows), encoding="utf-8")
        return
    work = Work(given.data, given.backbone, tuple(given.given), given.runs)
    fill(given.rows, keys(given.stage, given.only or list(RIVALS), given.rows, work), partial(one, work=work))


if __name__ == "__main__":
    main()
