"""Kept features: the same bits from disk as anew, and none where weights, pictures, transform or file are others."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import liftplus
from liftplus import config
from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone, BackboneConfig
from liftplus.config import RunConfig
from liftplus.data import identity, sources
from liftplus.data.arrays import ArrayStore
from liftplus.data.dataset import DataSet
from liftplus.data.shards import ShardStore
from liftplus.data.stores import FolderStore, TarStore, ZipStore, open_store
from liftplus.data.transforms import CentreCrop, NoAugment
from liftplus.evaluation import features, outputs
from liftplus.evaluation.features import Cache
from liftplus.evaluation.inference import SplitReader, predict
from liftplus.machine import parallel, runtime
from liftplus.training import assembly, loop

from ..conftest import Command, picture

CPU = runtime.choose("cpu", "fp32")


@pytest.fixture(autouse=True)
def always_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small and however new the pictures are."""
    monkeypatch.setattr(features, "PAYS", 0.0)
    monkeypatch.setattr(identity, "SETTLED", 0.0)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return catalogue.load(BackboneConfig())


def rows(cache: Cache, backbone: Backbone, dataset: DataSet, view: Any = None, batch_size: int = 8) -> Tensor:
    reader = SplitReader(dataset.store, dataset.splits["train"], workers=0)
    return features.image_features(cache, backbone, reader, view or CentreCrop(64), CPU, batch_size)


class Unnamed:
    """A cut that does not tell its settings."""

    picture, cut = CentreCrop(64).picture, CentreCrop(64).cut


def read(cache: Cache) -> int:
    """How often something was read from the cache."""
    return sum("read from" in note for note in cache.notes)


def test_a_hit_has_the_bits_of_a_miss_and_none_is_written_twice(cache: Cache, backbone: Backbone, photos: Path) -> None:
    dataset = sources.load(config.resolve(data=str(photos)).data)
    made, found = rows(cache, backbone, dataset), rows(cache, backbone, dataset)
    assert read(cache) == 1 and torch.equal(made, found)
    assert torch.equal(made, rows(Cache(), backbone, dataset))
    assert cache.place is not None and len(list(cache.place.iterdir())) == 1


def test_replaced_picture_misses_also_with_its_old_size_and_time(
    cache: Cache, backbone: Backbone, photos: Path
) -> None:
    dataset = sources.load(config.resolve(data=str(photos)).data)
    rows(cache, backbone, dataset)
    path = photos / "train" / "blue sky" / "0.png"
    about = path.stat()
    data = bytearray(path.read_bytes())
    picture((9, 9, 9), 5).save(path)
    rows(cache, backbone, dataset)
    assert read(cache) == 0
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    rows(cache, backbone, dataset)
    assert read(cache) == 0, "the time of change of the entry tells"


