"""A file of class names: lines, tables, JSON, TOML and Python dictionaries, in the forms that people write."""

from __future__ import annotations

import ast
import csv
import io
import re
import tomllib
from collections.abc import Sequence
from typing import Any

from liftplus.data import documents
from liftplus.data.dataset import listing
from liftplus.data.names_values import (
    HEADINGS,
    ID_COLUMNS,
    Names,
    are_ids,
    document,
    is_index,
    mapping_of,
    plain,
    roles_of,
)
from liftplus.errors import UserError
from liftplus.words import counted

_KEYED = re.compile(
    r"""(?:(?:class|label|id)[ _]?|\#)?  # class 0: owl
    (?P<open>[\[(]?)(?P<quote>['"]?)(?P<id>\d+|n\d{8})(?P=quote)
    (?(open)[\])]?)\s*
    (?:[:;,=|\t]>?|->|(?<=\s)[-–—](?=\s)|(?<=\d)[.)](?=\s)|(?<=[\])])(?=\s)|(?<=[\])]\s))
    \s*(?P<name>\S.*)""",
    re.ASCII | re.VERBOSE | re.IGNORECASE,
)


def read(path: str) -> Names:
    """The names in a file. Raises `UserError`: it cannot be read, or no reading fits all of it."""
    file = documents.place(path)
    data = documents.content(file, "class names file")
    suffix = file.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _table(documents.decoded(data, path), path)
    if suffix == ".json":
        return document(documents.json_value(documents.decoded(data, path), path, distinct=True), path)
    if suffix == ".toml":
        return document(_toml(documents.decoded(data, path), path), path)
    return parse(data, path)


def parse(data: bytes, origin: str) -> Names:
    """The names in a text: one a line, with an id before each or not; or one Python dictionary or list."""
    text = documents.decoded(data, origin)
    if text.lstrip()[:1] in ("{", "["):
        written = _python(text, origin)
        if written is not None:
            return document(written, origin)
    lines, notes = _without_comments(_lines(text, origin), origin)
    for reading in (_with_ids, _numbered_before, _numbered_behind):
        found = reading(lines, origin)
        if found is not None:
            return Names(found.lines, found.by_id, notes + found.notes)
    return Names(tuple(lines), notes=notes)


def _without_comments(lines: list[str], origin: str) -> tuple[list[str], tuple[str, ...]]:
    comments = [line for line in lines if line.startswith("# ")]
    if not 0 < len(comments) < len(lines):
        return lines, ()
    note = f"Lines of {origin} that start with '# ' are no classes: {listing(comments, 2)}."
    return [line for line in lines if line not in comments], (note,)


