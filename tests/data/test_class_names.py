"""Files of class names: every form, every fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from liftplus.data import class_names, names_file
from liftplus.data.names_values import Names
from liftplus.errors import UserError

ODD = ["naïve 猫", "crane, bird", 'the "best"', "either/or", "🦎", "x" * 300]


def write(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
def test_lines(tmp_path: Path, end: str) -> None:
    assert names_file.read(write(tmp_path / "n.txt", "\ufeff" + "\r\n".join(ODD) + end)) == Names(tuple(ODD))


def test_mappings(tmp_path: Path) -> None:
    expected = {str(i): name for i, name in enumerate(ODD)}
    rows = "".join('{},"{}"\n'.format(i, name.replace('"', '""')) for i, name in expected.items())
    assert names_file.read(write(tmp_path / "n.csv", "id,name\n" + rows)).by_id == expected
    assert names_file.read(write(tmp_path / "m.csv", rows)).by_id == expected
    assert names_file.read(write(tmp_path / "n.json", json.dumps(expected))).by_id == expected
    toml = "[names]\n" + "".join(f"{i} = {json.dumps(name, ensure_ascii=False)}\n" for i, name in expected.items())
    assert names_file.read(write(tmp_path / "n.toml", toml)).by_id == expected
    assert names_file.read(write(tmp_path / "l.json", json.dumps(ODD))).lines == tuple(ODD)
    assert names_file.read(write(tmp_path / "one.csv", "name\ncat\ndog\n")).lines == ("cat", "dog")


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
        names_file.read(write(tmp_path / name, text))
    assert name in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(UserError, match=r"nowhere\.txt cannot be read"):
        names_file.read("nowhere.txt")


def test_matching_lines_to_ids() -> None:
    def match(ids: list[str], lines: list[str]) -> dict[str, str]:
        return class_names.from_lines(ids, lines, "names.txt").names

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
    assert class_names.from_mapping(["b"], {"a": "x", "b": "y"}, "n.csv").names == {"b": "y"}
    with pytest.raises(UserError, match="no name for 1 of 2 class ids: 'c'"):
        class_names.from_mapping(["b", "c"], {"b": "y"}, "n.csv")


def test_duplicates_name_both_classes() -> None:
    with pytest.raises(UserError, match=r"'rocket' and 'Rocket' have the same name 'Missile'.*data\.class_names"):
        class_names.check({"rocket": "missile ", "1": "x", "Rocket": "Missile"})
    with pytest.raises(UserError, match="line 1 and line 3"):
        class_names.from_lines(["crane"], ["crane", "x", "crane"], "names.txt")
    with pytest.raises(UserError, match="Class '3' has an empty name"):
        class_names.check({"3": " "})


def test_padded_numbers_are_line_numbers() -> None:
    found = class_names.from_lines(["000", "002"], ["a", "b", "c"], "names.txt").names
    assert found == {"000": "a", "1": "b", "002": "c"}
    with pytest.raises(UserError, match="3 class names, but the data have 2 classes"):
        class_names.from_lines(["1" * 5000, "2"], ["a", "b", "c"], "names.txt")


def test_wordnet_ids_before_names() -> None:
    """The papers' ImageNet list names each class by its folder first, and the lists number them."""
    lines = ["n01440764 tench", "n01443537 goldfish", "n01484850 great white shark"]
    numbered = class_names.from_lines(["0", "1", "2"], lines, "names.txt").names
    assert numbered == {"0": "tench", "1": "goldfish", "2": "great white shark"}
    by_folder = class_names.from_lines(["n01440764", "n01484850"], lines, "names.txt").names
    assert by_folder["n01484850"] == "great white shark"


