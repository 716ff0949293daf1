"""recipe=auto: what it chooses, what it leaves alone, rates measured on the backbone, and the way back."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import liftplus
from conftest import Command, write_folder
from liftplus import config
from liftplus.data import sources
from liftplus.data.dataset import DataSet, Split
from liftplus.errors import UserError
from liftplus.machine import runtime
from liftplus.runs import changes, opening
from liftplus.training import assembly, loop, rate_search, recipe, signs
from liftplus.training.safeguard import Probe, Safeguard
from liftplus.training.saved_state import Position
from liftplus.training.signs import Snapshot
from liftplus.training.step import Step
from liftplus.tuners.adaptformer import Parallel

CPU = runtime.choose("cpu", "fp32")


def auto(data: str, *overrides: str, **named: str) -> config.RunConfig:
    return config.resolve(data=data, overrides=["train.workers=0", *overrides], recipe="auto", **named)


def of_size(dataset: DataSet, count: int) -> DataSet:
    """The data set with its training pictures repeated until they are so many."""
    train = dataset.splits["train"]
    keys, labels = ((list(part) * (count // len(train) + 1))[:count] for part in (train.keys, train.labels))
    return replace(dataset, splits=dataset.splits | {"train": Split(keys, labels)})


@pytest.mark.parametrize(
    ("pictures", "batch"),
    [(30, 16), (2640, 16), (5000, 32), (10_847, 32), (21_645, 64), (62_500, 128), (100_000, 128), (437_513, 128)],
)
def test_the_batch_grows_with_the_square_root_of_the_pictures(pictures: int, batch: int) -> None:
    assert recipe.batch_size(pictures) == batch


@pytest.mark.parametrize(
    ("published", "pictures", "epochs"),
    [(5, 0, 30), (5, 530, 30), (5, 1_125, 15), (5, 2_749, 6), (5, 3_201, 5), (10, 2_749, 10), (40, 20, 40), (0, 20, 0)],
)
def test_few_pictures_are_trained_on_until_16000_were_seen(published: int, pictures: int, epochs: int) -> None:
    assert recipe.epochs(published, pictures) == epochs


def test_epochs_that_are_given_stay(photos: Path) -> None:
    dataset = sources.load(config.resolve(data=str(photos)).data)
    assert recipe.settled(auto(str(photos)), dataset).train.epochs == recipe.MOST_EPOCHS
    assert recipe.settled(auto(str(photos), "epochs=5"), dataset).train.epochs == 5
    assert recipe.settled(auto(str(photos), method="closed_form"), dataset).train.epochs == 0


def test_at_the_size_of_imagenet_lt_every_published_value_stands(photos: Path) -> None:
    dataset = sources.load(config.resolve(data=str(photos)).data)
    settings = auto(str(photos))
    large = of_size(dataset, 115_846)
    chosen = recipe.settled(settings, large)
    assert (chosen.train.batch_size, chosen.train.epochs, chosen.train.schedule) == (128, 5, "epoch")
    assert chosen.train.lr == 0.02
    assert chosen.tuner == config.resolve(data=str(photos)).tuner


def test_small_data_get_more_updates_and_a_floor_for_the_width(photos: Path) -> None:
    dataset = sources.load(config.resolve(data=str(photos)).data)
    chosen = recipe.settled(auto(str(photos)), dataset)
    assert (chosen.train.batch_size, chosen.train.schedule, chosen.train.lr) == (16, "step", 0.01)
    model = assembly.build(chosen, dataset, CPU)
    assert {part.down.out_features for part in model.modules() if isinstance(part, Parallel)} == {recipe.WIDTH}


def test_what_is_given_is_never_touched(photos: Path) -> None:
    given = (
        "lr=0.3",
        "train.batch_size=7",
        "train.schedule=epoch",
        "scale_rates=false",
        "epochs=4",
        "go_back=false",
        "tuner.adaptformer.min_width=2",
        "head_init=class_mean",
    )
    settings = auto(str(photos), *given)
    assert not settings.automatic
    session, _ = opening.Session(settings, CPU).start(sources.load(settings.data))
    assert session.config == settings
    with pytest.raises(UserError, match="recipe=auto or recipe=paper"):
        auto(str(photos), "automatic=[]")


def test_the_rate_falls_with_the_cube_root_of_the_batch(photos: Path) -> None:
    """Of the method's own published rate, also where the user gives the batch."""
    assert [recipe.factor(batch) for batch in (16, 32, 64, 128, 512)] == [0.5, 0.63, 0.79, 1, 1]
    dataset = sources.load(config.resolve(data=str(photos)).data)
    assert recipe.settled(auto(str(photos), method="full"), dataset).train.lr == 0.0005
    assert recipe.settled(auto(str(photos), "train.batch_size=64"), dataset).train.lr == pytest.approx(0.0158)


