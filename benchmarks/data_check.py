"""Doubles and wrong labels planted in real photographs, and what `data check` finds of them; its time and memory.

    python benchmarks/data_check.py doubles --data ../shared/data/clothing17_160.zip --name clothing17
    python benchmarks/data_check.py labels --data ../shared/data/clothing17_160.zip --name clothing17
    python benchmarks/data_check.py scale --step doubles
    python benchmarks/data_check.py write

`doubles` puts altered copies of pictures drawn by seed into the training and test splits: re-encoded at quality 40 to
85, resized to half or up to twice their size, cropped by 10 % of each side at a random place, or flipped. Every pair
that was not planted counts against precision, also those that the data held before (`before`), which were looked at by
eye for docs/data-check.md. The thresholds were chosen with seed 1; other seeds draw none of its pictures. The ridge and
the temperature of `labels` were chosen with seeds 0 and 1 of Tiny-ImageNet, so --seeds begins at --seed, 2 by default.

`labels` gives 5 % of the training pictures another label, drawn by the classes' frequencies or evenly, and ranks the
pictures of the classes that then have under 20. Plain confidence is 1 less the label's probability: by the check's own
head (the same numbers, as classes count the same in it), by a logistic regression that has not seen the picture (3
folds), and by one that has. With --cut, the training split gets an artificial tail of that imbalance first, for data
with too few rare classes.

`scale` measures one step of what follows the features, for 100,000 pictures made of halves of those of --data, whose
features are drawn; the peak is that of the process, which holds the data of all steps. One JSON row each is appended to
--rows; `write` puts the tables into docs/data-check.md.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

import study
from liftplus import config
from liftplus.checks import check, doubles, labels, neighbours, outliers, thumbs
from liftplus.checks.neighbours import Neighbours
from liftplus.data import sources
from liftplus.data.dataset import DataSet, Split
from liftplus.data.stores import ByteStore, FolderStore
from liftplus.evaluation.metrics import FEW_UNDER
from liftplus.machine import runtime
from liftplus.runs.inputs import RowStore
from liftplus.runs.opening import Session

ROWS, PAGE = Path("benchmarks/results/data-check.jsonl"), Path("docs/data-check.md")
KINDS = ("re-encoded", "resized", "cropped", "flipped")
CHOSEN_BY = 1  # the seed by which thresholds were chosen
SHARE = 0.05  # of the labels that are flipped


def altered(image: Image.Image, kind: str, rng: random.Random) -> bytes:
    """A JPEG of the picture, altered as described above."""
    width, height = image.size
    quality = 95
    if kind == "re-encoded":
        quality = rng.randint(40, 85)
    elif kind == "resized":
        by = rng.uniform(0.5, 0.8) if rng.random() < 0.5 else rng.uniform(1.25, 2)
        image = image.resize((max(8, round(width * by)), max(8, round(height * by))), Image.Resampling.LANCZOS)
    elif kind == "cropped":
        wide, high = round(0.9 * width), round(0.9 * height)
        left, top = rng.randint(0, width - wide), rng.randint(0, height - high)
        image = image.crop((left, top, left + wide, top + high))
    else:
        image = ImageOps.mirror(image)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def planted(dataset: DataSet, count: int, seed: int, folder: Path) -> tuple[DataSet, dict[tuple[str, str], str]]:
    """The data set with altered copies, half of them in training and half in test; the kind of each pair of keys."""
    assert isinstance(dataset.store, ByteStore)
    rows = check.places_of(dataset)
    avoided = set() if seed == CHOSEN_BY else set(random.Random(CHOSEN_BY).sample(range(len(rows)), count))
    rng = random.Random(seed)
    chosen = rng.sample([k for k in range(len(rows)) if k not in avoided], count)
    copies, kinds = FolderStore(folder), dict[tuple[str, str], str]()
    items = [(dataset.store, place.key) for place in rows]
    added: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for place, number in enumerate(chosen):
        kind = KINDS[place % len(KINDS)]
        (folder / f"{place}.jpg").write_bytes(altered(dataset.store.image(rows[number].key), kind, rng))
        kinds[str(number), str(len(items))] = kind
        added[("train", "test")[place // len(KINDS) % 2]].append((str(len(items)), rows[number].label))
        items.append((copies, f"{place}.jpg"))
    parts, start = {}, 0
    for name, split in dataset.splits.items():
        more = added.get(name, [])
        keys = [str(start + k) for k in range(len(split))] + [key for key, _ in more]
        parts[name] = Split(keys, [*split.labels, *(label for _, label in more)])
        start += len(split)
    return replace(dataset, store=RowStore(items), splits=parts), kinds


def session_of(args: argparse.Namespace) -> Session:
    words = [f"image_size={args.image_size}"] if args.image_size else []
    chosen = config.resolve(data=str(args.data), backbone=args.backbone, overrides=[*words, *args.settings])
    return Session(chosen, runtime.choose(chosen.device, chosen.precision))


def features_of(session: Session, dataset: DataSet, args: argparse.Namespace) -> dict[str, Tensor]:
    """Features of each split, kept in --keep where that is given."""
    kept = None if args.keep is None else args.keep / f"{args.data.stem}-{args.backbone}-{args.image_size}.pt"
    if kept is not None and kept.is_file():
        found: dict[str, Tensor] = torch.load(kept, weights_only=True)
        return found
    every = check.features_of(session, dataset, set())
    parts = dict(zip(dataset.splits, every.split([len(split) for split in dataset.splits.values()]), strict=True))
    if kept is not None:
        torch.save({name: part.clone() for name, part in parts.items()}, kept)
    return parts


def with_copies(session: Session, dataset: DataSet, whole: DataSet, args: argparse.Namespace) -> Tensor:
    """Features of the data set with copies, those of its own pictures as they were kept."""
    own = features_of(session, dataset, args)
    copies = {name: split.taken(range(len(dataset.splits[name]), len(split))) for name, split in whole.splits.items()}
    new = check.features_of(session, replace(whole, splits=copies), set())
    added = new.split([len(split) for split in copies.values()])
    return torch.cat([part for name, more in zip(copies, added, strict=True) for part in (own[name], more)])


def of_doubles(args: argparse.Namespace) -> dict[str, Any]:
    session = session_of(args)
    dataset = sources.load(session.config.data)
    count = args.count or round(0.1 * sum(map(len, dataset.splits.values())))
    with tempfile.TemporaryDirectory() as folder:
        whole, kinds = planted(dataset, count, args.seed, Path(folder))
        small = thumbs.read(whole.store, [place.key for place in check.places_of(whole)])
        features = with_copies(session, dataset, whole, args)
        clock = time.perf_counter()
        found = check.compared(session, whole, small, features)
        seconds = time.perf_counter() - clock
    keys = [place.key for place in found.places]
    pairs = {tuple(sorted((keys[d.first], keys[d.second]), key=int)) for d in found.doubles}
    hit = Counter(kinds[pair] for pair in pairs if pair in kinds)
    total = Counter(kinds.values())
    others = sorted(pair for pair in pairs if pair not in kinds)
    first_copy = sum(map(len, dataset.splits.values()))
    return {
        "pictures": len(keys),
        "planted": len(kinds),
        "recall": round(hit.total() / len(kinds), 4),
        "precision": round(hit.total() / max(1, len(pairs)), 4),
        "by_kind": {kind: round(hit[kind] / total[kind], 4) for kind in KINDS},
        "not_planted": len(others),
        "before": [[dataset_key(dataset, k) for k in pair] for pair in others if int(pair[1]) < first_copy],
        "seconds": round(seconds, 1),
    }


def dataset_key(dataset: DataSet, number: str) -> str:
    return check.places_of(dataset)[int(number)].key


def flipped(true: NDArray[np.int64], classes: int, how: str, seed: int) -> NDArray[np.int64]:
    """Labels of which 5 % are other ones, drawn by how often the classes come, or evenly."""
    rng, given = np.random.default_rng(seed), true.copy()
    often = np.bincount(true, minlength=classes) if how == "by frequency" else np.ones(classes)
    for number in rng.choice(len(true), round(SHARE * len(true)), replace=False):
        chances = often.astype(float)
        chances[true[number]] = 0
        given[number] = rng.choice(classes, p=chances / chances.sum())
    return given


def cut(labels_: Tensor, ratio: float, seed: int) -> Tensor:
    """Positions of pictures so that the k-th of C classes by size keeps its share of ratio^(-k / (C - 1))."""
    counts = torch.bincount(labels_)
    order = counts.argsort(descending=True, stable=True)
    generator, kept = torch.Generator().manual_seed(seed), []
    for rank, label in enumerate(order.tolist()):
        own = (labels_ == label).nonzero()[:, 0]
        most = max(3, round(float(counts.max()) * ratio ** (-rank / max(1, len(order) - 1))))
        kept.append(own[torch.randperm(len(own), generator=generator)[:most]])
    return torch.cat(kept).sort()[0]


def plain(features: NDArray[np.float32], given: NDArray[np.int64], classes: int) -> tuple[Any, Any]:
    """1 less the label's probability by a logistic regression that has not seen the picture, and by one that has."""
    own = np.arange(len(given))

    def fitted(seen: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.float64]:
        model = LogisticRegression(max_iter=100).fit(features[seen], given[seen])
        chances = np.zeros((len(asked), classes))
        chances[:, model.classes_] = model.predict_proba(features[asked])
        return chances[np.arange(len(asked)), given[asked]]

    apart = np.zeros(len(given))
    for seen, asked in StratifiedKFold(3, shuffle=True, random_state=0).split(features, given):
        apart[asked] = fitted(seen, asked)
    return 1 - apart, 1 - fitted(own, own)


