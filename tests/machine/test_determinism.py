"""`deterministic=true`: which switches are set, for how long, and what is said where an operation has no such form."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from liftplus import config
from liftplus.data import sources
from liftplus.errors import UserError
from liftplus.machine import disk, runtime
from liftplus.machine.determinism import WORKSPACE, deterministic
from liftplus.training import assembly, loop

from ..conftest import Command, write_folder

SETTINGS = ("epochs=2", "train.batch_size=4", "workers=0", "precision=fp32", "tte=false")


def switches() -> tuple[bool, bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark, cudnn.enabled


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", {"train": (4, 3, 2), "test": (1, 1, 1)})


def test_switches_hold_for_its_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN stays on; what was set before comes back, after an error too."""
    monkeypatch.setenv(WORKSPACE, "kept")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = switches()
    assert before == (False, False, True, True)
    with deterministic(False):
        assert switches() == before
    with deterministic(True):
        assert switches() == (True, True, False, True)
        assert os.environ[WORKSPACE] == "kept"
        with deterministic(True):
            pass
        assert switches() == (True, True, False, True)
    with pytest.raises(ZeroDivisionError), deterministic(True):
        raise ZeroDivisionError
    assert switches() == before


def test_the_workspace_of_cublas_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, "")
    monkeypatch.delenv(WORKSPACE)
    with deterministic(True):
        assert os.environ[WORKSPACE] == ":4096:8"


def test_an_operation_without_such_a_form_is_named() -> None:
    place = torch.tensor([0, 0])
    with pytest.raises(UserError, match=r"deterministic=true cannot be kept: put_.*device=cpu"), deterministic(True):
        torch.zeros(3).put_(place, torch.tensor([1.0, 2.0]))
    with pytest.raises(RuntimeError, match="something else"), deterministic(True):
        raise RuntimeError("something else")


@pytest.mark.slow
def test_a_run_trains_tests_and_predicts_with_it(
    photos: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded, and in force in every forward pass."""
    from liftplus.model.classifier import Classifier

    seen, forward = [], Classifier.forward

    def watched(self: Classifier, images: Tensor) -> Tensor:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return forward(self, images)

    monkeypatch.setattr(Classifier, "forward", watched)
    for name in ("one", "two"):
        given = ("--data", photos, "--out", name, *SETTINGS, "device=cpu", "deterministic=true")
        assert command("train", *given).code == 0
    assert command("eval", "one").code == 0
    assert command("predict", "one", photos / "test").code == 0
    assert seen and all(seen)
    assert disk.read_json(tmp_path / "one" / "config.json")["config"]["deterministic"] is True
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    seen.clear()
    assert command("eval", "one", "deterministic=false").code == 0
    assert seen and not any(seen)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("more", [(), ("tuner=lora",), ("tuner=full", "precision=bf16")])
def test_a_gpu_gives_the_same_bits_twice(photos: Path, more: tuple[str, ...]) -> None:
    run = config.resolve(data=str(photos), overrides=[*SETTINGS, "device=cuda", "deterministic=true", *more])
    dataset, place = sources.load(run.data), runtime.choose(run.device, run.precision)
    states = []
    for _ in range(2):
        model = assembly.build(run, dataset, place)
        loop.fit(model, run, dataset, place)
        states.append(model.learned_state())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