def test_benchmarks_and_old_runs_keep_the_published_recipe(photos: Path) -> None:
    assert recipe.usual("openmoji_lt") == recipe.usual("imagenet_lt") == "paper" and recipe.usual("photos") == "auto"
    paper = config.resolve(data=str(photos))
    assert paper.recipe == "paper" and not paper.automatic
    old = {key: value for key, value in paper.to_dict().items() if key not in ("recipe", "automatic")}
    assert config.from_dict(old) == paper


def test_choosing_twice_is_choosing_once(photos: Path) -> None:
    settings = auto(str(photos))
    dataset = sources.load(settings.data)
    once = opening.Session(settings, CPU).start(dataset)[0].config
    assert opening.Session(once, CPU).start(dataset)[0].config == once and not changes.changes(once, settings)
    assert changes.changes(once, auto(str(photos), "lr=0.5"))


def started(photos: Path, *overrides: str, backbone: str = "mini_clip") -> tuple[Any, ...]:
    settings = auto(str(photos), "lr=0.02", "epochs=1", *overrides, backbone=backbone)
    dataset = sources.load(settings.data)
    session, model = opening.Session(settings, CPU).start(dataset)
    return model, session.config, dataset


@pytest.mark.parametrize("tuner", ["adaptformer", "adapter", "lora", "lora+adaptformer"])
def test_rates_are_mean_squares_of_what_the_branches_join(photos: Path, tuner: str) -> None:
    """Each output weight has one, of at most 1."""
    model, settings, dataset = started(photos, f"tuner={tuner}")
    probe = Probe(model, settings, dataset, CPU)
    rates = probe.rates()
    outputs = {name for name, p in model.named_parameters() if p.requires_grad and ".up" in name}
    assert rates.keys() == outputs and all(0 < rate <= 1 for rate in rates.values())
    assert not any(getattr(part, "watcher", None) for part in model.modules())


def test_the_rate_of_a_branch_is_that_of_the_stream_before_its_mlp(photos: Path) -> None:
    model, settings, dataset = started(photos)
    probe = Probe(model, settings, dataset, CPU)
    seen: list[torch.Tensor] = []
    block = model.backbone.image.blocks[0]  # the others' are larger than 1, where the rate stays
    handle = block.norm2.register_forward_pre_hook(lambda _module, args: seen.append(args[0].square().mean()))
    probe.logits()
    handle.remove()
    assert probe.rates()["tuners.adaptformer.0.up.weight"] == pytest.approx(float(torch.stack(seen).mean()), rel=1e-5)


def test_a_step_moves_output_weights_by_their_multiple_and_nothing_else(photos: Path) -> None:
    model, settings, dataset = started(photos)
    name = "tuners.adaptformer.0.up.weight"
    moved = []
    for rates in ({}, {name: 4.0}):
        model.load_learned({key: value.clone() for key, value in started(photos)[0].learned_state().items()})
        step = Step(model, settings, dataset, CPU, rates)
        before = {key: value.clone() for key, value in model.learned_state().items()}
        loader = loop.training_batches(model, settings, dataset, CPU)
        step.set_rate(0.01)
        step(next(iter(loader.epoch(0, 0))))
        moved.append({key: value - before[key] for key, value in model.learned_state().items()})
    plain, scaled = moved
    assert torch.allclose(scaled.pop(name), 4 * plain.pop(name), rtol=1e-5, atol=0)
    assert all(torch.equal(scaled[key], value) for key, value in plain.items())


