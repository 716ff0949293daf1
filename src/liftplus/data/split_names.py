"""Which split the name of a folder or file means: "train", and also "training_set", "seg_test" or "train_mini"."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from liftplus.data.dataset import SPLIT_OF

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")
_GLUED = re.compile(rf"({'|'.join(sorted(SPLIT_OF, key=len, reverse=True))})(sets?|data|images|imgs|pics)")
_SIZES = frozenset(["mini", "small", "tiny", "full", "all", "subset", "part"])
_PLAIN = _SIZES | {
    *("set", "sets", "data", "dataset", "split", "splits", "folder", "dir", "class", "classes", "cls", "seg"),
    *("image", "images", "img", "imgs", "pics", "pictures", "photos", "samples", "jpg", "jpeg", "png"),
    *("new", "final", "raw", "original", "orig", "resized", "cropped", "clean", "public", "private"),
    *("labelled", "labeled", "unlabelled", "unlabeled", "unannotated"),
}
"""Words beside the split's own that say nothing of what is in the pictures."""
_UNLABELLED = frozenset(["unlabelled", "unlabeled", "unannotated"])
_COPIES = frozenset(
    [
        *("fold", "folds", "batch", "chunk", "shard", "partition", "rgb", "color", "colour", "gray", "grey"),
        *("grayscale", "greyscale", "segmented", "masked", "augmented", "aug", "processed", "preprocessed"),
        *("mask", "masks", "labels", "annotations"),
    ]
)
"""Further words of folders that may each hold a part of the data, or a copy of it, with all classes."""


@dataclass(frozen=True)
class SplitName:
    """A name that holds the word of one split.

    Attributes:
        split: train, val or test.
        rest: the other words of the name, in lower case; empty if the name is only the split's word.
    """

    split: str
    rest: tuple[str, ...]

    @property
    def plain(self) -> bool:
        """True where the other words are numbers, single letters or such as "set" and "images"."""
        return _say_nothing(self.rest)

    @property
    def unsized(self) -> tuple[str, ...]:
        """The other words without those such as "mini", which only the training split may have."""
        return tuple(word for word in self.rest if word not in _SIZES)


def says_nothing(name: str) -> bool:
    """Whether a name without a split's word, such as "images", says nothing of what is in the pictures.

    Numbers and letters may be classes.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    return _say_nothing(words) and any(word in _PLAIN for word in words)


def is_unlabelled(name: str) -> bool:
    """Whether a name only says that pictures have no label: "unlabeled images", but not "unlabeled bottle"."""
    words = [word for part in _WORD.findall(name) if (word := part.lower()) not in SPLIT_OF]
    return any(word in _UNLABELLED for word in words) and _say_nothing(words)


def is_part(name: str) -> bool:
    """Whether a name may mean a part or a copy of the data: "fold1", "labeled", "grayscale", but not "class1"."""
    words = [word.lower() for word in _WORD.findall(name)]
    rest = [word for word in words if word not in _COPIES]
    marked = len(rest) < len(words) or any(word in _PLAIN for word in rest)
    return marked and _say_nothing(rest) and not {"class", "classes", "cls"} & set(rest)


def _say_nothing(words: Sequence[str]) -> bool:
    return all(word in _PLAIN or word.isdecimal() or len(word) == 1 for word in words)


def read(name: str) -> SplitName | None:
    """What a name means; None where it names no split, or two (but "trainval" is a training split)."""
    if (alone := SPLIT_OF.get(name.lower())) is not None:
        return SplitName(alone, ())
    found: set[str] = set()
    rest: list[str] = []
    for word in (part.lower() for part in _WORD.findall(name)):
        glued = _GLUED.fullmatch(word)
        if word == "trainval":
            found.add("train")
        elif word in SPLIT_OF:
            found.add(SPLIT_OF[word])
        elif glued is not None:
            found.add(SPLIT_OF[glued[1]])
            rest.append(glued[2])
        else:
            rest.append(word)
    if found == {"train", "val"}:
        found = {"train"}
    return SplitName(found.pop(), tuple(rest)) if len(found) == 1 else None


def alike(names: Collection[SplitName]) -> bool:
    """Whether names of splits belong together: their other words are equal or say nothing."""
    return len({name.rest for name in names}) == 1 or all(name.plain for name in names)
