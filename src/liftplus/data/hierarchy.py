"""Groups of classes at levels above them: a column of parents, or the taxonomy of an annotation file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from liftplus.data import labels
from liftplus.data.dataset import Levels, listing
from liftplus.errors import UserError
from liftplus.words import agreeing, counted

COLUMN_LEVEL = "parent"
"""How the level is called that a table's column of parents gives."""


def form(group: str) -> str:
    """A key that is equal for ways to write one group: capitals, Unicode forms, and 4.0 or 04 for 4."""
    plain = unicodedata.normalize("NFC", _plain(group)).casefold()
    return str(int(plain)) if re.fullmatch(r"[+-]?\d{1,18}", plain, re.ASCII) else plain


def _plain(group: str) -> str:
    """A whole number without the point that floating point gives it; other text is unchanged."""
    return re.sub(r"^([+-]?\d{1,18})\.0+$", r"\1", group, flags=re.ASCII)


def of_column(pairs: Iterable[tuple[str, str]], heading: str, name: str) -> tuple[Levels, tuple[str, ...]]:
    """The level that a column gives, or a note why it gives none.

    Args:
        pairs: class id and parent of each row; an empty parent, and text that stands for a missing value, says nothing.
        heading: of the column.
        name: of the table, for the note.
    """
    found: dict[str, str] = {}
    start = f"The column {heading!r} of {name} was not taken for parents of the classes, as class"
    for label, parent in pairs:
        if not parent or parent.lower() in labels.DOUBTFUL:
            continue
        if parent[0] in "[{" and parent[-1] in "]}":
            return {}, (f"{start} {label!r} has a list or an object there: {parent[:40]}.",)
        if form(found.setdefault(label, parent)) != form(parent):
            return {}, (f"{start} {label!r} has several there: {found[label]!r} and {parent!r}.",)
    return ({COLUMN_LEVEL: found} if found else {}), ()


def joined(parts: Sequence[Levels]) -> Levels:
    """The levels of several tables of one data set.

    Raises:
        UserError: two tables place a class in different groups.
    """
    whole: dict[str, dict[str, str]] = {}
    for part in parts:
        for level, groups in part.items():
            own = whole.setdefault(level, {})
            for label, group in groups.items():
                if form(own.setdefault(label, group)) != form(group):
                    raise UserError(
                        f"One table gives class {label!r} the {level} {own[label]!r}, another {group!r}; keep one."
                    )
    return whole


def spelled(levels: Levels, spelling: Mapping[str, str], source: str) -> Levels:
    """The same levels for class ids that are spelled otherwise from now on.

    Raises:
        UserError: two classes that become one are in different groups.
    """
    whole: dict[str, dict[str, str]] = {}
    for level, groups in levels.items():
        own = whole.setdefault(level, {})
        for label, group in groups.items():
            if form(own.setdefault(spelling.get(label, label), group)) != form(group):
                raise UserError(
                    f"{source} writes class {spelling.get(label, label)!r} in several ways and gives it the {level} "
                    f"{own[spelling.get(label, label)]!r} and {group!r}; keep one."
                )
    return whole


def under(levels: Levels, parent: str) -> dict[str, str]:
    """The groups of a new class whose parent is a group of these levels: by level, at the parent's and at those above.

    If several levels have the group, its level is the deepest. A level above is left out if the group's classes are in
    several groups there. If there is one level alone, the parent may be new.

    Raises:
        UserError: no level has such a group.
    """
    key = form(parent)
    members = {level: [one for one, group in groups.items() if form(group) == key] for level, groups in levels.items()}
    found = [level for level in levels if members[level]]
    if not found and len(levels) == 1:
        return dict.fromkeys(levels, parent)
    if not found:
        known = "; ".join(f"{level} has {listing(sorted(set(groups.values())))}" for level, groups in levels.items())
        raise UserError(f"No level of the run has a group {parent!r}. Give one that it has: {known}.")
    own: dict[str, str] = {}
    for level in list(levels)[: list(levels).index(found[-1]) + 1]:
        groups = {levels[level][one] for one in members[found[-1]]}
        if len(groups) == 1:
            own[level] = groups.pop()
    return own


def settled(levels: Levels, names: Mapping[str, str]) -> tuple[Levels, tuple[str, ...]]:
    """The levels that say something of these classes, highest first, and notes.

    A class without a group at a level stands there for itself. A level at which every class does, or all are one
    group, is left out.

    Args:
        names: the name of each class id, in label order.
    """
    kept: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    for level, given in levels.items():
        groups, said = _one_spelling({label: given[label] for label in names if label in given}, level)
        alone = [names[label] for label in names if label not in groups]
        if len({*groups.values()}) + len(alone) in (1, len(names)):
            continue
        taken = set(map(form, groups.values()))
        for label, own in names.items():
            if label not in groups:
                groups[label] = f"{own} (class {label})" if form(own) in taken else own
                taken.add(form(own))
        kept[level] = {label: groups[label] for label in names}
        notes += said
        if alone:
            notes.append(
                f"{counted(len(alone), 'class', 'classes')} {agreeing(len(alone), 'has', 'have')} no {level} and "
                f"{agreeing(len(alone), 'stands for itself', 'stand for themselves')} at that level: {listing(alone)}."
            )
    return kept, tuple(notes)


def _one_spelling(groups: dict[str, str], level: str) -> tuple[dict[str, str], list[str]]:
    """Groups whose names differ only in how they are written as one, by the first spelling."""
    first: dict[str, str] = {}
    for group in groups.values():
        first.setdefault(form(group), _plain(group))
    merged = sorted({group for group in groups.values() if first[form(group)] != _plain(group)})
    notes = [f"Names at level {level} that differ only in how they are written are one group: {listing(merged)}."]
    return {label: first[form(group)] for label, group in groups.items()}, notes if merged else []
