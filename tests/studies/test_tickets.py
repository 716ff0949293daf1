"""Work shared through Optuna's storage: each piece once, the dead ones again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from liftplus.errors import RunFailedError, UserError
from liftplus.studies import tickets

optuna = pytest.importorskip("optuna")


def queue(folder: Path, count: int) -> tickets.Tickets:
    study = optuna.create_study(
        storage=tickets.storage(f"sqlite:///{folder}/db"), study_name="s", direction="maximize", load_if_exists=True
    )
    return tickets.Tickets(study, [{"x": k} for k in range(count)], lambda _text: None)


def work(folder: Path, count: int, seconds: float) -> None:
    def objective(trial: Any, number: int) -> tuple[float, dict[str, Any]]:
        assert trial.suggest_int("x", 0, 99) == number
        with (folder / f"{number}").open("x"):  # fails where another has done it
            time.sleep(seconds)
        return float(number), {}

    queue(folder, count).work(objective)


def child(folder: Path, count: int, seconds: float) -> Any:
    process = multiprocessing.get_context("fork").Process(target=work, args=(folder, count, seconds))
    process.start()
    return process


def test_three_processes_do_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "POLL", 0.05)
    queue(tmp_path, 7)
    processes = [child(tmp_path, 7, 0.02) for _ in range(3)]
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    done = queue(tmp_path, 7).trials()
    assert sorted(done) == list(range(7)) and all(one.value == number for number, one in done.items())
    assert sorted(path.name for path in tmp_path.glob("[0-9]*")) == sorted(map(str, range(7)))


@pytest.mark.parametrize("silent", [False, True])
def test_a_killed_one_is_done_again_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool) -> None:
    """Also one that is killed before Optuna's thread has said that it lives."""
    monkeypatch.setattr(tickets, "POLL", 0.05)
    if silent:
        for name in ("start", "join"):
            monkeypatch.setattr(f"optuna.storages._heartbeat.HeartbeatThread.{name}", lambda _self: None)
    queue(tmp_path, 3)
    process = child(tmp_path, 3, 300)
    while not (tmp_path / "0").exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (tmp_path / "0").unlink()
    monkeypatch.setattr(tickets, "GRACE", 1)
    work(tmp_path, 3, 0)
    trials = queue(tmp_path, 3).study.get_trials()
    states = [(one.user_attrs[tickets.TICKET], one.state.name) for one in trials]
    assert states == [(0, "FAIL"), (1, "COMPLETE"), (2, "COMPLETE"), (0, "COMPLETE")]


def test_one_killed_before_its_first_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = queue(tmp_path, 1)
    made._refill()
    with tickets._quiet():
        made.study.ask()  # taken, and nothing more
    monkeypatch.setattr(tickets, "GRACE", 1)
    time.sleep(1.05)
    work(tmp_path, 1, 0)
    assert made.trials()[0].state.name == "COMPLETE"


def test_doubles_of_a_race_are_dropped(tmp_path: Path) -> None:
    first, second = queue(tmp_path, 2), queue(tmp_path, 2)
    for number in (0, 1):  # two processes that came at the same moment
        for made in (first, second):
            made.study.enqueue_trial({"x": number}, user_attrs={tickets.TICKET: number})
    work(tmp_path, 2, 0)
    work(tmp_path, 2, 0)
    assert [one.state.name for one in first.trials().values()] == ["COMPLETE"] * 2


def test_what_fails_by_itself_is_not_tried_again_and_what_else_fails_is(tmp_path: Path) -> None:
    made = queue(tmp_path, 2)

    def diverges(_trial: Any, number: int) -> tuple[float, dict[str, Any]]:
        if number == 0:
            raise RunFailedError("The loss is not finite.")
        raise UserError("The disk is full.")

    with pytest.raises(UserError, match="disk"):
        made.work(diverges)
    with pytest.raises(ValueError, match="ours"):  # never swallowed
        made.work(lambda _trial, _number: (float("ours"), {}))
    seen: list[int] = []
    made.work(lambda _trial, number: (seen.append(number), (1.0, {}))[1])  # type: ignore[func-returns-value]
    assert seen == [1]
    assert made.trials()[0].user_attrs[tickets.ERROR] == "The loss is not finite."


@pytest.mark.parametrize("noted", [{}, {"metrics": 1}])
def test_one_held_for_dead_that_lives(tmp_path: Path, noted: dict[str, Any]) -> None:
    """A computer slept; others took its trial. It must not fall over when it comes to report."""
    made = queue(tmp_path, 1)
    values = iter((1.0, 2.0))

    def objective(trial: Any, _number: int) -> tuple[float, dict[str, Any]]:
        value = next(values)
        if value == 1.0:
            made._fail(trial.number)
        return value, noted

    made.work(objective)
    assert made.trials()[0].value == 2.0


def test_a_storage_that_goes_away_is_told(tmp_path: Path) -> None:
    made = queue(tmp_path, 1)

    def objective(_trial: Any, _number: int) -> tuple[float, dict[str, Any]]:
        (tmp_path / "db").write_bytes(b"no database any more" * 1000)
        return 1.0, {"metrics": 1}

    with pytest.raises(UserError, match="The storage failed"), tickets.reached():
        made.work(objective)
    with pytest.raises(ValueError, match="ours"), tickets.reached():
        raise ValueError("ours")


def test_a_sign_of_life_that_fails_is_made_up_for_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of Optuna's sends them: an error in it would print a traceback and be the last sign."""
    from optuna.storages import RDBStorage

    sent, real = [], RDBStorage.record_heartbeat

    def record(storage: RDBStorage, trial: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            sent.append(trial)
            if len(sent) == 1:
                raise OSError("the network is gone")
        real(storage, trial)

    monkeypatch.setattr(RDBStorage, "record_heartbeat", record)
    monkeypatch.setattr(tickets, "BEAT", 1)
    made = queue(tmp_path, 1)

    def objective(_trial: Any, _number: int) -> tuple[float, dict[str, Any]]:
        give_up = time.monotonic() + 20
        while len(sent) < 2 and time.monotonic() < give_up:
            time.sleep(0.05)
        return 1.0, {"metrics": 1}

    made.work(objective)
    assert len(sent) >= 2 and made.trials()[0].value == 1.0


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nonsense", "no database's address"),
        ("sqlite:////nowhere/at/all.db", "cannot be opened"),
        ("nodb://u:secret@host/x", "nodb://u:…@host/x"),
    ],
)
def test_storage_that_cannot_be_opened(url: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        tickets.storage(url)
    assert "secret" not in str(caught.value)
