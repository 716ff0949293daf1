"""The best epoch on the validation split: measured, kept, restored to the bit, and said on the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from liftplus import config
from liftplus.data import sources
from liftplus.data.dataset import Split
from liftplus.errors import UserError
from liftplus.evaluation.inference import TopK
from liftplus.evaluation.metrics import Metrics
from liftplus.machine import disk, runtime
from liftplus.training import assembly, checkpoint, loop, selection
from liftplus.training.saved_state import Keeper, Position, Stopped, TrainingState

from ..conftest import Command, write_folder
from ..runs.test_resume import After, same

CPU = runtime.choose("cpu", "fp32")
SETTINGS = ("epochs=4", "train.batch_size=4", "workers=0", "device=cpu", "precision=fp32", "tte=false", "lr=0.05")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", {"train": (6, 3, 2), "val": (2, 2, 2), "test": (1, 1, 1)})


def noise(salt: int, predictions: TopK, _split: Split, counts: tuple[int, ...]) -> Metrics:
    """Accuracies that jump with every bit of the weights, so that a best epoch may be anywhere."""
    digest = hashlib.sha256(bytes([salt]) + predictions.probabilities.numpy().tobytes()).digest()
    return Metrics(digest[0] / 2.56, digest[1] / 2.56, None, None, None, (None,) * len(counts), 6)


def scripted(values: Sequence[float]) -> Any:
    """Accuracies of one epoch after the other; mean_class runs the other way."""
    left = iter(values)

    def score(_predictions: TopK, _split: Split, counts: tuple[int, ...]) -> Metrics:
        value = next(left)
        return Metrics(value, 100 - value, None, None, None, (None,) * len(counts), 6)

    return score


class Trained:
    """A run in memory: what it gave, the weights after each epoch, and its log."""

    def __init__(self, photos: Path, *more: str, keeper: Keeper | None = None) -> None:
        run = config.resolve(data=str(photos), overrides=[*SETTINGS, *more])
        dataset = sources.load(run.data)
        self.model = assembly.build(run, dataset, CPU)
        self.after: list[dict[str, torch.Tensor]] = []
        self.log: list[dict[str, Any]] = []
        self.fit = loop.fit(self.model, run, dataset, CPU, log=self.note, keeper=keeper)

    def note(self, entry: dict[str, Any]) -> None:
        self.log.append(entry)
        self.after.append({name: value.clone() for name, value in self.model.learned_state().items()})


def test_measuring_changes_nothing(photos: Path) -> None:
    plain, measured = Trained(photos), Trained(photos, "validate_every=2")
    assert measured.fit.losses == plain.fit.losses
    assert same(measured.model.learned_state(), plain.model.learned_state())
    assert ["validation" in entry for entry in measured.log] == [False, True, False, True]
    assert not any("validation" in entry for entry in plain.log)
    assert measured.log[1]["validation"]["images"] == 6
    assert measured.fit.chosen.by == "last" and measured.fit.chosen.validation == measured.log[3]["validation"]
    assert plain.fit.chosen.validation is None and plain.fit.last is None


CASES: tuple[tuple[str, tuple[float, ...], int, int], ...] = (
    ("overall", (10, 40, 30, 20), 1, 2),
    ("mean_class", (30, 40, 20, 30), 1, 3),
    ("overall", (40, 40, 40, 10), 1, 1),  # of equal ones the first
    ("overall", (10, 20, 30, 40), 1, 4),
    ("overall", (30, 20), 2, 2),  # measured after the second and the fourth
    ("overall", (30, 20), 3, 3),  # and after the last, whatever the interval
)


def test_the_best_epoch_is_chosen(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without training: each epoch's weights are its number."""
    run = config.resolve(data=str(photos), overrides=list(SETTINGS))
    dataset = sources.load(run.data)
    model = assembly.build(run, dataset, CPU)
    monkeypatch.setattr(selection, "predict", lambda *_args: None)
    for by, values, every, wanted in CASES:
        monkeypatch.setattr(selection, "score", scripted(values))
        asked = run.train.model_copy(update={"select": by, "validate_every": every})
        choice = selection.Selection(model, run.model_copy(update={"train": asked}), dataset, CPU)
        for epoch in range(1, 5):
            model.head.weight.data.fill_(epoch)
            choice.measure(epoch, lambda **_figures: None)
        chosen, last = choice.choose()
        assert (chosen.epoch, chosen.of, chosen.by) == (wanted, 4, by)
        assert model.head.weight.unique().tolist() == [wanted]
        assert (last is None) == (wanted == 4)
        assert last is None or last["head.weight"].unique().tolist() == [4]
        best = max(value if by == "overall" else 100 - value for value in values)
        assert chosen.validation is not None and chosen.validation[by] == best
        assert f"epoch {wanted} of 4, the best {by} on the validation split, {best:.1f} %" in str(chosen)


def test_a_run_ends_with_the_best_epoch(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "score", scripted((10, 40, 30, 20)))
    run = Trained(photos, "select=overall")
    assert same(run.model.learned_state(), run.after[1])
    assert run.fit.last is not None and same(run.fit.last, run.after[3])


