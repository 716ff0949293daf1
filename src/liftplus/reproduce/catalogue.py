"""Experiments by name, read from the tables in catalogue/: each file is a group, each table an axis of variants."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from liftplus.errors import UserError
from liftplus.evaluation.noise import MARGIN, ONE_SEED

FOLDER = Path(__file__).with_name("catalogue")
CLAIMS = "claims.toml"
MAIN = "main"  # experiments of this table do not have its name in theirs

T = TypeVar("T", bound=BaseModel)
Key = Literal["overall", "mean_class", "many", "medium", "few"]
Compared = Literal[Key, "rarest_third"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Data(_Entry):
    name: str
    data: str
    settings: tuple[str, ...] = ()


class _Variant(_Entry):
    method: str = "lift+"
    settings: tuple[str, ...] = ()
    backbones: tuple[str, ...] | None = None  # limits the variant to these of the table's backbones
    data: tuple[str, ...] | None = None  # limits the variant to these of the table's data, by name


class _Grid(_Variant):
    """A variant for every combination of values. "{axis}" in the name and the settings is replaced by the value."""

    name: str
    over: dict[str, tuple[str | int | float, ...]] = Field(min_length=1)

    def variants(self) -> Iterator[tuple[str, _Variant]]:
        for values in itertools.product(*self.over.values()):
            chosen = dict(zip(self.over, values, strict=True))
            settings = tuple(setting.format(**chosen) for setting in self.settings)
            yield self.name.format(**chosen), self.model_copy(update={"settings": settings})


class _Table(_Entry):
    about: str
    source: str = ""
    data: tuple[_Data | str, ...] = Field(min_length=1)
    backbones: tuple[str, ...] = Field(min_length=1)
    seeds: int = Field(default=3, ge=1)
    seconds: float | None = Field(default=None, gt=0)
    variants: dict[str, _Variant] = {}
    grids: tuple[_Grid, ...] = ()
    expected: dict[str, dict[Key, float | tuple[float, float]]] = {}
    sources: dict[str, str] = {}  # by experiment, where its expected figures have another source
    tolerance: dict[Key, float] = {}

    @model_validator(mode="after")
    def _has_variants(self) -> Self:
        if not self.variants and not self.grids:
            raise ValueError("variants or grids are needed")
        return self

    def every_variant(self) -> list[tuple[str, _Variant]]:
        """Variants by label, those of grids last."""
        return [*self.variants.items(), *(one for grid in self.grids for one in grid.variants())]


class Contrast(_Entry):
    """Two experiments whose difference a claim rests on.

    Attributes:
        better, worse: names of experiments.
        metric: the accuracy that is compared.
        kind: what the claim says about `better`. "better": it beats `worse` by more than noise. "no_worse": it is not
            worse by the claim's margin or more. "same": the two do not differ by the margin or more.
        about: what is equal in both experiments.
    """

    better: str
    worse: str
    metric: Compared
    kind: Literal["better", "no_worse", "same"] = "better"
    about: str = ""


class Untestable(_Entry):
    """A contrast that cannot be tested, and why."""

    what: str
    why: str


class Claim(_Entry):
    """A claim in words, and the contrasts that test it.

    Attributes:
        margin: points that "no_worse" and "same" allow, by accuracy; by default `noise.MARGIN`.
    """

    claim: str
    margin: dict[Compared, Annotated[float, Field(gt=0, le=100)]] = {}
    tests: tuple[Contrast, ...] = ()
    untestable: tuple[Untestable, ...] = ()

    def margin_of(self, metric: str) -> float:
        """The claim's margin for an accuracy, in points."""
        return (MARGIN | dict(self.margin))[metric]


@dataclass(frozen=True)
class Experiment:
    """One row of a table of results.

    Attributes:
        name: DATA/BACKBONE/VARIANT, or DATA/BACKBONE/TABLE/VARIANT.
        group, table, variant: its place in the catalogue.
        data: the data set's label. `source` is its name or path, `data_settings` are its settings.
        method, settings: the method and its key=value pairs.
        seeds: number of runs, with seeds 0 to N-1.
        expected: lowest and highest expected value of each accuracy, in percent; `origin` says who reports it.
        tolerance: points by which each accuracy may miss its expected value.
        seconds: measured training time of a run; None if not known.
    """

    name: str
    group: str
    table: str
    variant: str
    about: str
    origin: str
    data: str
    source: str
    data_settings: tuple[str, ...]
    backbone: str
    method: str
    settings: tuple[str, ...]
    seeds: int
    expected: dict[str, tuple[float, float]]
    tolerance: dict[str, float]
    seconds: float | None

    @property
    def training(self) -> str:
        """The folder of its runs, without the seed. Experiments that differ only in testing share it."""
        kept = [setting for setting in self.settings if not _tests_only(setting)]
        own = re.sub(r"[^A-Za-z0-9.+=-]+", "_", "_".join([self.method, *kept]))
        if len(own) > 100:  # file systems limit the length of a name
            own = own[:80] + "-" + hashlib.sha256(own.encode()).hexdigest()[:12]
        return f"{self.data}/{self.backbone}/{own}"


