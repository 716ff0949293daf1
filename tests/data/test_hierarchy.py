"""Levels above the classes: from a column, from annotations, through every form of data and every change of classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from liftplus.data import hierarchy, inaturalist, shards
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet
from liftplus.data.shards import CopyOptions
from liftplus.data.sources import load
from liftplus.errors import UserError

Grow = Callable[[Path, dict[str, int]], Path]
LABELS = ["owl", "owl", "owl", "robin", "robin", "robin", "cat", "cat", "cat", "dog", "dog", "dog"]
PARENTS = {"owl": "bird", "robin": "bird", "cat": "mammal", "dog": "mammal"}


def loaded(source: Path, **keys: object) -> DataSet:
    return load(DataConfig(source=str(source), **keys))  # type: ignore[arg-type]


@pytest.fixture
def twelve(tmp_path: Path, grow: Grow) -> Path:
    return grow(tmp_path, {".": 12})


def csv(folder: Path, parents: list[str], header: str = "path,label,parent", labels: list[str] = LABELS) -> Path:
    rows = [f"{k}.png,{label},{parents[k]}" for k, label in enumerate(labels)]
    (folder / "t.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "t.csv"


def test_a_column_of_parents(twelve: Path, tmp_path: Path) -> None:
    dataset = loaded(csv(twelve, [PARENTS[label] for label in LABELS]))
    assert dataset.levels == {"parent": PARENTS} and dataset.class_names == ("cat", "dog", "owl", "robin")
    assert loaded(csv(twelve, [PARENTS[label] for label in LABELS], "path,label,Super_Class")).levels == dataset.levels
    pq.write_table(
        pa.table({"path": [f"{k}.png" for k in range(12)], "label": LABELS, "parent": [PARENTS[x] for x in LABELS]}),
        twelve / "t.parquet",
    )
    assert loaded(twelve / "t.parquet").levels == dataset.levels
    shards.write(dataset, tmp_path / "copy", CopyOptions(32))
    assert loaded(tmp_path / "copy").levels == dataset.levels


def test_numbers_as_classes_keep_their_parents(twelve: Path) -> None:
    number = {"owl": "0.0", "robin": "1.0", "cat": "2", "dog": "3"}
    written = csv(twelve, [PARENTS[label] for label in LABELS], labels=[number[label] for label in LABELS])
    assert loaded(written).levels == {"parent": {"0": "bird", "1": "bird", "2": "mammal", "3": "mammal"}}


def test_a_class_without_a_parent_stands_for_itself(twelve: Path) -> None:
    dataset = loaded(csv(twelve, ["" if label == "dog" else PARENTS[label] for label in LABELS]))
    assert dataset.levels == {"parent": PARENTS | {"dog": "dog"}}
    assert "1 class has no parent and stands for itself at that level: 'dog'." in dataset.notes
    # One that is called as a group of others is still no member of it.
    dataset = loaded(csv(twelve, [{"owl": "dog", "robin": "dog", "cat": "x"}.get(label, "") for label in LABELS]))
    assert dataset.levels["parent"]["dog"] == "dog (class dog)" and dataset.levels["parent"]["owl"] == "dog"


@pytest.mark.parametrize("parent", ["nan", "None", "<NA>"])
def test_text_for_a_missing_value_is_no_parent(twelve: Path, parent: str) -> None:
    dataset = loaded(csv(twelve, [parent if label in ("dog", "owl") else PARENTS[label] for label in LABELS]))
    assert dataset.levels == {}
    dataset = loaded(csv(twelve, [parent if label == "dog" else PARENTS[label] for label in LABELS]))
    assert dataset.levels["parent"]["dog"] == "dog"


def test_names_that_differ_only_in_case_are_one_group(twelve: Path) -> None:
    dataset = loaded(csv(twelve, ["BIRD" if label == "robin" else PARENTS[label] for label in LABELS]))
    assert len(set(dataset.levels["parent"].values())) == 2
    assert any("differ only in how they are written are one group: 'BIRD'" in note for note in dataset.notes)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_numbers_of_equal_value_are_one_parent(twelve: Path, ending: str) -> None:
    """In one class and in several, and whether a file writes them as text or as numbers."""
    number = {"owl": "4", "robin": "4.0", "cat": "5.0", "dog": "7"}
    parents = ["4.0" if k == 1 else number[label] for k, label in enumerate(LABELS)]
    path = csv(twelve, parents)
    if ending == "jsonl":
        own: list[object] = ["4" if k == 0 else float(one) if "." in one else int(one) for k, one in enumerate(parents)]
        rows = [{"path": f"{k}.png", "label": label, "parent": own[k]} for k, label in enumerate(LABELS)]
        path = twelve / "t.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
    dataset = loaded(path)
    assert dataset.levels == {"parent": {"owl": "4", "robin": "4", "cat": "5", "dog": "7"}}
    assert not any("parent" in note for note in dataset.notes)
    dataset = loaded(csv(twelve, ["04" if label == "robin" else number[label] for label in LABELS]))
    assert dataset.levels["parent"]["robin"] == "4" and any("are one group: '04'" in note for note in dataset.notes)


def test_a_second_column_of_parents_is_told(twelve: Path) -> None:
    parents = [f"{PARENTS[label]},animal {k % 2}" for k, label in enumerate(LABELS)]
    dataset = loaded(csv(twelve, parents, "path,label,parent,supercategory"))
    assert dataset.levels == {"parent": PARENTS}
    assert "The parent is in column 'parent' of t.csv, not in 'supercategory'." in dataset.notes


def test_a_list_is_no_parent(twelve: Path) -> None:
    rows = [
        {"path": f"{k}.png", "label": label, "parent": ["animal", PARENTS[label]]} for k, label in enumerate(LABELS)
    ]
    (twelve / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = loaded(twelve / "t.jsonl")
    assert dataset.levels == {}
    assert any('class \'owl\' has a list or an object there: ["animal", "bird"]' in note for note in dataset.notes)


def test_levels_stay_as_they_are_when_they_are_read_again() -> None:
    """As they are from a run's file. A class that stands for itself joins no group of nearly its name."""
    names = {"1": "Dog", "2": "owl", "3": "robin", "01": "1", "0001": "01"}
    levels, _ = hierarchy.settled({"parent": {"2": "dog", "3": "dog"}}, names)
    assert levels["parent"] == {"1": "Dog (class 1)", "2": "dog", "3": "dog", "01": "1", "0001": "01 (class 0001)"}
    assert hierarchy.settled(levels, names) == (levels, ())


