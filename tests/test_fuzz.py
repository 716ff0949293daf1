"""Whatever a file says, the answer is a result that is right or one UserError: never a traceback, never a lost row.

Each search runs short by default and long with the marker `slow`; both are the same on every machine.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liftplus import config
from liftplus.data import class_names, documents, inaturalist, lists, manifest, names_file, tables, tree
from liftplus.data.class_names import words
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet, Split, natural_key
from liftplus.data.sources import load
from liftplus.data.stores import FolderStore
from liftplus.errors import UserError
from liftplus.evaluation import results
from liftplus.evaluation.inference import TopK
from liftplus.evaluation.metrics import accuracies
from liftplus.model.head_init import class_prompts, described

T = TypeVar("T")
MISSING = ("nan", "none", "null", "na", "n/a", "<na>")
deep = pytest.mark.parametrize("examples", [60, pytest.param(1500, marks=pytest.mark.slow)])

NAMES = (
    *("naïve 猫", "crane, bird", 'the "best"', "either/or", "a\\b", "🦎👩\u200d👧", "x" * 300, "שלום", "\u202eevil"),
    *("..", ".", "../../etc/passwd", "/etc/passwd", "C:\\con", "CON", "nul.txt", "aux", "$(reboot)", "`id`", "; rm x"),
    *("<script>alert(1)</script>", "&amp;", "=1+1", "+SUM(A1)", "-2", "@x", "[red]b[/red]", "{}", "{0}", "%s", "#"),
    *("a\nb", "a\r\nb", "a\tb", "a\rb", "\x1b[31mred", "a\x00b", "'", '"', ",", ";", "null", "NaN", "1e5", "007", "９"),
)
SURROGATES = ("\udce9", "a\ud800", "\udfff b")
odd = st.one_of(st.sampled_from(NAMES), st.text(st.characters(codec="utf-8"), max_size=20))
digits = st.integers(0, 10**30).map(str) | st.just("1" * 5000)
scalars = odd | digits | st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(SURROGATES)
plain_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd, inner, max_size=4), max_leaves=8
)


def search(strategy: st.SearchStrategy[T], examples: int, body: Callable[[T], None]) -> None:
    """Run the body on many examples, the same every time."""
    wanted = settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    wanted(given(strategy)(body))()


def attempt(work: Callable[[], T]) -> T | None:
    """The result, or None where it was refused with a sentence; anything else fails the test."""
    try:
        return work()
    except UserError as error:
        if not str(error).rstrip().endswith((".", "}")):
            pytest.fail(f"no sentence: {error}")
        return None


@st.composite
def edited(draw: st.DrawFn, sources: tuple[str, ...]) -> bytes:
    """A well-formed file with pieces taken out, doubled or replaced, and perhaps bytes that are no text."""
    data = draw(st.sampled_from(sources)).encode()
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 12)))
        piece = draw(
            st.one_of(odd.map(str.encode), digits.map(str.encode), st.binary(max_size=4), st.just(data[start:end] * 2))
        )
        data = data[:start] + piece + data[end:]
    return data


TABLES = (
    "path,label,split\na 1.jpg,big_cat,train\nb.jpg,dog,test\n",
    '\ufefffile;class;name\r\n"a;1.jpg";0;"crane ""x"""\r\nb.jpg;1;y\r\n',
    "image\tlabel\na.jpg\t3.0\nb.jpg\t3\n",
)
LISTS = ("a b.jpg 0\nc.jpg 1\n", "\ufeffx/y.png\t12\r\n\r\n./z.png 3\r\n")
NAME_FILES = {
    ".txt": ("cat\ndog\n", "n01 cat\nn02 dog, hound\n"),
    ".csv": ('id,name\n0,cat\n1,"dog, hound"\n', "cat\ndog\n"),
    ".json": ('{"0": "cat", "1": "dog"}', '["cat", "dog"]', '{"names": {"0": "cat"}}'),
    ".toml": ('[names]\n0 = "cat"\n1 = "dog"\n', 'names = ["cat", "dog"]\n', "x = 1979-05-27T07:32:00Z\n"),
}
ANNOTATIONS = (
    json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
            "annotations": [{"image_id": 1, "category_id": 5}, {"image_id": 2, "category_id": 7}],
            "categories": [{"id": 5, "name": "cat", "genus": "Felis"}, {"id": 7, "name": "dog", "genus": "Canis"}],
        }
    ),
)
DESCRIPTORS = ('{"cat": ["a photo of a {}."], "dog": ["a {}", "one {}"]}',)


@deep
def test_tables_that_are_damaged(tmp_path: Path, examples: int) -> None:
    file = tmp_path / "a.csv"

    def body(data: bytes) -> None:
        file.write_bytes(data)
        table = attempt(lambda: manifest.read(file))
        if table is not None:
            assert 1 <= sum(map(len, table.rows.values())) <= data.count(b"\n") + data.count(b"\r") + 1
            attempt(lambda: class_names.check({label: table.names.get(label, label) for label in table.ids()}))

    search(edited(TABLES), examples, body)


