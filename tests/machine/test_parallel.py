"""Several processes do what one does: the same losses and metrics, one writer, one reason when they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from liftplus import config
from liftplus.data import sources
from liftplus.data.dataset import Split
from liftplus.data.loader import FixedView, Loader, Shuffled
from liftplus.data.stores import FolderStore
from liftplus.data.transforms import CentreCrop
from liftplus.errors import UserError
from liftplus.evaluation import inference
from liftplus.machine import disk, parallel, runtime
from liftplus.machine.parallel import Job
from liftplus.training import assembly, checkpoint, loop, saved_state

from ..conftest import picture, write_folder

CPU = runtime.choose("cpu", "fp32")
# 21 training and 7 test pictures: the last batch of 4 has one, and 7 goes by neither 2 nor 3.
COUNTS = {"train": (12, 5, 4), "test": (3, 2, 2)}
# Rounding grows from step to step, the faster the larger the learning rate.
SETTINGS = ("epochs=2", "train.batch_size=4", "workers=0", "device=cpu", "precision=fp32", "lr=0.005")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", COUNTS)


def torchrun(processes: int, *command: object, **environment: str) -> subprocess.Popen[str]:
    """`torchrun COMMAND` on this machine, its output in one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        + [str(word) for word in command],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def trained(processes: int, photos: Path, folder: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    """`torchrun … -m liftplus train`."""
    return torchrun(
        processes, "-m", "liftplus", "train", "--data", photos, "--out", folder, *SETTINGS, *more, **environment
    )


def ended(job: subprocess.Popen[str], seconds: float = 150) -> tuple[int, str]:
    """Exit code and all that was said; fails where the job does not end."""
    try:
        told, _ = job.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        job.terminate()  # torchrun then ends its processes
        job.wait(60)
        raise
    return job.returncode, told


def outcome(folder: Path) -> dict[str, Any]:
    """What must be equal: all but the time it took and the machine."""
    told = disk.read_json(folder / "metrics.json")
    metrics = {
        key: value for key, value in told.items() if key not in ("seconds", "versions", "command", "peak_memory_bytes")
    }
    return {"metrics": metrics} | {name: (folder / name).read_text() for name in ("per_class.csv", "confusion.csv")}


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rank_of(pid: int) -> int:
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return int(next(word for word in words if word.startswith(b"RANK=")).partition(b"=")[2])


def worker(job: subprocess.Popen[str], rank: int) -> int:
    """The process of one rank."""
    return next(pid for pid in children(job.pid) if rank_of(pid) == rank)


def wait_for(path: Path, later: float = 0.0, seconds: float = 120) -> None:
    """Until the file has been written after a moment."""
    until = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_mtime > later):
        assert time.monotonic() < until
        time.sleep(0.05)


def sentences(told: str) -> list[str]:
    return [line for line in told.splitlines() if line.startswith("Error:")]


def reason(told: str) -> str:
    """The one sentence that the job ended with."""
    found = sentences(told)
    assert len(found) == 1, told
    return found[0]


# In this process: the parts that need no second one.


def test_alone_nothing_is_exchanged() -> None:
    alone = parallel.join({})
    assert alone is parallel.ALONE and alone.leads and alone.speaks()
    tensor = torch.ones(3)
    alone.add([tensor])
    alone.meet()
    assert tensor.tolist() == [1, 1, 1]
    assert alone.greatest(3, 1) == [3, 1]
    assert alone.from_leader(lambda: "a") == "a" and alone.from_all("b") == ["b"]
    assert alone.part(5) == [0, 1, 2, 3, 4] and alone.whole(tensor, 3) is tensor
    assert parallel.join({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) is parallel.ALONE


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'; allowed are numbers from 1"),
        ({"WORLD_SIZE": "2", "RANK": "0.5"}, "RANK is '0.5'; allowed are numbers from 0"),
        ({"LIFTPLUS_TIMEOUT": "0"}, "LIFTPLUS_TIMEOUT is '0'"),
        ({"WORLD_SIZE": "2"}, "did not find each other .*MASTER_ADDR.*torchrun"),
    ],
)
def test_variables_that_cannot_be_used_are_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parallel.join(given)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 13])
@pytest.mark.parametrize("count", [1, 4, 7, 12])
def test_parts_cover_every_item_once_in_order(size: int, count: int) -> None:
    parts = [Job(rank, size).part(count) for rank in range(size)]
    assert len({len(part) for part in parts}) == 1
    assert torch.tensor(parts).T.flatten()[:count].tolist() == list(range(count))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("size", [2, 3, 6])
