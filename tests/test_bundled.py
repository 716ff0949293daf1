"""What ships with the package: mini_clip's weights and card, and the data set drawn from OpenMoji."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from safetensors import safe_open

from liftplus import config, runs, runtime, train
from liftplus.backbones import mini_clip
from liftplus.data import openmoji
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet
from liftplus.data.stores import ArrayStore
from liftplus.evaluate import Reading, predict, score


@pytest.fixture(scope="module")
def drawn() -> DataSet:
    return openmoji.load(DataConfig(source="openmoji_lt"))


def test_weights_are_small_half_precision_and_without_openmoji() -> None:
    assert mini_clip.WEIGHTS.stat().st_size <= 16_000_000
    with safe_open(mini_clip.WEIGHTS, "pt") as stream:
        kinds = {stream.get_tensor(name).dtype for name in stream.keys()}  # noqa: SIM118 (not a mapping)
    assert kinds == {torch.float16}


def test_tokenizer_encodes_any_text() -> None:
    tokenizer = mini_clip.MiniTokenizer()
    ids = tokenizer(["a photo of a delivery truck.", "Ünïcode 漢字 🚚", "word " * 100])
    assert ids.shape == (3, mini_clip.CONTEXT_LENGTH)
    assert int(ids.max()) == tokenizer.eot_token_id == 512 + mini_clip.MERGES + 1
    assert (ids == tokenizer.eot_token_id).sum(1).tolist() == [1, 1, 1]
    assert tokenizer.decode(ids[0].tolist()).startswith("<start_of_text>a photo of a delivery truck .")


def test_drawn_data_has_the_promised_shape(drawn: DataSet) -> None:
    counts = drawn.counts()
    assert drawn.num_classes >= 120
    assert max(counts) / min(counts) == 100
    assert list(counts) == sorted(counts, reverse=True)
    assert set(drawn.counts("test")) == {20} and set(drawn.counts("val")) == {10}
    assert {"delivery truck", "hot dog"} & set(drawn.class_names)
    assert all(re.fullmatch(r"[a-z ]+", name) for name in drawn.class_names)
    image = drawn.store.image(drawn.splits["test"].keys[0])
    assert image.size == (openmoji.SIZE, openmoji.SIZE) and min(image.size) > mini_clip.IMAGE_SIZE


def test_drawn_data_is_the_same_again_and_follows_its_option(drawn: DataSet) -> None:
    assert isinstance(drawn.store, ArrayStore)
    _, art = openmoji.sprites(openmoji.SIZE)
    labels = torch.tensor(drawn.splits["train"].labels[:512])  # drawn 512 at a time
    again = openmoji._draw(art[: openmoji.CLASSES], labels, 0).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(again, drawn.store.images[:512])
    flatter = openmoji.class_sizes(openmoji.LARGEST, 10.0, openmoji.CLASSES)
    assert (flatter[0], flatter[-1]) == (200, 20)


def test_no_picture_is_in_two_splits(drawn: DataSet) -> None:
    assert isinstance(drawn.store, ArrayStore)
    flat = drawn.store.images.reshape(len(drawn.store.images), -1)
    assert len({row.tobytes() for row in flat}) == len(flat)


def test_the_card_states_the_zero_shot_accuracy_that_the_weights_have(drawn: DataSet) -> None:
    card = mini_clip.WEIGHTS.with_suffix(".md").read_text(encoding="utf-8")
    stated = re.search(r"zero-shot on openmoji_lt's validation split: ([\d.]+) %", card)
    assert stated is not None
    chosen = runtime.choose("cpu", "fp32")
    settings = config.resolve(data="openmoji_lt", method="zeroshot")
    model = train.build(settings, drawn, chosen)
    split = drawn.splits["val"]
    found = predict(model, Reading(drawn.store, split), settings.evaluation, model.backbone.facts, chosen)
    overall = score(found, split, drawn.counts()).overall
    assert overall == pytest.approx(float(stated.group(1)), abs=0.3)
    assert overall > 10 * 100 / drawn.num_classes
    assert runs.notes(settings, drawn, model) == list(drawn.notes)
