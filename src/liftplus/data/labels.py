"""Read labels from lists, arrays, tensors and data-frame columns as plain Python values."""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections.abc import Collection, Hashable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from liftplus.data.dataset import listing
from liftplus.errors import UserError
from liftplus.words import agreeing, counted

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Labels:
    """One label a picture.

    Attributes:
        values: numbers, text or what else was given; whole numbers are `int`, bytes are text.
        notes: what was decided in reading them, one sentence each.
    """

    values: list[Hashable]
    notes: tuple[str, ...] = ()


def read(labels: Any, count: int) -> Labels:
    """The labels of `count` pictures.

    Args:
        labels: N values of any kind; also [N, 1], [1, N] or one-hot [N, C], which gives the number of the column.
        count: the number of pictures.

    Raises:
        UserError: their number is not `count`, one is missing, a picture has several, or two differ only in type.
    """
    given, notes = _flat(_listed(labels), count)
    if len(given) != count:
        raise UserError(
            f"There {agreeing(count, 'is', 'are')} {counted(count, 'picture')} and {counted(len(given), 'label')}; "
            "give one label for each picture."
        )
    _refuse_missing(given)
    values = [_one(place, value) for place, value in enumerate(given)]
    return Labels(values, (*notes, *_checked(values)))


def _listed(labels: Any) -> list[Any]:
    """A list of plain values, or of lists of them where the labels have two dimensions."""
    if isinstance(labels, str | bytes | Mapping | Set):
        raise UserError(f"The labels are a {type(labels).__name__}; give a list or an array with one for each picture.")
    if _is_tensor(labels):
        labels = _dense(labels)
    elif hasattr(labels, "to_pylist"):  # Arrow's columns
        labels = labels.to_pylist()
    elif hasattr(labels, "__array__") and not isinstance(labels, np.ndarray):
        labels = np.asarray(labels)
    if _is_tensor(labels) or isinstance(labels, np.ndarray):
        found = _plain(labels)
        return found if isinstance(found, list) else [found]
    try:
        return [_plain(value) for value in labels]
    except TypeError as error:
        raise UserError(f"The labels are a {type(labels).__name__}; give one for each picture.") from error


def _is_tensor(value: Any) -> TypeGuard[Tensor]:
    """Works without importing PyTorch: whoever has a tensor has imported it."""
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)


def _dense(labels: Tensor) -> Tensor:
    try:
        return labels.detach().cpu().to_dense()
    except RuntimeError as error:
        raise UserError(
            f"The labels are a tensor on {labels.device.type}, which holds no values; give a tensor with values."
        ) from error


def _plain(value: Any) -> Any:
    """Tensors and arrays as numbers and lists, tuples as lists; other values unchanged."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "mM":
        return _moments(value)
    if _is_tensor(value) or isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _moments(value: Any) -> Any:
    """Dates and times as NumPy scalars: `tolist` would turn NaT, and units below a microsecond, into integers."""
    return [_moments(one) for one in value] if value.ndim else value[()]


def _flat(given: list[Any], count: int) -> tuple[list[Any], tuple[str, ...]]:
    """One value a picture, and a note where the labels were one-hot."""
    if not any(isinstance(value, list) for value in given):
        return given, ()
    widths = {len(value) if isinstance(value, list) else 0 for value in given}
    if widths == {1}:
        return [value[0] for value in given], ()
    if len(given) == 1 and widths == {count}:
        return list(given[0]), ()
    columns = [_hot(value) for value in given]
    if len(given) != count or len(widths) > 1 or None in columns:
        place = next((k for k, column in enumerate(columns) if column is None), 0)
        raise UserError(
            f"The labels have two dimensions and are not one-hot: those of picture {place} are "
            f"{str(given[place])[:60]}. Give one label for each picture, or [N, C] with a single 1 in each row."
        )
    return columns, (f"The labels are one-hot [{count}, {widths.pop()}]; the column number is used as the class.",)


def _hot(row: Any) -> int | None:
    """The place of the only 1 in a row of zeros."""
    if (
        not isinstance(row, list)
        or any(is_missing(value) or value not in (0, 1) for value in row)
        or sum(map(int, row)) != 1
    ):
        return None
    return row.index(1)


def _refuse_missing(given: Iterable[Any]) -> None:
    missing = [(place, value) for place, value in enumerate(given) if is_missing(value)]
    if missing:
        place, value = missing[0]
        raise UserError(
            f"{counted(len(missing), 'label is', 'labels are')} missing: the first is that of picture {place}, "
            f"{value!r}. Leave pictures without a label out, or give them one."
        )


def is_missing(value: Any) -> bool:
    """True for None, NaN, pandas' NA and NaT, and empty text."""
    if value is None or (isinstance(value, str | bytes) and not value.strip()):
        return True
    try:
        return bool(value != value)  # NaN and NaT are unequal to themselves
    except TypeError:  # NA is neither
        return True
    except ValueError:
        return False


