"""Which icon sets `mini_clip` may learn from, and what the names of their icons say.

The sets come in one npm package, `@iconify/json`, each with its licence, author, category and icons. A set is taken if
its licence allows weights trained on it to be passed on with credit, and if it shows things: logos, flags and file
types are left out. OpenMoji is never taken, as its style is the test's.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PACKAGES = {"@iconify/json": "2.2.535", "emojibase-data": "17.0.0"}
LICENCES = {
    *("Apache-2.0", "BSD-3-Clause", "CC-BY-3.0", "CC-BY-4.0", "CC0-1.0", "ISC", "MIT", "OFL-1.1", "Unlicense"),
}
EMOJI = (
    *("noto", "noto-v1", "twemoji", "emojione", "fluent-emoji", "fluent-emoji-flat", "streamline-emojis"),
    *("emojione-monotone", "fluent-emoji-high-contrast"),
)
"""Sets of emoji, whose icons have code points. The first artist of the two in one tone drew them in colour too."""
HELD_OUT = ("fxemoji", "streamline-kameleon-color")
"""Whole styles that are never trained on: choices of the recipe are made by the first, the card reports both."""
VARIANTS = 3
"""Most drawings of one concept from one set, which has it thin, bold, filled and in five sizes."""
_BRANDS = ("simple-icons", "fa7-brands", "bxl")
_UNFIT_CATEGORIES = ("Logos", "Programming")
_UNFIT = _words(
    """
    academicons bpmn bx bxs cif circle-flags fa fa-brands fa-regular fa-solid fa6-brands fa6-regular fa6-solid
    fad famicons feather flag flagpack geo ginetex gis heroicons-outline heroicons-solid la
    material-symbols-light mono-icons pepicons svg-spinners topcoat websymbol zmdi
    """
)
"""Sets of flags, brands or signs, and older versions of sets that are taken: the same drawings again."""
_STYLE = _words(
    """
    alt alternate baseline bold broken color colour duo duotone f fill filled flat four glyph icon line linear
    multiple o one outline outlined px regular remix rounded s sharp solid stroke thin three tone two twotone
    variant
    """
)
_INTERFACE = _words(
    """
    abstract account add ai alert align alignment alpha angle api app application arrow arrows backward battery
    big bitcoin bold border bottom brand browser bubble button cancel caret chat check checkbox chevron chevrons
    circle close closed cloud code cog collapse column columns comment config control controls copy corner crop
    css currency cursor data database delete document dollar dot dots down download edit ellipsis email empty
    error euro exclamation expand export file filter flag flags flip folder font format forward full fullscreen
    function git grid half hd heading help hexagon high horizontal html import in indent info italic justify
    large layer layers layout left letter link list loading login logo logout low lte mail man math maximize
    medium men menu message mini minimize minus move mute new next no number octagon off open out page panel
    paragraph paste pause people person play plus pound previous progress question radio rectangle redo refresh
    remove repeat reply resize rewind right rotate row rows rupee scale sd search select selection send server
    set settings share sheet shuffle sidebar sign signal sim skip slash slider sliders small sort spinner square
    stack status stop strikethrough subscript superscript symbol sync tab table tabs text time toggle top
    triangle type underline undo unlink up upload usb user users variable vertical view volume warning wifi
    window woman women x xmark yen zoom
    """
)
"""Words of user interfaces: an icon whose name has one shows no thing that a picture could show."""


@dataclass(frozen=True)
class IconSet:
    """One set of icons: what it is, and its documents by name."""

    prefix: str
    name: str
    author: str
    licence: str
    url: str
    coloured: bool
    book: dict[str, Any]

    @property
    def artist(self) -> str:
        """The first word of the set's name: those of one house share shapes, but for a first version."""
        return self.prefix if self.prefix.endswith("-v1") else self.prefix.split("-")[0]

    def svg(self, name: str) -> str:
        """The document of one icon."""
        icon = self.book["icons"][name]
        width, height = (icon.get(side, self.book.get(side, 16)) for side in ("width", "height"))
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
        )


def fetch(folder: Path) -> Path:
    """Install the pinned npm packages below `folder`, once."""
    modules = folder / "node_modules"
    if not (modules / "emojibase-data").exists():
        folder.mkdir(parents=True, exist_ok=True)
        packages = {"name": "pairs", "private": True, "dependencies": PACKAGES}
        (folder / "package.json").write_text(json.dumps(packages))
        subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return modules


def fits(prefix: str, info: dict[str, Any]) -> bool:
    """Whether a set may be drawn: by its licence, its category and the lists above. None that names OpenMoji may."""
    if "openmoji" in json.dumps([prefix, info]).lower():
        return False
    if prefix in _UNFIT or info.get("category") in _UNFIT_CATEGORIES:
        return False
    return info["license"].get("spdx") in LICENCES


