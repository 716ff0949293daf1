"""Exported graphs compute what PyTorch computes, say what they are, and are not kept where they do not."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import liftplus
from liftplus.backbones import catalogue
from liftplus.backbones.base import Backbone, BackboneConfig
from liftplus.config import EvaluationConfig, resolve
from liftplus.data.dataset import Split
from liftplus.data.stores import FolderStore
from liftplus.errors import UserError
from liftplus.evaluation.inference import SplitReader, collect, crops
from liftplus.machine import runtime
from liftplus.machine.progress import Silent
from liftplus.model.classifier import Classifier
from liftplus.model.heads import Cosine
from liftplus.publishing import export
from liftplus.registry import get
from liftplus.training.checkpoint import Trained
from liftplus.tuners.base import Tuner
from zoo import backbone_of

from ..conftest import SHARED, Command

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
QUICK = ("epochs=1", "train.batch_size=8", "tte=false", "workers=0", "device=cpu", "precision=fp32")


def trained(trunk: Backbone, tuner: str, classes: int = 5) -> Trained:
    """A classifier with tuned weights far from their start, and a cosine head."""
    torch.manual_seed(2)
    tuners: dict[str, Tuner] = {}
    for name in tuner.split("+"):
        part = get("tuner", name)()
        assert isinstance(part, Tuner)
        tuners[name] = part
    names = [f"class {k}" for k in range(classes)]
    model = Classifier.assemble(trunk, tuners, Cosine().build(trunk, classes), names)
    torch.nn.init.normal_(model.head.weight)
    for weight in model.partition()["tuned"].values():
        weight.data += 0.05 * torch.randn_like(weight) * (weight.std() + 0.1 if weight.numel() > 1 else 1)
    runtime.choose("cpu", "fp32").place(model)
    model.requires_grad_(False)
    ids = tuple(map(str, range(classes)))
    config = resolve().model_copy(update={"tuner": tuners})
    return Trained(model, config, tuple(names), ids, tuple(range(1, classes + 1)))


def noise(run: Trained, count: int = 5, *, five: bool = False) -> torch.Tensor:
    size = run.model.backbone.facts.image_size
    shape = (count, 5, 3, size, size) if five else (count, 3, size, size)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1)).float()


@pytest.mark.parametrize(
    ("backbone", "tuner", "form", "five"),
    [
        ("timm_vit", "adaptformer", "onnx", False),
        ("timm_vit", "vpt_shallow+bitfit", "pt2", True),
        pytest.param("clip_vit", "vpt_deep+lora+ssf", "onnx", True, marks=pytest.mark.slow),
        pytest.param("clip_resnet", "conv_adapter+ssf", "onnx", False, marks=pytest.mark.slow),
        pytest.param("swin", "adapter+aft", "pt2", False, marks=pytest.mark.slow),
    ],
)
def test_graph_is_pytorch(backbone: str, tuner: str, form: Any, five: bool, tmp_path: Path) -> None:
    run = trained(backbone_of(backbone), tuner)
    images = noise(run, five=five)
    asked = EvaluationConfig(tte=five, prior="training")
    parity = export.export(run, tmp_path / "new" / f"m.{form}", form, images, Silent(), asked)
    tmp_path = tmp_path / "new"
    assert parity.holds and parity.images == 5 and parity.agree == 1 and parity.deviation > 0.1
    about = json.loads((tmp_path / f"m.{form}.json").read_text())
    assert about["classes"] == list(run.class_names) and about["prior"] == "training"
    assert {item.name for item in tmp_path.iterdir()} == {f"m.{form}", f"m.{form}.json"}
    again = trained(backbone_of(backbone), tuner)
    with torch.no_grad():
        flat = images.flatten(0, 1) if five else images
        logits = again.model(export.Normalise(again.model.backbone.facts)(flat))
        logits = logits.unflatten(0, (5, 5)).mean(1) if five else logits
    prior = torch.tensor(again.train_counts).double()
    expected = logits + (prior / prior.sum()).log().float()
    if form == "onnx":
        session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
        found, chances = session.run(["logits", "probabilities"], {"images": images.numpy()})
        stored = onnx.load(tmp_path / "m.onnx").metadata_props
        assert json.loads({item.key: item.value for item in stored}["liftplus"])["classes"] == about["classes"]
        assert session.run(["logits"], {"images": images[:1].numpy()})[0].shape == (1, 5)
    else:
        extra = {"liftplus.json": ""}
        found, chances = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()(images)
        assert json.loads(extra["liftplus.json"])["classes"] == about["classes"]
    difference = np.abs(np.asarray(found) - expected.numpy()).max()
    assert difference <= 1e-4 * max(1.0, float(expected.std()))
    np.testing.assert_allclose(np.asarray(chances).sum(1), 1, rtol=1e-5)


def test_a_graph_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(backbone_of("timm_vit"), "lora")
    merge = Classifier.merge

    def wrong(self: Classifier) -> list[str]:
        self.head.weight.data[0] *= -1
        return merge(self)

    monkeypatch.setattr(Classifier, "merge", wrong)
    with pytest.raises(UserError, match="was not kept"):
        export.export(run, tmp_path / "m.pt2", "pt2", noise(run), Silent(), EvaluationConfig())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_commands(photos: Path, command: Command, tmp_path: Path) -> None:
    assert command("train", "--data", photos, "--out", "run", *QUICK, "tuner=lora").code == 0
    ended = command("export", "run", "--out", "m.onnx", "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert told["images"] == 6 and told["difference"] < 1e-4
    assert json.loads((tmp_path / "m.onnx.json").read_text())["tuners_kept"] == []
    for wrong, said in (("m.txt", ".onnx or .pt2"), ("m.onnx.json/m.onnx", "is no folder")):
        ended = command("export", "run", "--out", wrong)
        assert ended.code == 2 and said in ended.err
    assert command("export", "run", "--out", "none/m.pt2").code == 0 and (tmp_path / "none" / "m.pt2.json").is_file()
    ended = command("export", "run", "--out", "adapter", "--format", "peft", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["linears"] > 0
    assert {item.name for item in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "classifier.json",
        "head.safetensors",
    }
    for given in (
        ("--out", "adapter"),
        ("--out", "a.onnx"),
        ("--out", "b", "--check", photos),
        ("--out", "b", "--one-crop"),
    ):
        ended = command("export", "run", "--format", "peft", *given)
        assert ended.code == 2 and len(ended.err.splitlines()) == 1, ended.err
    for word in ("tte=true", "expand=3", "evaluation.batch_size=2", "data.root=x", "decode=exact"):
        ended = command("export", "run", "--out", "b", "--format", "peft", "--set", word)
        assert ended.code == 2 and f"Leave {word} out" in ended.err and not (tmp_path / "b").exists()
    ended = command("export", "run", "--out", "b", "--format", "peft", "--set", "resize=square", "--prior", "uniform")
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "b" / "classifier.json").read_text())["pretrained_cfg"]["crop_mode"] == "squash"
    photos.rename(tmp_path / "moved")
    ended = command("export", "run", "--out", "n.pt2")
    assert ended.code == 2 and "--check" in ended.err
    assert command("export", "run", "--out", "n.pt2", "--check", tmp_path / "moved").code == 0


def test_onnx_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"liftplus\[onnx\]"):
        export.required("onnx")
    export.required("pt2")


def real(name: str) -> Backbone:
    if name == "clip_resnet":  # RN50's form with random weights, which are not on any package index
        torch.manual_seed(0)
        return catalogue.load(BackboneConfig(name="clip_rn50", image_size=96), weights=False)
    return catalogue.load(BackboneConfig(name=name))


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tuner"),
    [
        ("mini_clip", "adaptformer"),
        ("mini_clip", "lora+ssf"),
        ("clip_resnet", "conv_adapter"),
        ("clip_resnet", "lora"),
        ("efficientnet_lite0", "conv_adapter"),
        ("efficientnet_lite0", "full"),
    ],
)
def test_on_100_photographs(name: str, tuner: str, tmp_path: Path) -> None:
    """A ViT and a CNN with real weights, CLIP's ResNet: logits of ONNX within 1e-4 of PyTorch's in fp32."""
    with zipfile.ZipFile(SHARED / "data" / "imagenet_sample_100.zip") as archive:
        archive.extractall(tmp_path / "photos")
    files = sorted(map(str, (tmp_path / "photos").rglob("*.JPEG")))
    run = trained(real(name), tuner, 100)
    images = export.views(FolderStore(""), Split(files, [0] * 100), EvaluationConfig(), run, 100)
    assert len(images) == 100
    parity = export.export(run, tmp_path / "m.onnx", "onnx", images, Silent(), EvaluationConfig())
    print(name, tuner, parity)
    assert parity.difference <= 1e-4 and parity.merging <= 1e-4 and parity.agree == 1
    assert parity.deviation > 0.1


def test_pictures_are_the_tests_own_cut(tmp_path: Path) -> None:
    """What the comparison runs on is what `eval` sees; broken files are passed over."""
    run = trained(backbone_of("timm_vit"), "lora")
    for k in range(3):
        Image.new("RGB", (40, 30), (50 * k, 9, 7)).save(tmp_path / f"{k}.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    files = [str(tmp_path / f"{k}.png") for k in range(3)]
    split = Split(files, [0, 0, 0])
    assert export.views(FolderStore(""), split, EvaluationConfig(), run, 100).shape == (2, 3, 15, 15)
    assert export.views(FolderStore(""), split, EvaluationConfig(tte=True), run, 1).shape == (1, 5, 3, 15, 15)
    with pytest.raises(UserError, match="--check"):
        export.views(FolderStore(""), Split(files[2:], [0]), EvaluationConfig(), run, 100)


PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"
CUT = re.search(r"^crops, crop, short = .*^images = .*?$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "evaluation",
    [
        EvaluationConfig(),
        EvaluationConfig(one_crop_expand=0),
        EvaluationConfig(one_crop_expand=5),
        EvaluationConfig(tte=True),
        EvaluationConfig(tte=True, expand=7, one_crop_expand=0),
        EvaluationConfig(resize="square"),
        EvaluationConfig(tte=True, resize="square"),
    ],
    ids=str,
)
def test_the_written_recipe_gives_the_logits_of_testing(
    evaluation: EvaluationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's own lines cut pictures by what the file says; the graph's module then gives what testing computes."""
    run = trained(backbone_of("timm_vit"), "lora")
    monkeypatch.chdir(tmp_path)
    about = export.description(run, evaluation, [], export.Deployed(run.model, five_crops=evaluation.tte))
    noisy = np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures = {
        "plain.png": (Image.fromarray(noisy), {}),
        "tall.png": (Image.fromarray(noisy).resize((17, 90)), {}),
        "turned.png": (Image.fromarray(noisy), {"exif": turned}),
        "clear.png": (Image.fromarray(np.dstack([noisy, noisy[..., :1]])), {}),
        "grey.png": (Image.fromarray(noisy[..., 0]), {}),
        "tiny.png": (Image.fromarray(noisy[:3, :5]), {}),
    }
    assert CUT is not None
    cut = []
    for name, (image, options) in pictures.items():
        image.save(name, **options)
        names: dict[str, Any] = {"about": about, "np": np, "Image": Image, "ImageOps": ImageOps}
        image.save("picture.png", **options)
        exec(CUT[0].replace("picture.jpg", "picture.png"), names)
        cut.append(names["images"] if evaluation.tte else names["images"][0])
    views = export.views(FolderStore(""), Split(list(pictures), [0] * 6), evaluation, run, 100)
    np.testing.assert_array_equal(np.stack(cut), views.numpy())
    assert list(views.shape)[1:] == about["input"]["shape"][1:]
    store, facts, cpu = FolderStore(""), run.model.backbone.facts, runtime.choose("cpu", "fp32")
    reader = SplitReader(store, Split(list(pictures), [0] * 6), workers=0)
    tested = collect(run.model, reader, crops(evaluation, facts), facts, cpu)
    with torch.no_grad():
        found = export.Deployed(run.model, five_crops=evaluation.tte)(torch.from_numpy(np.stack(cut)))[0]
    torch.testing.assert_close(found, tested, rtol=1e-4, atol=1e-4)
    words = about["input"]["recipe"]
    side, mode = about["input"]["resize"], about["input"]["resize_mode"]
    assert (f"resize it to {side} x {side} " if mode == "square" else f"short side to {side} ") in words
    assert mode == evaluation.resize
    assert ("five crops" if evaluation.tte else "one crop") in about["input"]["answers"]
    assert ("four corners" in words) == (about["input"]["crops"] == 5) == evaluation.tte


