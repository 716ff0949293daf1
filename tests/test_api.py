"""liftplus from Python: the docstrings' examples, and the same results as the command line's."""

from __future__ import annotations

import doctest
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import liftplus
from liftplus import Model, UserError, api, classifier, fitted
from liftplus.data import labelled

from .conftest import COLOURS, Command, picture, write_folder

QUICK: dict[str, Any] = {"epochs": 1, "tte": False, "precision": "fp32", "device": "cpu", "cache": False}
Pixels = NDArray[np.uint8]


def pixels(counts: tuple[int, ...], size: tuple[int, int] = (64, 64)) -> tuple[Pixels, NDArray[np.int64]]:
    """Pictures of the three colours, [N, 64, 64, 3], and their labels."""
    labels = np.repeat(np.arange(len(counts)), counts)
    colours = list(COLOURS.values())
    return np.stack([np.asarray(picture(colours[k], n, size)) for n, k in enumerate(labels)]), labels


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/, kept_aside/ and, by `fit`, runs/photos/."""
    folder = tmp_path_factory.mktemp("api")
    write_folder(folder / "photos", {"train": (15, 10, 5), "test": (2, 2, 2), "aside": (10, 8, 6)})
    (folder / "kept_aside").mkdir()
    (folder / "photos" / "aside").rename(folder / "kept_aside" / "train")
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> Model:
    return liftplus.fit(place / "photos", out=place / "runs" / "photos", **QUICK)


EXAMPLES = [
    test
    for module in (api, fitted, labelled, classifier)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module)
    if test.examples
]


def test_what_is_public_has_an_example() -> None:
    told = {
        test.name.removeprefix(f"{module.__name__}.")
        for test in EXAMPLES
        for module in (api, fitted, labelled, classifier)
    }
    for name in set(liftplus.__all__) - {"Model", "Predictions", "UserError"}:
        assert name in told, name
    for name, member in vars(Model).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            assert f"Model.{name}" in told, name


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
def test_examples(test: doctest.DocTest, place: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    images, labels = pixels((6, 4, 2))
    test.globs = {"liftplus": liftplus, "model": model, "images": images, "labels": labels}
    said: list[str] = []
    doctest.DocTestRunner().run(test, out=said.append, clear_globs=False)
    assert not said, "".join(said)


def test_importing_is_light() -> None:
    """Nothing heavy comes with `import liftplus`; what it offers is there."""
    code = (
        "import sys, liftplus; heavy = {'torch', 'numpy', 'sklearn', 'pydantic'} & set(sys.modules); "
        "assert not heavy, heavy; assert set(liftplus.__all__) <= set(dir(liftplus)); "
        "assert liftplus.UserError; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        liftplus.fitt  # noqa: B018


def test_python_and_the_command_line_agree(place: Path, model: Model, command: Command) -> None:
    run = place / "runs" / "photos"
    metrics = json.loads((run / "metrics.json").read_text())
    assert model.evaluate().summary() == {key: metrics[key] for key in model.evaluate().summary()}
    ended = command("predict", run, place / "photos" / "test", "--out", "found.json", "--top-k", 2)
    assert ended.code == 0, ended.err
    found = json.loads(Path("found.json").read_text())
    ours = model.predict(place / "photos" / "test", top_k=2)
    assert [[one["class"] for one in entry["top"]] for entry in found] == [list(row) for row in ours.names]
    theirs = [[one["probability"] for one in entry["top"]] for entry in found]
    np.testing.assert_allclose(ours.probabilities, theirs, atol=1e-6)
    saved = model.save("saved")
    assert (saved / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    again = liftplus.load(saved).save("again")
    assert (again / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="already exists"):
        model.save("saved")
    part = write_folder(Path("part"), {"train": (1, 1), "test": (3, 3)})
    ended = command("eval", run, "--data", part, "--json", "--out", "other")
    assert json.loads(ended.out)["overall"] == model.evaluate(part).overall and model.evaluate(part).images == 6


@pytest.mark.slow
def test_a_loaded_model_is_tested_on_its_own_data(tmp_path: Path, command: Command) -> None:
    """Never on pictures that it was trained on, though the folder has no split of its own."""
    flat = write_folder(tmp_path / "flat", {".": (12, 9, 5)})
    fitted = liftplus.fit(flat, out="run", **QUICK)
    again = liftplus.load("run", cache=False)
    assert fitted.evaluate() == again.evaluate() == again.evaluate(flat) == fitted.evaluate(str(flat))
    assert fitted.evaluate().images == 5
    in_memory = liftplus.fit(pixels((2, 2, 1)), **QUICK)
    loaded = liftplus.load(in_memory.save("memory"))
    for own in (loaded.evaluate, loaded.calibrate):
        with pytest.raises(UserError, match=r"images in memory.*Give a path, or images and labels"):
            own()


@pytest.mark.slow
def test_data_sets_and_images_give_the_model_that_the_folder_gives(place: Path, model: Model) -> None:
    data = liftplus.load_data(place / "photos")
    assert data.config is not None and data.config.source == str(place / "photos")
    other = liftplus.fit(data, **QUICK)
    assert other.config.data == model.config.data
    part = data.splits["train"]
    paths = [place / "photos" / key for key in part.keys]
    names = [data.class_names[label] for label in part.labels]
    by_path = liftplus.fit((paths, names), **QUICK)
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    by_array = liftplus.fit((arrays, names), **QUICK)
    test = sorted((place / "photos" / "test").rglob("*.png"))
    expected = model.predict_proba(test)
    for one in (other, by_path, by_array):
        np.testing.assert_array_equal(one.predict_proba(test), expected)
    pictures: list[Any] = [Image.open(path) for path in test]
    np.testing.assert_array_equal(model.predict_proba(pictures), expected)
    np.testing.assert_allclose(model.predict_proba(pictures[0]), expected[:1], rtol=1e-4)
    np.testing.assert_allclose(model.predict_proba(np.asarray(pictures[0])), expected[:1], rtol=1e-4)


def test_labels_of_any_kind() -> None:
    images, labels = pixels((6, 4, 2))
    kinds: list[Any] = ["x", frozenset("y"), 2.5]
    data = liftplus.from_images(images, [kinds[k] for k in labels], test_share=0.25)
    assert sorted(data.class_ids) == sorted(map(str, kinds)) and not data.named
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 9, "test": 3}
    fitted = liftplus.fit(data, **QUICK)
    assert fitted.config.head_init.name == "auto" and any("class_names" in note for note in fitted.notes)
    assert fitted.evaluate((images, [kinds[k] for k in labels])).images == 12
    numbered = liftplus.from_images(images, labels, class_names=list(COLOURS), test=(images[:2], labels[:2]))
    assert numbered.named and numbered.class_names == tuple(COLOURS) and numbered.counts("test") == (2, 0, 0)


def test_mistakes_are_told(place: Path, model: Model) -> None:
    images, labels = pixels((3, 2, 1))
    with pytest.raises(UserError, match=r"Image 0 is float64 \[64, 64, 3\]"):
        liftplus.fit((images / 255, labels))
    with pytest.raises(UserError, match="6 pictures and 5 labels"):
        liftplus.fit((images, labels[:5]))
    with pytest.raises(UserError, match=r"no name for 2"):
        liftplus.fit(liftplus.from_images(images, labels, class_names={0: "a", 1: "b"}))
    with pytest.raises(UserError, match=r"data\.\* .* load_data"):
        liftplus.fit((images, labels), val_share=0.5)
    with pytest.raises(UserError, match="Did you mean 'epochs'"):
        liftplus.fit((images, labels), epoch=3)
    with pytest.raises(UserError, match="Give one with out=FOLDER"):
        liftplus.fit((images, labels), track="tensorboard")
    with pytest.raises(UserError, match="only numbers"):
        liftplus.fit((images, labels), method="zeroshot")
    with pytest.raises(UserError, match="loss belongs to the trained run"):
        liftplus.load(place / "runs" / "photos", loss="focal")
    with pytest.raises(UserError, match="paths and some are not"):
        model.predict(["a.png", images[0]])
    with pytest.raises(UserError, match="names no image"):
        model.predict("nowhere")
    with pytest.raises(UserError, match="no images"):
        model.predict([])


def test_bars_where_asked(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TERM", "dumb")
    data = liftplus.from_images(*pixels((2, 2, 1)))
    liftplus.fit(data, **QUICK)
    assert capsys.readouterr() == ("", "")
    liftplus.fit(data, progress=True, **QUICK)
    told = capsys.readouterr()
    assert told.out == "" and "Training" in told.err


PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"


@pytest.mark.slow
def test_the_page_on_python_runs(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every block of docs/python.md, one after the other."""
    write_folder(tmp_path / "photos", {"train": (15, 10, 5), "test": (2, 2, 2)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIFTPLUS_CACHE", str(tmp_path / "cache"))
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) == 8 and (tmp_path / "models" / "best" / "model.safetensors").is_file()
    assert "Did you mean 'epochs'" in str(names.get("error", "Did you mean 'epochs'"))
    assert names["model"].class_names == ("grey noise", "red noise", "grey")


def test_every_path_has_its_row(place: Path, model: Model) -> None:
    """In the order given, as many as given: `zip(paths, found.names)` must not shift."""
    red, blue = (str(place / "photos" / "test" / name / "0.png") for name in ("red_square", "blue sky"))
    paths = [red, red, blue, red]
    single = {path: model.predict(path).names[0] for path in (red, blue)}
    forms: list[Any] = [
        paths,
        tuple(map(Path, paths)),
        iter(paths),
        np.array(paths),
        np.array(paths, dtype=object),
        np.array(paths)[:, None],
        [[path] for path in paths],
    ]
    for form in forms:
        found = model.predict(form)
        assert list(found.names) == [single[path] for path in paths] and found.paths == tuple(paths)
    assert model.predict_proba(paths).shape == (4, 3)
    folder = place / "photos" / "test" / "red_square"
    assert model.predict([folder, blue]).paths == (red, str(folder / "1.png"), blue)
    assert model.predict(np.asarray(Image.open(red).convert("RGB"))).paths == ()
    for wrong in (5, None, [None], np.float64(2)):
        with pytest.raises(UserError, match="Give paths, Pillow images or uint8 arrays"):
            model.predict(wrong)  # type: ignore[arg-type]


def test_equal_labels_are_one_class() -> None:
    images, _ = pixels((4, 4))
    y = np.array([0, 1] * 4)
    kinds = [y, y.astype(bool), y.astype(float), [np.float32(one) for one in y]]
    for labels in kinds[:3]:
        fitted = liftplus.fit((images, labels), **QUICK | {"epochs": 0})
        found = [fitted.evaluate((images, other)) for other in kinds]
        found += [fitted.evaluate(liftplus.from_images(images, other), split="train") for other in kinds]
        assert len({str(one) for one in found}) == 1 and found[0].images == 8
    with pytest.raises(UserError, match=r"not trained on: '7'.*'0', '1'. Give labels that are among them"):
        fitted.evaluate((images, np.where(y, 7, 0)))
