"""Whatever a request holds, reading it gives files or one refusal."""

from __future__ import annotations

import base64
import json
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liftplus.serving.reading import LONGEST_NAME, Refused, Sent, read

from .conftest import form

CODED = base64.b64encode(bytes(1 << 18))
LARGE = {
    "a picture": b'{"images": [{"data": "%s"}]}' % CODED,
    "a name in wide letters": '{"images": [{"name": "😀", "data": "%s"}]}'.encode() % CODED,
    "data with spaces": b'{"images": [{"data": "%s"}]}' % b" ".join(CODED[k : k + 1] for k in range(len(CODED))),
    "data in wide letters": b'{"images": [{"data": "%s"}]}' % ("😀".encode() * (1 << 16)),
    "escapes": b'{"images": [{"data": "%s"}]}' % (b"\\u0041" * (1 << 16)),
    "lists": b"[" + b"[]," * (1 << 17) + b"[]]",
    "numbers": b'{"images": [%s1]}' % (b"1," * (1 << 17)),
    "names": b'{"images": [{%s"data": ""}]}' % b"".join(b'"%x":0,' % k for k in range(1 << 15)),
}

NAMES = st.text(st.characters(exclude_characters='"\\\r\n', exclude_categories=("Cs",)), min_size=1, max_size=300)
FILES = st.lists(st.tuples(NAMES, st.binary(max_size=300)), min_size=1, max_size=5)
TYPES = st.sampled_from(
    ["application/json", "multipart/form-data; boundary=edge", "multipart/form-data; boundary", "image/png", ";", ""]
)


@settings(max_examples=60)
@given(FILES)
def test_a_form_and_json_give_back_what_was_put_in(files: list[tuple[str, bytes]]) -> None:
    files = [(name, data.replace(b"--edge", b"")) for name, data in files]
    images = [{"name": name, "data": base64.b64encode(data).decode()} for name, data in files]
    expected = [Sent(name[:LONGEST_NAME], data) for name, data in files]
    assert read(json.dumps({"images": images}).encode(), "application/json; charset=utf-8", 5) == expected
    found = read(form(files), "multipart/form-data; boundary=edge", 5)
    assert [data for _, data in found] == [data for _, data in expected]
    for (name, _), (wanted, _) in zip(found, expected, strict=True):
        assert name == wanted or ":\\" in wanted or wanted.startswith("\\\\") or len(wanted.encode()) > 4 * LONGEST_NAME


@settings(max_examples=150)
@given(
    st.one_of(st.binary(max_size=400), FILES.map(form)),
    st.one_of(TYPES, st.text(st.characters(max_codepoint=255))),
    st.data(),
)
def test_nothing_but_a_refusal(body: bytes, kind: str, data: st.DataObject) -> None:
    if body and data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(body) - 1))
        body = body[:place] + data.draw(st.binary(max_size=5)) + body[place + data.draw(st.integers(0, 9)) :]
    found: list[Sent] | Refused
    try:
        found = read(body, kind, 5)
    except Refused as refused:
        found = refused
    if isinstance(found, Refused):
        assert found.status in (400, 413, 415) and str(found).endswith(".")
    else:
        assert 1 <= len(found) <= 5 and all(name for name, _ in found)


@pytest.mark.parametrize("kind", LARGE)
def test_json_takes_a_few_times_its_size_in_memory(kind: str) -> None:
    body = LARGE[kind]
    tracemalloc.start()
    with suppress(Refused):
        read(body, "application/json", 64)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 7 * len(body), f"{most / len(body):.1f} times"
