import signal
from dataclasses import replace

import pytest

from liftplus.machine import parallel, stopping


def test_the_first_is_noted_and_a_later_one_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "monotonic", lambda: now)
    now = 10.0
    begun = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with stopping.StopRequest() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        now += 0.9 * stopping.AT_ONCE  # a wrapper's second one
        signal.raise_signal(signal.SIGINT)
        assert asked() and asked.signal == signal.SIGINT
        now += stopping.AT_ONCE
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.signal(signal.SIGINT, begun) == signal.default_int_handler


def test_a_job_of_several_processes_is_asked_as_often_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the terminal or Slurm, and by torchrun, which passes on what it received."""
    monkeypatch.setattr(stopping, "monotonic", lambda: now)
    now = 10.0
    with stopping.StopRequest(replace(parallel.ALONE, size=2)) as asked:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
            now += 10
        assert asked()
