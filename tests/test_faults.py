"""When something fails in the middle: one sentence, what was there before unchanged, and a way on."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from liftplus.backbones import mini_clip
from liftplus.errors import UserError
from liftplus.machine import disk
from liftplus.training import checkpoint, loop
from liftplus.training.saved_state import Keeper
from processes import Running, below, liftplus, until

from .conftest import Command, Ended, write_folder
from .runs.test_resume import arguments, begun, check_files, outcome

PAGE = 4096


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A handful, as what is trained on does not matter here."""
    return write_folder(tmp_path / "photos", {"train": (3, 2, 1), "test": (1, 1, 1)})


def refused(ended: Ended, *words: str) -> None:
    """Exit code 2 and one sentence of error, last of all."""
    told(ended.code, ended.err, *words)


def told(code: int | None, err: str, *words: str) -> None:
    assert code == 2, err
    assert "Traceback" not in err
    assert [line.startswith("Error: ") for line in err.splitlines()].count(True) == 1
    assert err.splitlines()[-1].startswith("Error: ")
    for word in words:
        assert word in err.splitlines()[-1]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def whole(photos: Path, tmp_path: Path, command: Command) -> dict[str, Any]:
    """What an undisturbed run gives."""
    assert command(*arguments(photos, tmp_path / "whole")).code == 0
    return outcome(tmp_path / "whole")


Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount something on a folder for the time of a test; needs root on Linux."""
    places: list[Path] = []

    def mounted(place: Path, *how: str) -> Path:
        place.mkdir(exist_ok=True)
        try:
            subprocess.run(["mount", *how, str(place)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting is not permitted here")
        places.append(place)
        return place

    yield mounted
    for place in reversed(places):
        subprocess.run(["umount", "-l", str(place)], check=True)


def read_only(mount: Mount, folder: Path) -> Path:
    mount(folder, "--bind", str(folder))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
    return folder


def fill(disk: Path, left: int) -> Path:
    """Fill a disk but for some pages."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(bytes(PAGE)):
            pass
    os.truncate(filler, filler.stat().st_size // PAGE * PAGE - left * PAGE)
    return filler


@pytest.mark.parametrize("left", [0, 5])
def test_a_full_disk_stops_a_resumed_run(
    photos: Path, tmp_path: Path, command: Command, mount: Mount, whole: dict[str, Any], left: int
) -> None:
    """With nothing left the log cannot be written; with five pages it can, but the next state cannot."""
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs")
    begun(photos, disk / "run")
    filler = fill(disk, left)
    before = contents(disk / "run")
    refused(command("train", "--resume", disk / "run"), "No space left on device", "Free some space")
    after = contents(disk / "run")
    assert after.pop("log.jsonl").startswith(before.pop("log.jsonl"))  # an epoch's line may have been added
    assert after == before
    filler.unlink()
    assert command("train", "--resume", disk / "run").code == 0
    assert outcome(disk / "run") == whole


def test_a_full_disk_stops_a_new_run(photos: Path, tmp_path: Path, command: Command, mount: Mount) -> None:
    """The same command works once there is space."""
    disk = mount(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs")
    filler = fill(disk, 0)
    refused(command(*arguments(photos, disk / "run")), "config.json", "No space left on device")
    filler.unlink()
    assert command(*arguments(photos, disk / "run", "epochs=1")).code == 0


FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not list processes this way")


@pytest.mark.slow
@needs_full
def test_no_room_for_any_file_of_a_run(photos: Path, tmp_path: Path, command: Command, whole: dict[str, Any]) -> None:
    """One file after the other cannot be written, each time the run goes on, and the end is the same."""
    run = tmp_path / "run"
    begun(photos, run)
    files = (checkpoint.STATE, checkpoint.FILE, "log.jsonl")
    for name in (*files, "metrics.json", "per_class.csv", "confusion.csv", "predictions.csv"):
        before = contents(run)
        (run / f"{name}.tmp").symlink_to(FULL)
        refused(command("train", "--resume", run), name, "No space left on device", "Free some space")
        assert not any(run.glob("*.tmp"))
        check_files(run)
        after = contents(run)
        assert before.keys() <= after.keys()
        assert after.get(name) == before.get(name) or name == "log.jsonl"
        assert after["config.json"] == before["config.json"]
    assert command("train", "--resume", run).code == 0
    assert outcome(run) == whole


@needs_full
def test_a_log_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to(FULL)
    with pytest.raises(UserError, match=r"log\.jsonl.*No space left"):
        disk.append_json(tmp_path / "log.jsonl", {"epoch": 1})


def test_a_log_with_damaged_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    good = b'{"epoch": 1, "loss": 2.5}\n'
    log.write_bytes(good + b'{"epo\xffh": 2}\n{"epocg": 2}\n[1]\n3\n\n' + good)
    disk.keep_lines(log, lambda entry: entry["epoch"] <= 1)
    assert log.read_bytes() == good + good


def test_a_folder_that_is_read_only(photos: Path, tmp_path: Path, command: Command, mount: Mount) -> None:
    """It refuses what writes, and serves what reads."""
    begun(photos, tmp_path / "begun")
    assert command(*arguments(photos, tmp_path / "done", "epochs=1")).code == 0
    before = contents(tmp_path / "begun"), contents(tmp_path / "done")
    for name in ("begun", "done"):
        read_only(mount, tmp_path / name)
    refused(command("train", "--resume", "begun"), "begun", "Read-only file system")
    refused(command(*arguments(photos, tmp_path / "done" / "below")), "below", "Read-only file system", "--out")
    refused(command("eval", "done"), "done/eval", "Read-only file system", "--out")
    refused(command("predict", "done", photos / "test", "--out", "done/guesses.csv"), "done/guesses.csv")
    assert command("predict", "done", photos / "test").code == 0
    assert command("eval", "done", "--out", "elsewhere").code == 0
    assert (contents(tmp_path / "begun"), contents(tmp_path / "done")) == before


def test_a_file_where_a_folder_should_be(photos: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "file").write_text("mine")
    refused(command(*arguments(photos, tmp_path / "file" / "run")), "file/run", "Not a directory", "--out")
    refused(command("train", "--resume", "file"), "no unfinished run")
    assert command(*arguments(photos, tmp_path / "done", "epochs=1")).code == 0
    refused(command("eval", "done", "--out", "file/below"), "file/below")
    refused(command("predict", "done", photos / "test", "--out", "file/x.csv"), "file")
    assert (tmp_path / "file").read_text() == "mine"


def under_way(photos: Path, folder: Path, *more: str, start: str = "fork") -> Running:
    """A long run in a process of its own that has saved its state."""
    running = liftplus(*arguments(photos, folder, "epochs=2000", *more), told=folder.with_suffix(".txt"), start=start)
    until((folder / checkpoint.STATE).exists, running)
    return running


@pytest.mark.slow
def test_the_run_folder_is_removed(photos: Path, tmp_path: Path) -> None:
    running = under_way(photos, tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    code = running.wait(60)
    told(code, running.told, "cannot be written", "its folder was removed", "start anew")
    assert not (tmp_path / "run").exists()
    check_files(tmp_path / "moved")
    assert Keeper(tmp_path / "moved", {}, 1.0).position().epoch > 0


def test_a_picture_is_removed(
    photos: Path, tmp_path: Path, command: Command, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named; once it is back the run goes on from its last state."""
    picture, run = photos / "train" / "red_square" / "1.png", tmp_path / "run"
    kept, save = picture.read_bytes(), Keeper.save

    def save_and_remove(self: Keeper, *state: Any) -> None:
        save(self, *state)
        picture.unlink(missing_ok=True)

    monkeypatch.setattr(Keeper, "save", save_and_remove)
    refused(command(*arguments(photos, run)), str(picture), "No such file")
    assert Keeper(run, {}, 1.0).position().epoch == 1
    monkeypatch.undo()
    picture.write_bytes(kept)
    monkeypatch.chdir(tmp_path)
    assert command("train", "--resume", run).code == 0
    assert outcome(run) == whole


@pytest.mark.slow
@linux
def test_a_loader_worker_is_killed(photos: Path, tmp_path: Path) -> None:
    running = under_way(photos, tmp_path / "run", "workers=1")
    (worker,) = below(running.process.pid)
    os.kill(worker, signal.SIGKILL)
    code = running.wait(60)
    told(code, running.told, "A loader worker", "memory", "workers=0")
    check_files(tmp_path / "run")


@linux
@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_killed_run_leaves_nothing_behind(photos: Path, tmp_path: Path, start: str) -> None:
    """Its lock does not block, and its loader workers end with it."""
    running = under_way(photos, tmp_path / "run", "workers=2", start=start)
    workers = below(running.process.pid)
    assert len(workers) >= 2
    with pytest.raises(UserError, match="Another process"), disk.locked(tmp_path / "run"):
        pass
    running.kill()
    with disk.locked(tmp_path / "run"):
        check_files(tmp_path / "run")
    end = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_second_process_is_refused(photos: Path, tmp_path: Path, command: Command) -> None:
    """The first one does not notice."""
    running = under_way(photos, tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    refused(command("train", "--resume", "run"), "Another process is writing", "run", "--out")
    refused(command(*arguments(photos, tmp_path / "run", "epochs=2000")), "Another process is writing")
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    running.send(signal.SIGTERM)
    assert running.wait(60) == 128 + signal.SIGTERM
    check_files(tmp_path / "run")


@pytest.mark.slow
def test_two_processes_start_at_once(photos: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    """One of them does the run."""
    both = [liftplus(*arguments(photos, tmp_path / "run"), told=tmp_path / f"{k}.txt") for k in range(2)]
    codes = [running.wait() for running in both]
    assert 0 in codes
    for code, running in zip(codes, both, strict=True):
        if code:
            told(code, running.told, "run")
    assert outcome(tmp_path / "run") == whole


def damaged(data: bytes, harm: str) -> bytes:
    """One bit of a weight or of the description, or the end, gone."""
    where = {"weight": len(data) - 3, "description": data.index(b"head_init"), "size": 0}
    if harm == "cut":
        return data[: len(data) * 2 // 3]
    return data[: where[harm]] + bytes([data[where[harm]] ^ 1]) + data[where[harm] + 1 :]


@pytest.mark.parametrize("harm", ["cut", "weight", "description", "size"])
def test_a_damaged_model_is_refused(photos: Path, tmp_path: Path, command: Command, harm: str) -> None:
    assert command(*arguments(photos, tmp_path / "run", "epochs=1")).code == 0
    path = tmp_path / "run" / checkpoint.FILE
    path.write_bytes(damaged(path.read_bytes(), harm))
    before = contents(tmp_path / "run")
    refused(command("eval", "run"), checkpoint.FILE, "damaged")
    refused(command("predict", "run", photos / "test"), checkpoint.FILE, "damaged")
    assert contents(tmp_path / "run") == before


def test_a_flipped_bit_in_any_byte_is_found(tmp_path: Path) -> None:
    """Or changes nothing, as in the padding of the header."""
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(3)}
    checkpoint.write_tensors(path, tensors, {"format": checkpoint.FORMAT, "names": ["ä", "b"], "rate": 0.1})
    data = path.read_bytes()
    about, _ = checkpoint.read_tensors(path)
    draw = random.Random(0)
    for place in range(len(data)):
        harmed = bytearray(data)
        harmed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(harmed)
        try:
            found, read = checkpoint.read_tensors(path)
        except UserError:
            continue
        assert found == about
        assert all(torch.equal(read[name], tensors[name]) for name in tensors) and len(read) == len(tensors)
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match="damaged"):
            checkpoint.read_tensors(path)


def test_files_of_the_first_format_are_read(tmp_path: Path) -> None:
    """Which had a checksum of the values alone, or none."""
    path, tensors = tmp_path / "x.safetensors", {"a": torch.randn(3, 2)}
    for more in ({}, {"sha256": checkpoint.checksum(tensors)}):
        save_file(tensors, path, {"liftplus": json.dumps({"format": 1} | more)})
        assert torch.equal(checkpoint.read_tensors(path)[1]["a"], tensors["a"])
    save_file(tensors, path, {"liftplus": json.dumps({"format": 1, "sha256": "0" * 64})})
    with pytest.raises(UserError, match="damaged"):
        checkpoint.read_tensors(path)
    save_file(tensors, path, {"liftplus": json.dumps({"format": 99})})
    with pytest.raises(UserError, match="newer liftplus"):
        checkpoint.read_tensors(path)


@pytest.mark.parametrize("harm", ["cut", "empty", "binary", "list", "other"])
def test_a_damaged_configuration_is_refused(photos: Path, tmp_path: Path, command: Command, harm: str) -> None:
    begun(photos, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    text = path.read_text()
    harmed = {"cut": text[: len(text) // 2], "empty": "", "list": "[1]", "other": text.replace('"config"', '"confih"')}
    path.write_bytes(b"\xff\xfe\x00" if harm == "binary" else harmed[harm].encode())
    before = contents(tmp_path / "run")
    refused(command("train", "--resume", "run"), "config.json")
    refused(command(*arguments(photos, tmp_path / "run")), "config.json")
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("text", ["[1]", "3", "{}", '{"confih": 1}', '{"config": ', "\x00"])
def test_a_file_of_ours_without_its_keys(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json.*cannot be read"):
        disk.read_json(tmp_path / "x.json", "config")


def test_other_backbone_weights_are_refused(photos: Path, tmp_path: Path, command: Command) -> None:
    """The same architecture, one weight a little different."""
    state = load_file(mini_clip.WEIGHTS["mini_clip"])
    name = next(name for name in sorted(state) if state[name].dim() == 2)
    state[name] = state[name].clone()
    state[name][0, 0] += 0.25
    save_file(state, tmp_path / "other.safetensors")
    shutil.copy(mini_clip.WEIGHTS["mini_clip"], tmp_path / "same.safetensors")
    begun(photos, tmp_path / "begun")
    assert command(*arguments(photos, tmp_path / "done", "epochs=1")).code == 0
    before = contents(tmp_path / "begun"), contents(tmp_path / "done")
    refused(command("train", "--resume", "begun", "weights=other.safetensors"), "another backbone identity")
    refused(command("eval", "done", "weights=other.safetensors", "--out", "e"), "original file", "path: weights=PATH")
    given = ("--set", "weights=other.safetensors")
    refused(
        command("predict", "done", photos / "test", *given), "other weights", "original file", "path: --set weights="
    )
    for words in (("--to", "timm"), ("--format", "peft"), ()):
        out = "x" if words else "x.onnx"
        refused(command("export", "done", "--out", out, *words, *given), "other weights", "path: --set weights=PATH")
    assert (contents(tmp_path / "begun"), contents(tmp_path / "done")) == before
    assert command("train", "--resume", "begun", "weights=same.safetensors").code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_testing(
    photos: Path, tmp_path: Path, command: Command, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Training is not done again."""

    def interrupt(*_args: Any) -> None:
        raise KeyboardInterrupt

    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr("liftplus.runs.testing.predict_once", lambda *_args: signal.raise_signal(number))
        stopped = command(*arguments(photos, tmp_path / "run"))
    assert stopped.code == 128 + number and "Traceback" not in stopped.err
    assert signal.getsignal(number) is handler
    assert "Stopped while testing" in stopped.err and "run (this only tests" in stopped.err
    before = contents(tmp_path / "run")
    assert checkpoint.STATE in before and checkpoint.FILE in before and "metrics.json" not in before
    with monkeypatch.context() as patch:
        patch.setattr(loop.Step, "__call__", interrupt)
        assert command("train", "--resume", "run").code == 0
    after = contents(tmp_path / "run")
    assert all(after[name] == before[name] for name in ("config.json", "log.jsonl", checkpoint.FILE))
    assert outcome(tmp_path / "run") == whole


def test_names_that_are_no_text_in_tables(tmp_path: Path) -> None:
    """A CSV is UTF-8: bytes that are none appear escaped; commas, quotes and line ends stay in their cell."""
    names = ["a\udcff.png", 'b,"c".png', "d\ne.png"]
    disk.write_csv(tmp_path / "x.csv", ("path",), [(name,) for name in names])
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as stream:
        assert [row[0] for row in csv.reader(stream)] == ["path", "a\\udcff.png", *names[1:]]


@pytest.mark.parametrize("library", ["timm", "transformers", "open_clip", "peft"])
def test_a_folder_for_another_library_is_no_run(library: str, tmp_path: Path, command: Command) -> None:
    """Its weights are whole, so nothing is said of damage."""
    about, named = {
        "timm": ({"architecture": "a", "pretrained_cfg": {}}, "config.json"),
        "transformers": ({"model_type": "vit"}, "config.json"),
        "open_clip": ({}, "open_clip_config.json"),
        "peft": ({}, "adapter_config.json"),
    }[library]
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / named).write_text(json.dumps(about))
    if library in ("timm", "transformers"):
        save_file({"head.weight": torch.zeros(2, 3)}, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    for words in (("export", "m", "--out", "m.onnx"), ("eval", "m")):
        ended = command(*words)
        refused(ended, f"seems to be a model for {library}", "Give the folder of a finished run")
        assert "damaged" not in ended.err and "restore" not in ended.err


def test_weights_of_no_run_and_of_no_known_form(tmp_path: Path) -> None:
    save_file({"head.weight": torch.zeros(2, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"holds weights, but no run of liftplus\. Give the folder"):
        checkpoint.read_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-2])
    with pytest.raises(UserError, match="is damaged or was not written by liftplus"):
        checkpoint.read_model(tmp_path)


def test_the_place_that_was_given_is_named(
    photos: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of a temporary folder beside it, which some places refuse, such as /proc."""

    def none(*_given: Any, dir: Path, **_options: Any) -> Any:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(dir / ".export-im2_xh3m"))

    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out is '.*file/x', but '.*file' is no folder that can be written to"):
        disk.check_new_folder(tmp_path / "file" / "x")
    assert command(*arguments(photos, tmp_path / "done", "epochs=0", "tuner=lora")).code == 0
    monkeypatch.setattr("tempfile.TemporaryDirectory", none)
    for words in (("--to", "timm", "--out", "x"), ("--out", "x.pt2")):
        ended = command("export", "done", *words)
        refused(ended, "x' cannot be written" if "--to" in words else "x.pt2' cannot be written")
        assert ".export-" not in ended.err
