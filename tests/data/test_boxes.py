"""Boxes of COCO's and LVIS's annotations as pictures."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from liftplus.data import boxes, sources, splits
from liftplus.data.boxes import BoxOptions, Reader
from liftplus.data.config import DataConfig
from liftplus.data.images import UnreadableImage
from liftplus.data.stores import FolderStore
from liftplus.errors import UserError

from ..conftest import Command

NOWHERE = FolderStore("nowhere")
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 7, "name": "rare bird"}]


def pixels(number: int, width: int = 90, height: int = 60) -> Image.Image:
    """Every pixel has a colour of its own in its image."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, np.full_like(rows, number)], -1).astype(np.uint8))


def document(images: int, notes: list[dict[str, Any]], width: int = 90, height: int = 60) -> dict[str, Any]:
    return {
        "images": [{"id": k, "file_name": f"img/{k}.png", "width": width, "height": height} for k in range(images)],
        "annotations": [{"id": 100 + k} | note for k, note in enumerate(notes)],
        "categories": CATEGORIES,
    }


def box(image: int, category: int, left: float, top: float, width: float, height: float, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": [left, top, width, height]} | more


def written(folder: Path, content: dict[str, Any], name: str = "instances_train.json") -> Path:
    (folder / "img").mkdir(exist_ok=True)
    for image in content["images"]:
        pixels(image["id"]).save(folder / "img" / f"{image['id']}.png")
    (folder / name).write_text(json.dumps(content))
    return folder / name


def read(notes: list[dict[str, Any]], **options: Any) -> tuple[list[str], Reader]:
    reader = Reader(BoxOptions(**({"margin": 0.0, "least": 16} | options)), NOWHERE)
    return [key for key, _ in reader.rows(document(2, notes), Path("t.json"))], reader


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_a_box_shows_its_pixels(decode: Any, tmp_path: Path) -> None:
    """Whole pixels around what the numbers say: left and top downwards, right and bottom upwards."""
    notes = [box(0, 1, 10.4, 20.0, 30.0, 25.0), box(1, 7, 0, 0, 90, 60), box(1, 1, 5, 5, 20, 20)]
    config = DataConfig(source=str(written(tmp_path, document(2, notes))), boxes=True, decode=decode, test_share=0.4)
    dataset = sources.load(config)
    key = "img/0.png#10,20,41,45"
    assert key in [key for split in dataset.splits.values() for key in split.keys]
    image = np.asarray(dataset.store.image(key))
    assert image.shape == (25, 31, 3) and image[0, 0].tolist() == [10, 20, 0] and image[-1, -1].tolist() == [40, 44, 0]
    part = pickle.loads(pickle.dumps(dataset.store)).picture(key)
    assert part.size == (31, 25)
    assert part.cut((1, 2, 6, 5), (5, 3), "bicubic").permute(1, 2, 0).numpy().tolist() == image[2:5, 1:6].tolist()


def test_margin_stays_inside_of_the_image() -> None:
    keys, _ = read([box(0, 1, 10, 5, 40, 20), box(1, 1, -5, 30, 95, 30)], margin=0.25)
    assert keys == ["img/0.png#0,0,60,30", "img/1.png#0,22,90,60"]


def test_what_is_left_out_is_counted() -> None:
    keys, reader = read(
        [
            box(0, 1, 0, 0, 20, 20),
            box(0, 1, 0, 0, 20, 15),
            box(0, 1, 80, 0, 30, 30),
            box(0, 1, 95, 0, 30, 30),
            box(0, 1, 0, 0, 80, 50, iscrowd=1),
            box(1, 1, 1, 1, 30, 30),
            box(1, 7, 1, 1, 30, 30),
            box(1, 1, 2, 1, 30, 30),
            box(1, 1, 2, 1, 30, 30),
        ]
    )
    assert keys == ["img/0.png#0,0,20,20", "img/1.png#2,1,32,31"]
    assert reader.notes == (
        "2 boxes of t.json were left out: smaller than 16 pixels (data.box_least).",
        "1 box of t.json was left out: without any pixel in the image.",
        "1 box of t.json was left out: around a crowd (iscrowd).",
        "1 box of t.json was left out: equal to another of its class.",
        "1 box of t.json was left out: with two classes, first 'img/1.png#1,1,31,31'.",
    )


def test_lvis_names_images_by_their_address() -> None:
    content = document(1, [box(0, 1, 0, 0, 20, 20)])
    content["images"][0] |= {"coco_url": "http://images.cocodataset.org/val2017/000000391895.jpg"}
    del content["images"][0]["file_name"]
    assert Reader(BoxOptions(0, 16), NOWHERE).rows(content, Path("t.json")) == [
        ("val2017/000000391895.jpg#0,0,20,20", "1")
    ]


@pytest.mark.parametrize("bbox", [None, [1, 2, 3], [1, 2, 3, "a"], [0, 0, -5, 20], [0, 0, float("nan"), 20], {"x": 1}])
def test_a_box_without_four_numbers_is_refused(bbox: Any) -> None:
    with pytest.raises(UserError, match=r"t\.json, annotation 100 has the bbox .* needs \[left, top, width, height\]"):
        read([{"image_id": 0, "category_id": 1, "bbox": bbox}])


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("named", ["file_name", "coco_url"])
def test_the_folders_of_coco(named: str, zipped: bool, tmp_path: Path) -> None:
    """annotations/ with a file a split beside images/ with a folder a split; LVIS names images by address alone."""
    for split, number in (("train", 3), ("val", 2)):
        folder = tmp_path / "images" / f"{split}2017"
        folder.mkdir(parents=True)
        content = document(number, [box(k, 1 if k else 7, 0, 0, 20, 20) for k in range(number)])
        for image in content["images"]:
            del image["file_name"]
            name = f"{split}{image['id']}.png"
            image |= {named: name if named == "file_name" else f"http://images.cocodataset.org/{split}2017/{name}"}
            pixels(image["id"]).save(folder / name)
        (tmp_path / f"instances_{split}2017.json").write_text(json.dumps(content))
    root = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "images") if zipped else tmp_path / "images"
    config = DataConfig(source=str(tmp_path / "instances_train2017.json"), root=str(root), boxes=True)
    dataset = sources.load(config)
    assert next(key for split in dataset.splits.values() for key in split.keys) == "train2017/train0.png#0,0,20,20"
    assert all(dataset.store.image(key).size == (20, 20) for split in dataset.splits.values() for key in split.keys)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 3, "test": 2}


