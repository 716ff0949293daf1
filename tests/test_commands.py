"""The command line as a user meets it: the whole path, and every mistake in one sentence."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from liftplus import config, describe
from liftplus.data import sources
from liftplus.data.config import DataConfig
from liftplus.errors import UserError
from liftplus.runs import opening

from .conftest import Command, picture, write_folder

QUICK = ("epochs=1", "workers=0", "train.batch_size=8")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


WRITTEN = {
    ".lock",
    "config.json",
    "model.safetensors",
    "metrics.json",
    "per_class.csv",
    "confusion.csv",
    "predictions.csv",
    "log.jsonl",
}


@pytest.fixture
def trained(photos: Path, command: Command, tmp_path: Path) -> Path:
    ended = command("train", "--data", photos, "--out", "run", *QUICK)
    assert ended.code == 0, ended.err
    assert "overall" in ended.out and "Files are in run" in ended.out
    return tmp_path / "run"


def test_files_of_a_run(trained: Path) -> None:
    assert {file.name for file in trained.iterdir()} == WRITTEN
    about = json.loads((trained / "config.json").read_text())
    assert about["config"]["seed"] == 0 and "torch" in about["versions"] and len(about["backbone_identity"]) == 64
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["images"] == 6 and metrics["many"] is None and metrics["few"] == pytest.approx(metrics["overall"])
    assert [(r["name"], r["train_images"], r["group"]) for r in rows(trained / "per_class.csv")] == [
        ("blue sky", "2", "few"),
        ("green hill", "5", "few"),
        ("red square", "12", "few"),
    ]
    assert sum(int(r["images"]) for r in rows(trained / "confusion.csv")) == 6
    assert len((trained / "log.jsonl").read_text().splitlines()) == 1


def test_eval_and_predict_give_what_training_measured(
    trained: Path, photos: Path, command: Command, tmp_path: Path
) -> None:
    ended = command("eval", "run", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["overall"] == json.loads((trained / "metrics.json").read_text())["overall"]
    assert rows(trained / "eval" / "predictions.csv") == rows(trained / "predictions.csv")

    ended = command("predict", "run", photos / "test", "--out", "guesses.csv")
    assert ended.code == 0, ended.err
    guesses = {Path(r["path"]).relative_to(photos).as_posix(): r for r in rows(tmp_path / "guesses.csv")}
    for row in rows(trained / "predictions.csv"):
        guess = guesses[row["path"]]
        assert guess["class_1"] == row["predicted"]
        assert float(guess["probability_1"]) == pytest.approx(float(row["probability"]), abs=2e-3)
        assert sum(float(guess[f"probability_{k}"]) for k in (1, 2, 3)) == pytest.approx(1, abs=1e-3)

    ended = command("predict", "run", str(photos / "test" / "*" / "0.png"), "--out", "guesses.json", "--top-k", 2)
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "guesses.json").read_text())
    assert len(found) == 3 and all(len(entry["top"]) == 2 for entry in found)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_archives_give_the_same_result_as_the_folder(photos: Path, command: Command, tmp_path: Path, form: str) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), form, photos))
    results = []
    for data in (photos, archive):
        ended = command("train", "--data", data, "--out", f"run-{data.name}", "--json", *QUICK)
        assert ended.code == 0, ended.err
        results.append(json.loads(ended.out)["overall"])
    assert results[0] == results[1]


@pytest.mark.slow
def test_zeroshot_and_other_methods(photos: Path, command: Command) -> None:
    ended = command("zeroshot", "--data", photos, "--json", "--out", "zero")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["parameters"]["tuned"] == 0
    assert command("eval", "zero", "--json").code == 0
    for method in ("lift", "linear_probe", "full"):
        assert command("train", "--data", photos, "--method", method, "--out", method, *QUICK).code == 0


@pytest.mark.slow
def test_manifest_and_lists(photos: Path, command: Command, tmp_path: Path) -> None:
    files = sorted(path for path in photos.rglob("*.png"))
    with (tmp_path / "table.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "split"])
        writer.writerows([path.relative_to(photos).as_posix(), path.parent.name, path.parts[-3]] for path in files)
    ended = command("train", "--data", "table.csv", "--out", "a", "--json", f"root={photos}", *QUICK)
    assert ended.code == 0, ended.err
    numbers = {"blue sky": 0, "green hill": 1, "red_square": 2}
    for split in ("train", "test"):
        lines = [f"{p.relative_to(photos).as_posix()} {numbers[p.parent.name]}" for p in files if p.parts[-3] == split]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    (tmp_path / "names.txt").write_text("blue sky\ngreen hill\nred square\n")
    listed = command(
        "train",
        "--data",
        photos,
        "--out",
        "b",
        "--json",
        "train_list=train.txt",
        "test_list=test.txt",
        "class_names=names.txt",
        *QUICK,
    )
    assert listed.code == 0, listed.err
    assert json.loads(ended.out)["overall"] == json.loads(listed.out)["overall"]


def test_eval_on_other_data_matches_classes_by_name(photos: Path, command: Command, tmp_path: Path) -> None:
    assert command("train", "--data", photos, "--out", "run", *QUICK).code == 0
    part = write_folder(tmp_path / "part", {"train": (1, 1), "test": (3, 3)})
    ended = command("eval", "run", "--data", part, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["images"] == 6
    flat = write_folder(tmp_path / "flat", {".": (4, 3)})
    ended = command("eval", "run", "--data", flat, "--json")
    assert ended.code == 0, ended.err
    # Other data is never split: without a test split all of it is tested.
    assert json.loads(ended.out)["images"] == 7
    assert {file.name for file in (tmp_path / "run").glob("eval*")} == {"eval", "eval-2"}
    (part / "test" / "strange").mkdir()
    (part / "train" / "strange").mkdir()
    for split in ("train", "test"):
        picture((1, 2, 3), 1).save(part / split / "strange" / "0.png")
    ended = command("eval", "run", "--data", part)
    assert ended.code == 2 and "not trained on: 'strange'" in ended.err


def refused(ended: object, *words: str) -> None:
    code, err = ended.code, ended.err  # type: ignore[attr-defined]
    assert code == 2, err
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_mistakes_in_names(photos: Path, command: Command) -> None:
    refused(command("train", "--data", "openmoji_tl"), "openmoji_lt")
    refused(command("train", "--data", "nowhere/at/all"), "nowhere/at/all", "does not exist")
    refused(command("train", "--data", photos, "--backbone", "clip_vit_b61"), "Did you mean 'clip_vit_b16'")
    refused(command("train", "--data", photos, "--method", "lft"), "Did you mean 'lift'")
    refused(command("train", "--data", photos, "epoch=3"), "Did you mean 'epochs'")
    refused(command("train", "--data", photos, "lr=fast"), "train.lr", "'fast'")
    refused(command("train", "--data", photos, "device=quantum"), "quantum", "Allowed")


def test_mistakes_in_data(photos: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(command("train", "--data", "empty"), "empty")
    refused(command("train", "--data", write_folder(tmp_path / "one", {"train": (4,)})), "one class")
    twice = write_folder(tmp_path / "twice", {"train": (3, 3), "test": (1, 1)})
    for split in ("train", "test"):
        (twice / split / "green hill").rename(twice / split / "Red Square")
    refused(command("train", "--data", twice), "Red Square", "data.class_names")
    (photos / "test" / "newcomer").mkdir()
    picture((9, 9, 9), 1).save(photos / "test" / "newcomer" / "0.png")
    refused(command("train", "--data", photos), "newcomer")
    assert not list(tmp_path.glob("runs/*/model.safetensors"))


def test_class_without_training_images_is_said(photos: Path, command: Command) -> None:
    for file in (photos / "train" / "blue sky").iterdir():
        file.unlink()
    ended = command("train", "--data", photos, "--out", "run", "--json", *QUICK)
    assert ended.code == 0, ended.err
    assert "blue sky" in ended.err


def test_existing_run_folder_is_not_touched(photos: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    refused(command("train", "--data", photos, "--out", "run", *QUICK), "already exists", "--out")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["mine.txt"]


def faulty(photos: Path) -> None:
    """Readable pictures of every odd kind, in the training split."""
    folder = photos / "train" / "red_square"
    base = picture((200, 30, 30), 99)
    base.convert("L").save(folder / "grey.jpg")
    base.convert("CMYK").save(folder / "cmyk.jpg")
    base.convert("P").save(folder / "palette.png")
    base.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray((np.arange(4900).reshape(70, 70) * 13).astype(np.uint16)).save(folder / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    base.save(folder / "turned.jpg", exif=exif)


@pytest.mark.slow
def test_odd_pictures_are_read_and_broken_ones_named(photos: Path, command: Command) -> None:
    faulty(photos)
    assert command("train", "--data", photos, "--out", "odd", *QUICK).code == 0
    whole = (photos / "train" / "red_square" / "grey.jpg").read_bytes()
    (photos / "train" / "red_square" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    refused(command("train", "--data", photos, "--out", "stop", *QUICK), "cut.jpg")
    ended = command("train", "--data", photos, "--out", "skip", "unreadable=skip", *QUICK)
    assert ended.code == 0, ended.err
    assert "cut.jpg" in ended.err
    refused(command("predict", "odd", photos / "train" / "red_square"), "cut.jpg")
    ended = command("predict", "odd", photos / "train" / "red_square", "--unreadable", "skip")
    assert ended.code == 0, ended.err
    broken = [line for line in csv.DictReader(ended.out.splitlines()) if line["error"]]
    assert len(broken) == 1 and broken[0]["path"].endswith("cut.jpg")


def test_weights_that_do_not_fit(photos: Path, command: Command, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"visual.conv1.weight": torch.zeros(3, 3)}, tmp_path / "w.safetensors")
    refused(command("train", "--data", photos, "--backbone", "clip_vit_b32", "weights=w.safetensors"), "do not fit")
    (tmp_path / "junk.pt").write_bytes(b"no weights")
    refused(command("train", "--data", photos, "--backbone", "clip_vit_b32", "weights=junk.pt"), "cannot be read")
    refused(command("train", "--data", photos, "weights=gone.safetensors"), "gone.safetensors", "does not exist")


def test_no_network_says_what_to_fetch(photos: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFTPLUS_WEIGHTS", str(photos / "weights"))

    def offline(*_args: object, **_kwargs: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    refused(
        command("train", "--data", photos, "--backbone", "clip_vit_b16"),
        "open_clip_model.safetensors",
        "huggingface.co/timm/vit_base_patch16_clip_224.openai",
        "weights/clip_vit_b16.safetensors",
    )


@pytest.mark.parametrize("what", ["inspect", "check"])
def test_a_backbone_that_cannot_be_had_is_told_before_the_data_are_read(
    what: str, photos: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name, a file that is given, and one that would have to be fetched."""
    monkeypatch.setenv("LIFTPLUS_WEIGHTS", str(photos / "weights"))

    def offline(*_args: object, **_kwargs: object) -> str:
        raise ConnectionError("no route")

    def read(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the data are read")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    monkeypatch.setattr(sources, "load", read)
    given = ("data", what, "--data", photos, "--backbone")
    refused(command(*given, "clip_vit_b61"), "Did you mean 'clip_vit_b16'")
    refused(command(*given, "clip_vit_b16"), "open_clip_model.safetensors", "weights/clip_vit_b16.safetensors")
    refused(command(*given, "mini_clip", "weights=gone.safetensors"), "gone.safetensors", "does not exist")
    with pytest.raises(AssertionError, match="the data are read"):
        command(*given, "mini_clip")


def test_a_control_without_pretraining(photos: Path, command: Command) -> None:
    given = ("--method", "linear_probe", "pretrained=false", "--json")
    ended = command("train", "--data", photos, "--out", "run", *given, *QUICK)
    assert ended.code == 0, ended.err
    again = command("eval", "run", "--json")
    assert json.loads(again.out)["overall"] == json.loads(ended.out)["overall"]
    refused(command("eval", "run", "pretrained=true"), "backbone.pretrained belongs to the trained run")
    both = command("train", "--data", photos, "pretrained=false", "weights=a.pt")
    refused(both, "backbone: weights names a file, and pretrained=false leaves weights out; give one of them.")


def test_settings_of_training_cannot_change_after_it(photos: Path, command: Command) -> None:
    assert command("train", "--data", photos, "--out", "run", *QUICK).code == 0
    refused(command("eval", "run", "loss.tau=2"), "loss belongs to the trained run")
    refused(command("eval", "run", "head=linear"), "head belongs to the trained run")
    refused(command("eval", "run", "lr=3"), "train.lr belongs to the trained run")
    refused(command("eval", "run", "layer_decay=0.5"), "train.layer_decay belongs to the trained run")
    refused(command("eval", "run", "image_size=96"), "backbone.image_size belongs to the trained run")
    assert command("eval", "run", "tte=false", "device=cpu").code == 0


def test_results_that_cannot_be_written(photos: Path, command: Command, tmp_path: Path) -> None:
    assert command("train", "--data", photos, "--out", "run", *QUICK).code == 0
    (tmp_path / "note").write_text("no folder")
    refused(command("predict", "run", photos, "--out", "note/x.csv"), "note", "is no folder")
    refused(command("predict", "run", photos, "--out", "x.txt"), ".csv or .json")
    (tmp_path / "file").write_text("in the way")
    refused(command("train", "--data", photos, "--out", "file", *QUICK), "already exists")
    refused(command("eval", "run", "--out", "run"), "already exists")
    refused(command("demo", "--out", photos), "something other than a demo")
    assert (photos / "train").is_dir()


def test_run_folder_without_model_and_damaged_model(photos: Path, command: Command, tmp_path: Path) -> None:
    refused(command("eval", photos), "no trained model")
    assert command("train", "--data", photos, "--out", "run", *QUICK).code == 0
    file = tmp_path / "run" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    refused(command("predict", "run", photos), "damaged")


@pytest.mark.parametrize(
    ("classes", "tuner", "head"),
    [(1000, 617_868, 768_000), (365, 175_212, 280_320), (100, 101_436, 76_800), (8142, 4_749_324, 6_253_056)],
)
def test_info_counts_parameters_without_weights(command: Command, classes: int, tuner: int, head: int) -> None:
    ended = command("info", "--backbone", "clip_vit_b16", "--method", "lift+", "--json", f"num_classes={classes}")
    assert ended.code == 0, ended.err
    counts = json.loads(ended.out)["parameters"]
    assert (counts["tuned"], counts["head"]) == (tuner, head)


@pytest.mark.parametrize(
    ("backbone", "blocks", "width", "size"),
    [
        ("mini_clip", 6, 192, 64),
        ("clip_vit_b32", 12, 768, 224),
        ("clip_vit_b16", 12, 768, 224),
        ("clip_vit_l14", 24, 1024, 224),
        ("clip_vit_l14_336", 24, 1024, 336),
    ],
)
def test_info_knows_every_backbone(command: Command, backbone: str, blocks: int, width: int, size: int) -> None:
    ended = command("info", "--backbone", backbone, "--json", "num_classes=10")
    assert ended.code == 0, ended.err
    about = json.loads(ended.out)
    assert (about["blocks"], about["feature_width"], about["image_size"]) == (blocks, width, size)
    assert {"adaptformer", "full"} <= set(about["tuners_that_fit"])
    shown = command("info", "--backbone", backbone, "num_classes=10")
    assert f"{about['parameters']['tuned']:,}" in shown.out


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("lift+", []),
        ("full", ["track=tensorboard"]),
        ("lift+", ["tuner=lora+ssf", "tuner.lora.rank=3", "head=linear", "augment=lift", "loss=cross_entropy"]),
        ("lift+", ["tuner=none", "head_init.template=a photo of the 'large' {}.", "micro_batch=4", "device=cpu"]),
        ("linear_probe", ["sampler=class_balanced", "loss=ldam", "tte=false", "val_share=0.1"]),
    ],
)
def test_settings_that_info_prints_can_be_given_back(method: str, changed: list[str], command: Command) -> None:
    run = config.resolve(method=method, backbone="mini_clip", overrides=changed)
    assert config.resolve(method=method, overrides=shlex.split(" ".join(describe.settings(run)))) == run
    shown = command("info", "--backbone", "mini_clip", "--method", method, *changed)
    assert all(line in shown.out for line in describe.settings(run))