def read_set(modules: Path, prefix: str) -> IconSet:
    """One set of the installed package."""
    book = json.loads((modules / "@iconify" / "json" / "json" / f"{prefix}.json").read_text(encoding="utf-8"))
    return _icon_set(prefix, book)


def _icon_set(prefix: str, book: dict[str, Any]) -> IconSet:
    info = book["info"]
    author, licence = info["author"], info["license"]["spdx"]
    url, coloured = author.get("url", ""), bool(info.get("palette"))
    return IconSet(prefix, info["name"], author["name"], licence, url, coloured, book)


def fitting_sets(modules: Path) -> list[str]:
    """Names of the sets that may be drawn: emoji first, then coloured ones, then those in one tone."""
    book = json.loads((modules / "@iconify" / "json" / "collections.json").read_text(encoding="utf-8"))
    found = [prefix for prefix, info in book.items() if fits(prefix, info)]
    order = {prefix: place for place, prefix in enumerate(EMOJI)}
    return sorted(found, key=lambda prefix: (order.get(prefix, len(order)), not book[prefix].get("palette"), prefix))


def plain(hexcode: str) -> str:
    """A code-point sequence without the variation selector, which the sets use differently."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def emoji_table(modules: Path) -> dict[str, dict[str, Any]]:
    """Emoji without skin tones: code points -> name, keywords, group and subgroup words."""
    base = modules / "emojibase-data" / "en"
    words = json.loads((base / "messages.json").read_text(encoding="utf-8"))
    groups = {entry["order"]: entry["message"] for entry in words["groups"]}
    kinds = {entry["order"]: entry["message"] for entry in words["subgroups"]}
    table = {}
    for entry in json.loads((base / "data.json").read_text(encoding="utf-8")):
        if "group" in entry:
            table[plain(entry["hexcode"])] = {
                "name": entry["label"],
                "tags": entry.get("tags", []),
                "group": groups[entry["group"]],
                "kind": kinds.get(entry.get("subgroup"), ""),
            }
    return table


def codes_by_name(modules: Path, table: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Code points by the names that the emoji sets give them."""
    codes: dict[str, str] = {}
    for prefix in ("noto", "twemoji", "fluent-emoji-flat"):
        for code, name in read_set(modules, prefix).book["chars"].items():
            if plain(code) in table:
                codes.setdefault(name, plain(code))
    # Mozilla's set writes names without hyphens, Streamline's numbers its variants.
    for code, entry in table.items():
        codes.setdefault(re.sub("[^a-z]", "", entry["name"].lower()), code)
        codes.setdefault("-".join(re.findall("[a-z]+", entry["name"].lower())), code)
    return codes


def words_of(name: str, icons: IconSet) -> list[str]:
    """The words of an icon's name without those that tell its style, its size or its category."""
    name = _without_category(name, icons.book)
    for ending in sorted(icons.book.get("suffixes") or {}, key=len, reverse=True):
        if ending and name.endswith(f"-{ending}"):
            name = name.removesuffix(f"-{ending}")
            break
    for start in sorted(icons.book.get("prefixes") or {}, key=len, reverse=True):
        if start and name.startswith(f"{start}-"):
            name = name.removeprefix(f"{start}-")
            break
    words = [word for word in name.split("-") if not re.fullmatch(r"\d+(px)?", word)]
    words = [re.sub(r"\d+$", "", word) for word in words]
    while len(words) > 1 and _is_style(words, icons.book):
        words.pop()
    return words


def _is_style(words: list[str], book: dict[str, Any]) -> bool:
    """Whether the last word tells the style. "light" does where the set has the icon without it too."""
    return words[-1] in _STYLE or (words[-1] in {"light", "dark"} and "-".join(words[:-1]) in book["icons"])


def _without_category(name: str, book: dict[str, Any]) -> str:
    for category in book.get("categories") or {}:
        start = "-".join(re.findall("[a-z]+", category.lower()))
        if start and name.startswith(f"{start}-"):
            return name.removeprefix(f"{start}-")
    return name


def logos(book: dict[str, Any]) -> set[str]:
    """Icons that the set itself files under brands or logos."""
    categories = (book.get("categories") or {}).items()
    return {name for title, names in categories if re.search("logo|brand", title, re.IGNORECASE) for name in names}


def _form(name: str) -> str:
    """What spellings of one name share: "light bulb" and "lightbulb", "grapes" and "grape"."""
    return name.replace(" ", "").removesuffix("s")


def is_thing(words: list[str]) -> bool:
    """Whether the words may name something to be seen: one to three real words, none of a user interface."""
    if not 1 <= len(words) <= 3 or any(not word.isascii() or not word.isalpha() for word in words):
        return False
    return all(len(word) > 2 for word in words) and not any(word in _INTERFACE for word in words)


