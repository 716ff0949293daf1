"""Tables as competitions, pandas and Hugging Face write them: each picture once, each class once, or one sentence."""

from __future__ import annotations

import gc
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet
from liftplus.data.identity import identity
from liftplus.data.parquet import ParquetStore
from liftplus.data.sources import load
from liftplus.errors import UserError

Grow = Callable[[Path, dict[str, int]], Path]
LABELS = ["cat"] * 6 + ["dog"] * 4


def loaded(source: Path, **keys: object) -> DataSet:
    return load(DataConfig(source=str(source), **keys))  # type: ignore[arg-type]


def totals(dataset: DataSet) -> dict[str, int]:
    every = zip(*(dataset.counts(split) for split in dataset.splits), strict=True)
    return dict(zip(dataset.class_names, map(sum, every), strict=True))


@pytest.fixture
def ten(tmp_path: Path, grow: Grow) -> Path:
    return grow(tmp_path, {".": 10})


def csv(folder: Path, header: str, *rows: object) -> Path:
    (folder / "t.csv").write_text("\n".join([header, *map(str, rows)]) + "\n")
    return folder / "t.csv"


def test_rows_of_one_picture_count_once(ten: Path) -> None:
    dataset = loaded(csv(ten, "path,label", *(f"{k}.png,{LABELS[k]}" for k in range(10) for _ in range(3))))
    assert totals(dataset) == {"cat": 6, "dog": 4}
    assert not set(dataset.splits["train"].keys) & set(dataset.splits["test"].keys)
    assert dataset.notes[0].startswith("20 rows that repeat a picture were left out, so that each picture counts once:")
    tested = load(DataConfig(source=str(ten / "t.csv")), for_testing=True)
    assert len(tested.splits["test"]) == 10


@pytest.mark.parametrize("other", ["./0.png", "x/../0.png", "{here}/0.png", ".//0.png"])
def test_one_picture_under_two_paths(ten: Path, other: str) -> None:
    rows = [f"{k}.png,{LABELS[k]}" for k in range(10)]
    dataset = loaded(csv(ten, "path,label", *rows, f"{other.format(here=ten)},cat"))
    assert totals(dataset) == {"cat": 6, "dog": 4}


@pytest.mark.parametrize("split", ["", ",test"])
def test_two_labels_of_one_picture_are_refused(ten: Path, split: str) -> None:
    rows = [f"{k}.png,{LABELS[k]}{',train' if split else ''}" for k in range(10)]
    path = csv(ten, f"path,label{',split' if split else ''}", *rows, f"0.png,dog{split}")
    with pytest.raises(UserError, match=r"several labels to 1 of 10 pictures: first '0\.png', which has 'cat', 'dog'"):
        loaded(path)


def test_a_picture_in_two_splits_is_told(ten: Path) -> None:
    rows = [f"{k}.png,{LABELS[k]},train" for k in range(10)]
    dataset = loaded(csv(ten, "path,label,split", *rows, "0.png,cat,test", "9.png,dog,test"))
    assert "2 pictures are in train and test at once, first '0.png'" in dataset.notes[0]
    assert dataset.counts("test") == (1, 1)