@pytest.mark.parametrize(
    "stops",
    [(3,), (1, 1, 1), *(pytest.param(stops, marks=pytest.mark.slow) for stops in [(0,), (2,), (5, 2), (0,) * 7])],
)
def test_a_resumed_run_chooses_the_same_bits(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: Sequence[int]
) -> None:
    """Stopped in an epoch, before a measurement and after it; the best weights are in the one state file."""
    for salt in range(8):  # another machine has other bits, and its best epoch may be the last
        monkeypatch.setattr(selection, "score", partial(noise, salt))
        whole = Trained(photos, "select=overall")
        if whole.fit.chosen.epoch < 4:
            break
    assert whole.fit.chosen.epoch < 4
    (tmp_path / "run").mkdir()
    log: list[dict[str, Any]] = []
    for stop in [*stops, 10**9]:
        keeper = Keeper(tmp_path / "run", {}, 10.0, After(stop))
        try:
            parts = Trained(photos, "select=overall", keeper=keeper)
        except Stopped:
            continue
        log += parts.log
    assert parts.fit.chosen == whole.fit.chosen and parts.fit.losses == whole.fit.losses
    assert same(parts.model.learned_state(), whole.model.learned_state())
    assert parts.fit.last is not None and whole.fit.last is not None and same(parts.fit.last, whole.fit.last)
    wanted = {entry["epoch"]: (entry["lr"], entry.get("validation")) for entry in whole.log}
    assert all(wanted[entry["epoch"]] == (entry["lr"], entry.get("validation")) for entry in log)
    names = load_file(tmp_path / "run" / checkpoint.STATE)
    assert any(name.startswith("best.") for name in names)


def test_a_state_without_a_best_is_read(photos: Path, tmp_path: Path) -> None:
    """As earlier versions wrote it."""

    class Old:
        def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
            return {}, {"scaler": {}}

        def load_state(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
            assert tensors == {} and values["scaler"] == {}

    run = config.resolve(data=str(photos), overrides=list(SETTINGS))
    dataset = sources.load(run.data)
    choice = selection.Selection(assembly.build(run, dataset, CPU), run, dataset, CPU)
    Keeper(tmp_path, {}, 1.0).save(Old(), Position(2))
    assert Keeper(tmp_path, {}, 1.0).restore(TrainingState(Old(), choice)) == Position(2)
    assert choice.best is None and choice.weights == {}


@pytest.mark.parametrize("asked", ["select=overall", "validate_every=1"])
def test_no_validation_split_is_refused_before_any_work(tmp_path: Path, command: Command, asked: str) -> None:
    write_folder(tmp_path / "photos", {"train": (3, 2, 1), "test": (1, 1, 1)})
    given = ["--data", tmp_path / "photos", "--out", tmp_path / "run", *SETTINGS, asked]
    refused = command("train", *given)
    assert refused.code == 2 and "needs a validation split" in refused.err and "data.val_share=0.1" in refused.err
    assert not (tmp_path / "run").exists()
    run = config.resolve(data=str(tmp_path / "photos"), overrides=[*SETTINGS, asked])
    with pytest.raises(UserError, match="needs a validation split"):
        assembly.build(run, sources.load(run.data), CPU)


@pytest.mark.slow
def test_said_on_the_result(photos: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which weights, which split, which epoch: in the files and on the screen; both models can be tested."""
    monkeypatch.setattr(selection, "score", scripted((10, 40, 30, 20)))
    done = command("train", "--data", photos, "--out", "run", *SETTINGS, "select=overall")
    assert done.code == 0, done.err
    told = "weights after epoch 2 of 4, the best overall on the validation split, 40.0 %"
    assert told in done.out
    metrics = disk.read_json(tmp_path / "run" / "metrics.json")
    assert metrics["split"] == "test" and metrics["weights"]["epoch"] == 2 and metrics["weights"]["by"] == "overall"
    assert metrics["weights"]["validation"]["overall"] == 40
    assert checkpoint.read_about(tmp_path / "run")["weights"] == metrics["weights"]
    again = command("eval", "run", "--json")
    assert again.code == 0 and json.loads(again.out)["overall"] == metrics["overall"]
    assert disk.read_json(tmp_path / "run" / "eval" / "metrics.json")["weights"] == metrics["weights"]
    last = command("eval", f"run/{checkpoint.LAST_MODEL}")
    assert last.code == 0 and "weights after epoch 4 of 4" in last.out
    told_last = disk.read_json(tmp_path / "run" / "eval-2" / "metrics.json")["weights"]
    assert (told_last["epoch"], told_last["by"], told_last["validation"]["overall"]) == (4, "last", 20)


def test_a_file_without_the_epoch_is_read(photos: Path, tmp_path: Path) -> None:
    run = config.resolve(data=str(photos), overrides=[*SETTINGS, "epochs=0"])
    dataset = sources.load(run.data)
    model = assembly.build(run, dataset, CPU)
    checkpoint.save_model(tmp_path, model, run, dataset)
    about, tensors = checkpoint.read_tensors(tmp_path / checkpoint.FILE)
    old = {key: value for key, value in about.items() if key not in ("weights", "sha256")}
    checkpoint.write_tensors(tmp_path / checkpoint.FILE, tensors, old)
    assert checkpoint.load_model(tmp_path, CPU).chosen is None