@deep
def test_lists_that_are_damaged(tmp_path: Path, examples: int) -> None:
    file = tmp_path / "a.txt"

    def body(data: bytes) -> None:
        file.write_bytes(data)
        rows = attempt(lambda: lists.read_list(file))
        if rows is not None:
            lines = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
            assert len(rows) == sum(bool(line.strip()) for line in lines)
            assert all(label.isdecimal() for _, label in rows)

    search(edited(LISTS), examples, body)


@deep
@pytest.mark.parametrize("suffix", NAME_FILES)
def test_class_name_files_that_are_damaged(tmp_path: Path, suffix: str, examples: int) -> None:
    file = tmp_path / f"names{suffix}"

    def body(data: bytes) -> None:
        file.write_bytes(data)
        found = attempt(lambda: names_file.read(str(file)))
        for ids in (["0", "1"], ["cat", "dog"], ["n01", "n02"], ["1" * 5000, "2"]):
            named = found and attempt(lambda ids=ids: class_names.match(ids, found, "names"))
            assert not named or set(ids) <= set(named.names)

    search(edited(NAME_FILES[suffix]), examples, body)


@deep
def test_annotations_of_any_content(tmp_path: Path, examples: int) -> None:
    file = tmp_path / "train2018.json"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        for level in (None, "genus"):
            table = attempt(lambda level=level: inaturalist.read({"train": file}, level))
            assert table is None or len(table.rows["train"]) == len(json.loads(data.decode("utf-8-sig"))["annotations"])

    search(edited(ANNOTATIONS), examples, read)
    whole = json.loads(ANNOTATIONS[0])
    entry = st.fixed_dictionaries(dict.fromkeys(("id", "file_name", "image_id", "category_id", "name"), scalars))
    tables = st.fixed_dictionaries({key: st.lists(entry, max_size=3) | plain_values for key in whole}) | plain_values
    search(tables, examples, lambda content: read(json.dumps(content).encode()))


@deep
def test_descriptors_of_any_content(tmp_path: Path, examples: int) -> None:
    file = tmp_path / "d.json"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        found = attempt(lambda: described(str(file), ["cat", "dog"]))
        assert found is None or (len(found) == 2 and all(text.strip() for own in found for text in own))

    search(edited(DESCRIPTORS), examples, read)
    search(plain_values, examples, lambda content: read(json.dumps(content).encode()))


@deep
def test_every_row_of_a_table_is_read(tmp_path: Path, examples: int) -> None:
    """CSV and Parquet say the same, and as many rows come out as went in, under the labels that went in."""

    def body(labels: list[str]) -> None:
        rows = [(f"{i} ,;.png", label) for i, label in enumerate(labels)]
        buffer = io.StringIO(newline="")
        csv.writer(buffer).writerows([("path", "label"), *rows])
        (tmp_path / "a.csv").write_bytes(buffer.getvalue().encode())
        pq.write_table(pa.table({"path": [p for p, _ in rows], "label": labels}), tmp_path / "a.parquet")
        wanted = Counter(label.strip() for label in labels)
        for name in ("a.csv", "a.parquet"):
            table = attempt(lambda name=name: tables.read({"train": tmp_path / name}, alone=False)[0])
            if table is None:
                # Missing, negative, a list of labels, or "null" among numbers.
                assert any(
                    not (plain := label.strip()) or plain[0] in "-[{" or plain.lower() in MISSING for label in labels
                )
            elif not all(label.strip().lstrip("+-").replace(".", "").isdigit() for label in labels):
                assert Counter(label for _, label in table.rows["train"]) == wanted
                assert all(table.names[label] == words(label) for label in wanted)
            assert table is None or len(table.rows["train"]) == len(rows)

    search(st.lists(odd | digits, min_size=1, max_size=6), examples, body)


@deep
def test_parquet_files_that_are_damaged(tmp_path: Path, examples: int) -> None:
    good, file = tmp_path / "good.parquet", tmp_path / "a.parquet"
    pq.write_table(pa.table({"path": [f"{i}.png" for i in range(9)], "label": ["cat", "dog", "猫"] * 3}), good)
    data = good.read_bytes()

    def body(case: tuple[int, int, int]) -> None:
        place, flip, end = case
        spoiled = bytearray(data)
        spoiled[place] ^= flip
        file.write_bytes(spoiled[:end])
        table = attempt(lambda: tables.read({"train": file}, alone=False)[0])
        assert table is None or len(table.rows["train"]) == 9

    ends = st.just(len(data)) | st.integers(0, len(data))
    search(st.tuples(st.integers(0, len(data) - 1), st.integers(1, 255), ends), examples, body)