@pytest.mark.parametrize("parent", ["", "all", "{label}"])
def test_a_column_that_says_nothing_is_no_level(twelve: Path, parent: str) -> None:
    assert loaded(csv(twelve, [parent.format(label=label) for label in LABELS])).levels == {}


def test_a_column_of_something_else_is_told_and_left_alone(twelve: Path) -> None:
    dataset = loaded(csv(twelve, [f"scan {k}" for k in range(12)]))
    assert dataset.levels == {} and any(
        note.startswith("The column 'parent' of t.csv was not taken for parents") for note in dataset.notes
    )


def test_tables_and_spellings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UserError, match="One table gives class 'owl' the parent 'bird', another 'fowl'; keep one"):
        hierarchy.joined([{"parent": {"owl": "bird"}}, {"parent": {"owl": "fowl"}}])
    levels = {"parent": {"Owl": "bird", "owl": "fowl"}}
    with pytest.raises(UserError, match="writes class 'owl' in several ways"):
        hierarchy.spelled(levels, {"Owl": "owl"}, "t.csv")
    assert hierarchy.spelled({"parent": {"Owl": "bird"}}, {"Owl": "owl"}, "t.csv") == {"parent": {"owl": "bird"}}


CATEGORIES = [
    {"id": 1, "name": "Rosa canina", "genus": "Rosa", "family": "Rosaceae", "kingdom": "Plantae"},
    {"id": 2, "name": "Rubus idaeus", "genus": "Rubus", "family": "Rosaceae", "kingdom": "Plantae"},
    {"id": 3, "name": "Ficus carica", "genus": "Ficus", "family": "Moraceae", "kingdom": "Plantae"},
    {"id": 4, "name": "Ficus ficus", "genus": "Ficus", "family": "Ficidae", "kingdom": "Animalia"},
]


def annotated(path: Path, categories: list[dict[str, object]]) -> Path:
    images = [{"id": k, "file_name": f"{k}.jpg"} for k in range(len(categories))]
    notes = [{"id": k, "image_id": k, "category_id": entry["id"]} for k, entry in enumerate(categories)]
    path.write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))
    return path


def test_the_taxonomy_of_inaturalist(tmp_path: Path) -> None:
    """A snail's genus is not a fig's though both are called Ficus."""
    path = annotated(tmp_path / "train2018.json", CATEGORIES)
    levels = inaturalist.read({"train": path}).levels
    assert list(levels) == ["kingdom", "family", "genus"]
    assert levels["kingdom"] == {"1": "Plantae", "2": "Plantae", "3": "Plantae", "4": "Animalia"}
    assert levels["genus"] == {"1": "Rosa", "2": "Rubus", "3": "Ficus (Moraceae)", "4": "Ficus (Ficidae)"}
    levels = inaturalist.read({"train": path}, "family").levels
    assert levels == {"kingdom": {"Rosaceae": "Plantae", "Moraceae": "Plantae", "Ficidae": "Animalia"}}


def split_files(tmp_path: Path, **changes: object) -> dict[str, Path]:
    """train.json and val.json with the same pictures; the first category of val.json has these changes."""
    entries: list[dict[str, object]] = [
        {"id": k, "name": f"c{k}", "supercategory": group, "genus": None} for k, group in enumerate("aabb")
    ]
    other = [entries[0] | changes, *entries[1:]]
    return {"train": annotated(tmp_path / "train.json", entries), "val": annotated(tmp_path / "val.json", other)}


