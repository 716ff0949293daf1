"""What studies of many runs share: their rows, the accuracies of one run, a marked block of a page."""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from liftplus import config
from liftplus.data.dataset import DataSet
from liftplus.evaluation.inference import SplitReader, predict, score
from liftplus.machine import runtime
from liftplus.model.classifier import Classifier
from liftplus.runs.opening import Session

GROUPS = ("overall", "mean_class", "many", "medium", "few")


def read(path: Path) -> list[dict[str, Any]]:
    """Finished runs, one line each."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def append(path: Path, line: dict[str, Any]) -> None:
    """One line in one write, so that parts running side by side do not mix theirs."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
    finally:
        os.close(handle)


Part = tuple[int, int]
"""(k, n): every n-th key from the k-th on, where n processes share the work."""


def add_part(parser: argparse.ArgumentParser) -> None:
    """The option --part, a `Part`."""
    about = "every n-th run of a stage from the k-th on, for n processes side by side"
    parser.add_argument("--part", type=_part, default=(0, 1), metavar="K/N", help=about)


def _part(text: str) -> Part:
    k, n = (int(number) for number in text.split("/"))
    if not 0 <= k < n:
        raise argparse.ArgumentTypeError(f"{text} is no part: with n processes k goes from 0 to n - 1")
    return k, n


def fill(
    rows: Path,
    keys: Iterable[dict[str, Any]],
    one: Callable[[dict[str, Any]], dict[str, Any]],
    part: Part = (0, 1),
) -> None:
    """Append a line for each key that has none yet.

    Args:
        one: makes what stands behind a key.
        part: the keys that this process takes.
    """
    machine = runtime.describe(runtime.choose("cpu", "auto"))
    for index, key in enumerate(keys):
        if index % part[1] != part[0] or any(key.items() <= row.items() for row in read(rows)):
            continue
        line = key | one(key)
        append(rows, line | {"machine": machine, "date": date.today().isoformat()})
        print(line, flush=True)


def prepared(pair: Any, data: str, settings: Sequence[str], vit: Path) -> tuple[Session, DataSet]:
    """What every run of a study begins with: one crop at test, no workers, the ViT's weights from a file.

    Args:
        pair: a backbone and its picture size, as `recipe_study.Pair`.
        settings: the study's own, as key=value.
    """
    given = ["workers=0", "tte=false", f"image_size={pair.image_size}", *settings]
    given += [f"weights={vit}"] if pair.backbone == "dinov2_s14" else []
    chosen = config.resolve(data=data, backbone=pair.backbone, overrides=given)
    session = Session(chosen, runtime.choose(chosen.device, chosen.precision))
    return session, session.data()


def accuracies(session: Session, model: Classifier, dataset: DataSet, split: str) -> dict[str, float | None]:
    """In percent on a split, by group of classes."""
    part = dataset.splits[split]
    reader = SplitReader(dataset.store, part)
    found = predict(model, reader, session.config.evaluation, model.backbone.facts, session.runtime)
    metrics = score(found, part, tuple(dataset.counts()))
    return {group: getattr(metrics, group) for group in GROUPS}


def spread(values: Sequence[float | None], places: int = 1) -> str:
    """Mean and standard deviation with so many decimal places; a dash where no value is there."""
    given = [value for value in values if value is not None]
    if not given:
        return "–"
    deviation = f" ± {statistics.stdev(given):.{places}f}" if len(given) > 1 else ""
    return f"{statistics.mean(given):.{places}f}{deviation}"


def with_block(page: str, kind: str, name: str, text: str) -> str:
    """A page with what stands between `<!-- KIND: NAME -->` and `<!-- KIND: end -->` anew."""
    block = f"<!-- {kind}: {name} -->\n{text}\n<!-- {kind}: end -->"
    return re.sub(rf"<!-- {kind}: {name} -->.*?<!-- {kind}: end -->", lambda _: block, page, flags=re.DOTALL)
