"""Promised against measured: coverage of sets, false alarms, and how well pictures of unknown classes are told.

    python benchmarks/calibration.py coverage --data ../shared/data/clothing17_160.zip --image-size 160 --keep /tmp
    python benchmarks/calibration.py unknown --data ../shared/data/clothing17_160.zip --image-size 160 --keep /tmp
    python benchmarks/calibration.py write

Features of a frozen EfficientNet-Lite0 are computed once, and a linear head is trained on them with the logit-adjusted
loss. `coverage` draws half of the test pictures ten times, calibrates on them and measures on the other half. `unknown`
leaves five classes out of training, drawn by seed, and asks every score which test pictures are of these classes: those
of liftplus, of which it chooses one on half of the known test pictures, and the detectors of pytorch-ood on the same
logits and features. All of them are judged on the other half and on the pictures of the five classes. Detectors that
need gradients, or layers inside the network, or a covariance for each class are left out. One JSON row each is appended
to --rows; `write` puts the tables into docs/calibration.md.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import study
from data_check import features_of, session_of
from liftplus.calibration import calibrated, sets, unknown
from liftplus.calibration.calibrated import Calibration, Frequencies, Pictures
from liftplus.calibration.unknown import Views
from liftplus.data.splits import held_out
from liftplus.evaluation.metrics import GROUPS

ROWS, PAGE = Path("benchmarks/results/calibration.jsonl"), Path("docs/calibration.md")
DRAWS, HIDDEN = 10, 5
ENOUGH = 50  # calibration pictures of a group from which the finite sample adds at most 2 points to its coverage


def head(x: Tensor, y: Tensor, classes: int, seed: int, epochs: int) -> nn.Linear:
    """A linear head trained with the logit-adjusted loss."""
    torch.manual_seed(seed)
    layer = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    prior = torch.bincount(y, minlength=classes).float().log()
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * -(-len(x) // 256))
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(256):
            optimiser.zero_grad()
            F.cross_entropy(layer(x[batch]) + prior, y[batch]).backward()
            optimiser.step()
            decay.step()
    return layer.requires_grad_(False)


def even(classes: int, y: Tensor) -> Frequencies:
    """As logits of the logit-adjusted loss have them: they stand for the uniform prior."""
    return Frequencies(tuple(torch.bincount(y, minlength=classes).tolist()), torch.zeros(classes))


def half_of(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Places of one half of the pictures, spread like the classes, and of the other."""
    one = torch.from_numpy(held_out(labels.tolist(), 0.5, seed)).long()
    return one, torch.arange(len(labels))[~torch.isin(torch.arange(len(labels)), one)]


def coverage(args: argparse.Namespace, parts: dict[str, tuple[Tensor, Tensor]]) -> Iterator[dict[str, Any]]:
    """A row for each draw of the calibration pictures."""
    (x, y), (q, truth) = parts["train"], parts["test"]
    classes = int(y.max()) + 1
    layer = head(x, y, classes, 0, args.epochs)
    pictures, frequencies = Pictures(layer(q), q, truth), even(classes, y)
    whole = calibrated.fit(
        pictures, frequencies, (x, y), layer.weight
    )  # chooses the score; its thresholds are those of each draw
    for seed in range(args.seed, args.seed + args.seeds):
        ours, rest = half_of(truth, seed)
        fitted = refitted(whole, pictures.taken(ours), frequencies)
        found = calibrated.measure([(fitted, pictures.taken(rest))])
        groups = fitted.known.groups[truth[ours]]
        used = {name: int((groups == index).sum()) for index, name in enumerate(GROUPS)}
        accuracy = 100 * float((pictures.logits[rest].argmax(1) == truth[rest]).double().mean())
        yield {"seed": seed, "accuracy": accuracy, "temperature": fitted.temperature, "used": used} | found.plain()


def refitted(whole: Calibration, pictures: Pictures, frequencies: Frequencies) -> Calibration:
    """A calibration on other pictures with the same score of unknown pictures."""
    return calibrated.with_score(pictures, frequencies, whole.score, whole.reference, whole.judged)


