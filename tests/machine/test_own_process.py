"""What belongs to the process that calls liftplus stays as it was: random streams, signals, threads, its own script."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import liftplus
from liftplus.backbones import catalogue
from liftplus.backbones.base import BackboneConfig
from liftplus.errors import UserError
from liftplus.machine import determinism, parallel

QUICK: dict[str, Any] = {"epochs": 1, "tte": False, "workers": 0, "precision": "fp32", "cache": False, "device": "cpu"}


def pictures() -> tuple[np.ndarray[Any, Any], list[str]]:
    return np.random.RandomState(0).randint(256, size=(6, 64, 64, 3), dtype=np.uint8), ["ant", "bee", "cat"] * 2


def learned(model: liftplus.Model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.network.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def in_threads(job: Callable[[int], Any], count: int) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(job, range(count)))


@pytest.mark.slow
def test_fits_in_threads_are_fits_alone_and_load(tmp_path: Path) -> None:
    data = pictures()

    def fit(place: str, seed: int) -> liftplus.Model:
        return liftplus.fit(data, out=tmp_path / place, seed=seed, pretrained=False, **QUICK)

    together = in_threads(lambda seed: learned(fit(f"t{seed}", seed)), 3)
    alone = [learned(fit(f"a{seed}", seed)) for seed in range(3)]
    assert all(same(one, other) for one, other in zip(together, alone, strict=True))
    assert not same(alone[0], alone[1])
    for seed in range(3):
        assert same(learned(liftplus.load(tmp_path / f"t{seed}", device="cpu")), alone[seed])


def test_random_weights_built_in_threads_are_one() -> None:
    config = BackboneConfig(name="timm/test_vit.r160_in1k", pretrained=False)
    assert len({*in_threads(lambda _: catalogue.load(config).identity, 6), catalogue.load(config).identity}) == 1


def streams() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


def test_the_callers_random_streams_stand_still(tmp_path: Path) -> None:
    data = pictures()
    torch.manual_seed(11)
    before = streams()
    model = liftplus.fit(data, out=tmp_path / "run", **QUICK)
    assert streams() == before, "fit"
    model.predict(data[0][0])
    model.predict_proba(list(data[0]))
    assert streams() == before, "predict"
    model.evaluate(data)
    assert streams() == before, "evaluate"
    liftplus.load(tmp_path / "run", device="cpu")
    assert streams() == before, "load"


@pytest.mark.parametrize("name", ["mini_clip", "timm/test_vit.r160_in1k", "timm/test_resnet.r160_in1k"])
@pytest.mark.parametrize("pretrained", [True, False])
def test_building_a_backbone_draws_from_no_stream_of_the_caller(
    name: str, pretrained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pretrained and name != "mini_clip":
        monkeypatch.setattr("liftplus.backbones.from_timm.locate", lambda *_given, **_options: None)
        monkeypatch.setattr("liftplus.backbones.from_timm.identity_of", lambda _path: "x")
    before = streams()
    catalogue.load(BackboneConfig(name=name, pretrained=pretrained))
    assert streams() == before


def test_the_streams_come_back_after_an_error() -> None:
    before = streams()
    with pytest.raises(ZeroDivisionError), determinism.own_stream(3):
        raise ZeroDivisionError(float(torch.randn(5).sum()))
    assert streams() == before
    torch.manual_seed(3)
    expected = torch.randn(5)
    with determinism.own_stream(3):
        assert torch.equal(torch.randn(5), expected)


def test_determinism_in_threads_ends_with_the_last_one() -> None:
    first, second = determinism.deterministic(True), determinism.deterministic(True)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.are_deterministic_algorithms_enabled()
    second.__exit__(None, None, None)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("thread", [False, True])
def test_signal_handlers_stay(thread: bool, tmp_path: Path) -> None:
    def mine(_number: int, _frame: object) -> None: ...

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
    before = {number: signal.signal(number, mine) for number in numbers}
    try:
        if thread:
            in_threads(lambda _: liftplus.fit(pictures(), out=tmp_path / "run", **QUICK), 1)
        else:
            liftplus.fit(pictures(), out=tmp_path / "run", **QUICK)
        assert [signal.getsignal(number) for number in numbers] == [mine] * 3
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_fit_where_the_caller_wants_no_gradients(guard: Any) -> None:
    expected = learned(liftplus.fit(pictures(), **QUICK))
    with guard():
        found = learned(liftplus.fit(pictures(), **QUICK))
    assert same(found, expected)


def test_torchrun_is_refused_by_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="torchrun -m liftplus train"):
        liftplus.fit(pictures(), **QUICK)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, False),
        ({"WORLD_SIZE": "1", "RANK": "0"}, False),
        ({"WORLD_SIZE": "4"}, False),
        ({"WORLD_SIZE": "4", "RANK": "0"}, True),
    ],
)
def test_whose_process_this_is(given: dict[str, str], told: bool) -> None:
    assert parallel.started_by_torchrun(given) is told


SCRIPT = """
import multiprocessing as mp
mp.set_start_method("{method}", force=True)
import numpy as np, liftplus
images = np.zeros((4, 64, 64, 3), np.uint8)
liftplus.fit((images, [0, 1, 0, 1]), epochs=1, tte=False, workers=1, method="zeroshot" if False else "lift+",
             head_init="class_mean", cache=False, precision="fp32")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("stdin", [False, True])
def test_a_missing_guard_is_named(method: str, stdin: bool, tmp_path: Path) -> None:
    """Loader workers that run the script again; as a file, and from stdin, where there is none to run."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(method=method))
    ended = subprocess.run(
        [sys.executable, "-" if stdin else str(script)],
        input=script.read_text() if stdin else "",
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    last = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 1 and "UserError" in last, ended.stderr
    assert 'if __name__ == "__main__":' in last and "workers=0" in last
    assert "ran out of memory" not in ended.stderr and "An attempt has been made" not in ended.stderr


def test_a_worker_that_ran_the_script_again_is_told_apart() -> None:
    from liftplus.data import workers

    lost = RuntimeError("DataLoader worker (pid(s) 5) exited unexpectedly")
    assert "__main__" in str(workers.lost(lost, [workers.UNGUARDED]))
    assert "ran out of memory" in str(workers.lost(lost, [1]))


def test_a_script_from_stdin_is_refused_before_workers_start(monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing

    from liftplus.data import workers

    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    with pytest.raises(UserError, match="workers=0"):
        workers.refuse_nameless_script()
