"""Half of the patches left out in training (train.keep=0.5): accuracy at equal epochs and at about equal time, on CPU.

    python scripts/vit_s14.py --output vits14.safetensors
    python benchmarks/keep_study.py run --vit vits14.safetensors
    python benchmarks/keep_study.py write

`run` trains on two kinds of photographs with three seeds, for five epochs or as WAYS says, all else as recipe=auto
chooses, and measures the test split with one crop. It appends one line a run and leaves out those whose line is there.
`write` puts the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liftplus.training import loop
from recipe_study import Pair, cut
from study import accuracies, fill, prepared, read, spread, with_block

ROWS = Path("benchmarks/results/keep.jsonl")
PAGE = Path("docs/performance.md")
SEEDS = (0, 1, 2)
PAIRS = {
    "17 clothes, ViT-S/14 at 98": Pair("clothing17_160", "dinov2_s14", 98, 17, 60, 6, 40),
    "20 objects, ViT-S/14 at 98": Pair("tinyimagenet200_lt100", "dinov2_s14", 98, 20, 60, 6, 25),
}
WAYS = {"all patches": (1.0, 1.0), "half, equal epochs": (0.5, 1.0), "half, more epochs": (0.5, 1.6)}
"""Share of the patches, and how many times the epochs."""


def one(key: dict[str, Any], data: str, vit: Path) -> dict[str, Any]:
    """One run."""
    pair, (keep, more) = PAIRS[key["pair"]], WAYS[key["way"]]
    session, dataset = prepared(pair, data, [f"seed={key['seed']}", "recipe=auto", "epochs=5"], vit)
    session, model = session.start(dataset)
    epochs = round(session.config.train.epochs * more)
    train = session.config.train.model_copy(update={"keep": keep, "epochs": epochs})
    fitted = loop.fit(model, session.config.model_copy(update={"train": train}), dataset, session.runtime)
    seconds = {"epochs": epochs, "seconds": round(fitted.seconds, 1)}
    return seconds | {"test": accuracies(session, model, dataset, "test"), "losses": fitted.losses}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Accuracy on the test split in percent, mean and standard deviation over seeds; seconds, median."""
    yield "| pair | patches | epochs | seconds of training | mean over classes | overall | few-shot |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for pair in PAIRS:
        for way in WAYS:
            mine = [row for row in rows if (row["pair"], row["way"]) == (pair, way)]
            if mine:
                seconds = statistics.median(row["seconds"] for row in mine)
                cells = [spread([row["test"][group] for row in mine]) for group in ("mean_class", "overall", "few")]
                yield f"| {pair} | {way} | {mine[0]['epochs']} | {seconds:.0f} | " + " | ".join(cells) + " |"


def filled(page: str, rows: Path) -> str:
    """docs/performance.md with the table anew."""
    return with_block(page, "keep", "accuracy", "\n".join(table(read(rows))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("run", "write"))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--vit", type=Path, default=Path("vits14.safetensors"))
    parser.add_argument("--rows", type=Path, default=ROWS)
    given = parser.parse_args()
    if given.stage == "write":
        PAGE.write_text(filled(PAGE.read_text(), given.rows))
        return
    keys = ({"pair": pair, "way": way, "seed": seed} for seed in SEEDS for pair in PAIRS for way in WAYS)
    with tempfile.TemporaryDirectory() as folder:
        fill(given.rows, keys, lambda key: one(key, cut(PAIRS[key["pair"]], given.shared, Path(folder)), given.vit))


if __name__ == "__main__":
    main()