def theirs(x: Tensor, y: Tensor, layer: nn.Linear, q: Tensor, z: Tensor) -> dict[str, Callable[[], Tensor]]:
    """pytorch-ood's detectors, fitted to training features and asked about q; a higher score is more unknown."""
    from pytorch_ood import detector as ood

    w, b, seen = layer.weight, layer.bias, layer(x)

    def clipped(share: float) -> Tensor:
        bound = float(np.quantile(x.numpy(), share))
        return ood.EnergyBased(None).predict_logits(layer(q.clamp(max=bound)))

    return {
        "MaxSoftmax": lambda: ood.MaxSoftmax(None).predict_logits(z),
        "Entropy": lambda: ood.Entropy(None).predict_logits(z),
        "EnergyBased": lambda: ood.EnergyBased(None).predict_logits(z),
        "MaxLogit": lambda: ood.MaxLogit(None).predict_logits(z),
        "GEN": lambda: ood.GEN(None).predict_logits(z),
        "KLMatching": lambda: ood.KLMatching(None).fit_logits(seen, y).predict_logits(z),
        "Mahalanobis": lambda: ood.Mahalanobis(None).fit_features(x, y).predict_features(q),
        "RMD": lambda: ood.RMD(None).fit_features(x, y).predict_features(q),
        **{
            f"KNN k={k}": lambda k=k: ood.KNN(None, k=k).fit_features(x, y).predict_features(q)  # type: ignore[misc]
            for k in (1, 10, 50)
        },
        **{
            f"ViM d={d}": lambda d=d: ood.ViM(None, d, w, b).fit_features(x, y).predict_features(q)  # type: ignore[misc]
            for d in (64, 256)
        },
        "SHE": lambda: ood.SHE(None, layer).fit_features(x, y).predict_features(q),
        "fDBD": lambda: ood.fDBD(None, layer).fit_features(x, y).predict_features(q),
        "NNGuide": lambda: ood.NNGuide(None, layer).fit_features(x, y).predict_features(q),
        "NCI": lambda: ood.NCI(None, layer).fit_features(x, y).predict_features(q),
        "ReAct 0.9": lambda: clipped(0.9),
        "ReAct 0.99": lambda: clipped(0.99),
    }