def _lines(text: str, origin: str) -> list[str]:
    """Lines without brackets, dashes and quotes of a list or dictionary; empty lines are allowed only at the end."""
    # Not splitlines(): it would also break at rare separators within a name.
    lines = [line.strip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{origin} is empty; write one class name a line, in label order.")
    if lines[0] in ("{", "[") and lines[-1] in ("}", "]", "};", "],"):
        lines = lines[1:-1]
    if len(lines) > 1 and re.fullmatch(r"\w+:", lines[0], re.ASCII):
        lines = lines[1:]  # YAML's key of the entries below
    if "" in lines:
        raise UserError(f"{origin}, line {lines.index('') + 1} is empty; every class needs a name.")
    if len(lines) > 1 and all(re.match(r"[-*] \S", line) for line in lines):
        lines = [line[2:].strip() for line in lines]
    if len(lines) > 1 and all(re.fullmatch(r"(['\"]).*\1,?", line) for line in lines):
        lines = [line.rstrip(",")[1:-1] for line in lines]
    return lines


def _with_ids(lines: Sequence[str], origin: str) -> Names | None:
    """Lines such as `0: barn owl`, `0,barn owl`, `0;barn owl`, `1. barn owl` and `0: 'barn owl',`."""
    found = [_KEYED.fullmatch(line.lstrip("{").strip()) for line in lines]
    if len(found) > 1 and found[0] is None and is_heading(lines[0]):
        return _with_heading(lines, origin)
    matched = [match for match in found if match]
    if len(matched) < max(1, len(lines) / 2):
        return None
    if len(matched) < len(lines):
        place = found.index(None)
        raise UserError(
            f"{origin}, line {place + 1}, {lines[place]!r}, has no class id, but other lines have one, as "
            f"{matched[0].string!r}. Give every line an id, or none."
        )
    return Names(by_id=mapping_of([(match["id"], _bare(match["name"])) for match in matched], origin))


def _with_heading(lines: Sequence[str], origin: str) -> Names | None:
    rest = _with_ids(lines[1:], origin)
    if rest is None or not rest.by_id:
        return None
    return Names(by_id=rest.by_id, notes=(*rest.notes, heading_note(lines[0], origin)))


def is_heading(line: str) -> bool:
    """Whether a line holds the headings of columns and no class."""
    cells = re.split(r"[:;,=\t|]", line)
    return len(cells) > 1 and all(plain(cell) in HEADINGS for cell in cells)


def heading_note(line: str, origin: str) -> str:
    """The note on a first line that is no class."""
    return f"The first line of {origin}, {line!r}, was taken for a heading."


def _numbered_before(lines: Sequence[str], origin: str) -> Names | None:
    """Lines such as `1 barn owl`, where the numbers are all from 0 or from 1 up."""
    return _numbered([line.split(None, 1) for line in lines], origin, "id name")


def _numbered_behind(lines: Sequence[str], origin: str) -> Names | None:
    """Lines such as `/b/barn_owl 1`, where the numbers are all from 0 or from 1 up."""
    names = [re.sub(r"^/[a-z]/", "", line) for line in lines]
    return _numbered([line.rsplit(None, 1)[::-1] for line in names], origin, "name id")


def _numbered(pairs: Sequence[Sequence[str]], origin: str, form: str) -> Names | None:
    if len(pairs) < 2 or any(len(pair) < 2 for pair in pairs) or not counts_up([pair[0] for pair in pairs]):
        return None
    if len({pair[1] for pair in pairs}) < len(pairs):  # "type 1", "type 2": the numbers are part of the names
        return None
    note = f"The lines of {origin} were read as {form!r}: {pairs[0][0]} is {pairs[0][1]!r}."
    return Names(by_id={str(int(number)): name for number, name in pairs}, notes=(note,))


def counts_up(numbers: Sequence[str]) -> bool:
    """Whether these are the whole numbers from 0 up or from 1 up, each once, in any order."""
    if not all(re.fullmatch(r"\d{1,9}", number, re.ASCII) for number in numbers):
        return False
    values = sorted(map(int, numbers))
    return values[:1] in ([0], [1]) and values == list(range(values[0], values[0] + len(values)))


def _bare(name: str) -> str:
    """Without a comma or brace behind, and without quotes around."""
    name = re.sub(r"\s*\}?\s*,?$", "", name) if name.rstrip(",} ")[-1:] in ("'", '"') else name.rstrip(",").rstrip()
    quoted = re.fullmatch(r"(['\"])(.*)\1", name)
    return quoted[2].replace("\\" + quoted[1], quoted[1]) if quoted else name


def _python(text: str, origin: str) -> Any:
    """A dictionary or list as Python or JSON writes it; None for other text."""
    try:
        tree = ast.parse(text.strip().rstrip(";"), mode="eval")
        content = ast.literal_eval(tree)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if isinstance(tree.body, ast.Dict) and len(content) < len(tree.body.keys):
        raise UserError(f"{origin} has a class id twice; keep one of them.")
    return content


def _table(text: str, origin: str) -> Names:
    rows = _rows(text, origin)
    heading = [plain(cell) for cell in rows[0]]
    below = rows[1:]
    known = set(heading) & HEADINGS
    starts_ids = len(heading) > 1 and are_ids([row[0] for row in below]) and not are_ids([rows[0][0]])
    has_heading = bool(below) and ((bool(known) and all(cell in HEADINGS | {""} for cell in heading)) or starts_ids)
    has_heading = has_heading or (bool(known & set(ID_COLUMNS)) and bool(known - set(ID_COLUMNS)) and bool(below))
    if not has_heading:
        if len(rows) == 1 and known and known == set(heading):
            raise UserError(f"{origin} is empty; write lines of class id and name.")
        return _columns(rows, (0, 1), min(2, len(rows[0])), origin, ())
    roles = roles_of(heading)
    notes = (heading_note(",".join(rows[0]), origin),) if not known else ()
    if len(heading) > 2:
        if roles is None:
            raise UserError(
                f"{origin} has the columns {', '.join(map(repr, rows[0]))}; call two of them 'id' and 'name'."
            )
        notes = (f"Columns {rows[0][roles[0]]!r} and {rows[0][roles[1]]!r} of {origin} give class ids and names.",)
    return _columns(below, roles or (0, 1), len(heading), origin, notes)


def _columns(rows: list[list[str]], roles: tuple[int, int], width: int, origin: str, notes: tuple[str, ...]) -> Names:
    if width == 1 and all(len(row) == 1 for row in rows):
        return Names(tuple(row[0].strip() for row in rows), notes=notes)
    pairs = []
    for number, row in enumerate(rows, 1):
        if len(row) != max(2, width):
            raise UserError(
                f"{origin}, entry {number} has {counted(len(row), 'field')} instead of class id and name; put a name "
                "with commas in double quotes."
            )
        pairs.append((row[roles[0]], row[roles[1]]))
    if is_index([name for _, name in pairs]) and not are_ids([label for label, _ in pairs]):
        pairs = [(name, label) for label, name in pairs]
        notes = (*notes, f"The second column of {origin} has the class ids, as {pairs[0][0]!r} for {pairs[0][1]!r}.")
    return Names(by_id=mapping_of(pairs, origin), notes=notes)


def _rows(text: str, origin: str) -> list[list[str]]:
    """Rows by the delimiter that gives all of them equally many fields, preferably with ids in the first column."""
    found: list[list[list[str]]] = []
    fault: UserError | None = None
    for delimiter in ",;\t|":
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            rows = [row for row in reader if any(map(str.strip, row))]
        except csv.Error as error:
            fault = fault or UserError(
                f"{origin}, line {reader.line_num} is damaged, perhaps by a stray quote: {error}."
            )
            fault.__cause__ = error
            continue
        found.append(rows)
    if not found or not found[0]:
        raise fault or UserError(f"{origin} is empty; write lines of class id and name.")
    even = [rows for rows in found if len(rows[0]) > 1 and len({len(row) for row in rows}) == 1]
    by_id = [rows for rows in even if are_ids([row[0] for row in rows[1:]])]
    chosen = next(iter([*by_id, *even]), None)
    if chosen is None and fault is not None:
        raise fault
    return chosen or found[0]


def _toml(text: str, origin: str) -> Any:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of over 4300 digits are a ValueError
        raise UserError(f"{origin} is not valid TOML: {error}.") from error
