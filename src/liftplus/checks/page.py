"""The page of a check, with the pictures side by side, and the CSV of all findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from liftplus.checks.check import Check
from liftplus.errors import UserError
from liftplus.machine import disk
from liftplus.report.thumbnails import uri
from liftplus.words import agreeing, counted

PAGE, CSV, MARKER = "check.html", "findings.csv", ".liftplus-data-check"
SHOWN, EACH = 60, 6
"""Findings of each kind on the page, and pictures of each; the CSV has all."""


class Finding(NamedTuple):
    """A line of the CSV.

    Attributes:
        finding: equal, near, label, outlier, unreadable or classes.
        score: likeness of doubles, 1 less the label's probability, interquartile ranges beyond the fence, or the share
            of two classes' pictures that score better for the other one; the higher, the more suspicious.
        other_split, other_path, other_class: the other picture of the pair, or the class that is likelier.
        note: whether a double is mirrored, or why a picture cannot be read.
        left_out: whether --clean leaves the picture out, yes or no.
    """

    finding: str
    split: str
    path: str
    class_name: str
    score: str = ""
    other_split: str = ""
    other_path: str = ""
    other_class: str = ""
    note: str = ""
    left_out: str = "no"


@dataclass(frozen=True)
class Shown:
    """A picture on the page."""

    uri: str | None
    text: str
    left_out: bool


def refuse_foreign(out: Path) -> None:
    """Leave alone what is not an earlier check's."""
    if out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{str(out)!r} holds something other than a check of data. Choose another folder with --out.")
    disk.check_target(out / PAGE)


def write(check: Check, without: Mapping[int, str], out: Path) -> Path:
    """Write page and CSV into a folder, in place of those of an earlier check; returns the page's path.

    Args:
        without: what a clean table leaves out, as `cleaning.left_out` gives it.
    """
    page = out / PAGE
    disk.folder_of(page)
    (out / MARKER).touch()
    disk.write_csv(out / CSV, Finding._fields, findings(check, without))
    disk.write_bytes(page, _render(check, without).encode(errors="replace"))
    return page


def findings(check: Check, without: Mapping[int, str]) -> list[Finding]:
    """All that was found, kind by kind, the most suspicious of each first."""
    names = check.dataset.class_names

    def line(kind: str, number: int, **more: str) -> Finding:
        place = check.places[number]
        left_out = "yes" if number in without else "no"
        return Finding(kind, place.split, place.key, names[place.label], left_out=left_out, **more)

    found = [line("unreadable", number, note=reason) for number, reason in check.unreadable.items()]
    for double in check.doubles:
        one, other = double.second, double.first
        if one not in without and other in without:
            one, other = other, one
        beside = check.places[other]
        found.append(
            line(
                "equal" if double.exact else "near",
                one,
                score=f"{double.likeness:.4f}",
                other_split=beside.split,
                other_path=beside.key,
                other_class=names[beside.label],
                note="mirrored" if double.mirrored else "",
            )
        )
    for number in check.suspicious():
        score, other_class = f"{1 - check.opinion.own[number]:.4f}", names[check.opinion.best[number]]
        found.append(line("label", number, score=score, other_class=other_class))
    found += [line("outlier", number, score=f"{check.outlying[number]:.4f}") for number in check.outliers()]
    for one, other, share in check.opinion.alike:
        found.append(Finding("classes", "train", "", names[one], f"{share:.4f}", other_class=names[other]))
    return found


def summary(check: Check, without: Mapping[int, str]) -> dict[str, int | list[str]]:
    """How much of each kind was found."""
    groups = check.groups()
    places = check.places
    return {
        "pictures": len(places),
        "unreadable": len(check.unreadable),
        "doubles": len(groups),
        "across_splits": sum(len({places[k].split for k in group}) > 1 for group in groups),
        "with_different_labels": sum(len({places[k].label for k in group}) > 1 for group in groups),
        "suspicious_labels": len(check.suspicious()),
        "alike_classes": len(check.opinion.alike),
        "outliers": len(check.outliers()),
        "left_out": len(without),
        "notes": [*check.notes, *_stay(check, without)],
    }