def strangers(args: argparse.Namespace, parts: dict[str, tuple[Tensor, Tensor]]) -> Iterator[dict[str, Any]]:
    """A row for each draw of five classes."""
    (every_x, every_y), (q, every_truth) = parts["train"], parts["test"]
    total = int(every_y.max()) + 1
    for seed in range(args.seed, args.seed + args.seeds):
        hidden = np.random.default_rng(seed).choice(total, HIDDEN, replace=False)
        place = torch.full((total,), -1)
        kept = torch.tensor([k for k in range(total) if k not in hidden])
        place[kept] = torch.arange(len(kept))
        known = place[every_y] >= 0
        x, y, truth = every_x[known], place[every_y[known]], place[every_truth]
        layer = head(x, y, len(kept), seed, args.epochs)
        at = (truth >= 0).nonzero()[:, 0]
        ours = at[half_of(truth[at], seed)[0]]
        rest = torch.arange(len(q))[~torch.isin(torch.arange(len(q)), ours)]
        pictures = Pictures(layer(q[ours]), q[ours], truth[ours])
        found = calibrated.fit(pictures, even(len(kept), y), (x, y), layer.weight, seed)
        strange = truth[rest] < 0
        whole = unknown.Reference.of(x, y, layer.weight)
        seen, asked = (Views.of(layer(q[own]), q[own], whole) for own in (ours, rest))
        scores = {name: unknown.score(name, asked, unknown.scales(name, seen)) for name in unknown.SCORES}
        flags = found.scores(layer(q[rest]), q[rest]) > found.threshold(calibrated.ALARMS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            others = {name: ask().float() for name, ask in theirs(x, y, layer, q[rest], layer(q[rest])).items()}

        def area(values: Tensor, strange: Tensor = strange) -> float:
            return round(100 * unknown.auroc(values[~strange], values[strange]), 2)

        yield {
            "seed": seed,
            "hidden": sorted(map(int, hidden)),
            "pictures": [int((~strange).sum()), int(strange.sum())],
            "chosen": found.score,
            "on_own_classes": {name: round(100 * value, 2) for name, value in found.judged.items()},
            "liftplus": {name: area(one) for name, one in scores.items()},
            "pytorch_ood": {name: area(one) for name, one in others.items()},
            "false_alarms": round(100 * float(flags[~strange].double().mean()), 2),
            "found": round(100 * float(flags[strange].double().mean()), 2),
        }


def coverage_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| data | sets by | what | overall | many | medium | few | mean over classes |"
    yield "|---|---|---|---:|---:|---:|---:|---:|"
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        enough = [group for group in GROUPS if min(row["used"][group] for row in own) >= ENOUGH]
        for by in sets.RULES:
            for what, key in (("coverage, %", "coverage"), ("classes in a set", "size")):
                cells = [
                    study.spread([row["sets"][by].get(group, {}).get(key) for row in own])
                    + ("" if group in ("overall", *enough) else " *")
                    for group in ("overall", *GROUPS)
                ]
                mean = study.spread([row["sets"][by]["mean_class"] for row in own]) if key == "coverage" else ""
                yield f"| {name} | `{by}` | {what} | {' | '.join(cells)} | {mean} |"
        cells = [study.spread([row["false_alarms"].get(group) for row in own]) for group in ("overall", *GROUPS)]
        yield f"| {name} | | false alarms, 5 % promised | {' | '.join(cells)} | |"
        pictures = [round(statistics.mean(row["used"][group] for row in own)) for group in GROUPS]
        yield f"| {name} | | calibration pictures | {sum(pictures):,} | {' | '.join(map(str, pictures))} | |"


def unknown_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| data (draws) | score | AUROC, % | |"
    yield "|---|---|---:|---|"
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        name = f"{name} ({len(own)})"
        chosen = [row["liftplus"][row["chosen"]] for row in own]
        picks = ", ".join(f"`{one}` in {n} of {len(own)}" for one, n in counted_picks(own))
        yield f"| {name} | **liftplus, as chosen** | **{study.spread(chosen)}** | {picks} |"
        for score in unknown.SCORES:
            yield f"| {name} | liftplus `{score}` | {study.spread([row['liftplus'][score] for row in own])} | |"
        means = {one: statistics.mean(row["pytorch_ood"][one] for row in own) for one in own[0]["pytorch_ood"]}
        for place, one in enumerate(sorted(means, key=lambda key: -means[key])[:5]):
            which = "the best of pytorch-ood" if place == 0 else ""
            yield f"| {name} | {one} | {study.spread([row['pytorch_ood'][one] for row in own])} | {which} |"
        found, alarms = (study.spread([row[key] for row in own]) for key in ("found", "false_alarms"))
        yield f"| {name} | found at 5 % false alarms, % | {found} | false alarms {alarms} % |"


def counted_picks(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """How often each score was chosen."""
    names = [row["chosen"] for row in rows]
    return sorted(((one, names.count(one)) for one in set(names)), key=lambda pair: -pair[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("coverage", "unknown", "write"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data/clothing17_160.zip"))
    parser.add_argument("--name")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--settings", nargs="*", default=[], help="key=value, as for liftplus")
    parser.add_argument("--epochs", type=int, default=20, help="of the head")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=DRAWS)
    parser.add_argument("--keep", type=Path, help="folder where features of the pictures are kept")
    parser.add_argument("--rows", type=Path, default=ROWS)
    args = parser.parse_args()
    every = study.read(args.rows)
    if args.what == "write":
        page = PAGE.read_text()
        for what, made in (("coverage", coverage_table), ("unknown", unknown_table)):
            text = "\n".join(made([row for row in every if row["what"] == what]))
            page = study.with_block(page, "calibration", what, text)
        PAGE.write_text(page)
        return
    session = session_of(args)
    dataset = session.data()
    found = features_of(session, dataset, args)
    parts = {name: (found[name], torch.tensor(split.labels)) for name, split in dataset.splits.items()}
    about = {"what": args.what, "name": args.name or args.data.stem, "backbone": args.backbone}
    for row in (coverage if args.what == "coverage" else strangers)(args, parts):
        study.append(args.rows, about | row)
        print(about | row, flush=True)


if __name__ == "__main__":
    main()