def test_any_number_of_processes_sees_the_same_batches(tmp_path: Path, size: int, workers: int) -> None:
    for index in range(11):
        picture((20 * index, 100, 200), index, (60 + index, 50)).save(tmp_path / f"{index}.png")
    store, split = FolderStore(tmp_path), Split([f"{index}.png" for index in range(11)], [i % 3 for i in range(11)])

    def batches(job: Job) -> list[Any]:
        loader = Loader(
            store,
            split,
            FixedView(CentreCrop(16)),
            batch_size=5,
            order=Shuffled(len(split), 4),
            workers=workers,
            job=job,
        )
        return list(loader.epoch(1, 1))

    parts = [batches(Job(rank, size)) for rank in range(size)]
    for number, whole in enumerate(batches(parallel.ALONE)):
        mine = [part[number] for part in parts]
        for rank, own in enumerate(mine):
            assert own.indices.tolist() == whole.indices[rank::size].tolist()
            assert own.labels.tolist() == whole.labels[rank::size].tolist()
            assert not len(own.labels) or torch.equal(own.images, whole.images[rank::size])


def test_each_process_takes_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert runtime._own_device("auto", Job(5, 8, 1)) == "cuda:1"
    assert runtime._own_device("cuda", Job(7, 8, 3)) == "cuda:3"
    assert runtime._own_device("cpu", Job(7, 8, 3)) == "cpu"
    assert taken == [1, 3]
    with pytest.raises(UserError, match="4 GPUs, but process 5"):
        runtime._own_device("cuda", Job(4, 8, 4))
    with pytest.raises(UserError, match="cannot be shared by 8 processes"):
        runtime._own_device("cuda:2", Job(0, 8, 0))


# Two and three processes.

CASES = (
    ("loss=cross_entropy",),
    ('class_weights={"blue sky": 5}', "loss=focal"),
    ("loss=class_balanced", "micro_batch=1"),
    ("loss=reweight", "sampler=class_balanced"),
    ("head_init=class_mean", "tuner=lora", "tau=0.5"),
    ("loss=ldam", "train.batch_size=2"),  # always one process with nothing to do
    ("train.select=mean_class", "data.val_share=0.3", "epochs=3"),
)
SCRIPT = """
    import json, sys, torch
    from pathlib import Path
    from liftplus import config
    from liftplus.data import sources
    from liftplus.evaluation import inference
    from liftplus.machine import parallel, runtime
    from liftplus.training import assembly, loop
    photos, out, cases = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    job = parallel.job()
    place = runtime.choose("cpu", "fp32", job)
    found = []
    for case in cases:
        run = config.resolve(data=photos, overrides=case)
        dataset = sources.load(run.data)
        model = assembly.build(run, dataset, place)
        fitted = loop.fit(model, run, dataset, place)
        reader = inference.SplitReader(dataset.store, dataset.splits["test"], 0)
        seen = inference.predict(model, reader, run.evaluation, model.backbone.facts, place)
        metrics = inference.score(seen, dataset.splits["test"], dataset.counts())
        same = job.from_all({name: value.tolist() for name, value in model.learned_state().items()})
        assert all(other == same[0] for other in same)
        shown = seen.classes.tolist(), seen.probabilities.tolist(), metrics.summary(), str(fitted.chosen)
        found.append((fitted.losses, *shown))
    if job.leads:
        out.write_text(json.dumps(found))
    job.leave()
"""


@pytest.mark.slow
def test_three_processes_train_and_test_as_one(photos: Path, tmp_path: Path) -> None:
    """Losses, weights of images, samplers, accumulation, features; parts that are empty; weights stay in step."""
    cases = [[*SETTINGS, "epochs=1", *case] for case in CASES]
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    code, told = ended(
        torchrun(3, tmp_path / "script.py", photos, tmp_path / "found.json", json.dumps(cases)), seconds=400
    )
    assert code == 0, told
    for case, (found, classes, probabilities, summary, chosen) in zip(
        cases, json.loads((tmp_path / "found.json").read_text()), strict=True
    ):
        run = config.resolve(data=str(photos), overrides=case)
        dataset = sources.load(run.data)
        model = assembly.build(run, dataset, CPU)
        one = loop.fit(model, run, dataset, CPU)
        assert found == pytest.approx(one.losses, rel=1e-6), case
        assert chosen == str(one.chosen), case
        reader = inference.SplitReader(dataset.store, dataset.splits["test"], 0)
        seen = inference.predict(model, reader, run.evaluation, model.backbone.facts, CPU)
        assert classes == seen.classes.tolist()
        assert torch.allclose(torch.tensor(probabilities), seen.probabilities, atol=1e-5)
        assert summary == inference.score(seen, dataset.splits["test"], dataset.counts()).summary()


