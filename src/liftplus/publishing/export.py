"""Export a trained model as one graph for other programs: ONNX, or torch.export's .pt2. It is compared with PyTorch.

The graph takes RGB pictures at the backbone's input size, with values from 0 to 255. It contains everything else:
normalisation, image tower, tuners (folded into the weights where that is exact), head and prior.
"""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from liftplus.backbones.normalise import Normalise
from liftplus.calibration.promised import Promised
from liftplus.config import EvaluationConfig
from liftplus.data.dataset import Split, Store
from liftplus.data.images import UnreadableImage
from liftplus.errors import UserError
from liftplus.evaluation import priors
from liftplus.evaluation.inference import crops
from liftplus.machine.disk import room_beside, write_json
from liftplus.machine.progress import Progress
from liftplus.model.classifier import Classifier
from liftplus.publishing.comparing import TOLERANCE, alike, deviation, every_answer, largest, within
from liftplus.training.checkpoint import Trained

Run = Callable[[Tensor], tuple[Tensor, ...]]
Format = Literal["onnx", "pt2"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "pt2": ".pt2"}
INPUT = "images"


class Deployed(nn.Module):
    """The exported module: pictures, or five crops of each, -> logits [B, C], and what is `Promised` of them.

    Pictures are fp32 [B, 3, R, R] or [B, 5, 3, R, R], RGB from 0 to 255. The model's logits include the prior already
    (`Classifier.shift`).
    """

    def __init__(self, model: Classifier, *, five_crops: bool, promised: Promised | None = None) -> None:
        super().__init__()
        self.model, self.five_crops, self.promised = model, five_crops, promised or Promised()
        self.normalise = Normalise(model.backbone.facts)

    @property
    def outputs(self) -> dict[str, list[str]]:
        """Names and shapes of what it gives, in its order."""
        return {"logits": ["batch", "classes"]} | self.promised.outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        given = self.normalise(images.flatten(0, 1) if self.five_crops else images)
        # A model gives the same logits for features as for their pictures.
        features = self.model.backbone(given) if self.promised.needs_features else given
        logits = self.model(features)
        if self.five_crops:
            logits = logits.unflatten(0, (-1, 5)).mean(1)
            features = features.unflatten(0, (-1, 5)).mean(1)
        return logits, *self.promised(logits, features)


@dataclass(frozen=True)
class Parity:
    """How the exported file compares with PyTorch in fp32.

    Attributes:
        images: number of pictures compared.
        difference: largest absolute difference of a logit.
        deviation: standard deviation of PyTorch's logits.
        merging: the largest absolute difference of a logit, in PyTorch, before and after folding the tuners in.
        agree: share of pictures with the same best class, 0 to 1.
        same_promises: share of pictures that have the same set, are unknown in both or in neither, and have the same
            group, as far as these were asked for, 0 to 1.
    """

    images: int
    difference: float
    deviation: float
    merging: float
    agree: float
    same_promises: float

    @property
    def holds(self) -> bool:
        """Whether both differences are within `TOLERANCE`."""
        return within(max(self.difference, self.merging), self.deviation)


