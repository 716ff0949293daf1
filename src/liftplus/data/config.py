"""Which data, and how it is read: the `data.*` keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from liftplus.data.pictures import Decode


class DataConfig(BaseModel):
    """One data set as the user names it. Paths are strings as given; nothing is opened here."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True)

    source: str = ""
    """Folder, .zip, .tar, .csv, .json, .jsonl, .parquet, .txt list, or a known name (openmoji_lt)."""
    root: str | None = None
    """Folder (or .zip/.tar) that relative paths of a manifest, list or named data set start from."""
    train_list: str | None = None
    """List of "path label" lines for training; `source` may then be left to name the root."""
    val_list: str | None = None
    """List for validation."""
    test_list: str | None = None
    """List for testing."""
    class_names: str | None = None
    """File of class names: one per line in label order, "id: name" lines, or a CSV / JSON / TOML from id to name."""
    level: Literal["kingdom", "phylum", "class", "order", "family", "genus", "species"] | None = None
    """Taxonomy level whose names become the classes, for iNaturalist's annotations; None: the categories."""
    boxes: bool = False
    """Whether each box of COCO's or LVIS's annotations is a picture of its class; boxes of one image share a split."""
    box_margin: float = Field(default=0.0, ge=0, le=1)
    """Share of a box's width and height that is added on each side, as far as the image goes."""
    box_least: int = Field(default=16, ge=1)
    """Boxes whose shorter side has fewer pixels are left out."""
    imbalance_ratio: float | None = Field(default=None, ge=1)
    """Largest over smallest class size to cut an artificial long tail to (CIFAR-LT, openmoji_lt)."""
    val_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training pictures set aside for validation where there is no val split."""
    test_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the pictures set aside for testing where there is neither a test nor a val split."""
    split_seed: int = Field(default=0, ge=0, lt=2**32 - 2)
    """Seed of the splits made here."""
    unreadable: Literal["stop", "skip"] = "stop"
    """What to do at a picture that cannot be decoded: stop and name it, or leave it out and say so."""
    decode: Decode = "fast"
    """How pictures are decoded and resized: "exact" by Pillow alone; "fast" with less work and pixels that differ by
    rounding; "scaled" decodes large JPEGs at a fraction of their size, which blurs or sharpens them a little."""
    num_classes: int | None = Field(default=None, ge=2)
    """For `info` without data: the number of classes to plan for."""

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, values: Any) -> Any:
        """Read a saved section without `decode` as "exact": earlier versions decoded with Pillow alone."""
        if isinstance(values, dict) and "decode" not in values and values.keys() >= _FIRST_SAVED:
            return values | {"decode": "exact"}
        return values


_FIRST_SAVED = frozenset(
    {
        *("source", "root", "train_list", "val_list", "test_list", "class_names", "level", "imbalance_ratio"),
        *("val_share", "test_share", "split_seed", "unreadable", "num_classes"),
    }
)


def of_words(source: str, words: Sequence[str]) -> DataConfig | None:
    """The data configuration that key=value words give, without the rest of a run's configuration.

    None where a word sets something else or is wrong; building the whole configuration reports that.
    """
    values: dict[str, Any] = {"source": source}
    for word in words:
        key, equals, text = word.partition("=")
        key = key.strip().removeprefix("data.")
        field = DataConfig.model_fields.get(key)
        if not equals or field is None or key == "source":
            return None
        values[key] = text.strip() if field.annotation in (str, str | None) else plain_value(text.strip())
    try:
        return DataConfig(**values)
    except ValidationError:
        return None


def plain_value(text: str) -> Any:
    """JSON where it is JSON (numbers, true, null, lists), else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # numbers of over 4300 digits are a ValueError
        return {"True": True, "False": False, "None": None, "none": "none"}.get(text, text)