@pytest.mark.slow
def test_a_run_of_two_processes_is_that_of_one(photos: Path, tmp_path: Path, command: Any) -> None:
    """The command line: the same tables, written once and told once."""
    code, told = ended(trained(2, photos, tmp_path / "two"))
    assert code == 0, told
    assert told.count("Files are in") == 1 and told.count("training images per class") == 1
    assert command("train", "--data", photos, "--out", tmp_path / "one", *SETTINGS).code == 0
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)
    assert disk.read_json(tmp_path / "two" / "config.json")["versions"]["processes"] == "2"
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == names


@pytest.mark.slow
def test_two_processes_test_as_one(photos: Path, tmp_path: Path, command: Any) -> None:
    assert command("train", "--data", photos, "--out", tmp_path / "run", *SETTINGS).code == 0
    code, told = ended(torchrun(2, "-m", "liftplus", "eval", tmp_path / "run", "--out", tmp_path / "two", "--json"))
    assert code == 0, told
    assert command("eval", tmp_path / "run", "--out", tmp_path / "one").code == 0
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")
    assert (tmp_path / "two" / "predictions.csv").read_text() == (tmp_path / "one" / "predictions.csv").read_text()
    assert told.count('"overall"') == 1


@pytest.mark.slow
def test_slurm_asks_every_process_at_once(photos: Path, tmp_path: Path) -> None:
    """Workers of the loader included; the processes are asked by torchrun once more."""
    job = trained(2, photos, tmp_path / "run", "epochs=4000", "workers=1")
    wait_for(tmp_path / "run" / checkpoint.STATE)
    mine = [job.pid, *children(job.pid)]
    for pid in [*mine, *(worker for process in mine[1:] for worker in children(process))]:
        os.kill(pid, signal.SIGTERM)
    code, told = ended(job, 60)
    assert code != 0 and told.count("the state is saved. Continue with: liftplus train --resume") == 1, told
    assert sentences(told) == []


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "torchrun"])
def test_ctrl_c(photos: Path, tmp_path: Path, terminal: bool) -> None:
    """A terminal sends it to torchrun, every process and every loader worker; `kill -INT` to torchrun alone."""
    folder = tmp_path / "run"
    job = trained(2, photos, folder, "epochs=4000", "workers=1")
    wait_for(folder / checkpoint.STATE)
    processes = children(job.pid)
    everyone = [*processes, *(worker for process in processes for worker in children(process))]
    for pid in [job.pid, *(everyone if terminal else ())]:
        os.kill(pid, signal.SIGINT)
    code, told = ended(job, 60)
    assert code != 0 and told.count("the state is saved. Continue with: liftplus train --resume") == 1, told
    assert sentences(told) == []
    assert saved_state.Keeper(folder, {}, 1.0).position().epoch > 0


def stopped(photos: Path, folder: Path, processes: int, rank: int | None = None) -> None:
    """A run of 400 epochs, asked to stop after at least one of them; by torchrun, or through one of its processes."""
    began = time.time()
    job = trained(processes, photos, folder, "epochs=400")
    wait_for(folder / checkpoint.STATE, began)
    os.kill(job.pid if rank is None else worker(job, rank), signal.SIGTERM)
    code, told = ended(job)
    assert code != 0 and told.count("the state is saved. Continue with: liftplus train --resume") == 1, told
    assert sentences(told) == []


@pytest.mark.slow
@pytest.mark.parametrize("rank", [None, 0, 1])
def test_a_run_goes_on_with_another_number_of_processes(
    photos: Path, tmp_path: Path, command: Any, rank: int | None
) -> None:
    """Asked through any process, all stop at the same step; one process and two take turns."""
    folder = tmp_path / "run"
    stopped(photos, folder, 2, rank)
    before = saved_state.Keeper(folder, {}, 1.0).position()
    assert before.epoch + before.step > 0
    stopped(photos, folder, 1)
    stopped(photos, folder, 2)
    after = saved_state.Keeper(folder, {}, 1.0).position()
    assert (after.epoch, after.step) > (before.epoch, before.step)
    assert after.losses[: before.epoch] == before.losses