@pytest.mark.parametrize(
    ("width", "said"), [(0, "has 0 x 60 pixels"), (80.7, "80.7 x 60"), ("x", "not in COCO's form")]
)
def test_sizes_that_are_none_are_refused(width: Any, said: str) -> None:
    content = document(1, [box(0, 1, 0, 0, 20, 20)])
    content["images"][0]["width"] = width
    with pytest.raises(UserError, match=said):
        Reader(BoxOptions(0, 16), NOWHERE).rows(content, Path("t.json"))


def test_whole_sizes_may_be_written_with_a_point() -> None:
    """As some programs write 90.0; keys hold whole numbers all the same."""
    content = document(1, [box(0, 1, 60.5, 0, 40, 60)], width=90.0, height=60.0)  # type: ignore[arg-type]
    rows = Reader(BoxOptions(0, 16), NOWHERE).rows(content, Path("t.json"))
    assert rows == [("img/0.png#60,0,90,60", "1")]


@pytest.mark.parametrize("width", [float("inf"), 1e999])
def test_a_size_without_end_is_refused(width: float) -> None:
    with pytest.raises(UserError, match="not in COCO's form: OverflowError"):
        Reader(BoxOptions(0, 16), NOWHERE).rows(document(1, [], width=width), Path("t.json"))  # type: ignore[arg-type]


def test_an_image_with_two_sizes_is_refused() -> None:
    content = document(2, [box(0, 1, 0, 0, 20, 20)])
    content["images"][1] |= {"file_name": "img/0.png", "width": 45}
    with pytest.raises(UserError, match=r"gives img/0\.png twice, with different sizes"):
        Reader(BoxOptions(0, 16), NOWHERE).rows(content, Path("t.json"))


def test_no_box_at_all_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = written(tmp_path, document(2, [box(0, 1, 0, 0, 5, 5), box(1, 7, 0, 0, 5, 5)]))
    with pytest.raises(UserError, match=r"no box that could be taken\. 2 boxes .* smaller than 16 pixels"):
        sources.load(DataConfig(source=str(path), boxes=True))


def test_a_detection_file_without_the_key_is_told_of_it(tmp_path: Path) -> None:
    path = written(tmp_path, document(1, [box(0, 1, 0, 0, 20, 20), box(0, 7, 30, 0, 20, 20)]))
    with pytest.raises(UserError, match=r"If the file has boxes, data\.boxes=true"):
        sources.load(DataConfig(source=str(path)))


def test_other_forms_are_refused() -> None:
    content = document(1, [box(0, 1, 0, 0, 20, 20)])
    del content["images"][0]["width"]
    with pytest.raises(UserError, match=r"not in COCO's form: KeyError at 'width'"):
        Reader(BoxOptions(0, 16), NOWHERE).rows(content, Path("t.json"))
    with pytest.raises(UserError, match="KeyError at 9"):
        read([box(9, 1, 0, 0, 20, 20)])


def test_an_image_of_another_size_is_not_cut(tmp_path: Path) -> None:
    """Its boxes would show something else; a photograph stored on its side is of this kind."""
    path = written(tmp_path, document(2, [box(0, 1, 0, 0, 20, 20), box(1, 7, 0, 0, 20, 20)], width=60, height=90))
    store = sources.load(DataConfig(source=str(path), boxes=True), for_testing=True).store
    for look in (store.image, store.picture):
        with pytest.raises(UnreadableImage, match=r"is 90 x 60 pixels, and its boxes are for 60 x 90"):
            look("img/0.png#0,0,20,20")


