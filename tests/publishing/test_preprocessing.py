"""A graph that begins at decoded pictures cuts as `predict` does and names classes; else it is not kept."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import liftplus
from liftplus.config import EvaluationConfig
from liftplus.data.stores import FolderStore
from liftplus.data.transforms import CentreCrop, FiveCrops
from liftplus.errors import UserError
from liftplus.machine.progress import Silent
from liftplus.publishing import export as exporting
from liftplus.publishing import picture_graph, preprocessing
from zoo import backbone_of

from ..conftest import SHARED, Command
from .test_export import real, trained

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

CUTS = [
    CentreCrop(64, "bicubic"),
    CentreCrop(64, "bilinear"),
    CentreCrop(31, "bicubic", margin=0),
    CentreCrop(30, "bilinear", margin=5),
    FiveCrops(64, 24, "bicubic"),
    FiveCrops(64, 24, "bilinear"),
    FiveCrops(31, 0, "bicubic"),
    FiveCrops(30, 5, "bilinear"),
    CentreCrop(64, "bicubic", resize="square"),
    CentreCrop(31, "bilinear", margin=0, resize="square"),
    FiveCrops(64, 24, "bicubic", resize="square"),
    FiveCrops(30, 5, "bilinear", resize="square"),
]
ODD = [
    *((1, 1), (1, 2), (2, 1), (3, 5), (2, 700), (7, 300), (1, 3000), (3000, 1)),
    *((64, 64), (65, 64), (64, 67), (73, 73), (73, 99), (88, 89), (37, 411), (640, 51), (333, 500), (767, 511)),
]


def noisy(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise, which resizing rounds more often than photographs."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def run(model: Any, pictures: NDArray[Any]) -> list[Any]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"pictures": pictures}))


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_views_are_those_of_testing(cut: CentreCrop | FiveCrops, capfd: pytest.CaptureFixture[str]) -> None:
    """Every size that the cut has to make a decision for: whole places, and values within what rounding makes."""
    session = onnxruntime.InferenceSession(picture_graph.front(cut).SerializeToString())
    for height, width in ODD:
        pixels = noisy(height, width)
        (found,) = session.run(None, {"pictures": pixels[None]})
        exact = cut(Image.fromarray(pixels))
        expected = (exact if cut.count > 1 else exact[0]).numpy().astype(np.float32)
        assert found.shape == (1, *expected.shape) and found.dtype == np.float32
        gap = np.abs(found[0] - expected)
        few = 0.05 if cut.kernel == "bicubic" else 0.1  # bilinear's sums of noise are often just a half
        assert gap.max() <= preprocessing.LEVELS and (gap > 0).mean() < few, (height, width)
    assert capfd.readouterr().err == "", "onnxruntime has remarks about the graph"


def test_a_batch_has_one_size_and_three_colours() -> None:
    model = picture_graph.front(FiveCrops(16, 4))
    batch = np.stack([noisy(20, 33, seed) for seed in range(3)])
    (found,) = run(model, batch)
    assert found.shape == (3, 5, 3, 16, 16)
    np.testing.assert_array_equal(found[1], run(model, batch[1:2])[0][0])
    for wrong in (noisy(20, 33), batch[..., :1], np.zeros((1, 20, 33, 4), np.uint8), batch.astype(np.float32)):
        with pytest.raises(Exception, match=r"rank|dimensions|type"):
            run(model, wrong)


@pytest.mark.parametrize("cut", [CentreCrop(16), FiveCrops(16), CentreCrop(16, resize="square")], ids=str)
def test_a_picture_without_pixels_is_an_error(cut: CentreCrop | FiveCrops) -> None:
    for height, width in ((0, 5), (5, 0), (0, 0)):
        with pytest.raises(Exception, match="Reshape"):
            run(picture_graph.front(cut), np.zeros((1, height, width, 3), np.uint8))


def test_a_kernel_without_an_equal_is_refused() -> None:
    with pytest.raises(UserError, match=r"'lanczos'.*bicubic, bilinear.*--with-preprocessing"):
        picture_graph.front(CentreCrop(16, "lanczos"))


def means(file: Path, classes: int) -> None:
    """A graph in the form of a plain export: logits are shares of an image's mean red."""
    text = f"""
    <ir_version: 8, opset_import: ["": 18]>
    plain (float[s34, 3, 16, 16] images) => (float[s34, {classes}] logits, float[s34, {classes}] probabilities)
    <float[1, {classes}] weight = {{{", ".join(str(k) for k in range(classes))}}}, int64[2] axes = {{2, 3}},
     int64[1] zero = {{0}}, int64[1] one = {{1}}>
    {{
        mean = ReduceMean <keepdims = 0> (images, axes)
        red = Slice (mean, zero, one, one)
        logits = MatMul (red, weight)
        probabilities = Softmax <axis = 1> (logits)
    }}
    """
    model = onnx.parser.parse_model(text)
    onnx.helper.set_model_props(model, {"liftplus": "{}", "other": "kept"})
    onnx.save(model, str(file))