def test_other_weights_transform_batch_or_precision_miss(
    cache: Cache, backbone: Backbone, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = sources.load(config.resolve(data=str(photos)).data)
    rows(cache, backbone, dataset)
    rows(cache, backbone, dataset, CentreCrop(64, margin=0))
    rows(cache, backbone, dataset, CentreCrop(64, "bilinear"))
    rows(cache, backbone, dataset, CentreCrop(64, resize="square"))
    rows(cache, backbone, dataset, features.FixedCrop(NoAugment(), 64, "bicubic"))
    rows(cache, backbone, dataset, batch_size=4)
    reader = SplitReader(dataset.store, dataset.splits["train"], workers=0)
    features.image_features(cache, backbone, reader, CentreCrop(64), runtime.Runtime(CPU.device, "bf16"), 8)
    changed = catalogue.load(BackboneConfig())
    with torch.no_grad():
        next(changed.image.parameters()).view(-1)[0] += 1
    rows(cache, changed, dataset)
    monkeypatch.setattr(changed, "identity", "another file")
    rows(cache, changed, dataset)
    backbone.facts, own = replace(backbone.facts, pooling="mean"), backbone.facts
    rows(cache, backbone, dataset)
    backbone.facts = own
    assert read(cache) == 0
    rows(cache, backbone, dataset)
    assert read(cache) == 1


def test_random_weights_tuned_towers_and_unknown_sources_are_never_kept(
    cache: Cache, backbone: Backbone, photos: Path
) -> None:
    dataset = sources.load(config.resolve(data=str(photos)).data)
    rows(cache, catalogue.load(BackboneConfig(), weights=False), dataset)
    hooked = catalogue.load(BackboneConfig())
    hooked.image.register_forward_hook(lambda _module, _args, out: out + 1)
    rows(cache, hooked, dataset)
    tuned = catalogue.load(BackboneConfig())
    next(tuned.image.parameters()).requires_grad_(True)
    rows(cache, tuned, dataset)
    rows(cache, backbone, dataset, view=Unnamed())

    class Own(FolderStore):
        pass

    assert identity.identity(Own(photos), ["train/blue sky/0.png"]) is None
    assert cache.place is not None and not cache.place.exists()


def test_tiny_work_is_not_kept(cache: Cache, backbone: Backbone, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "PAYS", 60.0)
    rows(cache, backbone, sources.load(config.resolve(data=str(photos)).data))
    assert cache.place is not None and not cache.place.exists()


def test_files_changed_just_now_have_no_identity(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "SETTLED", 3600.0)
    assert identity.identity(FolderStore(photos), ["train/blue sky/0.png"]) is None
    assert identity.identity(FolderStore(photos), ["train/no/such.png"]) is None


def test_each_store_says_by_what_its_pictures_are_known() -> None:
    for store in (ArrayStore, FolderStore, ZipStore, TarStore, ShardStore):
        assert "origin" in vars(store), store
    names = set(vars(identity))
    assert not names & {"ArrayStore", "FolderStore", "ZipStore", "TarStore", "ShardStore"}


def test_identity_of_archives_and_arrays_follows_their_contents(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.zip", set()
    for number, colour in enumerate([(1, 2, 3), (200, 2, 3)]):
        picture(colour, number).save(tmp_path / "one.bmp")
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "one.bmp", "one.bmp")
            archive.write(tmp_path / "one.bmp", "two.bmp")
        store = open_store(path)
        assert isinstance(store, ZipStore)
        own = identity.identity(store, ["one.bmp"])
        assert own is not None and own != identity.identity(store, ["two.bmp"])
        assert own == identity.identity(ZipStore(path), ["one.bmp"])
        assert own not in seen
        seen.add(own)
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    first = identity.identity(ArrayStore(images), ["0", "3"])
    images[1] += 1
    assert identity.identity(ArrayStore(images), ["0", "3"]) == first
    images[3] += 1
    assert identity.identity(ArrayStore(images), ["0", "3"]) != first


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign", "folder"])
def test_damaged_or_foreign_file_is_a_miss(cache: Cache, damage: str) -> None:
    made = torch.randn(7, 5)
    assert torch.equal(cache.tensor(lambda: {"a": 1}, lambda: made, "Rows"), made)
    assert cache.place is not None
    (path,) = cache.place.iterdir()
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-3] ^= 1
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        cache.tensor(lambda: {"a": 2}, lambda: made + 1, "Rows")
        other = next(item for item in cache.place.iterdir() if item != path)
        data = {"empty": bytearray(), "cut": data[:-5], "foreign": bytearray(other.read_bytes())}[damage]
    if damage != "folder":
        path.write_bytes(data)
    assert torch.equal(cache.tensor(lambda: {"a": 1}, lambda: made, "Rows"), made)
    assert read(cache) == 0


def test_what_changes_while_it_is_computed_is_not_kept(cache: Cache) -> None:
    times = iter(range(9))
    cache.tensor(lambda: {"seen": next(times)}, lambda: torch.ones(3), "Rows")
    assert cache.place is not None and not cache.place.exists()


def test_folder_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "below")
    assert torch.equal(cache.tensor(lambda: {"a": 1}, lambda: torch.ones(3), "Rows"), torch.ones(3))
    assert "could not be written to the cache" in cache.notes[0]