def _one(place: int, value: Any) -> Hashable:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"The label of picture {place} is {value}; give a class.")
        return int(value) if value.is_integer() else value
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"The label of picture {place}, {value!r}, is no UTF-8 text; give text.") from error
    if isinstance(value, str):
        return str(value)
    try:
        hash(value)
    except TypeError as error:
        raise UserError(
            f"The label of picture {place} is a {type(value).__name__}; give a number or a word for each picture."
        ) from error
    plain: Hashable = value
    return plain


def _checked(values: list[Hashable]) -> tuple[str, ...]:
    """Refuse labels that differ only in type; return notes on doubtful labels."""
    once = {(type(value), value): value for value in values}
    by_text: dict[str, Hashable] = {}
    truth = next((value for value in once.values() if isinstance(value, bool)), None)
    number = next((value for value in once.values() if type(value) in (int, float)), None)
    if truth is not None and number is not None:  # True equals 1 for Python; nobody can tell whether that was meant
        raise _of_two_types(truth, number)
    for value in once.values():
        other = by_text.setdefault(str(value), value)
        if type(other) is not type(value):
            raise _of_two_types(other, value)
    texts = [value for value in once.values() if isinstance(value, str)]
    if missing := doubtful_text(texts):
        raise UserError(f"The label {missing!r} among numbers means a missing label; every picture needs one.")
    notes = tuple(
        f"One class is called {text!r}, which often stands for a missing label."
        for text in texts
        if text.lower() in DOUBTFUL
    )
    fractions = [value for value in once.values() if isinstance(value, float)]
    if not fractions:
        return notes
    some = listing(list(map(str, fractions)), 3)
    return (*notes, f"Some labels are no whole numbers ({some}); each value is a class.")


DOUBTFUL = frozenset({"nan", "none", "null", "na", "n/a", "<na>"})
"""Words that libraries write for a missing value."""


def doubtful_text(ids: Collection[str]) -> str | None:
    """The label that means a missing value, if all other labels are numbers; else None."""
    numbers = sum(bool(re.fullmatch(r"[+-]?\d{1,18}(\.\d*)?", label, re.ASCII)) for label in ids)
    words = sorted(label for label in ids if label.lower() in DOUBTFUL)
    return words[0] if words and numbers + len(words) == len(ids) > 1 else None


def _of_two_types(one: Hashable, other: Hashable) -> UserError:
    return UserError(
        f"The labels {one!r} and {other!r} are of different types ({type(one).__name__} and {type(other).__name__}). "
        "Give labels of one type."
    )


def one_form(values: list[Hashable]) -> tuple[list[Hashable], tuple[str, ...]]:
    """Texts that differ by Unicode form alone become one, with a note."""
    texts = {value for value in values if isinstance(value, str)}
    spelling, notes = spellings(texts)
    return [spelling.get(value, value) if isinstance(value, str) else value for value in values], notes


def spellings(ids: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The common spelling of texts that occur in several Unicode forms (NFC, NFD), and a note about them."""
    forms: dict[str, list[str]] = {}
    for text in sorted(ids):
        if not text.isascii():
            forms.setdefault(unicodedata.normalize("NFC", text), []).append(text)
    several = {form: texts for form, texts in forms.items() if len(texts) > 1}
    if not several:
        return {}, ()
    note = f"Class names that differ only in their Unicode form were taken for one class: {listing(list(several))}."
    return {text: form for form, texts in several.items() for text in texts}, (note,)