def test_names_come_with_the_classes(tmp_path: Path) -> None:
    names = ("Füchse, rote", 'a "cat"', "雪豹")
    means(tmp_path / "m.onnx", 3)
    about = {"classes": list(names)}
    picture_graph.join(picture_graph.front(CentreCrop(16)), tmp_path / "m.onnx", names, about)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (given,) = session.get_inputs()
    assert (given.name, given.shape, given.type) == ("pictures", ["batch", "height", "width", 3], "tensor(uint8)")
    told = {value.name: value.shape for value in session.get_outputs()}
    assert told == {name: ["batch", 3] for name in ("logits", "probabilities")} | {
        name: ["batch"] for name in ("class_index", "class_name")
    }
    kept = session.get_modelmeta().custom_metadata_map
    assert json.loads(kept["liftplus"]) == about and kept["other"] == "kept"
    dark, red = np.zeros((20, 30, 3), np.uint8), np.full((20, 30, 3), (200, 0, 0), np.uint8)
    logits, chances, index, name = session.run(None, {"pictures": np.stack([dark, red])})
    assert index.tolist() == [0, 2] and name.tolist() == ["Füchse, rote", "雪豹"]
    np.testing.assert_allclose(logits, [[0, 0, 0], [0, 200, 400]], atol=1e-3)
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-5)


def test_weights_in_a_file_of_their_own_stay_there(tmp_path: Path) -> None:
    """A graph of over 2 GB has them so."""
    out = tmp_path / "m.onnx"
    means(out, 30)
    model = onnx.load(str(out))
    weight = model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight), weight.name))  # as bytes
    onnx.save(model, str(out), save_as_external_data=True, location="m.onnx.data", size_threshold=100)
    before = (tmp_path / "m.onnx.data").read_bytes()
    assert len(before) == 4 * 30
    names = [f"class {k}" for k in range(30)]
    picture_graph.join(picture_graph.front(CentreCrop(16)), out, names, {})
    assert (tmp_path / "m.onnx.data").read_bytes() == before
    assert run(out, np.full((1, 20, 30, 3), 7, np.uint8))[3].tolist() == ["class 29"]


