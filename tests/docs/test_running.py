"""The documentation's commands and code, run on tiny pictures with the bundled model in place of larger ones."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from doc_pages import PAGES, PARTS, Line, blocks, lines, named, parse
from liftplus import registry

from ..conftest import COLOURS, Command, picture

# What cannot be run here, and why; test_commands.py checks its words and settings all the same.
NOT_RUN = {
    r"torchrun ": "starts several processes; tests/machine/test_parallel.py does that",
    r"liftplus serve ": "runs until it is ended; tests/docs/test_serve.py starts and ends it",
    r"liftplus demo": "takes minutes; tests/test_slow.py runs it",
    r"(--data|source=)\s*(imagenet_lt|places_lt|inat2018|cifar\w*_lt)": "the data are not here",
    r"reproduce (run|status)": "takes hours and the papers' data; tests/reproduce runs them on tiny pictures",
    r"--resume ": "needs a run that was stopped; tests/runs/test_resume.py stops some",
    r"eval runs/ia3": "needs the run above it on the page; test_parts.py makes and tests one",
    r"--storage postgresql": "needs a database server; tests/studies/test_sweep.py shares a file",
}
TRAINING = ("train", "zeroshot", "sweep", "compare", "data check")  # commands that take a backbone and settings
NAMES = ("fox", "lynx", "rare moth")
QUICK = ("epochs=1", "train.batch_size=8", "evaluation.batch_size=8", "workers=0", "device=cpu", "precision=fp32")
LARGE = r"(backbone\.)?(weights|image_size|grad_checkpointing|name|pooling|positions)="  # of backbones not here


def reason(line: str) -> str | None:
    """Why a line is not run, None where it is."""
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, line)), None)


# Run from top to bottom by tests/docs/test_calibration.py, test_hierarchies.py, test_serve.py, test_export.py and
# test_api.py.
ELSEWHERE = {"calibration.md", "export.md", "hierarchies.md", "moving-models.md", "python.md", "serve.md"}
HERE = [name for name in PAGES if name not in ELSEWHERE]
EVERY = list(dict.fromkeys(line for name in HERE for line in lines(name) if "liftplus" in line.split()))
RUN = [line for line in EVERY if reason(line) is None]


def photos(root: Path) -> None:
    """Three classes with 12, 6 and 4 pictures."""
    for seed, (name, colour, count) in enumerate(zip(NAMES, COLOURS.values(), (12, 6, 4), strict=True)):
        (root / name).mkdir(parents=True)
        for index in range(count):
            picture(colour, 100 * seed + index).save(root / name / f"{index}.jpg")


def detections(root: Path) -> None:
    """COCO's annotations and images, a box around each picture."""
    folder = root / "images" / "train2017"
    folder.mkdir(parents=True)
    (root / "annotations").mkdir()
    images, boxes = [], []
    for number, path in enumerate(sorted(root.glob("pictures/*/*.jpg"))):
        name = f"{number}.jpg"
        shutil.copy(path, folder / name)
        with Image.open(path) as image:
            width, height = image.size
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        label = NAMES.index(path.parent.name)
        boxes.append({"id": number, "image_id": number, "category_id": label, "bbox": [0, 0, width, height]})
    categories = [{"id": label, "name": name} for label, name in enumerate(NAMES)]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def newcomer(tmp_path: Path) -> Path:
    """A folder with nothing but an archive of photos and a folder of new ones."""
    photos(tmp_path / "photos")
    shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "photos")
    shutil.rmtree(tmp_path / "photos")
    (tmp_path / "new_pictures").mkdir()
    for index, colour in enumerate(COLOURS.values()):
        picture(colour, 900 + index).save(tmp_path / "new_pictures" / f"{index}.jpg")
    return tmp_path