def required(form: Format) -> None:
    """Check before any work that a format's packages are installed; raises UserError otherwise."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if form == "onnx" and find_spec(name) is None]
    if missing:
        raise UserError(f"Exporting to ONNX needs {', '.join(missing)}. Install: pip install 'liftplus[onnx]'.")


def spread(split: Split, most: int) -> list[str]:
    """Keys of at most so many pictures of a split, at even distances."""
    return list(split.keys[:: max(1, len(split) // most)])[:most]


def views(store: Store, split: Split, evaluation: EvaluationConfig, trained: Trained, most: int) -> Tensor:
    """Pictures of a split as inputs of the graph, fp32 [n, 3, R, R] or [n, 5, 3, R, R].

    Args:
        most: the largest number n of pictures; they are evenly spaced in the split.

    Raises:
        UserError: none of the pictures can be read.
    """
    cut = crops(evaluation, trained.model.backbone.facts)
    found = []
    for key in spread(split, most):
        try:
            found.append(cut(store.image(key)).float())
        except UnreadableImage:
            continue
    if not found:
        raise UserError("None of the pictures for the comparison can be read. Give others with --check.")
    stacked = torch.stack(found)
    return stacked if evaluation.tte else stacked[:, 0]


@torch.no_grad()
def export(
    trained: Trained,
    out: Path,
    form: Format,
    images: Tensor,
    progress: Progress,
    evaluation: EvaluationConfig,
    promised: Promised | None = None,
) -> Parity:
    """Write the graph, compare it with PyTorch, and write FILE.json with class names and input format beside it.

    Args:
        trained: on the CPU in fp32; its tuners are folded in place.
        images: inputs for the comparison, see `views`.
        evaluation: sets the crops and the prior.
        promised: what the graph tells beside logits; None for probabilities without a temperature.

    Raises:
        UserError: the format cannot represent the model, or the comparison fails; nothing is kept then.
    """
    model = trained.model
    model.shift = priors.shift(trained.config, trained.class_names, trained.train_counts, evaluation.prior)
    deployed = Deployed(model, five_crops=evaluation.tte, promised=promised).eval()
    expected, *told = every_answer(deployed, images, progress, "Running PyTorch")
    kept = model.merge()
    merged, *_ = every_answer(deployed, images, progress, "Running PyTorch, tuners folded in")
    about = description(trained, evaluation, kept, deployed)
    with room_beside(out) as folder:
        file = folder / out.name
        graph = _write(deployed, images[:2].expand(2, *images.shape[1:]).clone(), file, form, about)
        with _told(form):
            found, *kept_promises = every_answer(graph, images, progress, f"Running {form}")
        parity = Parity(
            images=len(images),
            difference=largest(found, expected),
            deviation=deviation(expected),
            merging=largest(merged, expected),
            agree=float((found.argmax(1) == expected.argmax(1)).float().mean()),
            same_promises=alike(kept_promises, told),
        )
        if not parity.holds:
            raise UserError(
                f"The exported file's logits differ from PyTorch's by up to {parity.difference:.1e} "
                f"({parity.merging:.1e} from folding tuners in). Allowed is {TOLERANCE:g} times their deviation "
                f"{parity.deviation:.2f} (or times 1). The file was not kept. Try the other format, and report this."
            )
        for piece in sorted(Path(folder).iterdir()):  # a graph of over 2 GB has its weights in a second file
            piece.replace(out.parent / piece.name)
    write_json(beside(out), about | {"parity": vars(parity)})
    return parity


def description(trained: Trained, evaluation: EvaluationConfig, kept: list[str], deployed: Deployed) -> dict[str, Any]:
    """What a program needs to know to use the graph, for FILE.json.

    Args:
        kept: names of tuners that were not folded in.
        deployed: the exported module.
    """
    facts = trained.model.backbone.facts
    cut = crops(evaluation, facts)
    shape: list[str | int] = ["batch", *([cut.count] if cut.count > 1 else []), 3, cut.size, cut.size]
    where = "at the four corners and the centre" if cut.count > 1 else "at the centre"
    resized = (
        f"resize it to {cut.short} x {cut.short} whatever its shape"
        if cut.resize == "square"
        else f"resize its short side to {cut.short} and the other in proportion, rounded down"
    )
    same = "five crops, as `liftplus predict --five-crops`" if cut.count > 1 else "one crop, as `predict --one-crop`"
    return {
        "classes": list(trained.class_names),
        "class_ids": list(trained.class_ids),
        "input": {
            "name": INPUT,
            "shape": shape,
            "type": "float32",
            "values": "RGB, 0 to 255, not normalised",
            "crops": cut.count,
            "crop": cut.size,
            "resize": cut.short,
            "resize_mode": cut.resize,
            "interpolation": cut.kernel,
            "recipe": f"turn the picture upright and lay it on white, {resized} ({cut.kernel}, antialiased, the width "
            f"first), crop {cut.size} x {cut.size} {where}",
            "answers": same,
        },
        "normalised_inside": {"mean": list(facts.mean), "std": list(facts.std)},
        "outputs": {
            name: [len(trained.class_names) if side == "classes" else side for side in shape]
            for name, shape in deployed.outputs.items()
        },
        "prior": evaluation.prior,
        "temperature": deployed.promised.temperature,
        "promises": deployed.promised.asked,
        **deployed.promised.levels_asked,
        "backbone": trained.config.backbone.name,
        "backbone_identity": trained.model.backbone.identity,
        "method": trained.config.method,
        "tuners_kept": kept,
    }


def beside(out: Path) -> Path:
    """The path of the JSON file that describes a graph."""
    return out.with_name(f"{out.name}.json")


def _write(deployed: Deployed, example: Tensor, file: Path, form: Format, about: dict[str, Any]) -> Run:
    """Write the graph, and return a function that runs the written file."""
    with _silence(), _told(form):
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        program = torch.export.export(deployed, (example,), dynamic_shapes=shapes, strict=False)
        if form == "pt2":
            torch.export.save(program, file, extra_files={"liftplus.json": json.dumps(about)})
            return torch.export.load(file).module()
        return _write_onnx(program, example, file, about)


def _write_onnx(program: torch.export.ExportedProgram, example: Tensor, file: Path, about: dict[str, Any]) -> Run:
    import onnx
    import onnxruntime

    written = torch.onnx.export(
        program, (example,), dynamo=True, input_names=[INPUT], output_names=list(about["outputs"]), verbose=False
    )
    assert written is not None
    written.model.metadata_props["liftplus"] = json.dumps(about, ensure_ascii=False)
    written.save(file)
    onnx.checker.check_model(str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda batch: tuple(map(torch.from_numpy, session.run(None, {INPUT: batch.numpy()})))


@contextmanager
def _told(form: Format) -> Iterator[None]:
    """Turn an exporter's failure into a UserError, since unsupported operators depend on the user's backbone."""
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # the exporters raise many types
        what = _operator(error)
        instead = "Try --out FILE.pt2, torch.export's format" if form == "onnx" else "Use `liftplus predict` instead"
        raise UserError(
            f"This model cannot be written as {form}: {what}. {instead}, or choose another backbone or tuner."
        ) from error


def _operator(error: BaseException) -> str:
    """The operator that the exporter lacks, else the first line of its error."""
    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__ or error
    for one in reversed(chain):
        found = re.search(r"\b((?:aten|prims|torchvision|quantized|higher_order|torch_ops)(?:::|\.)[\w.]+)", str(one))
        if found:
            return f"the exporter does not support its operator {found[1].rstrip('.')}"
    first = (str(chain[0]).strip().splitlines() or [""])[0][:200]
    return f"the exporter stopped ({type(chain[0]).__name__}: {first})"


@contextmanager
def _silence() -> Iterator[None]:
    """Hide the exporters' internal warnings from the user; onnxscript 0.6 also prints what it rewrote."""
    noisy = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    before = [logger.level for logger in noisy]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # what --json prints must stay JSON
        warnings.simplefilter("ignore")
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(noisy, before, strict=True):
                logger.setLevel(level)