def of_labels(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    session = session_of(args)
    dataset = sources.load(session.config.data)
    features, true = features_of(session, dataset, args)["train"], torch.tensor(list(dataset.splits["train"].labels))
    if args.cut:
        kept = cut(true, args.cut, 0)
        features, true = features[kept], true[kept]
    rows = PCA(min(64, *features.shape), random_state=0).fit_transform(features.numpy())
    rows /= rows.std()
    training = torch.ones(len(true), dtype=torch.bool)
    for how in ("by frequency", "evenly"):
        for seed in range(args.seed, args.seed + args.seeds):
            given = flipped(true.numpy(), dataset.num_classes, how, seed)
            found = labels.judge(features, torch.from_numpy(given), training, dataset.num_classes)
            wrong = given != true.numpy()
            few = (np.bincount(given)[given] < FEW_UNDER) & ~np.isnan(found.own)
            if not wrong[few].any():
                continue
            apart, seen = plain(rows, given, dataset.num_classes)
            marked = found.suspicious

            def precision(score: NDArray[np.float64], few: Any = few, wrong: Any = wrong) -> float:
                return round(float(average_precision_score(wrong[few], score[few])), 4)

            yield {
                "how": how,
                "seed": seed,
                "cut": args.cut,
                "pictures": len(true),
                "few": int(few.sum()),
                "wrong": int(wrong[few].sum()),
                "ours": precision(1 - found.own),
                "apart": precision(apart),
                "seen": precision(seen),
                "marked": int(marked.sum()),
                "marked_wrong": int((marked & wrong).sum()),
                "all_wrong": int(wrong.sum()),
                "right": round(found.right, 4),
            }


def of_scale(args: argparse.Namespace) -> dict[str, Any]:
    """What follows the features, on pictures made of those of --data."""
    count, width, classes = args.count or 100_000, 768, 1000
    session = session_of(args)
    dataset = sources.load(session.config.data)
    keys = [place.key for place in check.places_of(dataset)]
    clock = time.perf_counter()
    real = thumbs.read(dataset.store, keys)
    reading = (time.perf_counter() - clock) / len(keys) * count
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(keys), (2, count))
    pixels = np.empty((count, thumbs.SIDE, thumbs.SIDE, 3), np.uint8)
    for start in range(0, count, 1000):  # halves of two pictures, so that each is new and as photographs are
        one, other = real.pixels[drawn[0, start : start + 1000]], real.pixels[drawn[1, start : start + 1000]]
        pixels[start : start + 1000] = one // 2 + other[:, ::-1] // 2
    small = thumbs.Thumbs(pixels, rng.integers(1, 255, (count, 16), dtype=np.uint8), {})
    label = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    features = centres[label] + 2 * torch.randn(count, width, generator=torch.Generator().manual_seed(1))
    steps: dict[str, Callable[[], object]] = {
        "features": lambda: outliers.far(compared(features)),
        "doubles": lambda: doubles.near(small, drawn_neighbours(count)),
        "labels": lambda: labels.judge(features, label, torch.ones(count, dtype=torch.bool), classes),
    }
    clock, cpu = time.perf_counter(), time.process_time()
    steps[args.step]()
    return {
        "step": args.step,
        "pictures": count,
        "width": width,
        "classes": classes,
        "reading": round(reading, 1),
        "seconds": round(time.perf_counter() - clock, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "threads": torch.get_num_threads(),
    }


def compared(features: Tensor) -> Neighbours:
    rows = neighbours.reduced(features.numpy())
    return neighbours.nearest(rows, rows, doubles.NEAREST)


def drawn_neighbours(count: int) -> Neighbours:
    """As many pairs by features as there can be, each of which has to be looked at."""
    numbers = np.random.default_rng(1).integers(0, count, (count, doubles.NEAREST))
    return Neighbours(numbers, np.ones(numbers.shape, np.float32))


def doubles_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"| data, backbone | seed | pictures | planted | recall | precision | {' | '.join(KINDS)} |"
    yield "|---|" + "---:|" * (5 + len(KINDS))
    for row in rows:
        kinds = " | ".join(f"{100 * row['by_kind'][kind]:.1f}" for kind in KINDS)
        yield (
            f"| {row['name']}, {row['backbone']} | {row['seed']} | {row['pictures']:,} | {row['planted']:,} | "
            f"{100 * row['recall']:.1f} | {100 * row['precision']:.1f} | {kinds} |"
        )


def labels_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| data, backbone | flipped | pictures of few | wrong | ours | not seen | seen | marked | of them wrong |"
    yield "|---|---|" + "---:|" * 7
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((f"{row['name']}, {row['backbone']}", row["how"]), []).append(row)
    for (name, how), own in groups.items():
        means = [
            statistics.mean(row[key] for row in own) for key in ("few", "wrong", "ours", "apart", "seen", "marked")
        ]
        right = sum(row["marked_wrong"] for row in own) / max(1, sum(row["marked"] for row in own))
        values = [f"{means[0]:,.0f}", f"{means[1]:,.1f}", *(f"{value:.2f}" for value in means[2:5]), f"{means[5]:,.0f}"]
        yield f"| {name} | {how} | {' | '.join(values)} | {100 * right:.0f} % |"


def scale_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| pictures | step | time, s | processor, s | peak, GB |"
    yield "|---:|---|---:|---:|---:|"
    for row in rows:
        if row["step"] == "doubles":
            yield f"| {row['pictures']:,} | small copies | {row['reading']:.0f} | – | – |"
        times = f"{row['seconds']:.0f} | {row['cpu_seconds']:.0f} | {row['peak_gb']:.1f}"
        yield f"| {row['pictures']:,} | {row['step']} | {times} |"


def filled(page: str, rows: Path) -> str:
    """docs/data-check.md with the tables anew."""
    every = study.read(rows)
    for what, made in (("doubles", doubles_table), ("labels", labels_table), ("scale", scale_table)):
        own = [row for row in every if row["what"] == what]
        page = study.with_block(page, "check", what, "\n".join(made(own)))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("doubles", "labels", "scale", "write"))
    parser.add_argument("--settings", nargs="*", default=[], help="key=value, as for liftplus")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/tinyimagenet200_lt100.zip"))
    parser.add_argument("--name")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--count", type=int, help="planted copies, a tenth by default; pictures of `scale`, 100,000")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--step", choices=("features", "doubles", "labels"), default="doubles", help="of `scale`")
    parser.add_argument("--cut", type=float)
    parser.add_argument("--keep", type=Path, help="folder where features of the data's own pictures are kept")
    parser.add_argument("--rows", type=Path, default=ROWS)
    args = parser.parse_args()
    if args.what == "write":
        PAGE.write_text(filled(PAGE.read_text(), args.rows))
        return
    about = {"what": args.what, "name": args.name or args.data.stem, "backbone": args.backbone}
    if args.what == "labels":
        for row in of_labels(args):
            study.append(args.rows, about | row)
    else:
        row = {"seed": args.seed, **(of_doubles(args) if args.what == "doubles" else of_scale(args))}
        study.append(args.rows, about | row)


if __name__ == "__main__":
    main()