def test_annotations_of_one_picture_count_once(ten: Path) -> None:
    content = {
        "images": [{"id": k, "file_name": f"{k}.png"} for k in range(10)],
        "annotations": [{"image_id": k, "category_id": 1 + (k > 5)} for k in range(8) for _ in range(3)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (ten / "a.json").write_text(json.dumps(content))
    dataset = loaded(ten / "a.json")
    assert totals(dataset) == {"cat": 6, "dog": 2}
    assert dataset.notes[0] == "2 pictures of a.json have no annotation: '8.png', '9.png'."
    content["annotations"].append({"image_id": 0, "category_id": 2})
    (ten / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="several labels to 1 of 8 pictures"):
        loaded(ten / "a.json")


def test_names_without_ending(ten: Path) -> None:
    path = csv(ten, "id_code,diagnosis", *(f"{k},{LABELS[k]}" for k in range(10)))
    dataset = loaded(path)
    assert totals(dataset) == {"cat": 6, "dog": 4} and dataset.splits["train"].keys[0].endswith(".png")
    assert dataset.notes[0].startswith("10 names in t.csv have no ending, or another than the file that was taken")
    (ten / "3.jpg").write_bytes((ten / "3.png").read_bytes())
    with pytest.raises(UserError, match=r"names '3', and several files fit: '3\.jpg', '3\.png'; write the ending"):
        loaded(path)
    with pytest.raises(UserError, match=r"first .*0\.gif; .*0\.png does, so write its ending"):
        loaded(csv(ten, "path,label", *(f"{k}.gif,{LABELS[k]}" for k in range(10))))
    assert totals(loaded(csv(ten, "path,label", "0.PNG,a", "1.png,b")))["a"] == 1


def test_a_column_for_each_class(ten: Path) -> None:
    """ISIC's form."""
    path = csv(ten, "image,MEL,NV", *(f"{k},{1.0 * (k < 6)},{1.0 * (k > 5)}" for k in range(10)))
    assert totals(loaded(path)) == {"MEL": 6, "NV": 4}
    with pytest.raises(UserError, match="line 3 does not have exactly one 1"):
        loaded(csv(ten, "image,MEL,NV", "0,1,0", "1,1,1"))


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (
            ",filename,label,name",
            ["0,0.png,cat,IMG_0", "1,1.png,cat,IMG_1"],
            "The column 'name' was taken for the names",
        ),
        ("0.png,cat", ["1.png,dog"], "The first line seems to be a row"),
        ("path,label", ["0.png,1", "1.png,0", "2.png,nan"], "label 'nan' among numbers"),
        ("path,label", ["0.png,Cat", "1.png,cat"], "'Cat' and 'cat' have the same name"),
    ],
)
def test_headers_and_labels_that_mislead(ten: Path, header: str, rows: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        loaded(csv(ten, header, *rows))


def test_what_was_chosen_is_said(ten: Path) -> None:
    dataset = loaded(csv(ten, ",path,label,class_id", "7,0.png,cat,0", "8,1.png,dog,1"))
    assert dataset.notes[0] == "The label is in column 'label' of t.csv, not in 'class_id'."
    dataset = loaded(csv(ten, "path,label", "0.png,cat", "1.png,nan"))
    assert dataset.notes[0] == "One class of t.csv is called 'nan', which often stands for a missing label."
    dataset = loaded(csv(ten, "path,label", "0.png,01", "1.png,1", "2.png,2"))
    assert dataset.notes[0] == "Labels of equal value are one class: '01' and '1'."
    dataset = loaded(csv(ten, "path,label", "0.png,caf\u00e9", "1.png,cafe\u0301", "2.png,b"))
    assert totals(dataset) == {"b": 1, "caf\u00e9": 2} and "Unicode form" in dataset.notes[0]


def test_json_lines_and_records(ten: Path) -> None:
    rows = [{"file_name": f"{k}.png", "label": LABELS[k], "box": [0, k]} for k in range(10)]
    lines = "\n".join(map(json.dumps, rows))
    for name, text in {"t.jsonl": lines, "t.json": lines, "u.json": json.dumps(rows, indent=1)}.items():
        (ten / name).write_text(text)
        assert totals(loaded(ten / name)) == {"cat": 6, "dog": 4}
    for value, message in ((None, "has no label"), (["cat", "dog"], "a picture has one class here")):
        (ten / "t.jsonl").write_text(json.dumps({"file_name": "0.png", "label": value}))
        with pytest.raises(UserError, match=message):
            loaded(ten / "t.jsonl")


LABEL_OF = {f"{j}.png": "cat" if j < 6 else "dog" for j in range(10)}
ROWS = [{"file_name": path, "class": label} for path, label in LABEL_OF.items()]


@pytest.mark.parametrize(
    "content",
    [
        LABEL_OF,
        {path.removesuffix(".png"): label for path, label in LABEL_OF.items()},  # names without ending
        {f"./{path}": [label] for path, label in LABEL_OF.items()},
        {"labels": LABEL_OF},
        {"data": ROWS},
        {"labels": [[path, label] for path, label in LABEL_OF.items()]},  # as StyleGAN's dataset.json
        [[path, label] for path, label in LABEL_OF.items()],
        {name: [f"{k}" for k in range(10) if LABELS[k] == name] for name in ("cat", "dog")},  # as Food-101's train.json
        {path: {"class": label, "width": 24} for path, label in LABEL_OF.items()},
        {str(number): row for number, row in enumerate(ROWS)},  # pandas, orient="index"
        {head: {str(k): row[head] for k, row in enumerate(ROWS)} for head in ROWS[0]},  # pandas by default
        {head: [row[head] for row in ROWS] for head in ROWS[0]},
        {"columns": list(ROWS[0]), "index": list(range(10)), "data": [list(row.values()) for row in ROWS]},
        {name: [path for path, label in LABEL_OF.items() if label == name] for name in ("cat", "dog")},
    ],
)
def test_json_that_maps(ten: Path, content: object) -> None:
    for indent in (None, 1):
        (ten / "labels.json").write_text(json.dumps(content, indent=indent))
        dataset = loaded(ten / "labels.json")
        assert dataset.class_names == ("cat", "dog")
        assert [sum(dataset.counts(split)[k] for split in dataset.splits) for k in (0, 1)] == [6, 4]
    dataset.store.image(dataset.splits["train"].keys[0])


def test_json_maps_of_splits(ten: Path) -> None:
    parts = {"train": [0, 1, 6, 7], "val": [2, 8], "test": [3, 9]}
    maps = {split: {f"{j}.png": LABEL_OF[f"{j}.png"] for j in numbers} for split, numbers in parts.items()}
    lists = {split: [{"path": f"{j}.png", "label": LABEL_OF[f"{j}.png"]} for j in parts[split]] for split in parts}
    for content in (maps, lists):
        (ten / "x.json").write_text(json.dumps(content))
        dataset = loaded(ten / "x.json")
        assert {split: dataset.counts(split) for split in parts} == {"train": (2, 2), "val": (1, 1), "test": (1, 1)}
    for split, content in maps.items():
        (ten / f"{split}.json").write_text(json.dumps(content))
    assert {split: loaded(ten / "train.json").counts(split) for split in parts} == {
        "train": (2, 2),
        "val": (1, 1),
        "test": (1, 1),
    }


def test_json_maps_are_checked_as_tables_are(ten: Path) -> None:
    pairs = [f'"{path}": "{label}"' for path, label in LABEL_OF.items()]
    refused = {
        "{" + ", ".join([*pairs, '"0.png": "dog"']) + "}": "several labels to 1 of 10 pictures: first '0.png'",
        "{" + ", ".join([*pairs, '"gone.png": "dog"']) + "}": "1 of the 11 images that x.json names does not exist",
        "{" + ", ".join([*pairs, '"10.png": null']) + "}": "has no label",
        "{" + ", ".join([*pairs, '"10.png": ["cat", "dog"]']) + "}": "a picture has one class here",
        "{}": "is not in iNaturalist's form",
    }
    for text, said in refused.items():
        (ten / "x.json").write_text(text)
        with pytest.raises(UserError) as caught:
            loaded(ten / "x.json")
        assert said in str(caught.value), caught.value
    (ten / "x.json").write_text("{" + ", ".join([*pairs, pairs[0]]) + "}")
    assert loaded(ten / "x.json").notes[0].startswith("1 row that repeats a picture was left out")
    with pytest.raises(UserError, match="only iNaturalist's annotations"):
        load(DataConfig(source=str(ten / "x.json"), level="genus"))


def test_metadata_in_a_folder(tmp_path: Path, grow: Grow) -> None:
    grow(tmp_path, {"train": 4, "test": 2})
    rows = [f"{split}/{k}.png,{'ab'[k % 2]}" for split, count in (("train", 4), ("test", 2)) for k in range(count)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    dataset = loaded(tmp_path)
    assert (dataset.counts(), dataset.counts("test")) == ((2, 2), (1, 1))
    (tmp_path / "metadata.csv").unlink()
    for split, count in (("train", 4), ("test", 2)):
        lines = [json.dumps({"file_name": f"{k}.png", "label": "ab"[k % 2]}) for k in range(count)]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(lines))
    dataset = loaded(tmp_path)
    assert (dataset.counts(), dataset.counts("test")) == ((2, 2), (1, 1))
    assert "'train/metadata.jsonl', 'test/metadata.jsonl'" in dataset.notes[0]


def test_metadata_without_classes_leaves_the_folders(tmp_path: Path, grow: Grow) -> None:
    grow(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "metadata.csv").write_text("file_name,caption\na/0.png,a picture\n")
    assert totals(loaded(tmp_path)) == {"a": 3, "b": 3}


def hugging_face(
    path: Path, png: Callable[..., bytes], labels: list[object], names: object = None, **more: str
) -> Path:
    """A table as the library `datasets` writes it; `more` renames columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [{"bytes": png((20 * k, 0, 0)), "path": f"{k}.png"} for k in range(len(labels))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(pictures, kind), more.get("label", "label"): labels})
    if names is not None:
        features = {"image": {"_type": "Image"}, more.get("label", "label"): {"names": names, "_type": "ClassLabel"}}
        about = json.dumps({"info": {"features": features}}).encode()
        table = table.replace_schema_metadata({b"huggingface": about})
    pq.write_table(table, path)
    return path


def test_pictures_in_parquet(tmp_path: Path, png: Callable[..., bytes]) -> None:
    path = hugging_face(tmp_path / "train-00000-of-00001.parquet", png, [0, 1] * 4)
    dataset = loaded(path)
    assert (dataset.class_ids, totals(dataset)) == (("0", "1"), {"0": 4, "1": 4})
    store, keys = dataset.store, [*dataset.splits["train"].keys, *dataset.splits["test"].keys]
    assert isinstance(store, ParquetStore)
    shades = [pickle.loads(pickle.dumps(store)).image(f"{path.name}/{row}").getpixel((0, 0)) for row in range(1, 9)]
    assert shades == [(20 * k, 0, 0) for k in range(8)]
    assert sorted(keys) == sorted(f"{path.name}/{row}" for row in range(1, 9))
    os.utime(path, (1, 1))
    plain = store.plain
    assert identity(store, keys) is None or len(str(identity(store, keys))) == 64
    del dataset, store
    gc.collect()
    assert not os.path.exists(plain)


def test_names_and_splits_of_hugging_face(tmp_path: Path, png: Callable[..., bytes]) -> None:
    data, names = tmp_path / "data", ["cat", "big_dog", "emu"]
    hugging_face(data / "train-00000-of-00002.parquet", png, [0, 1, 1], names)
    hugging_face(data / "train-00001-of-00002.parquet", png, [0, 1], names)
    hugging_face(data / "test-00000-of-00001.parquet", png, [1, 0], names)
    for source in (tmp_path, data, data / "train-00000-of-00002.parquet"):
        dataset = loaded(source)
        assert dataset.class_names == ("cat", "big dog", "emu")
        assert (dataset.counts(), dataset.counts("test")) == ((2, 3, 0), (1, 1, 0))
    hugging_face(data / "test-00000-of-00001.parquet", png, [-1, -1], names)
    assert "test-00000-of-00001.parquet has no labels and was left out." in " ".join(loaded(tmp_path).notes)
    (data / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"holds 1 of 2 tables, .*; number 1 is missing"):
        loaded(tmp_path)


def test_splits_whose_classes_were_numbered_apart_are_matched_by_name(
    tmp_path: Path, png: Callable[..., bytes]
) -> None:
    """Hugging Face's class_encode_column numbers each split alone (datasets 5.2.0, findings/)."""
    train, test = tmp_path / "train.parquet", tmp_path / "test.parquet"
    hugging_face(train, png, [0, 1, 2, 2], ["ant", "bee", "cat"])
    hugging_face(test, png, [1, 0, 1], ["ant", "cat"])
    dataset = loaded(tmp_path)
    assert dataset.class_ids == dataset.class_names == ("ant", "bee", "cat")
    assert (dataset.counts(), dataset.counts("test")) == ((1, 1, 2), (1, 0, 2))
    assert [dataset.class_names[k] for k in dataset.splits["test"].labels] == ["cat", "ant", "cat"]
    assert "The tables number their classes differently, so classes are matched by their names." in dataset.notes
    hugging_face(test, png, [1, 0], ["ant", "bee"])
    assert loaded(tmp_path).class_ids == ("0", "1", "2"), "the numbers agree"
    hugging_face(test, png, [1, 0], ["cat", "cat"])
    with pytest.raises(UserError, match="One table calls class '0' 'ant', another 'cat'; keep one name"):
        loaded(tmp_path)


def test_other_columns_of_parquet(tmp_path: Path, png: Callable[..., bytes]) -> None:
    path = tmp_path / "a.parquet"
    assert totals(loaded(hugging_face(path, png, [0, 1], ["a", "b"], label="fine_label"))) == {"a": 1, "b": 1}
    for labels, message in (
        ([0, None, 1], "line 2 has no label"),
        ([0.0, float("nan"), 1.0], "line 2 has no label"),
        ([[0, 1], [1, 0]], "a picture has one class here"),
    ):
        with pytest.raises(UserError, match=message):
            loaded(hugging_face(path, png, labels))
    with pytest.raises(UserError, match="columns 'image', 'colour', but none for the label") as caught:
        loaded(hugging_face(path, png, [0, 1], label="colour"))
    assert "PNG" not in str(caught.value)
    pq.write_table(pa.table({"image": [png(), None], "label": ["x", "y"]}), path)
    with pytest.raises(UserError, match="line 2 has no picture in column 'image'"):
        loaded(path)


def test_published_names_with_twins(tmp_path: Path, grow: Grow) -> None:
    """ImageNet has two classes 'missile'; the lists number them."""
    grow(tmp_path, {"p/n04008634": 2, "p/n03773504": 2, "p/n01440764": 2})
    (tmp_path / "names.txt").write_text("n01440764 tench\nn03773504 missile\nn04008634 missile\n")
    for source in (
        tmp_path / "p",
        csv(
            tmp_path,
            "path,label",
            *(f"p/{f}/{k}.png,{i}" for i, f in enumerate(("n01440764", "n03773504", "n04008634")) for k in (0, 1)),
        ),
    ):
        dataset = loaded(source, class_names=str(tmp_path / "names.txt"))
        assert dataset.class_names == ("tench", "missile", "missile")
        assert any(note.startswith("Several classes have one name: 'missile' (") for note in dataset.notes)


def test_headings_in_camel_case_and_excels_unicode_text(ten: Path) -> None:
    """ClassId and Path are GTSRB's headings."""
    text = "Width\tClassId\tPath\n" + "".join(f"24\t{LABELS[k]}\t{k}.png\n" for k in range(10))
    for encoding in ("utf-8", "utf-16"):
        (ten / "t.csv").write_text(text, encoding=encoding)
        assert totals(loaded(ten / "t.csv")) == {"cat": 6, "dog": 4}


@pytest.mark.parametrize("heading", ["is_valid", "fold", "Usage", "test", "isTrain"])
def test_a_column_that_may_say_a_split_is_told(ten: Path, heading: str) -> None:
    rows = [f"{k}.png,{LABELS[k]},{k % 2}" for k in range(10)]
    note = f"The column {heading!r} of t.csv may hold splits but was not read. To use it, call it 'split' "
    assert loaded(csv(ten, f"path,label,{heading}", *rows)).notes[0].startswith(note)
    assert not any("may hold splits" in text for text in loaded(csv(ten, "path,label,train_station", *rows)).notes)
