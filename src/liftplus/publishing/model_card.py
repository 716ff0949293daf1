"""The model card of a run: README.md with the hub's metadata header."""

from __future__ import annotations

import json
from typing import Any

from liftplus import names
from liftplus.evaluation.metrics import group_of
from liftplus.words import counted

GROUPS = ("overall", "mean", "many", "medium", "few")
SHOWN = 20


def write(
    repo_id: str, about: dict[str, Any], record: dict[str, Any], metrics: dict[str, Any] | None, licence: str | None
) -> str:
    """The text of a run's model card.

    Args:
        about: the description in the model file.
        record: config.json.
        metrics: metrics.json, or None if the run was not tested.
    """
    config, name = about["config"], repo_id.rpartition("/")[2]
    data = (metrics or {}).get("data") or record.get("data", {}).get("name") or config["data"]["source"]
    parts = [
        _header(config, data, metrics, licence),
        f"# {name}\n",
        f"An image classifier of {len(about['class_names'])} classes, trained with "
        f"[liftplus](https://arxiv.org/abs/2504.13282): method `{config['method']}` on backbone "
        f"`{config['backbone']['name']}`. The file `model.safetensors` holds only the learned weights; the "
        "backbone's weights are downloaded from their publisher (SHA-256 "
        f"`{about['backbone_identity'][:16]}…`).{_merged(about)}\n",
        _results(config, data, metrics, edited=any("merged" not in edit for edit in about.get("edits", []))),
        _use(repo_id),
        _tail(about),
        _training(config, record),
        _classes(about["class_names"]),
    ]
    return "\n".join(part for part in parts if part)


def _merged(about: dict[str, Any]) -> str:
    """A sentence on each merge that made the weights; empty if there was none."""
    merged = [edit for edit in about.get("edits", []) if "merged" in edit]
    told = ""
    for edit in merged:
        runs = counted(len(edit["merged"]), "run")
        start = f", and {100 * edit['start']:.3g} % of those before training" if edit["start"] else ""
        told += f" Its weights are the mean of the weights of {runs}{start}."
    return told


def _header(config: dict[str, Any], data: str, metrics: dict[str, Any] | None, licence: str | None) -> str:
    """The YAML header. Strings are written as JSON, which is valid YAML."""
    split = (metrics or {}).get("split", "test")
    base = base_model(config["backbone"]["name"])
    lines = [
        "---",
        *([f"license: {json.dumps(licence)}"] if licence else []),
        "library_name: liftplus",
        "pipeline_tag: image-classification",
        "tags: [liftplus, image-classification, long-tailed, " + ", ".join(map(json.dumps, config["tuner"])) + "]",
        *([f"base_model: {json.dumps(base)}"] if base else []),
    ]
    if metrics:
        lines += [
            "metrics: [accuracy]",
            "model-index:",
            f"- name: {json.dumps(config['method'] + ' on ' + config['backbone']['name'])}",
            "  results:",
            "  - task: {type: image-classification}",
            f"    dataset: {{type: {json.dumps(data)}, name: {json.dumps(data)}, split: {split}}}",
            "    metrics:",
            *(
                f"    - {{type: accuracy, name: {json.dumps(group)}, value: {metrics[group]:.2f}}}"
                for group in GROUPS
                if metrics.get(group) is not None
            ),
        ]
    return "\n".join([*lines, "---", ""])


def base_model(backbone: str) -> str | None:
    """The hub repository of a backbone's weights, if its name gives one."""
    library, _, rest = names.full_backbone(backbone).partition("/")
    return {"timm": f"timm/{rest}", "hf": rest}.get(library)


def _results(config: dict[str, Any], data: str, metrics: dict[str, Any] | None, *, edited: bool) -> str:
    if not metrics:
        changed = " Its classes were changed after training, so earlier results do not apply." if edited else ""
        return f"## Results\n\nThis model was not tested.{changed}\n"
    cells = ["–" if metrics.get(group) is None else f"{metrics[group]:.1f}" for group in GROUPS]
    crops = "five crops" if config["evaluation"]["tte"] else "one crop"
    split = metrics.get("split", "test")
    return (
        f"## Results\n\nAccuracy in percent on {data}, split {split}, {crops}, one run with seed "
        f"{config['seed']}. Groups by training images: many over 100, medium 20 to 100, few under 20.\n\n"
        f"| {' | '.join(GROUPS)} |\n|{'---|' * len(GROUPS)}\n| {' | '.join(cells)} |\n\n"
        "The accuracy of each class is in `per_class.csv`.\n"
    )


def _use(repo_id: str) -> str:
    return (
        f"## Use\n\n```sh\npip install liftplus\nliftplus pull {repo_id} --out model\n"
        "liftplus predict model pictures/ --out predictions.csv\nliftplus eval model --data your_photos.zip\n"
        "liftplus export model --out model.onnx\n```\n"
    )


def _tail(about: dict[str, Any]) -> str:
    counts = about["train_counts"]
    groups = [group_of(count) for count in counts]
    sizes = ", ".join(f"{groups.count(group)} {group}" for group in ("many", "medium", "few"))
    return (
        f"## The data's long tail\n\n{counted(sum(counts), 'training image')} of {len(counts)} classes, "
        f"{max(counts):,} to {min(counts):,} per class ({sizes}). Expect more errors on rare classes than the overall "
        "figure says. With a loss that adjusts for the training prior, the logits suit classes that are equally "
        "frequent; `--prior` sets another prior.\n"
    )


def _training(config: dict[str, Any], record: dict[str, Any]) -> str:
    notes = record.get("data", {}).get("notes") or []
    lines = [f"- {note}" for note in notes]
    said = ("\n\nAbout the data:\n\n" + "\n".join(lines)) if lines else ""
    train = config["train"]
    tuners = ", ".join(f"`{name}`" for name in config["tuner"]) or "none"
    return (
        f"## Training\n\n{counted(train['epochs'], 'epoch')}, learning rate {train['lr']}, batches of "
        f"{train['batch_size']}, loss "
        f"`{config['loss']['name']}`, tuners {tuners}. All settings "
        f"and versions are in `config.json`.{said}\n"
    )


def _classes(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"## Classes\n\n{', '.join(names[:SHOWN])}{more}.\n"
