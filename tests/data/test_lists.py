"""Lists of "path label" lines and tables of path, label and split."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from liftplus.data import lists, manifest, parquet
from liftplus.errors import UserError


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_spaces_crlf_and_marks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeff./my cats/white one.jpg 0\r\n\r\nb.jpg\t007\r\n")
    assert lists.read_list(path) == [("my cats/white one.jpg", "0"), ("b.jpg", "7")]


@pytest.mark.parametrize("line", ["a.jpg", "my cat.jpg", "a.jpg,3", "a.jpg cat", "a.jpg 1.5"])
def test_line_without_label(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "a.txt", f"ok.jpg 1\n{line}\n")
    with pytest.raises(UserError, match=r"a\.txt, line 2 has no label"):
        lists.read_list(path)


def test_other_faults(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1 has the label -1"):
        lists.read_list(write(tmp_path / "a.txt", "a.jpg -1"))
    with pytest.raises(UserError, match="at most 18 characters"):
        lists.read_list(write(tmp_path / "a.txt", "a.jpg " + "1" * 5000))
    with pytest.raises(UserError, match="is empty"):
        lists.read_list(write(tmp_path / "a.txt", "\n\n"))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xfa 1")
    with pytest.raises(UserError, match="not UTF-8"):
        lists.read_list(tmp_path / "b.txt")


def test_find(tmp_path: Path) -> None:
    for name in ("ImageNet_LT_train.txt", "ImageNet_LT_val.txt", "train.txt", "valid.txt", "lonely_test.txt"):
        write(tmp_path / name, "a.jpg 1\n")
    write(tmp_path / "notes_train.txt", "this is prose\n")
    write(tmp_path / "constrain.txt", "a.jpg 1\n")
    found = lists.find(tmp_path)
    assert set(found) == {"ImageNet_LT_", ""}
    assert {split: path.name for split, path in found[""].items()} == {"train": "train.txt", "val": "valid.txt"}


def test_siblings(tmp_path: Path) -> None:
    for name in ("train2018.json", "val2018.json", "pets_train.txt", "pets_test.txt", "list.txt"):
        write(tmp_path / name, "a.jpg 0\n")
    assert lists.siblings(tmp_path / "train2018.json")["val"].name == "val2018.json"
    assert set(lists.siblings(tmp_path / "pets_train.txt")) == {"train", "test"}
    assert set(lists.siblings(tmp_path / "pets_test.txt")) == {"train"}
    assert set(lists.siblings(tmp_path / "list.txt")) == {"train"}


@pytest.mark.parametrize(
    "text",
    [
        "path,label,split\na 1.jpg,big_cat,train\nb.jpg,dog,test\n",
        "\ufeffFilename;Class;Set\r\na 1.jpg;big_cat;training\r\nb.jpg;dog;testing\r\n",
        'extra\timage\tcategory\tsubset\n"x\ty"\ta 1.jpg\tbig_cat\tTrain\n2\tb.jpg\tdog\tTEST\n',
    ],
)
def test_csv(tmp_path: Path, text: str) -> None:
    table = manifest.read(write(tmp_path / "a.csv", text))
    assert table.rows == {"train": [("a 1.jpg", "big_cat")], "test": [("b.jpg", "dog")]}
    assert table.names == {"big_cat": "big cat", "dog": "dog"}


def test_csv_with_ids_and_names(tmp_path: Path) -> None:
    text = 'path,label,class_name\na.jpg,3.0,"crane, bird"\nb.jpg,5,crane (machine)\n'
    table = manifest.read(write(tmp_path / "a.csv", text))
    assert table.rows == {"train": [("a.jpg", "3"), ("b.jpg", "5")]}
    assert table.names == {"3": "crane, bird", "5": "crane (machine)"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,label\n", "no rows"),
        ("path,colour\na.jpg,red\n", "none for the label"),
        ("x,label\na.jpg,red\n", "none for the path"),
        ("path,label\na.jpg,\n", "line 2 has no label"),
        ("path,label\na.jpg,x\n,y\n", "line 3 has no path"),
        ("path,label,split\na.jpg,x,holdout\n", "the split 'holdout'"),
        ("path,label\na.jpg,x,y\n", "line 2 has 3 fields"),
        ("path,label\na.jpg,-1\nb.jpg,0\n", "the label -1"),
        ("path,label,name\na.jpg,1,cat\nb.jpg,1,dog\n", "calls class '1' 'dog'"),
        ('path,label\n"' + "x" * 200_000 + "\n", "stray quote"),
        # Without an end, the quote would make the rest of the file one label, and two rows one.
        ('path,label\na.jpg,"cat\nb.jpg,dog\n', "stray quote"),
        ('path,label\na.jpg,"big" cat\n', "stray quote"),
        ("path,label,name\na.jpg,3,cat\nb.jpg,3.0,dog\n", "calls class '3' 'dog' and 'cat'"),
    ],
)
def test_csv_faults(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        manifest.read(write(tmp_path / "a.csv", text))
    assert "a.csv" in str(caught.value)


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"file": ["a.jpg", "b.jpg"], "label": [2.0, 4.0], "bytes": [b"\xff", b"\0"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert parquet.read({"train": [tmp_path / "a.parquet"]})[0].rows == {"train": [("a.jpg", "2"), ("b.jpg", "4")]}
    pq.write_table(pa.table({"file": ["a.jpg", None], "label": ["x", "y"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="line 2 has no path"):
        parquet.read({"train": [tmp_path / "b.parquet"]})
    (tmp_path / "c.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        parquet.read({"train": [tmp_path / "c.parquet"]})


def test_parquet_in_a_folder_called_like_a_column(tmp_path: Path) -> None:
    folder = tmp_path / "split=holdout"
    folder.mkdir()
    pq.write_table(pa.table({"file": ["a.jpg"], "label": ["x"]}), folder / "a.parquet")
    assert parquet.read({"train": [folder / "a.parquet"]})[0].rows == {"train": [("a.jpg", "x")]}


def test_line_breaks_inside_quotes_stay(tmp_path: Path) -> None:
    text = 'path,label,class_name\r"a\r\nb.jpg",x,"one\r\ntwo"\r'
    table = manifest.read(write(tmp_path / "a.csv", text))
    assert table.rows == {"train": [("a\r\nb.jpg", "x")]}
    assert table.names == {"x": "one\r\ntwo"}


def test_folders_named_like_lists_are_no_lists(tmp_path: Path) -> None:
    (tmp_path / "train.txt").mkdir()
    assert lists.find(tmp_path) == {}


def test_siblings_of_a_part_of_the_training_data(tmp_path: Path) -> None:
    for name in ("train_mini.json", "val.json", "test2018.json", "notes.json"):
        write(tmp_path / name, "")
    paths = lists.siblings(tmp_path / "train_mini.json")
    assert {split: path.name for split, path in paths.items()} == {"train": "train_mini.json", "val": "val.json"}
    write(tmp_path / "val_mini.json", "")
    assert lists.siblings(tmp_path / "train_mini.json")["val"].name == "val_mini.json"


def test_lists_without_labels_are_left_out_and_told(tmp_path: Path) -> None:
    train = write(tmp_path / "train.txt", "a.jpg 0\nb.jpg 1\n")
    write(tmp_path / "test.txt", "c.jpg\nd.jpg\n")
    assert lists.siblings(train) == {"train": train}
    assert lists.read(lists.siblings(train)).notes == ("test.txt is no list of paths and labels, so it was left out.",)
    assert lists.find(tmp_path) == {"": {"train": train}}
    with pytest.raises(UserError, match=r"test\.txt, line 1 has no label"):
        lists.read({"train": train, "test": tmp_path / "test.txt"})  # as it was asked for