@pytest.mark.parametrize(
    ("given", "crops", "resize", "prior"),
    [
        ((), 5, 64 + 12, "uniform"),
        (("--one-crop",), 1, 64 + 9, "uniform"),
        (("--set", "evaluation.expand=30"), 5, 64 + 30, "uniform"),
        (("--one-crop", "--set", "evaluation.one_crop_expand=0", "--prior", "training"), 1, 64, "training"),
    ],
)
def test_the_command_exports_what_predict_answers(
    given: tuple[str, ...],
    crops: int,
    resize: int,
    prior: str,
    photos: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Crops and prior are those of the run where they are not given, as for predict."""

    def write(deployed: export.Deployed, _example: Any, file: Path, *_: Any) -> Any:
        file.write_bytes(b"a graph takes seconds to write")
        return deployed

    monkeypatch.setattr(export, "_write", write)
    settings = {"epochs": 0, "precision": "fp32", "cache": False, "workers": 0, "prior": "uniform"}
    liftplus.fit(photos, **settings).save("run")  # type: ignore[arg-type]
    check = photos / "test" / "red_square"
    out = "m.pt2" if given else "new/m.pt2"
    ended = command("export", "run", "--out", out, "--check", check, "--json", *given)
    assert ended.code == 0, ended.err
    about = json.loads((tmp_path / f"{out}.json").read_text())
    assert f"short side to {resize} " in about["input"]["recipe"]
    assert about["input"]["resize"] == resize and about["prior"] == prior
    assert json.loads(ended.out)["crops"] == crops == about["input"]["crops"]


def refused_export(error: Exception, form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said where an exporter ends in this error."""

    def fails(*_given: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(torch.onnx if form == "onnx" else torch.export, "export", fails)
    run = trained(backbone_of("timm_vit"), "lora")
    with pytest.raises(UserError) as told:
        export.export(run, tmp_path / f"m.{form}", form, noise(run), Silent(), EvaluationConfig())
    assert not list(tmp_path.iterdir())
    return str(told.value)


def chained(*texts: str) -> Exception:
    """Errors of which each is the cause of the one before."""
    error: Exception | None = None
    for text in reversed(texts):
        outer = RuntimeError(text)
        outer.__cause__ = error
        error = outer
    assert error is not None
    return error


@pytest.mark.parametrize(
    ("form", "error", "said"),
    [
        (
            "onnx",
            chained("Failed.", "No ONNX function found for <OpOverload(op='aten.scatter', overload='x')>"),
            ".pt2",
        ),
        ("onnx", chained("Failed.", "no decomposition for aten.foo_bar.default(x)"), "operator aten.foo_bar.default"),
        ("onnx", chained("Failed\nin two lines"), "RuntimeError: Failed)"),
        ("pt2", chained("Could not guard on u0"), "RuntimeError: Could not guard on u0)"),
        ("pt2", chained("torchvision::nms is missing"), "operator torchvision::nms"),
    ],
)
def test_an_exporter_that_fails_ends_in_a_sentence(
    form: Any, error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = refused_export(error, form, tmp_path, monkeypatch)
    assert said in found and f"cannot be written as {form}" in found and "\n" not in found
    assert (".pt2" in found) == (form == "onnx")


def test_the_command_says_what_an_exporter_cannot_write(
    photos: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_given: object, **_options: object) -> None:
        raise chained("Failed.", "No ONNX function found for <OpOverload(op='aten.scatter', overload='x')>")

    liftplus.fit(photos, epochs=0, precision="fp32", cache=False, workers=0).save("run")
    monkeypatch.setattr(torch.onnx, "export", fails)
    ended = command("export", "run", "--out", "m.onnx")
    assert ended.code == 2 and "cannot be written as onnx" in ended.err and "Traceback" not in ended.err


def test_a_full_disk_is_no_matter_of_the_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(backbone_of("timm_vit"), "lora")

    def full(*_given: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(OSError, match="No space"):
        export.export(run, tmp_path / "m.pt2", "pt2", noise(run), Silent(), EvaluationConfig())


def test_the_chosen_pooling_is_in_the_graph(tmp_path: Path) -> None:
    config = BackboneConfig(name="timm/test_vit.r160_in1k", pretrained=False, image_size=64, pooling="mean")
    run = trained(catalogue.load(config), "lora")
    pictures = noise(run)
    assert export.export(run, tmp_path / "m.onnx", "onnx", pictures, Silent(), EvaluationConfig(tte=False)).holds
    run.model.backbone.image.global_pool = "token"  # type: ignore[assignment]
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": pictures.numpy()})
    other = export.Deployed(run.model, five_crops=False).eval()(pictures)[0]
    assert (torch.from_numpy(found) - other).abs().max() > 1e-2 * other.std()


@pytest.mark.slow
def test_hiera_has_no_onnx_but_a_pt2(tmp_path: Path) -> None:
    """Its token masking needs an operator that torch.onnx cannot write."""
    trunk = catalogue.load(BackboneConfig(name="timm/hiera_tiny_224.mae", pretrained=False))
    with pytest.raises(UserError, match=r"operator aten\S+.*\.pt2"):
        export.export(
            trained(trunk, "bitfit"),
            tmp_path / "m.onnx",
            "onnx",
            noise(trained(trunk, "bitfit"), 2),
            Silent(),
            EvaluationConfig(),
        )


def test_what_an_exporter_prints_does_not_reach_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """onnxscript 0.6 prints how many rules it applied, which would make the output of --json no JSON."""
    write = torch.export.export

    def talking(*args: Any, **options: Any) -> Any:
        print("Applied 2 of general pattern rewrite rules.")
        return write(*args, **options)

    monkeypatch.setattr(torch.export, "export", talking)
    run = trained(backbone_of("timm_vit"), "lora")
    export.export(run, tmp_path / "m.pt2", "pt2", noise(run), Silent(), EvaluationConfig())
    assert (tmp_path / "m.pt2").exists() and capsys.readouterr().out == ""
