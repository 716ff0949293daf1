"""Work shared through Optuna's storage and a lock a trial: each piece once, the dead ones again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from liftplus.errors import RunFailedError, UserError
from liftplus.studies import storage, trials

optuna = pytest.importorskip("optuna")

RANGES = {"x": optuna.distributions.IntDistribution(0, 99)}
URLS = [None, "sqlite:///{}/db"]


def shared(folder: Path, count: int, url: str | None = None, *, given: bool = True) -> trials.Trials:
    opened = storage.opened(url and url.format(folder), folder)
    study = optuna.create_study(storage=opened, study_name="s-0", direction="maximize", load_if_exists=True)
    points = [{"x": k} if given else {} for k in range(count)]
    return trials.Trials(study, folder, points, RANGES, lambda _text: None)


def work(folder: Path, count: int, seconds: float, url: str | None = None, given: bool = True) -> None:
    def objective(values: dict[str, Any], number: int) -> tuple[float, dict[str, Any]]:
        assert values == {"x": number} or not given
        with (folder / f"{number}").open("x") as file:  # fails where another has done it
            file.write(str(values["x"]))
            file.flush()
            time.sleep(seconds)
        return float(number), {}

    shared(folder, count, url, given=given).work(objective)


def child(*given: Any) -> Any:
    process = multiprocessing.get_context("fork").Process(target=work, args=given)
    process.start()
    return process


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("given", [True, False])
def test_three_processes_do_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str | None, given: bool
) -> None:
    monkeypatch.setattr(trials, "POLL", 0.05)
    shared(tmp_path, 7, url)
    processes = [child(tmp_path, 7, 0.02, url, given) for _ in range(3)]
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    done = shared(tmp_path, 7, url).settled()
    assert sorted(done) == list(range(7)) and all(one.value == number for number, one in done.items())
    assert sorted(path.name for path in tmp_path.glob("[0-9]")) == sorted(map(str, range(7)))


@pytest.mark.parametrize("given", [True, False])
def test_a_killed_one_is_done_again_at_once_with_the_same_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    monkeypatch.setattr(trials, "POLL", 60.0)  # nobody has to wait
    shared(tmp_path, 3)
    process = child(tmp_path, 3, 300, None, given)
    while not (tmp_path / "0").exists() or not (tmp_path / "0").read_text():
        assert process.is_alive()
        time.sleep(0.01)
    assert shared(tmp_path, 3).at_work() == [0]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    chosen = (tmp_path / "0").read_text()
    (tmp_path / "0").unlink()
    assert shared(tmp_path, 3).at_work() == []
    work(tmp_path, 3, 0, None, given)
    assert (tmp_path / "0").read_text() == chosen
    made = shared(tmp_path, 3)
    assert sorted(made.settled()) == [0, 1, 2]
    assert not [one for one in made.study.get_trials() if not one.state.is_finished()]


def test_others_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "POLL", 0.05)
    process = child(tmp_path, 1, 1.0)
    while not (tmp_path / "0").exists():
        time.sleep(0.01)
    said: list[str] = []
    made = shared(tmp_path, 1)
    made.say = said.append
    made.work(lambda _values, _number: pytest.fail("another process does it"))
    process.join()
    assert said == ["Waiting for 1 trial of other processes …"]


def test_what_fails_by_itself_is_not_tried_again_and_what_else_fails_is(tmp_path: Path) -> None:
    made = shared(tmp_path, 2)

    def diverges(_values: Any, number: int) -> tuple[float, dict[str, Any]]:
        if number == 0:
            raise RunFailedError("The loss is not finite.")
        raise UserError("The disk is full.")

    with pytest.raises(UserError, match="disk"):
        made.work(diverges)
    with pytest.raises(ValueError, match="ours"):  # never swallowed
        made.work(lambda _values, _number: (float("ours"), {}))
    seen: list[int] = []
    made.work(lambda _values, number: (seen.append(number), (1.0, {}))[1])  # type: ignore[func-returns-value]
    assert seen == [1]
    assert made.settled()[0].user_attrs[trials.ERROR] == "The loss is not finite."


def test_the_sampler_knows_what_was_done_and_what_is_under_way(tmp_path: Path) -> None:
    made = shared(tmp_path, 3, given=False)
    seen: list[int] = []

    def objective(values: dict[str, Any], number: int) -> tuple[float, dict[str, Any]]:
        under_way = [one for one in made.study.get_trials() if one.state.name == "RUNNING"]
        assert [one.params for one in under_way] == [values]
        seen.append(values["x"])
        return float(values["x"]), {}

    made.work(objective)
    complete = [one for one in made.study.get_trials() if one.state.name == "COMPLETE"]
    assert [(one.params["x"], one.value) for one in complete] == [(x, float(x)) for x in seen]


def test_a_sweep_that_an_earlier_version_began_goes_on(tmp_path: Path) -> None:
    """It kept a queue in an SQLite file: of three trials one is done, one was begun and one waits."""
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/sweep.db", study_name="s-0", direction="maximize")
    for number in range(3):
        study.enqueue_trial({"x": number}, user_attrs={trials.NUMBER: number})
    for number in (0, 1):
        trial = study.ask()
        assert trial.suggest_int("x", 0, 99) == number
    study.tell(0, 7.0)
    made = shared(tmp_path, 3)
    storage.drain(made.study)
    seen: list[tuple[int, int]] = []
    made.work(lambda values, number: (seen.append((values["x"], number)), (1.0, {}))[1])  # type: ignore[func-returns-value]
    assert seen == [(1, 1), (2, 2)]
    assert [made.settled()[number].value for number in range(3)] == [7.0, 1.0, 1.0]
    assert not (tmp_path / storage.JOURNAL).exists()


@pytest.mark.slow
@pytest.mark.parametrize("url", URLS)
def test_a_storage_that_goes_away_is_told(tmp_path: Path, url: str | None) -> None:
    made = shared(tmp_path, 1, url)

    def objective(_values: Any, _number: int) -> tuple[float, dict[str, Any]]:
        (tmp_path / ("db" if url else storage.JOURNAL)).write_bytes(b"no database any more\n" * 1000)
        return 1.0, {"metrics": 1}

    with pytest.raises(UserError, match="The storage failed"), storage.reached():
        made.work(objective)
    with pytest.raises(ValueError, match="ours"), storage.reached():
        raise ValueError("ours")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nonsense", "not the address of a database"),
        ("sqlite:////nowhere/at/all.db", "cannot be opened"),
        ("nodb://u:secret@host/x", "nodb://u:…@host/x"),
    ],
)
def test_storage_that_cannot_be_opened(tmp_path: Path, url: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        storage.opened(url, tmp_path)
    assert "secret" not in str(caught.value)
