"""The bundled model's tokenizer: CLIP's byte-pair encoding with the first merges of its table alone."""

from __future__ import annotations

import gzip
import html
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import ftfy
import regex
import torch
from torch import Tensor

MERGES = 6000
CONTEXT_LENGTH = 24
START, END = "<start_of_text>", "<end_of_text>"
_WORDS = rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"
_LAST = "</w>"
"""Ends the last piece of a word."""


def _byte_letters() -> dict[int, str]:
    """A visible letter for each byte, in the order of CLIP's vocabulary."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _merges() -> list[tuple[str, str]]:
    """The first merges of CLIP's table, which comes with open_clip; the package itself is not imported."""
    spec = find_spec("open_clip")
    assert spec is not None and spec.submodule_search_locations
    table = Path(spec.submodule_search_locations[0], "bpe_simple_vocab_16e6.txt.gz")
    with gzip.open(table, "rt", encoding="utf-8") as stream:
        next(stream)  # the version
        return [(first, second) for first, second in (next(stream).split() for _ in range(MERGES))]


class MiniTokenizer:
    """Texts to ids, as open_clip's `SimpleTokenizer` gives them for a table of `MERGES` merges.

    Rare words split into more pieces; every text still has an encoding.
    """

    def __init__(self) -> None:
        self.letters, merges = _byte_letters(), _merges()
        self.ranks = {merge: rank for rank, merge in enumerate(merges)}
        single = list(self.letters.values())
        pieces = [*single, *(letter + _LAST for letter in single), *map("".join, merges), START, END]
        self.ids = {piece: number for number, piece in enumerate(pieces)}
        self.pieces, self.eot_token_id = pieces, self.ids[END]
        self.words = regex.compile(_WORDS, regex.IGNORECASE)

    def __call__(self, texts: Sequence[str], context: int = CONTEXT_LENGTH) -> Tensor:
        """Ids [n, context]: start, the text's, end, and 0 behind; a text that is too long loses its end."""
        out = torch.zeros(len(texts), context, dtype=torch.long)
        for row, text in zip(out, texts, strict=True):
            ids = [self.ids[START], *self.encode(text)[: context - 2], self.eot_token_id]
            row[: len(ids)] = torch.tensor(ids)
        return out

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end."""
        clean = html.unescape(html.unescape(ftfy.fix_text(text)))
        found = self.words.findall(" ".join(clean.split()).lower())
        return [self.ids[piece] for word in found for piece in self._split(word)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text that ids stand for, a space behind each word."""
        bytes_of = {letter: byte for byte, letter in self.letters.items()}
        text = "".join(self.pieces[number] for number in ids)
        return bytes(bytes_of[letter] for letter in text).decode("utf-8", errors="replace").replace(_LAST, " ")

    def _split(self, word: str) -> list[str]:
        """A word's pieces: neighbours are joined as long as the table has them, the earliest of the table first."""
        if word in (START, END):
            return [word]
        pieces = [self.letters[byte] for byte in word.encode()]
        pieces[-1] += _LAST
        while pairs := [pair for pair in pairwise(pieces) if pair in self.ranks]:
            pieces = _joined(pieces, min(pairs, key=self.ranks.__getitem__))
        return pieces


def _joined(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Join the pair into one piece wherever its two are neighbours, from the left."""
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


@cache
def mini_tokenizer() -> MiniTokenizer:
    """The one tokenizer of all backbones of this kind in a process."""
    return MiniTokenizer()