def test_info_lists_every_part(command: Command) -> None:
    ended = command("info", "--json")
    listed = json.loads(ended.out)
    assert {"lift+", "lift", "linear_probe", "full", "zeroshot"} <= set(listed["method"])
    assert {"mini_clip", "clip_vit_b32", "clip_vit_b16", "clip_vit_l14", "clip_vit_l14_336"} <= set(listed["backbone"])
    assert set(listed["data"]) == set(sources.KNOWN)
    for kind in ("tuner", "loss", "head", "head_init", "augment", "sampler", "prompts", "backbone", "method", "data"):
        assert all(line for line in listed[kind].values()), kind
    assert command("info").code == 0


def test_inspect(photos: Path, command: Command) -> None:
    shutil.copy(photos / "train" / "red_square" / "0.png", photos / "train" / "red_square" / "copy.png")
    (photos / "train" / "red_square" / "bad.png").write_bytes(b"junk")
    ended = command("data", "inspect", "--data", photos, "--json")
    assert ended.code == 0, ended.err
    text = ended.out
    assert "bad.png" in text and "copy.png" in text
    assert command("data", "inspect", "--data", photos).code == 0


def test_inspect_needs_no_pytorch(photos: Path) -> None:
    code = (
        "import sys; from liftplus import describe_data as d; d.data(sys.argv[1], True, ['test_share=0.3'], True);"
        "assert not {'torch', 'timm', 'open_clip', 'sklearn'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(photos)], check=True, capture_output=True, text=True)
    assert json.loads(ended.stdout)["checked"]


def test_inspect_is_a_table_for_people(photos: Path, command: Command) -> None:
    ended = command("data", "inspect", "--data", photos)
    lines = ended.out.splitlines()
    head = next(k for k, line in enumerate(lines) if line.split() == ["class", "train", "test"])
    below = [line.rsplit(None, 2) for line in lines[head + 1 :] if line.rsplit(None, 1)[-1:] == ["2"]]
    assert below == [["red square", "12", "2"], ["green hill", "5", "2"], ["blue sky", "2", "2"]]
    assert "widths: 80 to 91, median 82" in lines
    assert "classes by group: many (over 100 training images) 0, medium 0, few (under 20) 3" in lines


def test_inspect_says_how_good_a_backbone_is_before_training(photos: Path, command: Command) -> None:
    given = ("data", "inspect", "--data", photos, "--backbone", "mini_clip", "workers=0")
    ended = command(*given)
    assert ended.code == 0, ended.err
    said = " ".join(ended.out.split())
    found = re.search(
        r"before training: mini_clip .* has an accuracy of ([\d.]+) % in the mean over classes, on 6 test pictures\. "
        r"(Full|Light)",
        said,
    )
    assert found is not None, said
    assert "class train test" in said  # what it shows without a backbone
    told = json.loads(command(*given, "--json").out)
    start = told["start"]
    assert (start["split"], start["pictures"], start["backbone"]) == ("test", 6, "mini_clip")
    assert f"{start['mean_class']:.1f}" == found[1] and 0 < start["light_minus_full"]["chance"] < 1
    assert f"{start['light_minus_full']['gain']:+.1f} points" in said and start["weights"] == 2_719_296
    assert told["counts"]["train"] == [12, 5, 2] or sorted(told["counts"]["train"]) == [2, 5, 12]
    closed = command("train", "--data", photos, "--method", "closed_form", "--out", "run", "--json", "workers=0")
    assert json.loads(closed.out)["overall"] == pytest.approx(start["accuracy"])


def test_inspect_refuses_settings_that_do_not_act_on_the_start(photos: Path, command: Command) -> None:
    ended = command("data", "inspect", "--data", photos, "--backbone", "mini_clip", "val_share=0.3", "workers=0")
    assert ended.code == 0 and "val picture" in ended.out, ended.err
    ended = command("data", "inspect", "--data", photos, "--backbone", "mini_clip", "lr=1")
    assert ended.code == 2 and "train.lr does not act on" in ended.err
    bare = sources.load(DataConfig(source=str(photos)))
    with pytest.raises(UserError, match=r"neither val nor test pictures.*val_share=0\.2"):
        opening.refuse_unmeasured(replace(bare, splits={"train": bare.splits["train"]}))


def test_inspect_loses_nothing_where_the_start_cannot_be_measured(photos: Path, command: Command) -> None:
    (photos / "train" / "blue sky" / "broken.png").write_bytes(b"no picture")
    given = ("data", "inspect", "--data", photos, "--backbone", "mini_clip", "workers=0")
    ended = command(*given, "--json")
    told = json.loads(ended.out)
    assert ended.code == 2 and told["start"] is None and len(told["unreadable"]) == 1
    assert "broken.png" in ended.err and "unreadable=skip" in ended.err
    assert command(*given, "unreadable=skip").code == 0


def test_inspect_and_train_tell_the_same(photos: Path, command: Command, tmp_path: Path) -> None:
    """What was merged, left out and guessed, in the run folder too, and each of it once."""
    names = [path.relative_to(photos).as_posix() for path in sorted((photos / "train").rglob("*.png"))]
    (photos / "all.csv").write_text("path,label\n" + "".join(f"{n},{n.split('/')[1]}\n" for n in names for _ in (0, 1)))
    shown = command("data", "inspect", "--data", photos / "all.csv")
    told = [line for line in (shown.out + shown.err).splitlines() if line.startswith("Note: ")]
    assert len(told) == len(set(told)) == 2
    assert told[0].startswith("Note: 19 rows that repeat a picture were left out")
    trained = command("train", "--data", photos / "all.csv", "--out", "same", "tte=false", *QUICK)
    assert trained.code == 0, trained.err
    assert [line for line in trained.err.splitlines() if line in told] == told
    about = json.loads((tmp_path / "same" / "config.json").read_text())
    assert [f"Note: {note}" for note in about["data"]["notes"]] == told
    listed = command("data", "inspect", "--data", photos / "all.csv", "--json")
    assert [f"Note: {note}" for note in json.loads(listed.out)["notes"]] == told


def test_help_and_bare_call(command: Command) -> None:
    ended = command("--help")
    assert ended.code == 0
    for name in ("train", "eval", "predict", "zeroshot", "info", "data", "demo"):
        assert name in ended.out


def test_archive_in_a_zip_of_a_wrapper_folder(photos: Path, command: Command, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        for file in photos.rglob("*.png"):
            archive.write(file, Path("wrapper") / file.relative_to(photos))
    with tarfile.open(tmp_path / "w.tar.gz", "w:gz") as archive:
        archive.add(photos, "wrapper")
    for name in ("w.zip", "w.tar.gz"):
        ended = command("data", "inspect", "--data", name, "--json", "--no-files")
        assert ended.code == 0, ended.err


@pytest.mark.parametrize("given", [("train",), ("data", "inspect")])
def test_what_click_would_answer_itself(
    photos: Path, command: Command, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...]
) -> None:
    """Its answers to Ctrl-C and to a cut stream are nothing at all, and "Aborted."."""

    def failing(error: BaseException) -> Callable[..., None]:
        def fail(*_args: object, **_options: object) -> None:
            raise error

        return fail

    monkeypatch.setattr("liftplus.data.sources.load", failing(KeyboardInterrupt()))
    ended = command(*given, "--data", photos)
    assert ended.code == 130 and ended.err.splitlines()[-1] == "Stopped."
    monkeypatch.setattr("liftplus.data.sources.load", failing(EOFError("cut short")))
    with pytest.raises(EOFError, match="cut short"):
        command(*given, "--data", photos)


def test_mistyped_options_are_still_answered_by_click(command: Command) -> None:
    for given, said in ((("train", "--nope"), "No such option"), (("data", "nope"), "No such command")):
        ended = command(*given)
        assert ended.code == 2 and said in ended.err and "Traceback" not in ended.err


def test_a_class_without_training_and_one_without_test_pictures(tmp_path: Path, command: Command) -> None:
    """Of the whole way from files to tables: neither shifts another class's figures or group."""
    write_folder(tmp_path / "photos", {"train": (22, 0, 3), "test": (2, 2, 0)})
    (tmp_path / "names.csv").write_text("id,name\nred_square,red square\ngreen hill,green hill\nblue sky,blue sky\n")
    given = ("--data", "photos", "--out", "run", "class_names=names.csv", "epochs=1", "device=cpu", "workers=0")
    ended = command("train", *given)
    assert ended.code == 0, ended.err
    assert "has no training images: 'green hill'" in ended.err
    with (tmp_path / "run" / "per_class.csv").open(newline="") as stream:
        rows = {row["id"]: row for row in csv.DictReader(stream)}
    assert {key: (row["group"], row["train_images"], row["test_images"]) for key, row in rows.items()} == {
        "red_square": ("medium", "22", "2"),
        "green hill": ("few", "0", "2"),
        "blue sky": ("few", "3", "0"),
    }
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    red, green = (float(rows[key]["accuracy"]) for key in ("red_square", "green hill"))
    assert rows["blue sky"]["accuracy"] == "" and metrics["many"] is None
    assert (metrics["medium"], metrics["few"], metrics["mean_class"]) == (red, green, (red + green) / 2)
    assert metrics["overall"] == (red + green) / 2 and metrics["images"] == 4


def test_a_manifest_may_name_pictures_anywhere(tmp_path: Path, command: Command) -> None:
    """It is the user's own file: absolute paths and `..` are taken as written, unlike in archives."""
    write_folder(tmp_path / "else", {"where": (3, 3)})
    here = tmp_path / "lists"
    here.mkdir()
    rows = [
        f"{path if number % 2 else Path('..') / path.relative_to(tmp_path)},{path.parent.name}"
        for number, path in enumerate(sorted((tmp_path / "else").rglob("*.png")))
    ]
    (here / "all.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    ended = command("data", "inspect", "--data", here / "all.csv", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert sum(sum(counts) for counts in found["counts"].values()) == 6 and found["unreadable"] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("data", "inspect"), "reads data.*, cache. Leave"),
        (("data", "check", "--out", "found"), "reads data.*, backbone.*, evaluation.batch_size,"),
        (("prepare", "--out", "copy"), "reads data.*, cache. Leave"),
    ],
)
def test_settings_that_would_change_nothing_are_refused(
    words: tuple[str, ...], said: str, photos: Path, command: Command, tmp_path: Path
) -> None:
    for word, key in (
        ("epochs=3", "train.epochs"),
        ("tuner=lora", "tuner"),
        ("evaluation.top_k=2", "evaluation.top_k"),
    ):
        ended = command(*words, "--data", photos, word)
        assert (
            ended.code == 2
            and f"{key} does not act on `liftplus {' '.join(words[:2])}`".replace(" --out`", "`") in ended.err
        )
        assert said in ended.err and f"Leave {word} out" in ended.err
    assert "Did you mean 'val_share'" in command(*words, "--data", photos, "val_shar=0.2").err
    assert not (tmp_path / "copy").exists() and not (tmp_path / "found").exists()
