"""Files of class names: every form, every fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from liftplus.data import class_names
from liftplus.errors import UserError

ODD = ["naïve 猫", "crane, bird", 'the "best"', "either/or", "🦎", "x" * 300]


def write(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
def test_lines(tmp_path: Path, end: str) -> None:
    assert class_names.read(write(tmp_path / "n.txt", "\ufeff" + "\r\n".join(ODD) + end)) == ODD


def test_mappings(tmp_path: Path) -> None:
    expected = {str(i): name for i, name in enumerate(ODD)}
    rows = "".join('{},"{}"\n'.format(i, name.replace('"', '""')) for i, name in expected.items())
    assert class_names.read(write(tmp_path / "n.csv", "id,name\n" + rows)) == expected
    assert class_names.read(write(tmp_path / "m.csv", rows)) == expected
    assert class_names.read(write(tmp_path / "n.json", json.dumps(expected))) == expected
    toml = "[names]\n" + "".join(f"{i} = {json.dumps(name, ensure_ascii=False)}\n" for i, name in expected.items())
    assert class_names.read(write(tmp_path / "n.toml", toml)) == expected
    assert class_names.read(write(tmp_path / "l.json", json.dumps(ODD))) == ODD
    assert class_names.read(write(tmp_path / "one.csv", "name\ncat\ndog\n")) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "cat\n\ndog\n", "line 2 is empty"),
        ("a.txt", "\n", "is empty"),
        ("a.csv", "id,name\n", "is empty"),
        ("a.csv", "0,crane, bird\n", "double quotes"),
        ("a.csv", "0,cat\n0,dog\n", "'0' twice"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", '{"0": 1}', "all as text"),
        ("a.json", "[]", "must hold"),
        ("a.json", '{"0": "cat", "1": "dog", "0": "cow"}', "the key '0' twice"),
        ("a.json", '{"0": ' + "1" * 5000 + "}", "not valid JSON"),
        ("a.json", "[" * 100_000, "not valid JSON"),
        ("a.toml", "x = " + "1" * 5000, "not valid TOML"),
        ("a.csv", '0,"cat\n1,dog\n', "stray quote"),
        ("a.toml", "x =", "not valid TOML"),
    ],
)
def test_faults(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        class_names.read(write(tmp_path / name, text))
    assert name in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(UserError, match=r"nowhere\.txt cannot be read"):
        class_names.read("nowhere.txt")


def test_matching_lines_to_ids() -> None:
    def match(ids: list[str], lines: list[str]) -> dict[str, str]:
        return class_names.from_lines(ids, lines, "names.txt")

    # The folder names themselves set the order, and may bring classes without images.
    assert match(["dog", "fire_truck"], ["Fire truck", "emu", "dog"]) == {
        "fire_truck": "Fire truck",
        "emu": "emu",
        "dog": "dog",
    }
    # Line number = list label, gaps included.
    assert match(["0", "2"], ["a", "b", "c"]) == {"0": "a", "1": "b", "2": "c"}
    # As many lines as classes: label order.
    assert match(["7", "9"], ["a", "b"]) == {"7": "a", "9": "b"}
    assert match(["n01", "n02"], ["tench", "goldfish"]) == {"n01": "tench", "n02": "goldfish"}
    with pytest.raises(UserError, match="3 class names, but the data have 2 classes"):
        match(["n01", "n02"], ["a", "b", "c"])


def test_mapping_must_cover_the_ids() -> None:
    assert class_names.from_mapping(["b"], {"a": "x", "b": "y"}, "n.csv") == {"b": "y"}
    with pytest.raises(UserError, match="no name for 1 of 2 class ids: 'c'"):
        class_names.from_mapping(["b", "c"], {"b": "y"}, "n.csv")


def test_duplicates_name_both_classes() -> None:
    with pytest.raises(UserError, match=r"'657' and '744' have the same name 'Missile'.*data\.class_names"):
        class_names.check({"657": "missile ", "1": "x", "744": "Missile"})
    with pytest.raises(UserError, match="line 1 and line 3"):
        class_names.from_lines(["crane"], ["crane", "x", "crane"], "names.txt")
    with pytest.raises(UserError, match="Class '3' has an empty name"):
        class_names.check({"3": " "})


def test_padded_numbers_are_line_numbers() -> None:
    found = class_names.from_lines(["000", "002"], ["a", "b", "c"], "names.txt")
    assert found == {"000": "a", "1": "b", "002": "c"}
    with pytest.raises(UserError, match="3 class names, but the data have 2 classes"):
        class_names.from_lines(["1" * 5000, "2"], ["a", "b", "c"], "names.txt")


def test_wordnet_ids_before_names() -> None:
    """The papers' ImageNet list names each class by its folder first, and the lists number them."""
    lines = ["n01440764 tench", "n01443537 goldfish", "n01484850 great white shark"]
    numbered = class_names.from_lines(["0", "1", "2"], lines, "names.txt")
    assert numbered == {"0": "tench", "1": "goldfish", "2": "great white shark"}
    by_folder = class_names.from_lines(["n01440764", "n01484850"], lines, "names.txt")
    assert by_folder["n01484850"] == "great white shark"