def concept_of(name: str) -> str:
    """The form of a name in which equal ones meet: "French fries" and "french-fries"."""
    return " ".join(re.findall("[a-z0-9]+", name.lower().replace("’", "").replace("'", "")))


class Names:
    """What icons show, by their names: emoji by their code points, all others by the words."""

    def __init__(self, modules: Path) -> None:
        self.table = emoji_table(modules)
        self._codes = codes_by_name(modules, self.table)
        self.emoji = {concept_of(entry["name"]): entry for entry in self.table.values()}
        self._forms = {_form(name): name for name in self.emoji}
        tags = {word for entry in self.table.values() for tag in entry["tags"] for word in concept_of(tag).split()}
        self.vocabulary = tags | {word for name in self.emoji for word in name.split()}
        brands = {name for prefix in _BRANDS for name in read_set(modules, prefix).book["icons"]}
        self._brands = {concept_of(name) for name in brands} - self.vocabulary

    def concepts(self, icons: IconSet) -> dict[str, str]:
        """Icon name -> concept, for the icons of one set that show a thing; few variants of each."""
        found: dict[str, list[str]] = {}
        for name in sorted(icons.book["icons"].keys() - logos(icons.book)):
            concept = self._emoji(name) if icons.prefix in (*EMOJI, "fxemoji") else self._icon(name, icons)
            if concept:
                found.setdefault(concept, []).append(name)
        # Evenly over the sorted names, in which the sizes and weights of one style are neighbours.
        chosen = {
            concept: sorted(names)[:: max(1, len(names) // VARIANTS)][:VARIANTS] for concept, names in found.items()
        }
        return {name: concept for concept, names in chosen.items() for name in names}

    def _emoji(self, name: str) -> str | None:
        code = self._codes.get(name) or self._codes.get(re.sub(r"-\d+$", "", name))
        return None if code is None else concept_of(self.table[code]["name"])

    def _icon(self, name: str, icons: IconSet) -> str | None:
        words = words_of(name, icons)
        concept = " ".join(words)
        if not is_thing(words) or concept in self._brands:
            return None
        return concept if concept in self.emoji else self._forms.get(_form(concept), concept)


def collect(npm: Path, icons: Path) -> None:
    """Keep the documents that are drawn, and the emoji's words, in the folder `icons`: all that the rest needs.

    An icon that is no emoji is kept only if another artist draws the same thing: one drawing alone teaches little.
    """
    if icons.exists():
        return
    modules = fetch(npm)
    names, chosen = Names(modules), {}
    artists: dict[str, set[str]] = {}
    for prefix in fitting_sets(modules):
        whole = read_set(modules, prefix)
        chosen[prefix] = names.concepts(whole)
        for concept in chosen[prefix].values() if prefix not in HELD_OUT else ():
            artists.setdefault(concept, set()).add(whole.artist)
    known = names.emoji.keys() | {concept for concept, several in artists.items() if len(several) > 1}
    made = icons.with_suffix(".tmp")
    made.mkdir(parents=True, exist_ok=True)
    for prefix, concepts in chosen.items():
        book = read_set(modules, prefix).book
        kept = {name: concept for name, concept in concepts.items() if concept in known or prefix in HELD_OUT}
        part: dict[str, Any] = {key: book[key] for key in ("info", "width", "height") if key in book}
        part |= {"concepts": kept, "icons": {name: book["icons"][name] for name in kept}}
        with gzip.open(made / f"{prefix}.json.gz", "wt", encoding="utf-8") as stream:
            json.dump(part, stream)
    (made / "emoji.json").write_text(json.dumps(names.emoji), encoding="utf-8")
    (made / "order.json").write_text(json.dumps(list(chosen)), encoding="utf-8")
    os.replace(made, icons)


def emoji_words(icons: Path) -> dict[str, dict[str, Any]]:
    """Emoji by concept, with their keywords, group and subgroup, as `collect` kept them."""
    table: dict[str, dict[str, Any]] = json.loads((icons / "emoji.json").read_text(encoding="utf-8"))
    return table


def order(icons: Path) -> list[str]:
    """The sets that `collect` kept: emoji first, then coloured ones, then those in one tone."""
    names: list[str] = json.loads((icons / "order.json").read_text(encoding="utf-8"))
    return names


def kept_set(icons: Path, prefix: str) -> IconSet:
    """One set as `collect` kept it; its book has the icons' concepts too."""
    with gzip.open(icons / f"{prefix}.json.gz", "rt", encoding="utf-8") as stream:
        return _icon_set(prefix, json.load(stream))