BIRDS = {"0": "barn owl", "1": "wryneck", "2": "kingfisher"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "id;name\n0;barn owl\n1;wryneck\n2;kingfisher\n"),
        ("a.csv", "0;barn owl\n1;wryneck\n2;kingfisher\n"),
        ("a.csv", '"id";"name"\r\n"0";"barn owl"\r\n"1";"wryneck"\r\n"2";"kingfisher"\r\n'),
        ("a.csv", "ClassId,SignName\n0,barn owl\n1,wryneck\n2,kingfisher\n"),
        ("a.csv", "name,id\nbarn owl,0\nwryneck,1\nkingfisher,2\n"),
        ("a.csv", "barn owl,0\nwryneck,1\nkingfisher,2\n"),
        ("a.csv", ",name\n0,barn owl\n1,wryneck\n2,kingfisher\n"),
        ("a.csv", "id,name,count\n0,barn owl,4\n1,wryneck,4\n2,kingfisher,4\n"),
        ("a.csv", "0.0,barn owl\n1.0,wryneck\n2.0,kingfisher\n"),
        ("a.tsv", "id\tname\n0\tbarn owl\n1\twryneck\n2\tkingfisher\n"),
        ("a.txt", "id;name\n0;barn owl\n1;wryneck\n2;kingfisher\n"),
        ("a.txt", "0: barn owl\n1: wryneck\n2: kingfisher\n"),
        ("a.txt", "0,barn owl\n1,wryneck\n2,kingfisher\n"),
        ("a.txt", "0;barn owl\n1;wryneck\n2;kingfisher\n"),
        ("a.txt", "0\tbarn owl\n1\twryneck\n2\tkingfisher\n"),
        ("a.txt", "0=barn owl\n1=wryneck\n2=kingfisher\n"),
        ("a.txt", "0. barn owl\n1. wryneck\n2. kingfisher\n"),
        ("a.txt", "2 kingfisher\n0 barn owl\n1 wryneck\n"),
        ("a.txt", "0 - barn owl\n1 - wryneck\n2 - kingfisher\n"),
        ("a.txt", "0 -> barn owl\n1 -> wryneck\n2 -> kingfisher\n"),
        ("a.txt", "[0] barn owl\n[1] wryneck\n[2] kingfisher\n"),
        ("a.txt", "(0) barn owl\n(1) wryneck\n(2) kingfisher\n"),
        ("a.txt", "class 0: barn owl\nclass 1: wryneck\nclass 2: kingfisher\n"),
        ("a.txt", "/b/barn owl 0\n/w/wryneck 1\n/k/kingfisher 2\n"),
        ("a.txt", "{0: 'barn owl',\n 1: 'wryneck',\n 2: 'kingfisher'}\n"),
        ("a.txt", "{\n0: 'barn owl',\n1: \"wryneck\",\n2: 'kingfisher',\n}\n"),
        ("a.txt", "0: 'barn owl',\n1: 'wryneck',\n2: 'kingfisher',\n"),
        ("a.txt", "['barn owl', 'wryneck', 'kingfisher']\n"),
        ("a.txt", '"barn owl",\n"wryneck",\n"kingfisher"\n'),
        ("a.txt", "- barn owl\n- wryneck\n- kingfisher\n"),
        ("a.txt", "# birds of the garden\nbarn owl\nwryneck\nkingfisher\n"),
        ("a.txt", "name\nbarn owl\nwryneck\nkingfisher\n"),
        ("a.yaml", "names:\n  0: barn owl\n  1: wryneck\n  2: kingfisher\n"),
        ("a.json", '{"0": ["n01", "barn owl"], "1": ["n02", "wryneck"], "2": ["n03", "kingfisher"]}'),
        ("a.json", '{"barn owl": 0, "wryneck": 1, "kingfisher": 2}'),
        ("a.json", '{"id2label": {"0": "barn owl", "1": "wryneck", "2": "kingfisher"}, "label2id": {"barn owl": 0}}'),
        ("a.json", '[{"id": 0, "name": "barn owl"}, {"id": 1, "name": "wryneck"}, {"id": 2, "name": "kingfisher"}]'),
    ],
)
def test_every_form_that_people_write(tmp_path: Path, name: str, text: str) -> None:
    found = names_file.read(write(tmp_path / name, text))
    assert class_names.match(list(BIRDS), found, name).names == BIRDS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0: barn owl\nwryneck\n2: kingfisher\n", "line 2, 'wryneck', has no class id, but other lines have one"),
        ("{0: 'a', 0: 'b'}", "a class id twice"),
        ("0: a\n0: b\n1: c\n", "class '0' twice"),
        ("1: barn owl\n2: wryneck\n3: kingfisher\n", "no name for 1 of 3 class ids: '0'; it names '1', '2', '3'"),
    ],
)
def test_lines_with_ids_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_names.match(list(BIRDS), names_file.read(write(tmp_path / "a.txt", text)), "a.txt")