def _tests_only(setting: str) -> bool:
    """Whether a key=value pair changes only testing."""
    from liftplus.config import EvaluationConfig  # imported here because it imports PyTorch

    key = setting.partition("=")[0]
    return key.startswith("evaluation.") or (key in EvaluationConfig.model_fields and key != "batch_size")


@dataclass(frozen=True)
class Catalogue:
    """All experiments and claims by name; experiments are in the order of the files."""

    experiments: dict[str, Experiment]
    claims: dict[str, Claim]

    def select(self, names: Sequence[str]) -> list[Experiment]:
        """The experiments that are named by group, table, name or start of a name; all if nothing is given.

        Raises:
            UserError: a name matches nothing.
        """
        if not names:
            return list(self.experiments.values())
        found: set[str] = set()
        for name in names:
            if not (fits := {key for key, one in self.experiments.items() if _fits(one, name.rstrip("/"))}):
                raise self._unknown(name)
            found |= fits
        return [one for key, one in self.experiments.items() if key in found]

    def tables(self) -> dict[str, list[str]]:
        """The names of each group's tables."""
        out: dict[str, dict[str, None]] = {}
        for one in self.experiments.values():
            out.setdefault(one.group, {})[one.table] = None
        return {group: list(tables) for group, tables in out.items()}

    def _unknown(self, name: str) -> UserError:
        tables = self.tables()
        starts = dict.fromkeys("/".join(key.split("/")[:n]) for key in self.experiments for n in (1, 2, 3, 4))
        every = [*tables, *(table for some in tables.values() for table in some), *starts]
        near = [repr(one) for one in difflib.get_close_matches(name, every, n=3, cutoff=0.5)]
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        there = "; ".join(f"{group} with the tables {', '.join(some)}" for group, some in tables.items())
        return UserError(
            f"There is no experiment, table or group {name!r}.{hint} The groups are: {there}. "
            "`liftplus reproduce list` lists every experiment."
        )


def _fits(one: Experiment, name: str) -> bool:
    return name in (one.group, one.table, f"{one.group}/{one.table}") or f"{one.name}/".startswith(f"{name}/")


def load(folder: Path = FOLDER) -> Catalogue:
    """Read the tables of a folder.

    Raises:
        UserError: a table is malformed, or a name is missing or used twice.
    """
    experiments: dict[str, Experiment] = {}
    for path in sorted(set(folder.glob("*.toml")) - {folder / CLAIMS}):
        for one in _group(path):
            if one.name in experiments:
                raise UserError(f"{path.name}: the experiment {one.name!r} is defined twice. Rename one of them.")
            experiments[one.name] = one
    _refuse_two_meanings(experiments)
    found = Catalogue(experiments, _claims(folder / CLAIMS))
    for name, claim in found.claims.items():
        for test in claim.tests:
            if absent := [one for one in (test.better, test.worse) if one not in experiments]:
                raise UserError(f"{CLAIMS}, {name}: {found._unknown(absent[0])}")
    return found


def _group(path: Path) -> Iterator[Experiment]:
    for title, content in tomllib.loads(path.read_text(encoding="utf-8")).items():
        table = _read(_Table, content, f"{path.name}, {title}")
        unused = table.expected.keys() | table.sources.keys()
        for one in _experiments(path.stem, title, table):
            unused.discard(one.name)
            yield one
        if unused:
            raise UserError(
                f"{path.name}, {title}: expected figures are given for {', '.join(sorted(unused))}, but the table has "
                "no such experiment. Correct the names."
            )


def _experiments(group: str, title: str, table: _Table) -> Iterator[Experiment]:
    for entry in table.data:
        data = _Data(name=entry, data=entry) if isinstance(entry, str) else entry
        for backbone in table.backbones:
            for label, variant in table.every_variant():
                if variant.backbones is not None and backbone not in variant.backbones:
                    continue
                if variant.data is not None and data.name not in variant.data:
                    continue
                name = "/".join([data.name, backbone, *([] if title == MAIN else [title]), label])
                yield Experiment(
                    name,
                    group,
                    title,
                    label,
                    about=table.about,
                    origin=table.sources.get(name, table.source),
                    data=data.name,
                    source=data.data,
                    data_settings=data.settings,
                    backbone=backbone,
                    method=variant.method,
                    settings=variant.settings,
                    seeds=table.seeds,
                    expected={
                        key: value if isinstance(value, tuple) else (value, value)
                        for key, value in table.expected.get(name, {}).items()
                    },
                    tolerance=ONE_SEED | dict(table.tolerance),
                    seconds=table.seconds,
                )


def _refuse_two_meanings(experiments: dict[str, Experiment]) -> None:
    """Check that a data label means the same in all tables, because it is part of run folders' names."""
    meanings: dict[str, Any] = {}
    for one in experiments.values():
        meaning = (one.source, one.data_settings)
        if meanings.setdefault(one.data, meaning) != meaning:
            raise UserError(
                f"{one.group}.toml, {one.table}: another table uses the name {one.data!r} for other data. Rename one."
            )


def _claims(path: Path) -> dict[str, Claim]:
    content = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: _read(Claim, value, f"{path.name}, {name}") for name, value in content.items()}


def _read(form: type[T], content: Any, where: str) -> T:
    try:
        return form.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{where}: {place or 'the table'} is not allowed ({first['msg'].lower()}).") from error