def test_boxes_of_an_image_stay_in_one_split(tmp_path: Path) -> None:
    notes = [box(k, 1 if k % 4 else 7, 20 * n, 0, 20, 20) for k in range(20) for n in range(1 + k % 3)]
    dataset = sources.load(DataConfig(source=str(written(tmp_path, document(20, notes))), boxes=True, val_share=0.2))
    files = {name: set(map(boxes.file_of, split.keys)) for name, split in dataset.splits.items()}
    assert set(files) == {"train", "val", "test"} and sum(map(len, files.values())) == 20
    assert sum(len(split) for split in dataset.splits.values()) == len(notes)
    assert "training boxes were set aside" in " ".join(dataset.notes)


def test_no_class_loses_all_of_its_rows() -> None:
    """A class that is nowhere the rarest one of its image."""
    labels, wholes = [0, 1, 2, 0, 1, 2, 3, 3, 3], ["a", "a", "a", "b", "b", "b", "a", "b", "c"]
    for seed in range(20):
        away = splits.held_out_wholes(labels, wholes, 0.5, seed)
        left = [labels[i] for i in range(len(labels)) if i not in set(away.tolist())]
        assert set(left) == set(labels)
        assert (
            len({wholes[i] for i in away} & {wholes[i] for i in range(len(labels)) if i not in set(away.tolist())}) == 0
        )


def test_an_image_in_two_splits_is_told(tmp_path: Path) -> None:
    notes = [box(0, 1, 0, 0, 20, 20), box(1, 7, 0, 0, 20, 20)]
    train = written(tmp_path, document(2, notes))
    written(tmp_path, document(2, [box(0, 1, 30, 30, 20, 20), box(1, 7, 40, 30, 20, 20)]), "instances_val.json")
    said = " ".join(sources.load(DataConfig(source=str(train), boxes=True)).notes)
    assert "2 images have boxes in several splits: 'img/0.png', 'img/1.png'" in said
    assert "Splits were read as train from instances_train.json, val from instances_val.json" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"source": "photos", "boxes": True}, "only COCO's and LVIS's annotations"),
        ({"source": "t.json", "box_margin": 0.1}, "data.box_margin was given without data.boxes=true"),
        ({"source": "t.json", "box_least": 4}, "data.box_least was given without"),
    ],
)
def test_keys_that_mean_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        sources.load(DataConfig(**settings))


def test_missing_images_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, document(2, [box(0, 1, 0, 0, 20, 20), box(0, 1, 0, 30, 20, 20), box(1, 7, 0, 0, 20, 20)]))
    (tmp_path / "img" / "0.png").unlink()
    with pytest.raises(UserError, match=r"1 of the 2 images that instances_train\.json names does not exist"):
        sources.load(DataConfig(source=str(path), boxes=True))


def test_a_run_on_boxes(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inspect, train and test by the command line; predictions name image and box, groups by frequency are measured."""
    monkeypatch.setitem(CATEGORIES[0], "frequency", "f")
    monkeypatch.setitem(CATEGORIES[1], "frequency", "r")
    notes = [box(k, 1 if k % 3 else 7, 30 * n, 10, 28, 40) for k in range(9) for n in range(2)]
    path = written(tmp_path, document(9, notes))
    given = ("data.boxes=true", "data.test_share=0.3")
    ended = command("data", "inspect", "--data", path, *given)
    assert ended.code == 0 and "widths: 28 to 28" in ended.out, ended.err
    ended = command(
        "train",
        "--data",
        path,
        "--method",
        "closed_form",
        "--out",
        "run",
        *given,
        "tte=false",
        "workers=0",
        "device=cpu",
    )
    assert ended.code == 0, ended.err
    assert "img/" in (tmp_path / "run" / "predictions.csv").read_text()
    assert "#0,10,28,50" in (tmp_path / "run" / "predictions.csv").read_text()
    ended = command("eval", "run", "workers=0", "device=cpu", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    with (tmp_path / "run" / "per_class.csv").open(newline="") as stream:
        table = {row["name"]: row for row in csv.DictReader(stream)}
    assert {name: row["frequency"] for name, row in table.items()} == {"cat": "frequent", "rare bird": "rare"}
    assert found["frequent"] == pytest.approx(float(table["cat"]["accuracy"]), abs=0.01) and found["common"] is None
    assert found["rare"] == pytest.approx(float(table["rare bird"]["accuracy"]), abs=0.01)
    other = tmp_path / "other"
    other.mkdir()
    elsewhere = written(other, document(9, notes))
    ended = command("eval", "run", "--data", elsewhere, "workers=0", "device=cpu", "--json")
    assert ended.code == 0 and json.loads(ended.out)["images"] == len(notes), ended.err
    assert "#0,10,28,50" in (tmp_path / json.loads(ended.out)["folder"] / "predictions.csv").read_text()
    assert command("prepare", "--data", path, "--out", "packed", *given).code == 0
    ended = command("eval", "run", "--data", "packed", "workers=0", "device=cpu", "--json")
    assert ended.code == 0 and "frequent" in json.loads(ended.out), ended.err
    ended = command("eval", "run", "workers=0", "device=cpu")
    assert all(word in ended.out for word in ("frequent", "common", "rare")), ended.out