@deep
def test_overrides_of_any_kind(examples: int) -> None:
    values = config.resolve().to_dict()
    keys = st.sampled_from([key for key in config.flat(config.from_dict(values)) if key != "method"]) | odd
    given_values = st.one_of(
        odd, digits, st.sampled_from(["[" * 100_000, "1e999", "NaN", "-Infinity", "null", "true", "", *SURROGATES])
    ) | plain_values.map(json.dumps)

    def body(case: tuple[str, str, str]) -> None:
        key, equals, value = case
        run = attempt(lambda: config.changed(values, [f"{key}{equals}{value}"]))
        assert run is None or config.from_dict(run.to_dict()) == run

    search(st.tuples(keys, st.sampled_from(["=", "=", "=", " = ", ""]), given_values), examples, body)


@deep
def test_configurations_of_any_content(examples: int) -> None:
    whole = config.resolve().to_dict()

    def body(case: tuple[str, str, Any]) -> None:
        section, key, value = case
        attempt(lambda: config.from_dict(whole | {section: value}))
        if isinstance(whole.get(section), dict):
            attempt(lambda: config.from_dict(whole | {section: whole[section] | {key: value}}))

    sections = st.sampled_from(list(whole)) | odd
    leaves = sorted({leaf for part in whole.values() if isinstance(part, dict) for leaf in part})
    search(st.tuples(sections, st.sampled_from(leaves) | odd, plain_values), examples, body)
    search(plain_values, examples, lambda value: attempt(lambda: config.from_dict(value)) and None)


@deep
def test_every_listed_picture_is_counted_or_said(examples: int) -> None:
    part = st.sampled_from(
        ["train", "val", "test", "Train", "test_set", "a\\b", "cat", "dog", "..", "con", "", " ", "猫", "x" * 300]
    )
    paths = st.lists(st.lists(part, min_size=0, max_size=4), min_size=1, max_size=8, unique_by=tuple)

    def body(folders: list[list[str]]) -> None:
        images = sorted("/".join([*folder, f"{i}.png"]) for i, folder in enumerate(folders))
        found = attempt(lambda: tree.layout(images, ["train/bare", "cat"]))
        if found is not None:
            placed = [key for rows in found.rows.values() for key, _ in rows]
            assert len(set(placed)) == len(placed) and set(placed) <= set(images)
            assert sorted([*placed, *found.left_out]) == images
            told = [
                re.match(r"(\d+) images? (outside any class folder|in .*, which (is|are) no)", note)
                for note in found.notes
            ]
            assert sum(int(match[1]) for match in told if match) == len(found.left_out)
            assert {label for _, label in found.rows.get("train", [])} <= set(found.folders)

    search(paths, examples, body)


@deep
def test_names_reach_tables_unchanged_and_paths_never(tmp_path: Path, examples: int) -> None:
    def body(names: list[str]) -> None:
        n = len(names)
        split = Split([f"{i}/{name}.png" for i, name in enumerate(names)], list(range(n)))
        dataset = DataSet("d", tuple(names), tuple(names), {"test": split}, FolderStore(tmp_path))
        found = TopK(torch.arange(n)[:, None].flip(0), torch.full((n, 1), 0.5))
        guesses = found.classes[:, 0].numpy()
        counts = [30] * n
        metrics = accuracies(guesses, split.labels, counts)
        results.write_evaluation(tmp_path, dataset, split, found, metrics, counts, {})
        with (tmp_path / "per_class.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, strict=True))[1:]
        assert [row[2] for row in rows] == [row[1] for row in rows] == names
        with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
            assert [tuple(row[1:3]) for row in list(csv.reader(file))[1:]] == list(zip(names, names[::-1], strict=True))
        written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
        assert written == {"metrics.json", "per_class.csv", "confusion.csv", "predictions.csv"}

    search(st.lists(odd, min_size=2, max_size=5, unique=True) | st.just(list(NAMES)), examples, body)


def test_names_are_said_to_the_text_tower_as_they_are() -> None:
    prompts = class_prompts(config.resolve(overrides=["template=a {} b"]).head_init, NAMES)
    assert prompts == [[f"a {name.replace('_', ' ')} b"] for name in NAMES]


@pytest.mark.parametrize("name", [*SURROGATES, "", " ", "\n"])
def test_names_that_no_text_tower_reads_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"data\.class_names"):
        class_names.check({"7": name, "8": "x"})


def test_natural_order_is_total_on_any_text() -> None:
    search(
        st.lists(odd | digits | st.sampled_from(SURROGATES), unique=True, max_size=8),
        100,
        lambda words: None if len({str(natural_key(w)) for w in words}) == len(words) else pytest.fail(str(words)),
    )


@pytest.mark.parametrize("path", ["~nobody_here/x", "a\0b", "x" * 5000, "x/" * 3000])
def test_paths_that_cannot_be(path: str) -> None:
    for keys in ({"source": path}, {"source": "imagenet_lt", "root": path}, {"train_list": path}):
        with pytest.raises(UserError):
            load(DataConfig(**keys))
    for read in (names_file.read, lambda p: described(p, ["a"]), lambda p: documents.text(documents.place(p), "file")):
        with pytest.raises(UserError):
            read(path)
