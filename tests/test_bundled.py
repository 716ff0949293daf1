"""What ships with the package: mini_clip's weights and card, and the data set drawn from OpenMoji."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from safetensors import safe_open

from liftplus import config
from liftplus.backbones import mini_clip
from liftplus.data import openmoji
from liftplus.data.arrays import ArrayStore
from liftplus.data.compose import Composition
from liftplus.data.config import DataConfig
from liftplus.data.dataset import DataSet
from liftplus.data.loader import auto_workers
from liftplus.evaluation.inference import SplitReader, predict, score
from liftplus.machine import runtime
from liftplus.runs import opening
from liftplus.training import assembly


@pytest.fixture(scope="module")
def drawn() -> DataSet:
    return openmoji.load(DataConfig(source="openmoji_lt"))


def test_weights_are_small_half_precision_and_without_openmoji() -> None:
    assert mini_clip.WEIGHTS["mini_clip"].stat().st_size <= 16_000_000
    with safe_open(mini_clip.WEIGHTS["mini_clip"], "pt") as stream:
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


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX2", reason="other vector units round otherwise")
def test_the_pixels_are_those_that_the_published_results_were_made_with(threads: int) -> None:
    images = openmoji.load(DataConfig(source="openmoji_lt")).store
    digest = hashlib.sha256(b"".join(np.asarray(images.image(str(key))).tobytes() for key in range(5158, 5158 + 256)))
    assert digest.hexdigest() == "6bb2c4c379a822f96d881067cca47d3b0669030d5c815b1b8370ad1d580fc2c1"
    assert torch.get_num_threads() == threads


def test_a_picture_is_the_same_alone_in_any_order_and_in_a_batch(drawn: DataSet) -> None:
    _, art = openmoji.sprites(openmoji.SIZE, openmoji.CLASSES)
    labels = torch.tensor(drawn.splits["train"].labels[: openmoji.BATCH])
    generator = torch.Generator().manual_seed(20260)
    other = torch.randint(len(art), (len(labels),), generator=generator)
    present = torch.rand(len(labels), 2, generator=generator) < 0.3
    pairs = torch.stack([art[labels], art[other]], 1)
    batch = Composition(present, openmoji.SIZE, generator, scale=(0.5, 1.0))
    whole = batch.draw(pairs).permute(0, 2, 3, 1).numpy()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        alone = {index: np.asarray(drawn.store.image(str(index))) for index in (511, 3, 2000, 100, 3)}
    assert all(np.array_equal(alone[index], whole[index]) for index in (511, 3, 100))
    flatter = openmoji.class_sizes(openmoji.LARGEST, 10.0, openmoji.CLASSES)
    assert (flatter[0], flatter[-1]) == (200, 20)


@pytest.mark.parametrize("method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_worker_processes_draw_the_same_pictures(drawn: DataSet, method: str) -> None:
    assert auto_workers(drawn.store) == 0
    assert len(pickle.dumps(drawn.store)) < 6_000_000
    keys = ["8757", "0", "5200"]
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.map_async(drawn.store.read, keys).get(timeout=120)
    assert found == [drawn.store.read(key) for key in keys]


def test_no_heavy_package_is_imported_with_liftplus_or_its_command_line() -> None:
    code = "import sys, liftplus, liftplus.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "torchvision", "timm", "open_clip", "numpy", "sklearn", "matplotlib", "pandas"} & set(loaded)


@pytest.mark.slow
def test_no_picture_is_in_two_splits(drawn: DataSet) -> None:
    assert isinstance(drawn.store, ArrayStore)
    keys = [key for split in drawn.splits.values() for key in split.keys]
    assert len({hashlib.sha256(drawn.store.image(key).tobytes()).digest() for key in keys}) == len(keys) == 8758


@pytest.mark.slow
def test_the_card_states_the_zero_shot_accuracy_that_the_weights_have(drawn: DataSet) -> None:
    card = mini_clip.WEIGHTS["mini_clip"].with_suffix(".md").read_text(encoding="utf-8")
    stated = re.search(r"zero-shot on openmoji_lt's test split: ([\d.]+) %", card)
    assert stated is not None
    chosen = runtime.choose("cpu", "fp32")
    settings = config.resolve(data="openmoji_lt", method="zeroshot")
    model = assembly.build(settings, drawn, chosen)
    split = drawn.splits["test"]
    found = predict(model, SplitReader(drawn.store, split), settings.evaluation, model.backbone.facts, chosen)
    overall = score(found, split, drawn.counts()).overall
    assert overall == pytest.approx(float(stated.group(1)), abs=0.3)
    assert overall > 10 * 100 / drawn.num_classes
    assert opening.notes(settings, drawn, model) == list(drawn.notes)