def test_numbers_within_names_are_no_ids(tmp_path: Path) -> None:
    for lines in (["Boeing 707", "Boeing 727"], ["type 1", "type 2", "type 3"], ["3 toed sloth", "2 toed sloth"]):
        assert names_file.read(write(tmp_path / "a.txt", "\n".join(lines))).lines == tuple(lines)


def test_ids_counted_from_one() -> None:
    four = ["barn owl", "wryneck", "kingfisher", "hoopoe"]
    with pytest.raises(UserError, match="class 1 is 'wryneck' if classes are counted from 0, and 'barn owl' if from 1"):
        class_names.from_lines(["1", "2", "3"], four, "names.txt")
    found = class_names.from_lines(["1", "3", "4"], four, "names.txt")
    assert found.names == {"1": "barn owl", "2": "wryneck", "3": "kingfisher", "4": "hoopoe"}
    assert found.notes == ("Classes are counted from 1: class 1 is line 1 of names.txt.",)
    assert class_names.from_lines(["0", "2"], four, "names.txt").names["2"] == "kingfisher"


def test_numbers_are_the_order_of_folders() -> None:
    found = class_names.from_mapping(["b", "a"], {"1": "bee", "0": "ant"}, "n.txt")
    assert found.names == {"b": "ant", "a": "bee"}  # 'b' is the first class here
    assert found.notes[-1] == "The numbers in n.txt were read as the order of the classes: 'b' is 'ant'."


@pytest.mark.parametrize("separator", [",", ";", ": ", "\t", " = ", " "])
def test_folder_and_name(separator: str) -> None:
    lines = [f"owl_b{separator}barn owl", f"wry{separator}wryneck, a bird"]
    assert class_names.from_lines(["owl_b", "wry"], lines, "n.txt").names == {
        "owl_b": "barn owl",
        "wry": "wryneck, a bird",
    }


def test_folders_before_names_are_no_part_of_them() -> None:
    """Places-LT's list in the papers' code; only its second words are names."""
    lines = ["airfield airfield", "airplane_cabin airplane_cabin", "arena-performance arena_performance"]
    found = class_names.from_lines(["0", "1", "2"], lines, "classnames.txt")
    assert found.names == {"0": "airfield", "1": "airplane_cabin", "2": "arena_performance"}
    assert found.notes == ("The lines of classnames.txt were read as folder and name: the first class is 'airfield'.",)
    tautonyms = ["Pica pica", "Bison bison"]
    assert list(class_names.from_lines(["0", "1"], tautonyms, "n.txt").names.values()) == tautonyms


def test_twins_of_the_published_names_are_told_apart_by_id() -> None:
    (note,) = class_names.check({"657": "missile", "744": "missile", "1": "x"})
    assert note.startswith("Several classes have one name: 'missile' (657, 744).")
    assert class_names.check({"657": "missile", "744": "projectile"}) == ()


def test_unicode_forms() -> None:
    composed, split = "caf\u00e9", "cafe\u0301"
    assert class_names.from_mapping([split], {composed: "coffee house"}, "n.csv").names == {split: "coffee house"}
    assert class_names.from_lines(["b", split], [composed, "b"], "n.txt").names == {split: composed, "b": "b"}
    for other in ("\uff23at", "c\u200bat", "CAT", "c at"):
        if other == "c at":
            assert class_names.check({"x": "cat", "y": other}) == ()
            continue
        with pytest.raises(UserError, match="same name"):
            class_names.check({"x": "cat", "y": other})
