"""Interrupted runs go on and end with the same bits; state files are whole, checked, and belong to their run."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from liftplus import api, config
from liftplus.config import EvaluationConfig
from liftplus.data import sources
from liftplus.errors import DivergedError, UserError
from liftplus.evaluation.inference import best
from liftplus.machine import disk, runtime, stopping
from liftplus.runs import execution, matching, opening, reuse
from liftplus.training import assembly, checkpoint, loop, step
from liftplus.training.saved_state import Keeper, Position, Stopped
from processes import Running, liftplus, until

from ..conftest import write_folder

CPU = runtime.choose("cpu", "fp32")
SETTINGS = (
    "recipe=paper",
    "epochs=3",
    "train.batch_size=4",
    "workers=0",
    "device=cpu",
    "precision=fp32",
    "tte=false",
    "lr=0.05",
)
# What a run leaves behind that does not depend on when it ran.
FILES = ("model.safetensors", "per_class.csv", "confusion.csv", "predictions.csv")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three steps an epoch, the last one of another size."""
    return write_folder(tmp_path / "photos", {"train": (6, 3, 2), "test": (2, 2, 2)})


class After(stopping.StopRequest):
    """Asks to stop at the n-th question."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def __call__(self) -> bool:
        self.left -= 1
        if self.left < 0:
            self.signal = signal.SIGTERM
        return self.left < 0


def fitted(photos: Path, folder: Path, stops: Sequence[int], *more: str) -> tuple[dict[str, torch.Tensor], loop.Fit]:
    """Train in memory, stopping and starting anew from the saved state at each of these questions."""
    folder.mkdir(exist_ok=True)
    run = config.resolve(data=str(photos), overrides=[*SETTINGS, *more])
    dataset = sources.load(run.data)
    for stop in [*stops, 10**9]:
        model = assembly.build(run, dataset, CPU)
        keeper = Keeper(folder, {"data": dataset.fingerprint("train")}, 10.0, After(stop))
        try:
            return model.learned_state(), loop.fit(model, run, dataset, CPU, keeper=keeper)
        except Stopped:
            continue
    raise AssertionError("the last part runs to its end")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("sampler", ["instance", pytest.param("progressive", marks=pytest.mark.slow)])
@pytest.mark.parametrize("stops", [(0,), (3,), (4,), (1, 1, 1, 1, 1)])
def test_a_resumed_run_ends_with_the_same_bits(
    photos: Path, tmp_path: Path, stops: Sequence[int], sampler: str
) -> None:
    run = config.resolve(data=str(photos), overrides=[*SETTINGS, f"sampler={sampler}"])
    dataset = sources.load(run.data)
    model = assembly.build(run, dataset, CPU)
    whole = loop.fit(model, run, dataset, CPU)
    expected = model.learned_state()
    _, parts = fitted(photos, tmp_path / "run", stops, f"sampler={sampler}")
    found = {
        name.removeprefix("model."): value
        for name, value in load_file(tmp_path / "run" / checkpoint.STATE).items()
        if name.startswith("model.")
    }
    assert parts.losses == whole.losses
    assert same(found, expected)


def test_momentum_is_part_of_the_state(photos: Path, tmp_path: Path) -> None:
    fitted(photos, tmp_path / "run", (2,))
    names = load_file(tmp_path / "run" / checkpoint.STATE)
    learned = {name.partition(".")[2] for name in names if name.startswith("model.")}
    assert {name.partition(".")[2] for name in names if name.startswith("momentum.")} == learned


def arguments(photos: Path, folder: Path, *more: str) -> list[object]:
    return ["train", "--data", photos, "--out", folder, *SETTINGS, *more]


def check_files(folder: Path) -> None:
    """Everything in the folder is whole: readable, its checksum right."""
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            checkpoint.read_tensors(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())


def outcome(folder: Path) -> dict[str, Any]:
    """What must be equal, time and memory left out."""
    told = disk.read_json(folder / "metrics.json")
    metrics = {key: value for key, value in told.items() if key not in ("seconds", "peak_memory_bytes")}
    files = (*FILES, *(name for name in (checkpoint.LAST_MODEL, matching.SPLITS) if (folder / name).exists()))
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "files": {name: (folder / name).read_bytes() for name in files},
        "metrics": metrics,
        "log": [{key: value for key, value in entry.items() if key != "seconds"} for entry in log],
    }


@dataclass
class Kills:
    """Where the kills of a test fell."""

    times: int = 0
    saved: int = 0  # after the run's first save
    saving: int = 0  # while a file was being written


def killed_at_random(photos: Path, tmp_path: Path, times: int, *more: str) -> Kills:
    """Kill -9 at moments drawn evenly over a run's whole time, every other time in the save that comes next.

    Each run goes on until its end, which is compared with that of a whole run.
    """
    told, duration = tmp_path / "told.txt", 0.0
    for name in ("warm", "whole"):  # the first one waits for the server to import everything
        began = time.monotonic()
        assert liftplus(*arguments(photos, tmp_path / name, *more), told=told).wait() == 0, told.read_text()
        duration = time.monotonic() - began
    expected = outcome(tmp_path / "whole")
    assert outcome(tmp_path / "warm") == expected
    draw, kills, number = random.Random(0), Kills(), 0
    while kills.times < times:
        folder, number = tmp_path / f"run{number}", number + 1
        writing = folder / f"{checkpoint.STATE}.tmp"
        while killed(
            liftplus(*arguments(photos, folder, *more), told=told),
            draw.uniform(0.0, duration),
            writing if kills.times % 2 else None,
        ):
            kills.times += 1
            kills.saved += (folder / checkpoint.STATE).exists()
            kills.saving += any(folder.glob("*.tmp"))
            if folder.exists():
                check_files(folder)
            if (folder / checkpoint.FILE).exists() and not (folder / checkpoint.STATE).exists():
                break  # all was written by then
        assert outcome(folder) == expected
        assert not (folder / checkpoint.STATE).exists() and not any(folder.glob("*.tmp"))
    return kills


def killed(running: Running, after: float, writing: Path | None) -> bool:
    """Kill a command after some seconds, or when it next writes this file; False where it was done by then."""
    code = running.wait(after)
    while code is None and writing is not None and not writing.exists():
        time.sleep(0.0005)
        code = running.process.exitcode
    if code is None:
        running.kill()
    else:
        assert code == 0, running.told
    return code is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("epochs=8",),
        ("tuner=full", "epochs=1", "train.batch_size=1"),
        ("tuner=full", "epochs=4", "train.batch_size=3", "select=overall", "val_share=0.4"),
    ],
    ids=["small", "full", "best"],
)
def test_killed_forty_times(photos: Path, tmp_path: Path, more: Sequence[str]) -> None:
    """Saving at each step: a few KB, or 25 MB where every weight is tuned; with the best epoch's weights, half as much
    again."""
    kills = killed_at_random(photos, tmp_path, 40, "save_minutes=0.0001", *more)
    print(f"{kills.times} kills, {kills.saved} after the first save, {kills.saving} while a file was written")
    assert kills.saved >= kills.times / 4
    assert kills.saving >= kills.times / 8


@pytest.mark.slow
def test_killed_twice(photos: Path, tmp_path: Path) -> None:
    killed_at_random(photos, tmp_path, 2, "save_minutes=0.0001")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_asked_to_stop(photos: Path, tmp_path: Path, number: int) -> None:
    """The step under way is finished, the state saved, the way on said; the same command goes on."""
    folder = tmp_path / "run"
    running = liftplus(*arguments(photos, folder, "epochs=2000"), told=tmp_path / "told.txt")
    until(lambda: (folder / checkpoint.STATE).exists(), running)
    running.send(number)
    assert running.wait(60) == 128 + number
    assert f"liftplus train --resume {folder}" in running.told
    assert "Traceback" not in running.told
    at = Keeper(folder, {}, 1.0).position()
    assert at.epoch + at.step > 0


def test_the_same_command_goes_on_and_a_finished_run_is_left_alone(photos: Path, tmp_path: Path, command: Any) -> None:
    folder = tmp_path / "run"
    given = ["--data", photos, "--out", folder, *SETTINGS]
    assert command("train", *given).code == 0
    again = command("train", *given)
    assert again.code == 2 and "already exists and holds a finished run. " in " ".join(again.err.split())
    other = command("train", *given, "seed=7")
    assert other.code == 2 and "finished run with other settings: seed was 0, now 7. " in " ".join(other.err.split())
    resumed = command("train", "--resume", folder)
    assert resumed.code == 2 and "is finished" in resumed.err and "liftplus eval" in resumed.err
    assert "remove it" not in resumed.err


def begun(photos: Path, folder: Path) -> None:
    """An unfinished run of two epochs of three, as the command line leaves it."""
    run = config.resolve(data=str(photos), overrides=list(SETTINGS))
    session = opening.Session(run, CPU, stop=None)
    dataset = session.data()
    asked = stopping.StopRequest()
    asked.signal = int(signal.SIGTERM)
    folder.mkdir()
    with pytest.raises(Stopped):
        execution.train_run(opening.Session(run, CPU, stop=asked), dataset, session.start(dataset)[1], folder)


def test_other_settings_are_refused(photos: Path, tmp_path: Path, command: Any) -> None:
    begun(photos, tmp_path / "run")
    given = ["--data", photos, "--out", tmp_path / "run", *SETTINGS]
    for change in ("lr=0.1", "tuner=lora", "seed=1"):
        refused = command("train", *given, change)
        assert refused.code == 2 and "other settings" in refused.err and change.partition("=")[0] in refused.err
    assert command("train", *given, "save_minutes=3").code == 0


def test_resume_by_folder(photos: Path, tmp_path: Path, command: Any) -> None:
    begun(photos, tmp_path / "run")
    done = command("train", "--resume", tmp_path / "run")
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert not (tmp_path / "run" / checkpoint.STATE).exists()


def test_changed_training_data_are_refused(photos: Path, tmp_path: Path, command: Any) -> None:
    begun(photos, tmp_path / "run")
    (photos / "train" / "red_square" / "0.png").unlink()
    refused = command("train", "--resume", tmp_path / "run")
    assert refused.code == 2 and "another training data" in refused.err


@pytest.mark.parametrize("harm", ["cut", "bit", "empty"])
def test_a_damaged_state_is_refused(photos: Path, tmp_path: Path, command: Any, harm: str) -> None:
    begun(photos, tmp_path / "run")
    path = tmp_path / "run" / checkpoint.STATE
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes({"cut": bytes(data[:-100]), "bit": bytes(data), "empty": b""}[harm])
    refused = command("train", "--resume", tmp_path / "run")
    assert refused.code == 2 and "damaged" in refused.err and "Traceback" not in refused.err


def test_two_runs_on_one_folder(photos: Path, tmp_path: Path) -> None:
    run = config.resolve(data=str(photos), overrides=list(SETTINGS))
    session = opening.Session(run, CPU)
    dataset = session.data()
    model = session.start(dataset)[1]
    with disk.locked(tmp_path), pytest.raises(UserError, match="Another process is writing"):
        execution.train_run(session, dataset, model, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".json", ".safetensors")] == []


def test_a_torn_log_is_mended(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    disk.keep_lines(log, lambda entry: entry["epoch"] <= 1)
    assert log.read_text() == '{"epoch": 1}\n'


def test_position_survives_its_file(photos: Path, tmp_path: Path) -> None:
    """A loss's fp32 value comes back exactly."""
    total = float(torch.tensor(1.1) * 3)
    keeper = Keeper(tmp_path, {}, 1.0)

    class Nothing:
        def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
            return {}, {}

        def load_state(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None: ...

    position = Position(2, 7, total, (0.1, 0.2), 3.5)
    keeper.save(Nothing(), position)
    assert keeper.position() == position
    assert torch.tensor(keeper.position().total) == torch.tensor(1.1) * 3


def test_a_run_that_another_process_finished_meanwhile_is_left_alone(photos: Path, tmp_path: Path) -> None:
    """This one looked before that; it looks again when it holds the lock."""
    run = config.resolve(data=str(photos), overrides=[*SETTINGS, "epochs=1"])
    session = opening.Session(run, CPU)
    dataset = session.data()
    folder = disk.new_folder(tmp_path / "run")
    execution.train_run(session, dataset, session.start(dataset)[1], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="already exists"):
        execution.train_run(session, dataset, session.start(dataset)[1], folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    begun(photos, tmp_path / "other")
    with pytest.raises(UserError, match="other settings"):
        execution.train_run(session, dataset, session.start(dataset)[1], tmp_path / "other")


def test_a_run_without_training_goes_on_until_its_tables_are_whole(
    photos: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before or after any of its files was written."""
    given = ["--data", photos, *SETTINGS, "epochs=0"]
    assert command("train", *given, "--out", tmp_path / "whole").code == 0
    write = disk.write_bytes

    def killed_at(number: int) -> Any:
        left = iter(range(number))

        def write_or_die(path: Path, data: bytes) -> None:
            if next(left, None) is None:
                raise SystemExit(137)
            write(path, data)

        return write_or_die

    for number in (1, 3, 5):
        with monkeypatch.context() as patch:
            dying = killed_at(number)
            for module in (disk, checkpoint):
                patch.setattr(module, "write_bytes", dying)
            assert command("train", *given, "--out", tmp_path / "run").code == 137
        assert not (tmp_path / "run" / checkpoint.FILE).exists()
    assert command("train", "--resume", tmp_path / "run").code == 0
    for name in ("metrics.json", *FILES):
        one, two = ((tmp_path / run / name).read_bytes() for run in ("run", "whole"))
        assert one == two or name == "metrics.json"


@pytest.mark.slow
def test_the_last_good_state_outlives_a_loss_that_is_not_finite(
    photos: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second epoch; the state of the first is whole and finite, and leads to the end of a sound run."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert command("train", *arguments(photos, whole)[1:]).code == 0
    gradients, steps = step.Step._gradients, iter(range(100))

    def poisoned(self: step.Step, batch: Any) -> torch.Tensor:
        found = gradients(self, batch)
        return found * torch.nan if next(steps) == 4 else found

    with monkeypatch.context() as patch:
        patch.setattr(step.Step, "_gradients", poisoned)
        ended = command("train", *arguments(photos, folder)[1:])
    assert ended.code == 2 and "not finite in epoch 2, step 2" in ended.err
    assert Keeper(folder, {}, 1.0).position().epoch == 1
    _, tensors = checkpoint.read_tensors(folder / checkpoint.STATE)
    assert all(bool(value.isfinite().all()) for value in tensors.values())
    assert command("train", "--resume", folder).code == 0
    assert outcome(folder) == outcome(whole)


@pytest.mark.slow
def test_the_scaler_of_fp16_is_part_of_the_state(photos: Path, tmp_path: Path) -> None:
    """On the CPU, where no user may choose fp16. A step that overflows is left out and halves the scale."""
    run = config.resolve(data=str(photos), overrides=[*SETTINGS])
    dataset, place = sources.load(run.data), runtime.Runtime(torch.device("cpu"), "fp16")
    found = []
    for folder, asked in ((tmp_path / "whole", ()), (tmp_path / "parts", (0, 1))):
        folder.mkdir()
        for stop in [*asked, 10**9]:
            model, keeper = assembly.build(run, dataset, place), Keeper(folder, {}, 10.0, After(stop))
            try:
                losses = loop.fit(model, run, dataset, place, keeper=keeper).losses
            except Stopped:
                continue
        about, tensors = checkpoint.read_tensors(folder / checkpoint.STATE)
        found.append((losses, about["values"]["scaler"], tensors))
    (losses, scaler, tensors), (other_losses, other_scaler, other_tensors) = found
    assert all(torch.isfinite(torch.tensor(losses))) and losses == other_losses
    assert 1 <= scaler["scale"] <= 65536 and scaler == other_scaler
    assert same(tensors, other_tensors)


def test_a_loss_that_is_not_finite_stops_at_once(photos: Path) -> None:
    """Named: epoch, step, rate, files, the module with the largest activation; the weights before it are kept."""
    run = config.resolve(data=str(photos), overrides=[*SETTINGS, "lr=1e30"])
    dataset = sources.load(run.data)
    model = assembly.build(run, dataset, CPU)
    with pytest.raises(UserError, match=r"not finite in epoch 1, step \d+, at learning rate 1e\+30") as error:
        loop.fit(model, run, dataset, CPU)
    told = str(error.value)
    assert ".png" in told and "largest activation is" in told and "given by" in told


def test_out_of_memory_says_what_to_try(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = config.resolve(data=str(photos), overrides=[*SETTINGS])
    dataset = sources.load(run.data)
    model = assembly.build(run, dataset, CPU)

    def full(_images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(UserError, match=r"with 4 images at a time\. Try train\.micro_batch=2"):
        loop.fit(model, run, dataset, CPU)


DIVERGING = (
    "--method",
    "full",
    "recipe=paper",
    "precision=fp32",
    "train.batch_size=16",
    "workers=0",
    "tte=false",
    "device=cpu",
)


@pytest.mark.parametrize(("rate", "epochs"), [("1e30", 1), ("1e30", 2)])
def test_what_the_last_step_breaks_is_not_saved(
    photos: Path, tmp_path: Path, command: Any, rate: str, epochs: int
) -> None:
    """The loss of a step is that of the weights before it; after it they are finite here, and what they give is not."""
    ended = command("train", "--data", photos, "--out", "run", *DIVERGING, f"lr={rate}", f"epochs={epochs}")
    assert ended.code == 2 and "not finite any more after epoch 1, step 1" in ended.err, ended.err
    assert "train --resume run train.lr=" in ended.err and "precision=fp32" not in ended.err
    assert not list((tmp_path / "run").glob("*.safetensors")) and not (tmp_path / "run" / "metrics.json").exists()
    assert command("train", "--resume", "run", "lr=1e-3").code == 0
    about = disk.read_json(tmp_path / "run" / "config.json")
    assert about["config"]["train"]["lr"] == 1e-3 and "changed" not in about


def test_a_run_that_diverged_goes_on_from_its_last_sound_state(
    photos: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of the second epoch puts an infinite number into a weight."""
    call, steps = step.Step.__call__, iter(range(1, 100))

    def breaking(self: step.Step, batch: Any) -> torch.Tensor:
        found = call(self, batch)
        if next(steps) == 6:
            next(iter(self.trained.values())).data.view(-1)[0] = torch.inf
        return found

    with monkeypatch.context() as patch:
        patch.setattr(step.Step, "__call__", breaking)
        ended = command("train", *arguments(photos, tmp_path / "run")[1:])
    assert ended.code == 2 and "The state after 1 epoch and 0 steps is in" in ended.err, ended.err
    assert Keeper(tmp_path / "run", {}, 1.0).position().epoch == 1
    for wrong in ("tuner=lora", "epochs=9", "seed=4"):
        refused = command("train", "--resume", "run", wrong, "lr=0.01")
        assert refused.code == 2 and "other settings" in refused.err
    done = command("train", "--resume", "run", "train.lr=0.01")
    assert done.code == 0 and "train.lr was 0.05, now 0.01, after 1 epoch and 0 steps." in done.err
    about = disk.read_json(tmp_path / "run" / "config.json")
    assert about["changed"] == [{"epoch": 1, "step": 0, "settings": {"train.lr": [0.05, 0.01]}}]
    rates = [json.loads(line)["lr"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(rates) == 3 and rates[0] == 0.05 and rates[1] < 0.01
    session = opening.Session(config.from_dict(about["config"]), CPU)
    with pytest.raises(UserError, match="changed when it was resumed"):
        reuse.finished(tmp_path / "run", session.config, session.data())


def test_numbers_that_are_not_finite_are_never_written_and_give_no_answer(tmp_path: Path) -> None:
    for value in (torch.nan, torch.inf):
        with pytest.raises(DivergedError, match=r"1 weight is not finite or too large, first b"):
            checkpoint.write_tensors(tmp_path / "x", {"a": torch.ones(2), "b": torch.tensor([1, value])}, {"format": 2})
        with pytest.raises(DivergedError, match=r"not finite for 1 of 2 pictures.*lower train\.lr"):
            best(torch.tensor([[0.0, 1.0], [value, 0.0]]), EvaluationConfig(), CPU, 2)
    with pytest.raises(DivergedError, match="1 weight is not finite or too large, first a"):
        checkpoint.write_tensors(tmp_path / "x", {"a": torch.full((4,), 1e30)}, {"format": 2})
    assert list(tmp_path.iterdir()) == []


def test_options_that_contradict_the_resumed_run_are_refused(photos: Path, tmp_path: Path, command: Any) -> None:
    begun(photos, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    wrong = {"--method": "full", "--data": "elsewhere", "--out": "other", "--backbone": "clip_vit_b16"}
    wrong |= {"--minutes": "3.0"}
    for option, value in wrong.items():
        refused = command("train", "--resume", "run", option, value)
        assert refused.code == 2 and f"{option} {value} contradicts --resume" in refused.err, refused.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    same = ("--method", "lift+", "--data", photos, "--out", tmp_path / "run", "--backbone", "mini_clip", "lr=0.05")
    assert command("train", "--resume", "run", *same).code == 0


def test_a_broken_model_is_neither_saved_nor_loaded(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older version wrote such files; a copy of one would be a finished model to look at."""
    model = api.fit(photos, epochs=0, workers=0, precision="fp32", cache=False, device="cpu")
    weight = model.network.head.weight.data
    for value in (torch.nan, torch.inf, 1e30):
        weight[0, 0] = value
        with pytest.raises(UserError, match=r"not finite or too large, first head\.weight"):
            model.save(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
    weight[0, 0] = torch.nan
    monkeypatch.setattr(checkpoint, "sound", lambda _: True)
    model.save(tmp_path / "old")
    with pytest.raises(UserError, match=r"holds weights that are not finite, first head\.weight: the run diverged"):
        api.load(tmp_path / "old")
