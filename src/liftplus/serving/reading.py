"""From the body of a request to the image files in it, or one sentence why not."""

from __future__ import annotations

import binascii
import json
import logging
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from liftplus.words import counted

# The sender gets the reason; a log of it would only tell what strangers send.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

FORMS = (
    "Send one image file as the body, with the content type image/jpeg or another image type; files as "
    'multipart/form-data; or JSON, {"images": [{"name": "a.jpg", "data": "BASE64"}]}.'
)
LONGEST_NAME = 200
MARKS = 1000
"""Brackets, commas and colons that JSON may have for each picture that is allowed."""
LONGEST_HEADERS = 8192
"""Bytes of the headers of one part of a form."""


class Refused(Exception):  # noqa: N818 (it states what is the matter)
    """A request that is not answered; the message is one sentence or two for who sent it.

    Attributes:
        status: of HTTP, 4xx or 5xx.
    """

    def __init__(self, status: int, said: str) -> None:
        self.status = status
        super().__init__(said)


class Sent(NamedTuple):
    """An image file of a request, and its name there."""

    name: str
    data: bytes


def read(body: bytes, content_type: str, most: int) -> list[Sent]:
    """The image files in the body of a request, in their order.

    Args:
        content_type: as the header has it.
        most: the largest number of files.

    Raises:
        Refused: the body is damaged or holds no file or too many, or its type is not known.
    """
    kind, parameters = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        sent = _of_form(body, parameters.get(b"boundary", b""), most)
    elif kind == b"application/json":
        sent = _of_json(body, most)
    elif kind.startswith(b"image/") or kind == b"application/octet-stream":
        sent = [Sent("", body)]
    else:
        given = f"content type {_text(kind)!r}" if kind else "no content type"
        raise Refused(415, f"The request has {given}. {FORMS}")
    if not sent:
        raise Refused(400, f"The request holds no picture. {FORMS}")
    return [Sent(name or f"picture {number}", data) for number, (name, data) in enumerate(sent, 1)]


def _too_many(most: int) -> Refused:
    return Refused(413, f"The request has more than {counted(most, 'picture')}. Send the others in another request.")


def _of_json(body: bytes, most: int) -> list[Sent]:
    # Each of these begins a value, which takes many times its bytes in memory.
    if sum(body.count(mark) for mark in (b"[", b"{", b",", b":")) > MARKS * most:
        raise Refused(400, f"The JSON holds more values than {counted(most, 'picture')} can have. {FORMS}")
    try:
        given = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The request is not valid JSON: {_fault(error)}.") from error
    images = given.get("images") if isinstance(given, dict) else None
    if not isinstance(images, list):
        raise Refused(400, f'The JSON has no list "images". {FORMS}')
    if len(images) > most:
        raise _too_many(most)
    return [_of_entry(entry, number) for number, entry in enumerate(images, 1)]


def _fault(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not in UTF-8"
    return str(error)


def _of_entry(entry: Any, number: int) -> Sent:
    data = entry.get("data") if isinstance(entry, dict) else None
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(data, str) or not isinstance(name, str | None):
        raise Refused(
            400, f'Entry {number} of "images" is not {{"name": "a.jpg", "data": "BASE64"}}; name may be left out.'
        )
    if data.startswith("data:"):  # as browsers' FileReader has it
        data = data.partition(",")[2]
    try:
        letters = data.encode("ascii").translate(None, b" \t\r\n\v\f")
        return Sent((name or "")[:LONGEST_NAME], binascii.a2b_base64(letters, strict_mode=True))
    except ValueError as error:
        raise Refused(
            400, f'"data" of entry {number} of "images" is not base64. Encode the bytes of the file, and nothing else.'
        ) from error


@dataclass
class _Form:
    """Collects the files of a form; its methods are called by the parser."""

    most: int
    sent: list[Sent] = field(default_factory=list)
    whole: bool = False
    headers: dict[bytes, bytes] = field(default_factory=dict)
    length: int = 0
    label: bytes = b""
    value: bytes = b""
    parts: list[bytes] = field(default_factory=list)

    def on_part_begin(self) -> None:
        if len(self.sent) == self.most:
            raise _too_many(self.most)
        self.headers, self.parts, self.length = {}, [], 0

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.label += self._piece(data, start, end)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += self._piece(data, start, end)

    def _piece(self, data: bytes, start: int, end: int) -> bytes:
        self.length += end - start
        if self.length > LONGEST_HEADERS:
            raise Refused(400, f"A part of the form has headers of more than {LONGEST_HEADERS:,} bytes.")
        return data[start:end]

    def on_header_end(self) -> None:
        self.headers[self.label.lower()] = self.value
        self.label = self.value = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts.append(data[start:end])

    def on_part_end(self) -> None:
        _, parameters = parse_options_header(self.headers.get(b"content-disposition", b""))
        if b"filename" not in parameters:
            field = _text(parameters.get(b"name", b""))
            raise Refused(
                400,
                f"The form's field {field!r} has no parameter filename, so it is no file. Send files alone, as "
                "curl -F picture=@a.jpg does.",
            )
        self.sent.append(Sent(_text(parameters[b"filename"]), b"".join(self.parts)))

    def on_end(self) -> None:
        self.whole = True


_CALLED = (
    *("part_begin", "part_data", "part_end", "end"),
    *("header_field", "header_value", "header_end"),
)


def _of_form(body: bytes, boundary: bytes, most: int) -> list[Sent]:
    if not boundary:
        raise Refused(400, "The form's content type has no boundary. Let your HTTP library write that header.")
    form = _Form(most)
    callbacks: Any = {f"on_{name}": getattr(form, f"on_{name}") for name in _CALLED}
    try:
        parser = MultipartParser(boundary, callbacks)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refused(
            400,
            "The form cannot be read: its content type names another boundary than stands between its parts, or "
            "their headers are damaged.",
        ) from error
    if not form.whole:
        raise Refused(400, "The form cannot be read: it ends before its last boundary.")
    return form.sent


def _text(data: bytes) -> str:
    return data[: 4 * LONGEST_NAME].decode("utf-8", "replace")[:LONGEST_NAME]