def _stay(check: Check, without: Mapping[int, str]) -> Iterator[str]:
    """What a clean table keeps or lacks that one would not expect."""
    both = sum(double.first not in without and double.second not in without for double in check.doubles)
    if both:
        yield (
            f"{counted(both, 'pair')} of doubles {agreeing(both, 'stays', 'stay')} in a clean table. Else a class "
            "would lose its last picture or over half of its pictures in a split, or they are mirror images with "
            "different labels."
        )
    there = {(p.split, p.label) for k, p in enumerate(check.places) if k not in without}
    lost = {p.label for p in check.places} - {label for split, label in there if split == "train"}
    lost = {label for label in lost if any(p.label == label and p.split == "train" for p in check.places)}
    if lost:
        names = ", ".join(repr(check.dataset.class_names[label]) for label in sorted(lost)[:5])
        yield f"No training picture of {counted(len(lost), 'class', 'classes')} can be read: {names}."


def sentences(found: Mapping[str, Any]) -> list[str]:
    """The summary in words."""
    lines = [
        f"{counted(found['pictures'], 'picture')}, of which {found['unreadable']:,} cannot be read.",
        f"Doubles: {counted(found['doubles'], 'group')}, {found['across_splits']:,} across splits, "
        f"{found['with_different_labels']:,} with different labels.",
        f"Suspicious labels: {found['suspicious_labels']:,}. Pairs of classes that may be one: "
        f"{found['alike_classes']:,}. Outliers: {found['outliers']:,}.",
        f"A clean table leaves out {counted(found['left_out'], 'picture')}.",
    ]
    return [*lines, *(f"Note: {note}" for note in found["notes"])]


def _render(check: Check, without: Mapping[int, str]) -> str:
    names = check.dataset.class_names

    def picture(number: int, more: str = "") -> Shown:
        place = check.places[number]
        text = f"{place.split} · {names[place.label]}{more} · {place.key}"
        return Shown(uri(check.dataset.store, place.key), text, number in without)

    def leak_first(group: list[int]) -> tuple[bool, bool]:
        places = [check.places[k] for k in group]
        return len({p.split for p in places}) < 2, len({p.label for p in places}) < 2

    doubles = sorted(check.groups(), key=leak_first)
    labels, outliers = check.suspicious(), check.outliers()
    examples = _examples(check)
    sections = [
        _section("Doubles", len(doubles), ([picture(k) for k in group[:EACH]] for group in doubles[:SHOWN])),
        _section(
            "Suspicious labels",
            len(labels),
            (
                [
                    picture(k, f", rather {names[check.opinion.best[k]]}"),
                    *map(picture, examples[check.opinion.best[k]][:2]),
                ]
                for k in labels[:SHOWN]
            ),
        ),
        _section(
            "Classes that may be one",
            len(check.opinion.alike),
            ([picture(k) for k in examples[a] + examples[b]] for a, b, _ in check.opinion.alike[:SHOWN]),
        ),
        _section("Outliers", len(outliers), ([picture(k)] for k in outliers[:SHOWN])),
    ]
    here = files("liftplus.checks")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        css=Markup((files("liftplus.report") / "page.css").read_text(encoding="utf-8")),
        title=check.dataset.name,
        sentences=sentences(summary(check, without)),
        sections=sections,
        unreadable=list(check.unreadable.values())[:SHOWN],
        more_unreadable=max(0, len(check.unreadable) - SHOWN),
        version=version("liftplus"),
    )


def _section(title: str, total: int, shown: Iterable[Sequence[Shown]]) -> dict[str, Any]:
    rows = list(shown)
    more = total - len(rows)
    note = f"{counted(more, 'more is', 'more are')} in {CSV}." if more else ""
    return {"title": title, "id": title.split()[0].lower(), "total": total, "rows": rows, "note": note}


def _examples(check: Check) -> dict[int, list[int]]:
    """A few training pictures of each class whose labels are not suspicious."""
    found: dict[int, list[int]] = {label: [] for label in range(check.dataset.num_classes)}
    for number, place in enumerate(check.places):
        usable = place.split == "train" and number not in check.unreadable and not check.opinion.suspicious[number]
        if usable and len(found[place.label]) < EACH // 2:
            found[place.label].append(number)
    return found