@pytest.mark.parametrize("changes", [{"supercategory": "b"}, {"name": "c9"}])
def test_files_that_say_different_things_of_a_class_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    paths = split_files(tmp_path, **changes)
    (key, value), before = *changes.items(), {"supercategory": "a", "name": "c0"}
    with pytest.raises(UserError) as raised:
        inaturalist.read(paths)
    said = str(raised.value)
    assert f"{paths['train']} gives category 0 ('c0') the {key} {before[key]!r}" in said
    assert f"{paths['val']} gives it {value!r}" in said
    # The published categories say what is right.
    published = [{"id": k, "name": f"c{k}", "supercategory": "xxyy"[k]} for k in range(4)]
    (tmp_path / "categories.json").write_text(json.dumps(published))
    assert inaturalist.read(paths).levels["supercategory"] == {"0": "x", "1": "x", "2": "y", "3": "y"}


def test_what_one_file_leaves_out_of_a_class_another_says(tmp_path: Path) -> None:
    paths = split_files(tmp_path, supercategory="A", genus="G")
    assert inaturalist.read(paths).levels == {"genus": {"0": "G"}}
    paths = split_files(tmp_path, supercategory=None)
    assert inaturalist.read(paths).levels == {"supercategory": {"0": "a", "1": "a", "2": "b", "3": "b"}}
    # Of a category without annotations nothing is used.
    content = json.loads(paths["val"].read_text())
    content["categories"].append({"id": 9, "name": "idle", "supercategory": "z"})
    paths["val"].write_text(json.dumps(content))
    content["categories"][-1]["supercategory"] = "y"
    paths["train"].write_text(json.dumps(content))
    assert "9" not in inaturalist.read(paths).levels["supercategory"]


@pytest.mark.parametrize("value", [["a", "b"], {"name": "a"}])
def test_a_list_of_parents_is_refused(tmp_path: Path, value: object) -> None:
    paths = split_files(tmp_path, supercategory=value)
    with pytest.raises(UserError, match=r"val\.json gives category 0 the supercategory .*Give it as text"):
        inaturalist.read(paths)


def test_a_category_that_is_described_twice_is_refused_where_the_two_differ(tmp_path: Path) -> None:
    path = split_files(tmp_path)["train"]
    content = json.loads(path.read_text())
    content["categories"].append(content["categories"][0])
    path.write_text(json.dumps(content))
    assert inaturalist.read({"train": path}).levels["supercategory"]["0"] == "a"
    content["categories"].append(content["categories"][0] | {"supercategory": "b"})
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"train\.json describes category 0 twice: its supercategory is 'a' and 'b'"):
        inaturalist.read({"train": path})


def test_nulls_and_zeros_of_annotations(tmp_path: Path) -> None:
    entries: list[dict[str, object]] = [{"id": k, "name": f"c{k}", "supercategory": k // 2} for k in range(4)]
    levels = inaturalist.read({"train": annotated(tmp_path / "train.json", entries)}).levels
    assert levels == {"supercategory": {"0": "0", "1": "0", "2": "1", "3": "1"}}
    unknown = [entry | {"order": None, "genus": "Ficus"} for entry in CATEGORIES[2:]]
    levels = inaturalist.read({"train": annotated(tmp_path / "train2018.json", unknown)}).levels
    assert "order" not in levels and not any("None" in group for groups in levels.values() for group in groups.values())


def test_supercategories_of_coco(tmp_path: Path) -> None:
    entries: list[dict[str, object]] = [
        {"id": 1, "name": "cat", "supercategory": "animal"},
        {"id": 2, "name": "dog", "supercategory": "animal"},
        {"id": 3, "name": "car", "supercategory": "vehicle"},
    ]
    levels = inaturalist.read({"train": annotated(tmp_path / "train.json", entries)}).levels
    assert levels == {"supercategory": {"1": "animal", "2": "animal", "3": "vehicle"}}


def test_a_new_class_under_a_group() -> None:
    """The levels above follow from the group's classes, where they agree."""
    levels = {
        "kingdom": {"1": "Plantae", "2": "Plantae", "3": "Animalia", "4": "Animalia"},
        "family": {"1": "Rosaceae", "2": "Rosaceae", "3": "mixed", "4": "Ficidae"},
        "genus": {"1": "Rosa", "2": "Rubus", "3": "odd", "4": "odd"},
    }
    assert hierarchy.under(levels, "rubus") == {"kingdom": "Plantae", "family": "Rosaceae", "genus": "Rubus"}
    assert hierarchy.under(levels, "Rosaceae") == {"kingdom": "Plantae", "family": "Rosaceae"}
    assert hierarchy.under(levels, "odd") == {"kingdom": "Animalia", "genus": "odd"}
    with pytest.raises(UserError, match=r"No level of the run has a group 'Fungi'.*kingdom has 'Animalia', 'Plantae'"):
        hierarchy.under(levels, "Fungi")
    assert hierarchy.under({"genus": levels["genus"]}, "Prunus") == {"genus": "Prunus"}