@pytest.mark.slow
def test_a_newcomers_path(newcomer: Path, command: Command) -> None:
    """docs/start.md in an empty folder: a zip of photos → inspect → train → report → predict → export."""
    path = next(content for _, content in blocks("start.md") if content.startswith("liftplus data inspect"))
    steps = [step for line in path.splitlines() if (step := parse(line))]
    names = ["data inspect", "train", "report", "predict", *(["export"] if named("export") else [])]
    assert [step.command for step in steps] == names
    for step in steps:
        extra = QUICK if step.command == "train" else ("--set", "device=cpu") if step.command == "predict" else ()
        ended = command(*step.command.split(), *step.words, *extra)
        assert ended.code == 0, ended.err
    assert (newcomer / "runs/photos/report/report.html").stat().st_size > 10_000
    rows = (newcomer / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 3 and all(row.startswith("new_pictures") for row in rows[1:])
    assert len(steps) < 5 or (newcomer / "model.onnx").stat().st_size > 1_000_000


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages take for granted: pictures in several forms and two finished runs."""
    from liftplus import config
    from liftplus.machine import progress, runtime
    from liftplus.runs import execution, opening

    root = tmp_path_factory.mktemp("world")
    for name in ("archive", "new_pictures", "pictures", "small", "photos/train", "photos/test"):
        photos(root / name)
    shutil.make_archive(str(root / "photos"), "zip", root / "archive")
    rows = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.glob("pictures/*/*"))]
    (root / "pictures.csv").write_text("\n".join(["path,label", *rows]) + "\n", encoding="utf-8")
    (root / "list.txt").write_text("".join(f"{row.partition(',')[0]}\n" for row in rows), encoding="utf-8")
    (root / "counts.json").write_text(json.dumps(dict.fromkeys(NAMES, 5)), encoding="utf-8")
    renamed = [f"{name},red {name}" for name in NAMES]
    (root / "names.csv").write_text("\n".join(["id,name", *renamed]) + "\n", encoding="utf-8")
    detections(root)
    for name, text in PARTS.items():
        (root / name).write_text(text, encoding="utf-8")
    for method, name in (("lift+", "photos"), ("full", "full")):
        settings = config.resolve(data=str(root / "photos.zip"), method=method, overrides=QUICK)
        session = opening.Session(settings, runtime.choose("cpu", "fp32"), progress.Silent(), None)
        dataset = session.data()
        (root / "runs" / name).mkdir(parents=True)
        execution.train_run(session, dataset, session.start(dataset)[1], root / "runs" / name)
    copies = {"zeroshot-seed0": "photos", "full-seed0": "full", "lift+-seed0": "photos"}
    for name, like in (copies | {"full-seed1": "full", "lift+-seed1": "photos"}).items():
        for study in ("demo", "compare"):
            shutil.copytree(root / "runs" / like, root / "runs" / study / name)
    return root


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world to run in."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(registry.VARIABLE, raising=False)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize("line", RUN)
def test_line_runs(line: str, here: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = parse(line)
    assert parsed is not None
    if parts := parsed.environment.get(registry.VARIABLE):
        monkeypatch.setenv(registry.VARIABLE, parts)
        registry._load_announced.cache_clear()
    if (out := parsed.values.get("out")) and Path(out).is_dir():
        shutil.rmtree(out)
    ended = command(*parsed.command.split(), *smaller(parsed))
    assert ended.code == 0, ended.err


def smaller(line: Line) -> list[str]:
    """The line's words, with the bundled model in place of weights that are not here, and one quick epoch."""
    words = list(line.words)
    if line.command not in TRAINING:
        return words
    for option, less in (("--backbone", "mini_clip"), ("--trials", "2"), ("--test-seeds", "1"), ("--seeds", "1")):
        if option in words:
            words[words.index(option) + 1] = less
    words = [word for word in words if not re.match(LARGE, word)]
    quick = QUICK[3:] if line.command in ("zeroshot", "data check") else QUICK
    return [*words, *(one for one in quick if "--minutes" not in words or not one.startswith("epochs="))]


@pytest.mark.slow
@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize("name", [name for name in HERE if any(kind == "python" for kind, _ in blocks(name))])
def test_python_runs(name: str, here: Path) -> None:
    """The blocks of a page build on each other."""
    space: dict[str, object] = {"__name__": f"page_{name}"}
    for number, content in enumerate(content for kind, content in blocks(name) if kind == "python"):
        if content not in PARTS.values():  # test_parts.py loads these as the files that they are
            exec(compile(content, f"{name}, block {number}", "exec"), space)


def test_every_reason_is_needed() -> None:
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for line in EVERY), f"nothing is excused by {pattern!r} any more"
