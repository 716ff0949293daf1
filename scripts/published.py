"""Every command in the scripts of the papers' repositories against our experiments: equal, or listed with a reason.

    python scripts/published.py            a line a script, and what is left out
    python scripts/published.py --all      also the experiment for each command

The commands stand as settings in published.toml. Ours are what `liftplus reproduce run` resolves the experiments to.
"""

from __future__ import annotations

import argparse
import itertools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liftplus.config import RunConfig
from liftplus.reproduce import catalogue
from liftplus.reproduce.plan import Plan

TABLE = Path(__file__).with_name("published.toml")
GROUPS = ("papers", "lift", "searches")
Meaning = tuple[tuple[str, Any], ...]

SIZES = {  # the option that a tuner's size is, and whether the two papers have different rules for it
    "adaptformer": ("width", False),
    "adapter": ("width", False),
    "lora": ("rank", True),
    "vpt_deep": ("length", True),
    "vpt_shallow": ("length", True),
    "aft": ("ratio", True),
    "partial": ("blocks", False),
}


@dataclass(frozen=True)
class Command:
    """A published command: its script, and what it runs; no settings where it is left out, and why."""

    repository: str
    file: str
    settings: Meaning | None
    left_out: str = ""


def read() -> dict[str, Any]:
    """The table of commands, by repository."""
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def published() -> Iterator[Command]:
    """Every command of the table; refuses a block that has not as many as it says."""
    for name, repository in read().items():
        for block in repository["scripts"]:
            if "left_out" in block:
                found = [Command(name, block["file"], None, block["left_out"])] * block["lines"]
            else:
                found = [Command(name, block["file"], meaning(name, one)) for one in settings(repository, block)]
            if len(found) != block["lines"]:
                raise SystemExit(f"{name}, {block['file']}: {len(found)} commands, and {block['lines']} are said.")
            yield from found


def settings(repository: dict[str, Any], block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings of each command of a block."""
    over = block.get("over", {})
    for case in block.get("cases", [{}]):
        for values in itertools.product(*over.values()):
            own = block.get("set", {}) | dict(zip(over, values, strict=True)) | case
            start = repository["defaults"] | repository["data"].get(own["data"], {})
            start |= repository["backbones"][own.get("backbone", start["backbone"])]
            margin = start["margin_of_five" if own.get("five_crops") else "margin"]
            yield start | {"margin": margin} | own


def meaning(repository: str, given: dict[str, Any]) -> Meaning:
    """A command's settings in the form that both sides are compared in."""
    one = {"prompts": "default", "size": "auto"} | given
    test = {key: one[key] for key in ("five_crops", "margin", "kernel")}
    place = {"data": one["data"], "backbone": one["backbone"]}
    return tuple(sorted((place | test | _training(repository, one)).items()))


def _training(repository: str, one: dict[str, Any]) -> dict[str, Any]:
    if one["tuner"] == "zeroshot":
        return {"tuner": "zeroshot"}
    sizes = "lift" if repository == "lift" else "lift+"
    keys = ("epochs", "lr", "batch_size", "momentum", "weight_decay", "loss", "crops")
    head = one["head"] if one["head"] != "cosine" else f"cosine {one['scale']:g}"
    start = {"semantic": f"semantic {one['prompts']}", "random": "random"}.get(one["start"])
    tuner = "+".join(_tuner(name, one["size"], sizes) for name in one["tuner"].split("+"))
    start = start or f"{one['start']} {one['shots']}"
    return {key: one[key] for key in keys} | {"head": head, "start": start, "tuner": tuner}


def _tuner(name: str, size: Any, sizes: str) -> str:
    """A tuner with its size; of partial, no block is none and every one of 12 is full."""
    if name == "partial" and size in (0, 12):
        return "none" if size == 0 else "full"
    if name not in SIZES:
        return name
    rule = f" {sizes}" if size == "auto" and SIZES[name][1] else ""
    return f"{name} {size}{rule}"


def ours(data: str, run: RunConfig) -> Meaning:
    """A run's settings in that form."""
    facts_size = 336 if run.backbone.name.endswith("336") else 224
    cut = run.evaluation
    one_crop = facts_size // 7 if cut.one_crop_expand is None else cut.one_crop_expand
    place = {"data": data, "backbone": run.backbone.name, "five_crops": cut.tte}
    place |= {"margin": cut.expand if cut.tte else one_crop, "kernel": run.backbone.interpolation or "bicubic"}
    if run.train.epochs == 0:
        return tuple(sorted((place | {"tuner": "zeroshot"}).items()))
    values = run.to_dict()
    start, train, head = values["head_init"], values["train"], values["head"]
    tuner = "+".join(
        _tuner(name, own.get(SIZES.get(name, ("", 0))[0]) or "auto", own.get("sizes", ""))
        for name, own in sorted(values["tuner"].items())
    )
    training = {
        **{key: train[key] for key in ("epochs", "lr", "batch_size", "momentum", "weight_decay")},
        "loss": values["loss"]["name"],
        "head": f"cosine {head['scale']:g}" if head["name"] == "cosine" else head["name"],
        "start": " ".join(str(start[key] or "all") for key in ("name", "prompts", "shots") if key in start),
        "crops": " ".join(str(values["augment"][key]) for key in ("name", "schedule") if key in values["augment"]),
        "tuner": tuner or "none",
    }
    return tuple(sorted((place | training).items()))


def experiments() -> dict[Meaning, str]:
    """The name of an experiment for each meaning that one has."""
    towers = {name for repository in read().values() for name in repository["backbones"]}
    every = catalogue.load().experiments.values()
    chosen = tuple(one for one in every if one.group in GROUPS and one.backbone in towers)
    plan = Plan(chosen, Path("runs"))
    found: dict[Meaning, str] = {}
    for one in chosen:
        found.setdefault(ours(one.data, plan.config(one, 0)), one.name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="a line for each command")
    args = parser.parse_args()
    known, commands = experiments(), list(published())
    for (repository, file), some in itertools.groupby(commands, lambda one: (one.repository, one.file)):
        lines = list(some)
        equal = [one for one in lines if one.settings in known]
        print(f"{repository}, {file}: {len(equal)} of {len(lines)} equal")
        for one in lines if args.all else ():
            print("   ", known.get(one.settings, "-") if one.settings else f"left out: {one.left_out}")
    for why in dict.fromkeys(one.left_out for one in commands if one.settings is None):
        print(f"Left out, {sum(one.left_out == why for one in commands)}: {why}")
    lacking = [one for one in commands if one.settings is not None and one.settings not in known]
    for one in lacking:
        print("WITHOUT AN EXPERIMENT:", one.repository, one.file, dict(one.settings or ()))
    raise SystemExit(1 if lacking else 0)


if __name__ == "__main__":
    main()