@pytest.mark.slow
def test_a_run_that_changed_hands_ends_as_one_that_did_not(photos: Path, tmp_path: Path, command: Any) -> None:
    """In the middle of an epoch, from two processes to one: the same batches follow."""
    given = ("epochs=3", "save_minutes=0.00001")
    assert command("train", "--data", photos, "--out", tmp_path / "one", *SETTINGS, *given).code == 0
    folder = tmp_path / "run"
    job = trained(2, photos, folder, *given)
    wait_for(folder / checkpoint.STATE)
    os.killpg(worker(job, 1), signal.SIGKILL)
    ended(job)
    if (folder / checkpoint.STATE).exists():
        assert command("train", "--resume", folder).code == 0
    assert losses(folder) == pytest.approx(losses(tmp_path / "one"), rel=2e-6)
    assert outcome(folder) == outcome(tmp_path / "one")
    one, two = (load_file(run / checkpoint.FILE) for run in (tmp_path / "one", folder))
    assert all(torch.allclose(value, two[name], rtol=1e-4, atol=1e-6) for name, value in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_job(photos: Path, tmp_path: Path, rank: int) -> None:
    job = trained(2, photos, tmp_path / "run", "epochs=4000")
    wait_for(tmp_path / "run" / checkpoint.STATE)
    began = time.monotonic()
    os.kill(worker(job, rank), signal.SIGKILL)
    code, told = ended(job, 60)
    assert code != 0 and time.monotonic() - began < 60
    sentence = reason(told)
    assert "Another process of this job was killed" in sentence and "goes on from there" in sentence
    assert f"rank      : {rank} " in told and "SIGKILL" in told  # torchrun's own report
    assert saved_state.Keeper(tmp_path / "run", {}, 1.0).position().epoch > 0


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_job(tmp_path: Path) -> None:
    """Stopped within an epoch's steps; the exchange after a save waits for slow disks, so it would wait for it too."""
    photos = write_folder(tmp_path / "photos", {"train": (150, 100, 50), "test": (3, 2, 2)})
    job = trained(2, photos, tmp_path / "run", "epochs=400", "train.batch_size=2", LIFTPLUS_TIMEOUT="3")
    wait_for(tmp_path / "run" / checkpoint.STATE)
    time.sleep(0.5)
    began = time.monotonic()
    os.kill(worker(job, 1), signal.SIGSTOP)
    code, told = ended(job, 60)
    assert code != 0 and time.monotonic() - began < 60
    sentence = reason(told)
    assert "did not answer for 3 s" in sentence and "LIFTPLUS_TIMEOUT" in sentence


def spoilt(photos: Path, rank: int) -> Path:
    """Break a training picture that this rank of two meets in the first batch."""
    run = config.resolve(data=str(photos), overrides=list(SETTINGS))
    split = sources.load(run.data).splits["train"]
    number = run.sampler.order(split.labels, 2, run.seed)(0)[rank]
    path = photos / split.keys[number]
    path.write_bytes(path.read_bytes()[:60])
    return path


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_of_one_process_ends_all_with_one_sentence(
    photos: Path, tmp_path: Path, rank: int, workers: int
) -> None:
    path = spoilt(photos, rank)
    code, told = ended(trained(2, photos, tmp_path / "run", f"workers={workers}"), 60)
    assert code != 0
    sentence = reason(told)
    assert path.name in sentence
    assert (
        "liftplus/training" not in told and "liftplus/cli.py" not in told and "liftplus/commands" not in told
    )  # no traceback of ours


FAILURES = {
    "nan": ("lr=1e30", "not finite in epoch"),
    "setting": ("epochz=3", "Unknown key 'epochz'"),
    "folder": ("epochs=2", "already exists"),
    "device": ("device=cuda:1", "cannot be shared by 2 processes"),
}


@pytest.mark.slow
@pytest.mark.parametrize("failure", FAILURES)
def test_what_every_process_meets_is_told_once(photos: Path, tmp_path: Path, failure: str) -> None:
    given, said = FAILURES[failure]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    code, told = ended(trained(2, photos, tmp_path / ("full" if failure == "folder" else "run"), given), 60)
    assert code != 0
    sentence = reason(told)
    assert said in sentence


@pytest.mark.slow
def test_processes_that_see_other_data_are_refused(photos: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "there" / "photos", COUNTS | {"train": (12, 5, 3)})
    here = photos.parent
    script = tmp_path / "start.py"
    script.write_text(
        f"import os, sys\nfrom liftplus import cli\n"
        f"os.chdir({str(here)!r} if os.environ['RANK'] == '0' else {str(other.parent)!r})\ncli.main()\n"
    )
    job = torchrun(2, script, "train", "--data", "photos", "--out", tmp_path / "run", *SETTINGS)
    code, told = ended(job, 60)
    assert code != 0
    sentence = reason(told)
    assert "Process 1" in sentence and "other data than process 0" in sentence