def photographs(folder: Path) -> list[str]:
    """Four files, of which one is broken."""
    for k in range(3):
        Image.fromarray(noisy(40 + k, 61, k)).save(folder / f"{k}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return [str(folder / name) for name in ("0.png", "broken.png", "1.png", "2.png")]


def graph_in_place_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """`export` without the seconds that an exporter takes: a graph of red for a model of red."""

    def write(deployed: Any, _example: Any, file: Path, *_: Any) -> Any:
        means(file, 3)
        return deployed

    def forward(_self: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = images[:, :1].mean((2, 3)) * torch.arange(3.0)
        return logits, logits.softmax(1)

    monkeypatch.setattr(exporting, "_write", write)
    monkeypatch.setattr(exporting.Deployed, "forward", forward)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    graph_in_place_of_pytorch(monkeypatch)
    found = trained(backbone_of("timm_vit"), "lora", 3)
    monkeypatch.setattr(preprocessing, "crops", lambda *_: CentreCrop(16))
    return found


def test_it_says_how_it_differs_from_predict(small: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    sample = preprocessing.Sample(FolderStore(""), photographs(tmp_path / "in"), "fast")
    out = tmp_path / "new" / "m.onnx"
    parity, likeness = preprocessing.export(small, out, sample, Silent(), EvaluationConfig())
    assert parity.holds and parity.images == 3 + len(preprocessing.SHAPES)
    assert likeness.images == 3 and likeness.made == len(preprocessing.SHAPES) and likeness.levels in (0, 1, 2)
    assert likeness.same_class > 0.9 and 0 <= likeness.changed < 0.05
    assert {item.name for item in out.parent.iterdir()} == {"m.onnx", "m.onnx.json"}
    about = json.loads((out.parent / "m.onnx.json").read_text())
    assert about["compared_with_predict"] == vars(likeness) and about["classes"] == list(small.class_names)
    assert about["input"]["type"] == "uint8" and "EXIF" in about["input"]["decoding"]
    assert about["cut_inside"]["resize"] == 17 and about["cut_inside"]["recipe"].startswith("resize its short side")


def test_a_graph_that_differs_is_not_kept(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    files, join = photographs(tmp_path / "in"), preprocessing.join
    sample = preprocessing.Sample(FolderStore(""), files, "exact")
    out = tmp_path / "out" / "m.onnx"

    def moved(begin: Any, *given: Any) -> None:
        wrong = picture_graph.front(CentreCrop(16, margin=9))
        join(wrong, *given)

    monkeypatch.setattr(preprocessing, "join", moved)
    with pytest.raises(UserError, match="not kept"):
        preprocessing.export(small, out, sample, Silent(), EvaluationConfig())
    monkeypatch.setattr(preprocessing, "join", join)
    monkeypatch.setattr(picture_graph, "KERNELS", {"bicubic": 'mode = "cubic", cubic_coeff_a = -0.75'})
    with pytest.raises(UserError, match=r"resizes pictures .* not kept"):
        preprocessing.export(small, out, sample, Silent(), EvaluationConfig())
    assert not list(out.parent.iterdir())
    with pytest.raises(UserError, match="--check"):
        preprocessing.export(
            small, out, preprocessing.Sample(FolderStore(""), files[1:2], "fast"), Silent(), EvaluationConfig()
        )


def test_other_formats_are_refused_before_any_work(command: Command) -> None:
    for given in (("m.pt2",), ("m.pt2", "--format", "pt2"), ("m", "--format", "peft")):
        ended = command("export", "run", "--with-preprocessing", "--out", *given)
        assert (
            ended.code == 2 and "--with-preprocessing writes ONNX alone" in ended.err and "Traceback" not in ended.err
        )


@pytest.mark.slow
@pytest.mark.parametrize("cut", [("--five-crops",), ("--one-crop", "--set", "resize=square")], ids=" ".join)
def test_the_file_answers_as_predict(cut: tuple[str, ...], photos: Path, command: Command, tmp_path: Path) -> None:
    """The commands on one run: the same class, and probabilities within what the file says of itself."""
    (tmp_path / "counts.json").write_text('{"red square": 5, "green hill": 3, "blue sky": 1}')
    liftplus.fit(photos, epochs=0, precision="fp32", cache=False, workers=0).save("run")
    check = photos / "test" / "red_square"
    Image.fromarray(noisy(70, 191)).save(check / "odd.png")
    given = ("--prior", "counts.json", *cut)
    ended = command("export", "run", "--out", "m.onnx", "--with-preprocessing", "--check", check, "--json", *given)
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["images"] == 3 and told["same_class"] == 1 and told["probability"] < 0.01
    ended = command("predict", "run", check / "odd.png", "--out", "p.json", *given, "--set", "precision=fp32")
    assert ended.code == 0, ended.err
    (row,) = json.loads((tmp_path / "p.json").read_text())
    _, chances, _, name = run(tmp_path / "m.onnx", noisy(70, 191)[None])
    assert name[0] == row["top"][0]["class"]
    assert float(chances.max()) == pytest.approx(row["top"][0]["probability"], abs=told["probability"] + 2e-6)


def test_scaled_decoding_is_compared_too(small: Any, tmp_path: Path) -> None:
    """`predict` then resizes from a smaller picture, which no graph can see; the command says what that does."""
    Image.fromarray(noisy(400, 600)).save(tmp_path / "a.jpg")
    likeness = {}
    for decode in ("exact", "fast", "scaled"):
        sample = preprocessing.Sample(FolderStore(""), [str(tmp_path / "a.jpg")], decode)  # type: ignore[arg-type]
        _, likeness[decode] = preprocessing.export(small, tmp_path / "m.onnx", sample, Silent(), EvaluationConfig())
    assert likeness["scaled"].levels == likeness["exact"].levels <= preprocessing.LEVELS
    assert likeness["scaled"].probability >= likeness["exact"].probability


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "five"), [("mini_clip", False), ("mini_clip", True), ("clip_resnet", True), ("efficientnet_lite0", False)]
)
def test_on_100_photographs(name: str, five: bool, tmp_path: Path) -> None:
    """Photographs of full resolution: the best class of predict, and no value that differs by more than one."""
    with zipfile.ZipFile(SHARED / "data" / "imagenet_sample_100.zip") as archive:
        archive.extractall(tmp_path / "photos")
    files = sorted(map(str, (tmp_path / "photos").rglob("*.JPEG")))
    sample = preprocessing.Sample(FolderStore(""), files, "exact")
    _, likeness = preprocessing.export(
        trained(real(name), "lora" if name != "efficientnet_lite0" else "full", 100),
        tmp_path / "m.onnx",
        sample,
        Silent(),
        EvaluationConfig(tte=five),
    )
    print(name, five, likeness)
    assert likeness.images == 100 and likeness.levels <= 1 and likeness.changed < 0.01
    assert likeness.same_class >= 0.98 and likeness.probability < 0.05
