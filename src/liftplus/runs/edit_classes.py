"""Add or rename classes of a trained run without training. The result is a new folder."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone
from liftplus.backbones.text import centred
from liftplus.config import RunConfig, from_dict, saved
from liftplus.data import hierarchy
from liftplus.data.dataset import listing
from liftplus.errors import UserError, unknown
from liftplus.machine.disk import new_folder, read_json, write_bytes, write_json
from liftplus.model import heads
from liftplus.model.head_init import HeadInit, Semantic, centres, class_prompts, text_rows
from liftplus.runs import calibration_file
from liftplus.runs.changes import CONFIG
from liftplus.runs.matching import keep_splits
from liftplus.training.checkpoint import FILE, FORMAT, checksum, read_model, write_tensors
from liftplus.words import agreeing, counted


def add(
    run: Path,
    names: Sequence[str],
    out: Path,
    weights: str | None = None,
    parents: Mapping[str, str] | None = None,
) -> list[str]:
    """Copy a run and add classes whose rows come from the text tower. Returns notes for the user.

    Args:
        weights: a local file of the backbone's weights, if liftplus cannot find them itself.
        parents: the group of a new class at a level above, by its name.

    Raises:
        UserError: a name is bad or taken, a parent is unknown, or the run cannot take rows from text.
    """
    about = refuse_names(run, names)
    levels = levels_with(about, names, parents or {})
    rows = text_rows_of(about, names, weights)
    return append(run, names, rows, [0] * len(names), out, {"added": list(names)}, levels)


def refuse_names(run: Path, names: Sequence[str]) -> dict[str, Any]:
    """Check the names of new classes and return the run's description.

    Raises:
        UserError: a name is empty, or the run already has a class of this name or id.
    """
    about = read_model(run)[0]
    for name in names:
        _refuse_bad_name(name)
    _refuse_twice([*about["class_names"], *names], set(names))
    if taken := set(names) & set(about["class_ids"]):
        raise UserError(f"A class of the run already has the id {min(taken)!r}. Give the new class another name.")
    return about


def levels_with(
    about: Mapping[str, Any], names: Sequence[str], parents: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """The levels of a run with the groups of new classes; a class without a parent is in none of them.

    Args:
        parents: the group of a new class at a level above, by its name.

    Raises:
        UserError: a parent is given for another class, the run has no such group, or it has no levels.
    """
    levels = {level: dict(groups) for level, groups in about.get("levels", {}).items()}
    known, _ = hierarchy.settled(levels, dict(zip(about["class_ids"], about["class_names"], strict=True)))
    if parents and not known:
        raise UserError(
            "The classes of the run have no levels above them, so a class has no parent. Leave --parent out."
        )
    for name, parent in parents.items():
        if name not in names:
            raise UserError(f"--parent is given for {name!r}, which is not added. Added are {listing(names)}.")
        if not parent.strip() or not parent.isprintable():
            raise UserError(f"The parent {parent!r} of {name!r} is empty or has unprintable characters. Give a group.")
        for level, group in hierarchy.under(known, parent.strip()).items():
            own = levels[level]
            own[name] = group
            for other, its in known[level].items():  # a class that stood for itself has company now
                if its == group:
                    own.setdefault(other, group)
            for other in names:
                if other not in parents and hierarchy.form(other) == hierarchy.form(group):
                    own[other] = group
    return levels


def text_rows_of(about: dict[str, Any], names: Sequence[str], weights: str | None) -> Tensor:
    """Unit rows [C + n, D] of the run's C classes and of these n names, from the original text tower."""
    config = from_dict(saved(about["config"]))
    return _rows(_backbone(config, about, weights), config, [*about["class_names"], *names])


def append(
    run: Path,
    names: Sequence[str],
    rows: Tensor,
    counts: Sequence[int],
    out: Path,
    edit: dict[str, Any],
    levels: Mapping[str, Mapping[str, str]],
) -> list[str]:
    """Copy a run and append classes. Returns notes for the user.

    Args:
        rows: rows [n, D] of the n new classes, or [C + n, D] of all classes with the new ones last.
        counts: number of pictures behind each new row, length n.
        edit: what was done, for the run's record.
        levels: as `levels_with` gives them.
    """
    about, state = read_model(run)
    placed = _placed(names, levels, about.get("levels", {}))
    old, config = list(about["class_names"]), from_dict(saved(about["config"]))
    state["head.weight"] = torch.cat([state["head.weight"], rows[len(rows) - len(names) :].to(state["head.weight"])])
    if about.get("class_prompts") is not None:
        about["class_prompts"] += class_prompts(_init(config), [*old, *names])[len(old) :]
    about |= {
        "class_names": [*old, *names],
        "class_ids": [*about["class_ids"], *names],
        "train_counts": [*about["train_counts"], *counts],
        "former_names": [*about.get("former_names", old), *names],
        # A tuner that chose its width by the number of classes must keep that width.
        "sized_for": about.get("sized_for", len(old)),
        "levels": levels,
    }
    return [*_write(run, out, about, state, edit), *placed]


