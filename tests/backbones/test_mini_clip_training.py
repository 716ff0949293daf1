"""The scripts that train the bundled model: which icons they take, how they are drawn and paired, stop and go on."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mini_clip_art
import mini_clip_pairs
import mini_clip_sets
import mini_clip_watch
import pretrain_mini_clip
from mini_clip_pairs import Batch, Concept, Library
from mini_clip_sets import IconSet

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
CONCEPTS = ["apple", "bee", "cup"]
PLAIN_ORDER = ["fluent-emoji-flat", "fxemoji", "shapes", "lines", "lines-bold"]
LINES = {"dogs": "dog", "sofa": "sofa", "sofa-outline": "sofa"}


def icon_set(*names: str, **book: Any) -> IconSet:
    book = {"icons": {name: {"body": "<path/>"} for name in names}, "width": 24, "height": 24, **book}
    return IconSet("made", "Made", "Somebody", "MIT", "", False, book)


@pytest.mark.parametrize(
    ("licence", "rest", "taken"),
    [
        ("MIT", {}, True),
        ("CC-BY-4.0", {"category": "Emoji"}, True),
        ("OFL-1.1", {"category": "UI 24px"}, True),
        ("CC-BY-SA-4.0", {}, False),
        ("CC-BY-NC-4.0", {}, False),
        ("GPL-3.0", {}, False),
        ("MPL-2.0", {}, False),
        (None, {}, False),
        ("MIT", {"category": "Logos"}, False),
        ("MIT", {"category": "Programming"}, False),
    ],
)
def test_sets_are_taken_by_licence_and_category(licence: str | None, rest: dict[str, Any], taken: bool) -> None:
    assert mini_clip_sets.fits("made", {"license": {"spdx": licence, "title": "Free"}, **rest}) is taken


@pytest.mark.parametrize("prefix", ["openmoji", "openmoji-black", "circle-flags"])
def test_the_tests_own_style_and_flags_are_never_taken(prefix: str) -> None:
    assert not mini_clip_sets.fits(prefix, {"license": {"spdx": "MIT"}})
    assert not mini_clip_sets.fits("made", {"license": {"spdx": "MIT"}, "author": {"name": "The OpenMoji team"}})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fire-truck", "fire truck"),
        ("fire-truck-outline", "fire truck"),
        ("fire-truck-24-filled", "fire truck"),
        ("fire-truck-2", "fire truck"),
        ("fire-truck2", "fire truck"),
        ("baseline-fire-truck", "fire truck"),
        ("food-drink-fire-truck-bold-duotone", "fire truck"),
        ("lamp-light", "lamp"),
        ("traffic-light", "traffic light"),
        ("outline", "outline"),
    ],
)
def test_words_of_style_size_and_category_leave_a_name(name: str, words: str) -> None:
    suffixes = {"24-filled": "Filled", "bold-duotone": "Bold Duotone", "": "Regular"}
    icons = icon_set("lamp", suffixes=suffixes, prefixes={"baseline": "Filled"}, categories={"Food & Drink": []})
    assert " ".join(mini_clip_sets.words_of(name, icons)) == words


@pytest.mark.parametrize(
    ("words", "thing"),
    [("dog", True), ("hot air balloon", True), ("arrow", False), ("file tree", False), ("a b", False), ("x", False)],
)
def test_icons_of_interfaces_and_letters_show_no_thing(words: str, thing: bool) -> None:
    assert mini_clip_sets.is_thing(words.split()) is thing


def test_ink_encloses_numbered_regions_that_reach_below_it() -> None:
    alpha = np.zeros((16, 16), dtype=np.uint8)
    alpha[2:14, 2:14] = 255
    alpha[4:8, 4:12] = alpha[9:12, 4:12] = 0  # two windows
    alpha[3, 3] = 120  # a soft spot of the frame is ink
    found = mini_clip_art.regions(alpha)
    assert (found[4:8, 4:12] == 1).all() and (found[9:12, 4:12] == 2).all()
    assert found[0, 0] == 0 and found[15].max() == 0
    assert found[3, 6] == 1 and found[12, 6] == 2 and found[2, 2] == 0
    assert mini_clip_art.regions(np.zeros_like(alpha)).max() == 0


def test_a_picture_nearly_the_same_as_a_test_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(5, 4, 6, 6, generator=generator)
    coarse[:, 3] = (coarse[:, 3] > 0.4).float()
    art = (F.interpolate(coarse, size=64) * 255).to(torch.uint8)
    monkeypatch.setattr(mini_clip_art.openmoji, "sprites", lambda _size: (list("abcde"), art))
    held = mini_clip_art.Held()
    paler = art.clone()
    paler[:, :3] = (paler[:, :3].float() * 0.9).to(torch.uint8)
    assert held.same(paler) == list("abcde")
    assert held.same(art.roll(1, dims=3)) == list("abcde")
    assert held.same(art.flip(3)) == [None] * 5
    ink = (art[:, 3:].float() * (1 - art[:, :3].float().mean(1, keepdim=True) / 255)).to(torch.uint8)
    assert held.same(ink) == list("abcde") and held.same(ink.flip(3)) == [None] * 5


def test_an_icon_keeps_its_shape_in_any_ink_and_filling() -> None:
    drawn = np.zeros((8, 8, 2), dtype=np.uint8)
    drawn[1:7, 1:7, 0] = 255
    drawn[3:5, 3:5, 0] = 0
    drawn[1:7, 1:7, 1] = 1
    rng, filled = random.Random(3), 0
    for _ in range(50):
        out = mini_clip_pairs.inked(drawn, rng)
        ink = out[1:7, 1:7][drawn[1:7, 1:7, 0] > 0]
        assert out[0, :, 3].max() == 0 and (ink[:, 3] == 255).all() and (ink == ink[0]).all()
        assert set(out[3:5, 3:5, 3].flatten().tolist()) in ({0}, {255})
        filled += int(out[3, 3, 3] == 255)
    assert 20 < filled < 40


def test_the_pictures_of_a_concept_are_by_different_artists() -> None:
    concept = Concept("dog", None)
    for place, (kind, artist) in enumerate([("c", "ann"), ("c", "bob"), ("t", "ann"), ("t", "cy")]):
        (concept.coloured if kind == "c" else concept.toned)[artist].append((place, 0))
    by = {0: "ann", 1: "bob", 2: "ann", 3: "cy"}
    rng, seen = random.Random(0), set()
    for _ in range(200):
        first, second = (by[at] for at, _ in concept.choose(2, rng))
        assert first != second
        seen |= {first, second}
    assert seen == {"ann", "bob", "cy"} and concept.artists == 3
    alone = Concept("cat", None)
    alone.toned["ann"] = [(0, 0)]
    assert alone.choose(2, rng) == [(0, 0), (0, 0)]


def made_drawings(folder: Path, sets: dict[str, list[str]]) -> None:
    for prefix, concepts in sets.items():
        channels = 2 if prefix.startswith("toned") else 4
        picture = np.zeros((len(concepts), 64, 64, channels), dtype=np.uint8)
        picture[:, 16:48, 16:48] = 255
        np.save(folder / f"{prefix}.npy", picture)
        (folder / f"{prefix}.json").write_text(json.dumps({"artist": prefix, "concepts": concepts}))


def test_a_library_leaves_out_held_out_sets_and_icons_of_one_artist(tmp_path: Path) -> None:
    sets = {
        "noto": ["dog", "cat"],
        "toned": ["dog", "sofa", "sofa", "lamp"],
        "flat": ["lamp"],
        "fxemoji": ["sofa", "cat"],
    }
    made_drawings(tmp_path, sets)
    table: dict[str, dict[str, Any]] = {
        name: {"name": name, "tags": [], "group": "animals & nature", "kind": ""} for name in ("dog", "cat")
    }
    library = Library(tmp_path, table)
    assert [concept.name for concept in library.concepts] == ["cat", "dog", "lamp"] and library.size == 5
    weights = library.weights(0.75)
    assert weights[:2].sum().item() == pytest.approx(0.75) and weights[2].item() == pytest.approx(0.25)
    held = Library(tmp_path, table, only=("fxemoji",))
    assert [concept.name for concept in held.concepts] == ["cat", "sofa"]
    batch = mini_clip_pairs.Pairs(library, 6, 2, 64, 0.75, seed=0).next()
    assert batch.pictures.shape == (6, 3, 64, 64) and batch.ids.shape[0] == 3
    assert sorted(batch.concepts.tolist()) == [0, 1, 2]


def installed(npm: Path, sets: dict[str, tuple[str, str, bool, list[str]]]) -> None:
    """The two npm packages as far as the scripts read them: sets of (licence, category, coloured, names)."""
    json_folder, words = npm / "node_modules/@iconify/json/json", npm / "node_modules/emojibase-data/en"
    json_folder.mkdir(parents=True)
    words.mkdir(parents=True)
    emoji = [{"hexcode": "1F415", "label": "dog", "tags": ["pet"], "group": 1}, {"hexcode": "1F3FB", "label": "tone"}]
    (words / "data.json").write_text(json.dumps(emoji))
    groups = {"groups": [{"order": 1, "message": "animals & nature"}], "subgroups": []}
    (words / "messages.json").write_text(json.dumps(groups))
    infos = {}
    for prefix, (licence, category, coloured, names) in sets.items():
        author = {"name": "Ann", "url": "https://example.org"}
        info = {"name": prefix.title(), "author": author, "license": {"spdx": licence}, "palette": coloured}
        infos[prefix] = {**info, "category": category}
        icons = {name: {"body": f'<rect x="2" y="{4 + at}" width="9" height="6"/>'} for at, name in enumerate(names)}
        book = {"info": infos[prefix], "width": 16, "icons": icons, "chars": {"1f415": "dog"}}
        (json_folder / f"{prefix}.json").write_text(json.dumps(book))
    (json_folder.parent / "collections.json").write_text(json.dumps(infos))


def test_from_installed_sets_to_drawings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("resvg_py")
    emoji = ("Apache-2.0", "Emoji", True, ["dog"])
    sets = {
        "twemoji": emoji,
        "noto": emoji,
        "fluent-emoji-flat": emoji,
        "openmoji": ("MIT", "Emoji", True, ["dog"]),
        "wild": ("GPL-3.0", "UI", False, ["sofa", "dog"]),
        "lines": ("MIT", "UI", False, ["sofa-outline", "sofa", "lamp", "lamp-2", "dogs", "acme", "arrow-up"]),
        "lines-bold": ("MIT", "UI", False, ["lamp"]),
        "shapes": ("ISC", "UI", True, ["sofa", "acme"]),
        "fxemoji": ("Apache-2.0", "Emoji", True, ["dog"]),
        **{name: ("CC0-1.0", "Logos", False, ["acme"]) for name in ("simple-icons", "fa7-brands", "bxl")},
    }
    installed(tmp_path / "npm", sets)
    blank = torch.zeros(2, 4, 64, 64, dtype=torch.uint8)
    monkeypatch.setattr(mini_clip_art.openmoji, "sprites", lambda _size: (["a", "b"], blank))
    mini_clip_art._held.cache_clear()
    mini_clip_sets.collect(tmp_path / "npm", tmp_path / "icons")
    assert mini_clip_sets.order(tmp_path / "icons") == ["noto", "twemoji", *PLAIN_ORDER]
    assert mini_clip_sets.kept_set(tmp_path / "icons", "lines").book["concepts"] == LINES
    mini_clip_art.draw(tmp_path / "icons", tmp_path / "drawn")
    mini_clip_art._held.cache_clear()
    table = mini_clip_art.credits(tmp_path / "drawn").splitlines()
    assert "| Lines | [Ann](https://example.org) | MIT | 3 | 0 | 0 |" in table
    assert "| Fxemoji (held out) | [Ann](https://example.org) | Apache-2.0 | 1 | 0 | 0 |" in table
    library = Library(tmp_path / "drawn", mini_clip_sets.emoji_words(tmp_path / "icons"))
    assert {concept.name: concept.artists for concept in library.concepts} == {"dog": 4, "sofa": 2}
    pictures = np.load(tmp_path / "drawn" / "lines.npy")
    assert pictures.shape == (3, 64, 64, 2) and pictures[..., 0].max() == 255


def test_the_restyling_takes_the_largest_of_nine_pixels() -> None:
    art = torch.rand(3, 1, 9, 7)
    assert torch.equal(mini_clip_pairs._largest(art), F.max_pool2d(art, 3, 1, 1))


def test_the_accuracy_among_few_ways_is_the_mean_over_all_choices() -> None:
    watch = mini_clip_watch.Watch("made", [str(number) for number in range(6)], torch.empty(0), 1)
    ranks = [0, 2, 5]
    # A picture is right if none of the others drawn is among the `rank` nearer ones.
    right = [[min(chosen) >= rank for chosen in combinations(range(5), 2)] for rank in ranks]
    expected = 100 * sum(sum(row) / len(row) for row in right) / 3
    assert watch.accuracy(ranks, 3) == pytest.approx(expected) and watch.accuracy(ranks) == pytest.approx(100 / 3)


def settings(work: Path, **changed: Any) -> argparse.Namespace:
    given = {"work": work, "start": None, "steps": 100, "batch": 4, "lr": 1e-3, "decay_share": 0.3}
    return argparse.Namespace(**{**given, "emoji_share": 0.65, "device": "cpu", **changed})


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[1, 5, 6513, 0], [1, 9, 7, 6513]])
    pictures = [torch.randint(0, 255, (4, 3, 64, 64), dtype=torch.uint8, generator=generator) for _ in range(3)]
    return [Batch(part, ids, torch.tensor([0, 2])) for part in pictures]


def asking_to_end(parts: list[Batch], before: int) -> Iterator[Batch]:
    """Batches in an order; the process is asked to end before one of them."""
    for place, part in enumerate(parts):
        if place == before:
            os.kill(os.getpid(), signal.SIGTERM)
        yield part


@needs_muon
def test_a_run_that_is_asked_to_end_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    parts, whole = batches(), pretrain_mini_clip.Run(settings(tmp_path / "whole"), CONCEPTS)
    (tmp_path / "part").mkdir()
    torch.manual_seed(1)
    whole.take(parts[0])
    whole.take(parts[1])
    stopped = pretrain_mini_clip.Run(settings(tmp_path / "part"), CONCEPTS)
    torch.manual_seed(1)
    before = signal.getsignal(signal.SIGTERM)
    pretrain_mini_clip.train(stopped, asking_to_end(parts, 1), [], 60.0)
    assert stopped.step == 2 and signal.getsignal(signal.SIGTERM) is before
    again = pretrain_mini_clip.Run(settings(tmp_path / "part"), CONCEPTS)
    assert again.step == 2
    for run in (whole, again):
        torch.manual_seed(2)
        run.take(parts[2])
    for kind in ("model", "mean"):
        ours, theirs = getattr(whole, kind).state_dict(), getattr(again, kind).state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@needs_muon
def test_a_run_goes_on_with_its_own_settings(tmp_path: Path) -> None:
    run = pretrain_mini_clip.Run(settings(tmp_path), CONCEPTS)
    run.take(batches()[0])
    run.save()
    with pytest.raises(SystemExit, match="batch 4, not 8"):
        pretrain_mini_clip.Run(settings(tmp_path, batch=8), CONCEPTS)
    with pytest.raises(SystemExit, match="other drawings"):
        pretrain_mini_clip.Run(settings(tmp_path), CONCEPTS[:2])
    longer = pretrain_mini_clip.Run(settings(tmp_path, steps=200), CONCEPTS)
    assert longer.step == 1 and longer.settings["steps"] == 200


@needs_muon
def test_saved_weights_are_the_average_in_the_packages_form(tmp_path: Path) -> None:
    from liftplus.backbones import mini_clip
    from liftplus.backbones.base import BackboneConfig

    run = pretrain_mini_clip.Run(settings(tmp_path), CONCEPTS)
    run.take(batches()[0])
    run.save()
    loaded = mini_clip.backbone(BackboneConfig(name="mini_clip", weights=str(tmp_path / "mini_clip.safetensors")))
    kept = run.mean.state_dict()["image.blocks.0.mlp.fc1.weight"].half().float()
    assert torch.equal(loaded.image.blocks[0].mlp.fc1.weight, kept)
    pictures = batches()[1].pictures
    assert torch.equal(run.mean.encode_image(pictures), run.mean.encode_image(pictures))  # no patch is dropped
    assert not torch.equal(kept, run.model.state_dict()["image.blocks.0.mlp.fc1.weight"].half().float())


@needs_muon
def test_the_rate_warms_up_stays_and_falls_to_zero(tmp_path: Path) -> None:
    run = pretrain_mini_clip.Run(settings(tmp_path, steps=10_000, lr=0.3), CONCEPTS)
    rates = []
    for run.step in (0, 299, 6999, 8500, 9999):
        rates.append(run.rate())
    assert rates == pytest.approx([0.001, 0.3, 0.3, 0.15, 0.0001])
