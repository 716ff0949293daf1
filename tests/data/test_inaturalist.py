"""iNaturalist's annotations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from liftplus.data import inaturalist
from liftplus.errors import UserError

CATEGORIES = [
    {"id": 7477, "name": "Rosa canina", "genus": "Rosa"},
    {"id": 12, "name": "Rosa rugosa", "genus": "Rosa"},
    {"id": 300, "name": "Apis mellifera", "genus": "Apis"},
]


def write(path: Path, rows: list[tuple[str, int]], categories: object = CATEGORIES) -> Path:
    images = [{"id": 50 + i, "file_name": name} for i, (name, _) in enumerate(rows)]
    notes = [{"id": i, "image_id": 50 + i, "category_id": label} for i, (_, label) in enumerate(rows)]
    path.write_text(json.dumps({"images": images, "annotations": notes[::-1], "categories": categories}))
    return path


def test_original_ids_are_kept(tmp_path: Path) -> None:
    train = write(tmp_path / "train2018.json", [("x/a 1.jpg", 7477), ("b.jpg", 12)])
    val = write(tmp_path / "val2018.json", [("c.jpg", 300)])
    table = inaturalist.read({"train": train, "val": val})
    assert table.class_ids == ("12", "300", "7477")
    assert table.names["7477"] == "Rosa canina"
    assert table.rows == {"train": [("b.jpg", "12"), ("x/a 1.jpg", "7477")], "val": [("c.jpg", "300")]}


def test_taxonomy_level(tmp_path: Path) -> None:
    train = write(tmp_path / "train2018.json", [("a.jpg", 7477), ("b.jpg", 12), ("c.jpg", 300)])
    assert inaturalist.read({"train": train}, "genus").class_ids == ("Apis", "Rosa")
    assert inaturalist.read({"train": train}, "species").class_ids == ("Apis mellifera", "Rosa canina", "Rosa rugosa")
    with pytest.raises(UserError, match="does not say the family"):
        inaturalist.read({"train": train}, "family")
    (tmp_path / "categories.json").write_text(json.dumps([{**entry, "family": "F"} for entry in CATEGORIES]))
    assert inaturalist.read({"train": train}, "family").class_ids == ("F",)


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="category '5'"):
        inaturalist.read({"train": write(tmp_path / "a.json", [("a.jpg", 5)])})
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "must hold images"),
        ('{"images": []}', "not in iNaturalist's form"),
        ('{"images": [], "annotations": [{"image_id": 1, "category_id": 2}]}', "KeyError at 1"),
    ):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(UserError, match=message):
            inaturalist.read({"train": tmp_path / "b.json"})


def test_images_of_one_id_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "a.json", [("a.jpg", 12), ("b.jpg", 300)])
    content = json.loads(train.read_text())
    content["images"][1]["id"] = content["images"][0]["id"]
    train.write_text(json.dumps(content))
    with pytest.raises(UserError, match="several images of one id"):
        inaturalist.read({"train": train})


def test_a_test_file_without_annotations_is_left_out(tmp_path: Path) -> None:
    paths = {"train": write(tmp_path / "train2018.json", [("a.jpg", 12), ("b.jpg", 300)])}
    paths["val"] = write(tmp_path / "val2018.json", [("c.jpg", 12)])
    paths["test"] = tmp_path / "test2018.json"
    for content in ({"images": [{"id": 0, "file_name": "d.jpg"}]}, {"images": [], "annotations": []}):
        paths["test"].write_text(json.dumps(content))
        table = inaturalist.read(paths)
        assert set(table.rows) == {"train", "val"}
        assert "test2018.json has no annotations, so it was left out." in table.notes
        assert "test2018.json has no annotations, so it was left out." in inaturalist.read(paths, "genus").notes
    paths["test"].write_text(json.dumps({"images": [{"id": 0, "file_name": "d.jpg"}]}))
    with pytest.raises(UserError, match=r"test2018\.json is not in iNaturalist's form"):
        inaturalist.read(paths, asked=["train", "test"])


def test_names_under_several_parents_stay_apart(tmp_path: Path) -> None:
    """Morus is a bird and a tree."""
    categories = [
        {"id": 1, "name": "Morus bassanus", "genus": "Morus", "family": "Sulidae", "kingdom": "Animalia"},
        {"id": 2, "name": "Morus alba", "genus": "Morus", "family": "Moraceae", "kingdom": "Plantae"},
        {"id": 3, "name": "Morus nigra", "genus": "Morus", "family": "Moraceae", "kingdom": "Plantae"},
        {"id": 4, "name": "Rosa canina", "genus": "Rosa", "family": "Rosaceae", "kingdom": "Plantae"},
    ]
    train = write(tmp_path / "a.json", [(f"{k}.jpg", k) for k in (1, 2, 3, 4)], categories)
    table = inaturalist.read({"train": train}, "genus")
    assert table.class_ids == ("Morus (Moraceae)", "Morus (Sulidae)", "Rosa")
    assert [label for _, label in table.rows["train"]].count("Morus (Moraceae)") == 2
    assert table.notes[-1].startswith("Names with several parents at level genus got the parent added: ")
    assert inaturalist.read({"train": train}, "kingdom").class_ids == ("Animalia", "Plantae")


def test_pictures_and_categories_without_annotation_are_told(tmp_path: Path) -> None:
    train = write(tmp_path / "a.json", [("a.jpg", 12), ("b.jpg", 300)])
    content = json.loads(train.read_text())
    content["images"].append({"id": 99, "file_name": "bare.jpg"})
    train.write_text(json.dumps(content))
    assert inaturalist.read({"train": train}).notes == (
        "1 picture of a.json has no annotation: 'bare.jpg'.",
        "1 of 3 categories has no annotation and is no class: 'Rosa canina'.",
    )


def test_frequency_needs_every_class(tmp_path: Path) -> None:
    """LVIS says it of all its categories; a group of some classes alone would mislead."""
    rows = [("a.jpg", 7477), ("b.jpg", 12), ("c.jpg", 300)]
    said = [entry | {"frequency": group} for entry, group in zip(CATEGORIES, "rcf", strict=True)]
    table = inaturalist.read({"train": write(tmp_path / "a.json", rows, said)})
    assert table.frequency == {"7477": "rare", "12": "common", "300": "frequent"}
    some = [*said[:2], CATEGORIES[2]]
    assert inaturalist.read({"train": write(tmp_path / "b.json", rows, some)}).frequency == {}
    assert inaturalist.read({"train": write(tmp_path / "c.json", rows[:2], some)}).frequency.keys() == {"7477", "12"}