def _placed(
    names: Sequence[str], levels: Mapping[str, Mapping[str, str]], before: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Notes on new groups, and on new classes without a group."""
    notes: list[str] = []
    for level, groups in levels.items():
        known = set(before[level].values())
        if new := list(dict.fromkeys(groups[name] for name in names if name in groups and groups[name] not in known)):
            notes.append(f"{listing(new)} {agreeing(len(new), 'is a new group', 'are new groups')} at level {level}.")
        if alone := [name for name in names if name not in groups]:
            given = shlex.quote(f"{alone[0]}=GROUP")
            notes.append(
                f"{counted(len(alone), 'added class', 'added classes')} {agreeing(len(alone), 'has', 'have')} no "
                f"{level} and {agreeing(len(alone), 'stands for itself', 'stand for themselves')} at that level: "
                f"{listing(alone)}. --parent {given} gives one."
            )
    return notes


def rename(
    run: Path, names: Mapping[str, str], out: Path, *, new_rows: bool = False, weights: str | None = None
) -> list[str]:
    """Copy a run and rename classes. Returns notes for the user.

    Args:
        names: maps each old name to its new one.
        new_rows: also replace these classes' rows by ones from the text tower; the learned rows are lost.
        weights: as for `add`.

    Raises:
        UserError: an old name is unknown or ambiguous, or a new name is bad or taken.
    """
    about, state = read_model(run)
    old = list(about["class_names"])
    for before, after in names.items():
        if before not in old:
            raise unknown("class", before, old)
        if old.count(before) > 1:
            raise UserError(
                f"Two classes of the run are called {before!r}, so renaming one is ambiguous. Give them different "
                "names in the data and train again."
            )
        _refuse_bad_name(after)
    new = [names.get(name, name) for name in old]
    _refuse_twice(new, set(names.values()))
    about |= {"class_names": new, "former_names": about.get("former_names", old)}
    own = dict(zip(about["class_ids"], old, strict=True))
    about["levels"] = {level: _renamed(groups, names, own) for level, groups in about.get("levels", {}).items()}
    loss = about["config"]["loss"]
    if given := loss.get("class_weights"):  # which go by names too
        loss["class_weights"] = {names.get(name, name): weight for name, weight in given.items()}
    if new_rows:
        config, chosen = from_dict(saved(about["config"])), [new.index(name) for name in names.values()]
        encoded = _rows(_backbone(config, about, weights), config, new)
        state["head.weight"][chosen] = encoded[chosen].to(state["head.weight"])
        if about.get("class_prompts") is not None:
            prompts = class_prompts(_init(config), new)
            for k in chosen:
                about["class_prompts"][k] = prompts[k]
    return _write(run, out, about, state, {"renamed": dict(names), "new_rows": new_rows})


def _renamed(groups: Mapping[str, str], names: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
    """The groups of one level without renamed classes that stand for themselves: they then do so by their new names.

    Args:
        before: each class's name before, by its id.
    """
    members = Counter(groups.values())
    return {
        key: group
        for key, group in groups.items()
        if members[group] > 1 or before[key] not in names or group not in (before[key], f"{before[key]} (class {key})")
    }


def _refuse_bad_name(name: str) -> None:
    if not name.strip() or not name.isprintable():
        raise UserError(f"The class name {name!r} is empty or has unprintable characters. Give another name.")
    if name != name.strip():
        raise UserError(f"The class name {name!r} begins or ends with a blank. Give it without the blank.")


def _refuse_twice(names: Sequence[str], new: set[str]) -> None:
    """Refuse a new name that another class already has, ignoring case."""
    folded = [name.casefold() for name in names]
    for name in sorted(new):
        if folded.count(name.casefold()) > 1:
            raise UserError(f"Two classes would be called {name!r}. Give each its own name.")


def _backbone(config: RunConfig, about: dict[str, Any], weights: str | None) -> Backbone:
    if not config.head.unit_rows and config.head.name != "joint":
        raise UserError(
            f"The run's head is {config.head.name!r}. It has rows of any length and a bias, and a row made from a name "
            "does not fit these. Train with a head that takes rows from names: "
            f"head={', '.join([*heads.of_unit_rows(), 'joint'])}."
        )
    settings = config.backbone if weights is None else config.backbone.model_copy(update={"weights": weights})
    backbone = catalogue.load(settings)
    catalogue.refuse_other_weights(backbone, about["backbone_identity"], "The run", "--weights PATH")
    if backbone.text is None:
        raise UserError(
            f"Backbone {config.backbone.name!r} has no text tower, so it cannot make a row from a name. Give pictures "
            "too: `classes add` takes them after the name."
        )
    return backbone


def _init(config: RunConfig) -> HeadInit:
    """The run's prompts if its rows came from names, else the default prompts."""
    return config.head_init if isinstance(config.head_init, Semantic) else Semantic()


def _rows(backbone: Backbone, config: RunConfig, names: Sequence[str]) -> Tensor:
    """Unit rows of all classes [C, D] from the original text tower, before any training."""
    init = _init(config)
    joint = backbone.text_encoder("a class without images").encode(class_prompts(init, names))
    joint = centred(joint) if centres(init) else joint
    return joint if config.head.name == "joint" else text_rows(backbone, joint)


def _write(run: Path, out: Path, about: dict[str, Any], state: dict[str, Tensor], edit: dict[str, Any]) -> list[str]:
    """Write the new run folder: the model and where it came from. Results of the old run are not copied."""
    new_folder(out)
    about |= {"format": FORMAT, "edits": [*about.get("edits", []), edit]}
    write_tensors(out / FILE, state, about)
    record = read_json(run / CONFIG, "config") if (run / CONFIG).is_file() else {}
    write_json(out / CONFIG, record | {"config": about["config"], "edits": about["edits"]})
    # Without them, data that have grown would be split anew, with training pictures in the test split.
    source = run if run.is_dir() else run.parent
    keep_splits(source, out)
    kept = source / calibration_file.FILE
    if kept.is_file() and checksum(state) == checksum(read_model(run)[1]):
        write_bytes(out / calibration_file.FILE, kept.read_bytes())  # it holds under other names too
        return []
    return calibration_file.left_behind([run], out)