def test_least_recently_used_files_go_first(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "LIMIT", 10_000)
    for number in range(4):
        cache.tensor(lambda number=number: {"a": number}, lambda: torch.ones(1000), "Rows")
        assert cache.place is not None
        for age, path in enumerate(sorted(cache.place.iterdir(), key=lambda path: -path.stat().st_mtime)):
            os.utime(path, (time.time() - 100 * (age + 1),) * 2)
        cache.tensor(lambda: {"a": 0}, lambda: torch.zeros(1000), "Rows")  # in use
    assert len(list(cache.place.iterdir())) == 2
    assert read(cache) == 4


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path: Path) -> None:
    made = torch.randn(300, 100)
    caches = [Cache(tmp_path / "cache") for _ in range(6)]

    def work(cache: Cache) -> None:
        for number in range(5):
            rows = made + number
            assert torch.equal(cache.tensor(partial(dict, a=number), rows.clone, "Rows"), rows)

    failed: list[BaseException] = []

    def watched(cache: Cache) -> None:
        try:
            work(cache)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=watched, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".safetensors"}
    assert len(list((tmp_path / "cache").iterdir())) == 5


def test_place_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFTPLUS_CACHE", "/somewhere")
    assert features.folder() == Path("/somewhere/features")
    monkeypatch.delenv("LIFTPLUS_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, **_options: Path("/theirs") / name)
    assert features.folder() == Path("/theirs/liftplus/features")


def probe(photos: Path, *overrides: str) -> RunConfig:
    given = ["epochs=3", "train.batch_size=8", "workers=0", "augment=none", "head_init=class_mean", *overrides]
    return config.resolve(data=str(photos), method="linear_probe", overrides=given)


def trained(run: RunConfig, cache: Cache) -> tuple[loop.Fit, dict[str, Tensor]]:
    dataset = sources.load(run.data)
    model = assembly.build(run, dataset, CPU, cache=cache)
    fit = loop.fit(model, run, dataset, CPU, cache=cache)
    return fit, model.learned_state()


@pytest.mark.parametrize("sampler", ["instance", "class_balanced"])
def test_training_on_kept_features_has_the_losses_of_training_on_pictures(
    photos: Path, cache: Cache, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within fp32 rounding: a product's sums depend on how many rows it has, and features come in other batches."""
    run = probe(photos, f"sampler={sampler}")
    once, learned = trained(run, cache)
    again, same = trained(run, cache)
    assert once.losses == again.losses and read(cache) == 2  # class means and training
    assert all(torch.equal(learned[name], same[name]) for name in learned)
    pictures, other = trained(run, Cache())
    assert once.losses == pytest.approx(pictures.losses, rel=1e-5)
    for name, value in learned.items():
        assert torch.allclose(value, other[name], rtol=1e-4, atol=1e-6), name


def test_epochs_on_features_never_run_the_backbone(photos: Path, cache: Cache) -> None:
    run = probe(photos, "head_init=random")
    dataset = sources.load(run.data)
    model = assembly.build(run, dataset, CPU, cache=cache)
    calls: list[int] = []
    forward = model.backbone.forward

    def counted(images: Tensor) -> Tensor:
        calls.append(len(images) if torch.is_grad_enabled() or torch.is_inference_mode_enabled() else 0)
        out: Tensor = forward(images)
        return out

    model.backbone.forward = counted  # type: ignore[method-assign]
    loop.fit(model, run, dataset, CPU, cache=cache)
    assert sum(calls) == len(dataset.splits["train"])
    moving = run.model_copy(update={"augment": config.resolve(method="lift").augment})
    loop.fit(model, moving, dataset, CPU, cache=cache)
    assert sum(calls) == (1 + 3) * len(dataset.splits["train"]), "random crops are other pictures in every epoch"


@pytest.mark.parametrize("tte", ["true", "false"])
@pytest.mark.parametrize("method", ["zeroshot", "linear_probe"])
def test_testing_on_kept_features_has_the_same_bits(photos: Path, cache: Cache, method: str, tte: str) -> None:
    run = config.resolve(
        data=str(photos), method=method, overrides=["epochs=0", f"tte={tte}", "evaluation.batch_size=4"]
    )
    dataset = sources.load(run.data)
    model = assembly.build(run, dataset, CPU, cache=cache)
    reader = SplitReader(dataset.store, dataset.splits["test"], workers=0)
    plain = predict(model, reader, run.evaluation, model.backbone.facts, CPU)
    before = read(cache)
    for hits in (0, 1):
        kept = outputs.predict_once(model, reader, run.evaluation, CPU, cache)
        assert read(cache) - before == hits
        assert torch.equal(kept.classes, plain.classes)
        assert torch.equal(kept.probabilities, plain.probabilities)


def test_tuned_models_are_tested_on_pictures(photos: Path, cache: Cache) -> None:
    run = config.resolve(data=str(photos), overrides=["epochs=0"])
    dataset = sources.load(run.data)
    model = assembly.build(run, dataset, CPU, cache=cache)
    assert not features.bare(model)
    notes = len(cache.notes)
    files = sorted(cache.place.iterdir()) if cache.place else []
    outputs.predict_once(model, SplitReader(dataset.store, dataset.splits["test"], 0), run.evaluation, CPU, cache)
    assert len(cache.notes) == notes and cache.place and sorted(cache.place.iterdir()) == files


def test_text_features_come_back_for_the_same_prompts_alone(cache: Cache, backbone: Backbone) -> None:
    encoder = backbone.text_encoder("this test")

    def get(*texts: str) -> Tensor:
        return features.text_features(cache, encoder, backbone.identity, CPU, texts)

    made = get("a cat", "a dog")
    assert torch.equal(made, encoder.encode(["a cat", "a dog"]))
    assert torch.equal(get("a cat", "a dog"), made) and read(cache) == 1
    get("a dog", "a cat")
    assert read(cache) == 1


def test_a_run_says_what_it_read_and_the_switch_turns_it_off(
    command: Command, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIFTPLUS_CACHE", str(tmp_path / "kept"))
    given = ("zeroshot", "--data", photos, "device=cpu", "precision=fp32")
    assert command(*given, "--out", "one", "cache=false").code == 0
    assert not (tmp_path / "kept").exists()
    first = command(*given, "--out", "two")
    assert first.code == 0 and "read from the cache" not in first.err
    second = command(*given, "--out", "three")
    assert second.code == 0 and second.err.count("read from the cache") == 2
    told = [json.loads((tmp_path / run / "config.json").read_text())["cache"] for run in ("two", "three")]
    assert told[0] == [] and "Text features of 3 classes" in told[1][0]
    assert "Features of 6 images" in json.loads((tmp_path / "three" / "metrics.json").read_text())["cache"][-1]
    tables = [(tmp_path / run / "predictions.csv").read_text() for run in ("one", "two", "three")]
    assert len(set(tables)) == 1


class Exchange:
    """What two threads that play the processes of a job hand to one another."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2)
        self.box: Any = None


class Played(parallel.Job):
    """A process of a job of two, played by a thread."""

    def __new__(cls, *_args: Any) -> Played:
        return object.__new__(cls)

    def __init__(self, rank: int, exchange: Exchange) -> None:
        super().__init__(rank, 2)
        object.__setattr__(self, "exchange", exchange)

    def from_leader(self, make: Callable[[], Any]) -> Any:
        exchange: Exchange = self.exchange  # type: ignore[attr-defined]
        if self.leads:
            exchange.box = make()
        exchange.barrier.wait(20)
        value = exchange.box
        exchange.barrier.wait(20)
        return value


def test_the_leader_alone_reads_and_writes_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_PIECE", 100)
    made = torch.randn(17, 5)
    exchange, found, touched = Exchange(), {}, []
    monkeypatch.setattr(features, "_read", lambda *args, plain=features._read: touched.append(1) or plain(*args))

    def process(rank: int) -> None:
        cache = Cache(tmp_path / "cache", Played(rank, exchange))
        first = cache.tensor(lambda: {"a": 1}, lambda: made, "Rows")
        exchange.barrier.wait(20)
        found[rank] = (first, cache.tensor(lambda: {"a": 1}, lambda: torch.zeros(1), "Rows"), cache.notes)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in (0, 1):
        first, second, notes = found[rank]
        assert torch.equal(first, made) and torch.equal(second, made) and len(notes) == 1
    assert len(touched) == 2, "once at the miss and once at the hit, by the leader"
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_code_of_every_folder_is_part_of_the_key() -> None:
    digest = hashlib.sha256()
    for path in sorted(Path(liftplus.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    assert features._code() == digest.hexdigest()