@pytest.mark.slow
def test_going_back_is_starting_anew_with_half_the_rate(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings, dataset = started(photos, "epochs=2")
    halved = settings.train.model_copy(update={"lr": 0.01, "go_back": False})
    loop.fit(model, settings.model_copy(update={"train": halved}), dataset, CPU)
    half = model.learned_state()
    answers = iter([True, False, False])
    monkeypatch.setattr(Safeguard, "rises", lambda self: next(answers))
    again, *_ = started(photos, "epochs=2")
    fitted = loop.fit(again, settings, dataset, CPU)
    assert len(fitted.notes) == 1 and "from 0.02 to 0.01" in fitted.notes[0] and len(fitted.losses) == 2
    assert all(torch.equal(value, half[name]) for name, value in again.learned_state().items())


def test_a_rate_that_destroys_the_start_is_halved_once_and_said_so(photos: Path, command: Command) -> None:
    ended = command("train", "--data", photos, "--out", "run", "lr=1e4", "epochs=2", "tte=false", "workers=0")
    assert ended.code == 2 or "halved its learning rate from 10000 to 5000" in ended.err
    assert ended.err.count("halved") <= 1


def test_the_slower_rate_is_part_of_the_state(photos: Path) -> None:
    model, settings, dataset = started(photos)
    rates = Probe(model, settings, dataset, CPU).rates()
    step = Step(model, settings, dataset, CPU, rates)
    step.restart({name: value.clone() for name, value in model.learned_state().items()}, slowed=0.5)
    tensors, values = step.state()
    other = Step(model, settings, dataset, CPU, dict.fromkeys(rates, 1.0))
    other.load_state(tensors, json.loads(json.dumps(values)))
    other.set_rate(0.1)
    multiples = {group["of"]: group["lr"] for group in other.optimiser.param_groups if "of" in group}
    assert multiples == pytest.approx({name: 0.05 * rate for name, rate in rates.items()})


def test_a_run_says_what_was_chosen_and_how_it_began(photos: Path, command: Command) -> None:
    ended = command("train", "--data", photos, "--out", "run", "epochs=1", "tte=false", "workers=0")
    assert ended.code == 0 and "19 training pictures, 3 classes: batch 16, 1 epoch, lr 0.0" in ended.err
    about = json.loads(Path("run/config.json").read_text())
    assert about["config"]["recipe"] == "auto" and about["start"]["split"] == "test" and about["start"]["pictures"] == 6
    paper = command("train", "--data", photos, "--out", "p", "recipe=paper", "epochs=1", "tte=false", "workers=0")
    assert "recipe" not in paper.err
    settings = json.loads(Path("p/config.json").read_text())["config"]["train"]
    assert (settings["lr"], settings["batch_size"], settings["scale_rates"]) == (0.02, 128, False)


def test_arrays_are_data_of_your_own(photos: Path) -> None:
    images = [torch.zeros(20, 20, 3, dtype=torch.uint8).numpy() + k for k in range(8)]
    model = liftplus.fit((images, [0, 1] * 4), epochs=1, tte=False, workers=0)
    assert model.config.recipe == "auto" and any("8 training pictures, 2 classes" in note for note in model.notes)


BEFORE = Snapshot("val", 50.0, 400, 60.0)


def test_signs_of_a_poor_fit() -> None:
    settings = auto("photos")

    def said(losses: tuple[float, ...], held_out: float, training: float = 90.0) -> list[str]:
        return signs.of_training(settings, losses, BEFORE, Snapshot("val", held_out, 400, training))

    assert said((2.0, 1.0, 0.98), 80.0) == []
    (worse,) = said((2.0, 1.0), 4.6)
    assert "ended below its own start: 4.6 % against 50.0 %" in worse and "Try lr=0.005." in worse
    assert (
        "gained little: 50.0 % before it, 51.0 % after, on 400 val pictures with one crop"
        in said((2.0, 1.0, 0.98), 51.0)[0]
    )
    top = Snapshot("val", 100.0, 400, 60.0)
    assert signs.of_training(settings, (2.0, 1.0, 0.98), top, Snapshot("val", 100.0, 400, 90.0)) == []
    assert "still falling" in said((2.0, 1.0), 80.0)[0] and "epochs=10" in said((2.0, 1.0), 80.0)[0]
    assert "Accuracy on training pictures fell" in said((2.0, 1.0, 0.98), 80.0, 40.0)[0]


@pytest.mark.parametrize("counts", [(10, 10, 10), pytest.param((15, 15), marks=pytest.mark.slow)])
def test_thirty_pictures_train_to_more_than_their_start(
    tmp_path: Path, command: Command, counts: tuple[int, ...]
) -> None:
    data = write_folder(tmp_path / "few", {"train": counts, "test": tuple(10 for _ in counts)})
    ended = command("train", "--data", data, "--out", "run", "epochs=10", "tte=false", "workers=0", "--json")
    assert ended.code == 0
    found = json.loads(ended.out)
    start = json.loads(Path("run/config.json").read_text())["start"]["held_out"]
    assert found["overall"] > start or found["signs"] or start == 100


def test_a_run_without_a_backbone_says_what_it_takes_and_what_is_at_hand(
    photos: Path, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIFTPLUS_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "resnet50.safetensors").touch()
    quick = ("epochs=0", "tte=false", "workers=0")
    without = command("train", "--data", photos, "--out", "a", *quick)
    assert "was trained on drawings only" in without.err and "resnet50" in without.err
    assert "drawings" not in command("train", "--data", photos, "--backbone", "mini_clip", "--out", "b", *quick).err


def test_minutes_choose_the_epochs_and_leave_the_model_as_it_was(
    photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = auto(str(photos), "train.minutes=1")
    dataset = sources.load(settings.data)
    model = assembly.build(settings, dataset, CPU)
    before = {name: value.clone() for name, value in model.learned_state().items()}
    assert loop.seconds_a_picture(model, settings, dataset, CPU) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.learned_state().items())
    monkeypatch.setattr(loop, "seconds_a_picture", lambda *_: 0.1)
    monkeypatch.setattr(time, "perf_counter", lambda: 100.0)
    # 19 pictures at 0.1 s, 6 test pictures of five crops at a third: 60 * 0.85 - 10 - 1 = 40 s are 21 epochs.
    chosen, seconds = recipe.timed(settings, dataset, model, CPU, began=90.0)
    assert chosen.train.epochs == 21 and seconds == pytest.approx(19 * 0.1 * 21 + 1)
    assert recipe.sentences(chosen, dataset, seconds)[0].startswith(
        "19 training pictures, 3 classes: batch 128, 21 epochs, lr 0.02, head_init semantic, about 41 s."
    )
    untrained = chosen.model_copy(update={"train": chosen.train.model_copy(update={"epochs": 0})})
    assert recipe.sentences(untrained, dataset)[0].startswith(
        "19 training pictures, 3 classes: head_init semantic. recipe=paper"
    )
    with pytest.raises(UserError, match=r"One epoch takes 1.9 s here and the test 1 s, which train.minutes=1 has no"):
        recipe.timed(settings, dataset, model, CPU, began=42.0)
    with pytest.raises(UserError, match="leave epochs out"):
        auto(str(photos), "train.minutes=1", "epochs=3")


@pytest.mark.parametrize(
    ("pictures", "spare", "epochs"), [(500, 11.3, 2), (500, 11.1, 0), (500, 1000, 10), (499, 1000, 0), (2640, 30, 5)]
)
def test_rates_are_tried_where_time_and_pictures_allow_it(pictures: int, spare: float, epochs: int) -> None:
    """Seven epochs of four fifths of the pictures for one of the first round; a hundred pictures kept aside."""
    assert rate_search.epochs(pictures, spare) == epochs


@pytest.mark.parametrize(
    ("found", "winner"),
    [
        ({1: (50, 60), 1 / 3: (40, 0), 3: (45, 55)}, 1.0),
        ({1: (50, 50), 1 / 3: (40, 0), 3: (45, 55)}, 3.0),
        ({1: (10, 99), 1 / 3: (40, 50), 3: (45, 50)}, 1 / 3),
        ({1: (0, 0), 1 / 3: (0, 0), 3: (0, 0)}, 1.0),
    ],
)
def test_the_better_two_of_three_rates_go_on_and_the_best_is_taken(
    photos: Path, monkeypatch: pytest.MonkeyPatch, found: dict[float, tuple[int, int]], winner: float
) -> None:
    settings = auto(str(photos), "lr=0.03")
    dataset = of_size(sources.load(settings.data), 500)
    tried = []

    def accuracy(model: Any, config: config.RunConfig, parts: DataSet, *_: object) -> float:
        assert len(parts.splits["val"]) == 100 and not set(parts.splits) - {"train", "val"}
        factor = min(found, key=lambda factor: abs(factor * 0.03 - config.train.lr))
        tried.append((factor, config.train.epochs))
        return found[factor][config.train.epochs == 4]

    monkeypatch.setattr(rate_search, "_accuracy", accuracy)
    rate, told = rate_search.best(settings, dataset, CPU, 2)
    assert rate == pytest.approx(0.03 * winner) and told.startswith(f"lr {rate:g} was best of three on 100 training")
    assert [epochs for _, epochs in tried] == [2, 2, 2, 4, 4]


@pytest.mark.slow
def test_spare_time_goes_into_the_rate(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, with real training on a few pictures; the rate that is far too high loses."""
    monkeypatch.setattr(rate_search, "LEAST_PICTURES", 3)
    monkeypatch.setattr(recipe, "MOST_EPOCHS", 1)
    monkeypatch.setattr(rate_search, "MOST", 2)
    monkeypatch.setattr(rate_search, "FACTORS", (1e6, 1.0, 1e-9))
    settings = auto(str(photos), "train.minutes=5")
    session, model = opening.Session(settings, CPU).start(sources.load(settings.data))
    assert session.config.train.epochs == 1
    assert "was best of three on 4 training pictures kept aside" in model.notes[-1]
    assert session.config.train.lr < 1


@pytest.mark.parametrize(("fit", "left"), [(100, 0), (12, 0), (6, 1), (5, 2), (1, 11), (0, 11)])
def test_epochs_are_left_out_where_steps_got_slower(photos: Path, fit: int, left: int) -> None:
    """Of 20 epochs 8 are done; the last one is always trained."""
    settings = auto(str(photos), "train.minutes=1")
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"epochs": 20})})
    dataset = sources.load(settings.data)
    at = Position(8, losses=(1.0,) * 8, seconds=8 * 1.9)  # 0.1 s a picture, 1 s for the test
    before = 0.95 * 60 - 1 - at.seconds - 1.9 * (fit + 0.5)
    assert loop.skip(settings, dataset, at, 1.9, before) == left
    assert loop.skip(settings, dataset, replace(at, epoch=19), 1.9, 1000.0) == 0


def test_a_run_that_got_slower_ends_with_its_last_epoch_and_says_so(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = auto(str(photos), "train.minutes=1", "workers=0")
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"epochs": 6})})
    dataset = sources.load(settings.data)
    monkeypatch.setattr(loop, "skip", lambda config, dataset, at, took, before: 1 if at.epoch < 5 else 0)
    entries: list[dict[str, Any]] = []
    fitted = loop.fit(assembly.build(settings, dataset, CPU), settings, dataset, CPU, log=entries.append)
    assert [entry["epoch"] for entry in entries] == [1, 3, 5, 6] and len(fitted.losses) == 4
    assert fitted.notes == (loop.SKIPPED.format(4, 6),)


@pytest.mark.parametrize(
    "given", [(), ("tuner=full", "backbone=timm/test_efficientnet.r160_in1k", "pretrained=false", "image_size=64")]
)
def test_telling_the_time_changes_no_result(photos: Path, given: tuple[str, ...]) -> None:
    """Weights, running statistics and random streams are as they would be."""
    named = dict(item.split("=") for item in given if item.startswith("backbone="))
    settings = auto(str(photos), "epochs=1", *(item for item in given if not item.startswith("backbone=")), **named)
    dataset = sources.load(settings.data)
    ends = []
    for timed in (False, True):
        model = assembly.build(settings, dataset, CPU)
        if timed:
            loop.seconds_a_picture(model, settings, dataset, CPU)
        losses = loop.fit(model, settings, dataset, CPU).losses
        ends.append((losses, model.state_dict()))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(value, ends[1][1][name]) for name, value in ends[0][1].items())


def test_a_run_in_its_folder_goes_on_with_what_was_chosen(photos: Path, tmp_path: Path) -> None:
    settings = auto(str(photos), "train.minutes=1")
    dataset = sources.load(settings.data)
    begun = config.changed(settings.to_dict(), []).model_copy(
        update={"train": settings.train.model_copy(update={"epochs": 7, "lr": 0.0123})}
    )
    (tmp_path / "config.json").write_text(json.dumps({"config": begun.to_dict()}))
    session, _ = opening.Session(settings, CPU).start(dataset, tmp_path)
    assert (session.config.train.epochs, session.config.train.lr) == (7, 0.0123)
