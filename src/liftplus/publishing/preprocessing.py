"""Export of one ONNX graph from decoded pictures of any size to class names, compared with what `predict` answers.

ONNX Runtime resizes uint8 as Pillow and PyTorch do: an antialiasing kernel, first horizontal, then vertical, rounded to
uint8 in between. Its coefficients have single precision, Pillow's double, so some values next to a half are rounded to
the other side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from liftplus.calibration.promised import Promised
from liftplus.config import EvaluationConfig
from liftplus.data.dataset import Store
from liftplus.data.images import UnreadableImage
from liftplus.data.pictures import ArrayPicture, Decode, Picture, PillowPicture
from liftplus.data.transforms import CentreCrop, FiveCrops
from liftplus.errors import UserError
from liftplus.evaluation import priors
from liftplus.evaluation.inference import crops
from liftplus.machine.disk import room_beside, write_json
from liftplus.machine.progress import Progress
from liftplus.publishing import export as exporting
from liftplus.publishing.comparing import alike, deviation, largest, within
from liftplus.publishing.export import Deployed, Parity
from liftplus.publishing.picture_graph import INPUT, front, join
from liftplus.training.checkpoint import Trained

if TYPE_CHECKING:
    import onnx

LEVELS = 2
"""Most by which a resized value may differ from Pillow's, of 255."""
SHAPES = ((1, 1), (3, 5), (37, 411), (640, 51), (333, 500), (767, 511), (7, 300), (224, 224))
"""Heights and widths that pictures of the data are brought to: tiny, wide, tall, odd."""
DECODING = (
    "Decode the file, turn the picture by its EXIF orientation, lay transparency on white, convert it to RGB (grey "
    "ones too), and scale more than 8 bits to 0 to 255. All pictures of a batch have one size."
)


@dataclass(frozen=True)
class Likeness:
    """How the answers of the file compare with those of `predict` in fp32 with as many crops.

    Attributes:
        images: pictures of the data that were compared.
        made: pictures of tiny, wide, tall and odd sizes that were made from them and compared too.
        probability: largest absolute difference of a probability.
        same_class: share of all these pictures with the same best class.
        levels: largest difference of a resized value from Pillow's, of 255.
        changed: share of resized values that differ from those.
        same_promises: share of all these pictures that have the same set, are unknown in both or in neither, and have
            the same group, as far as these were asked for.
    """

    images: int
    made: int
    probability: float
    same_class: float
    levels: int
    changed: float
    same_promises: float


@dataclass(frozen=True)
class Sample:
    """Pictures to compare on: some of a store's, and others made of them in `SHAPES`.

    Attributes:
        decode: how `predict` decodes and resizes them.
    """

    store: Store
    keys: Sequence[str]
    decode: Decode

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], Picture, bool]]:
        """Pixels [H, W, 3]; the picture as `predict` has it; whether it was made. Unreadable ones are passed over."""
        self.store.decode = self.decode
        first: list[Image.Image] = []
        for key in self.keys:
            try:
                image = self.store.image(key)
            except UnreadableImage:
                continue
            yield np.asarray(image), self.store.picture(key), False
            if len(first) < len(SHAPES):
                first.append(image)
        for number, (height, width) in enumerate(SHAPES if first else ()):
            pixels = np.asarray(first[number % len(first)].resize((width, height)))
            yield pixels, _picture(pixels, self.decode), True


def _picture(pixels: NDArray[np.uint8], decode: Decode) -> Picture:
    """Pixels as `predict` would cut and resize them."""
    return PillowPicture(Image.fromarray(pixels)) if decode == "exact" else ArrayPicture(pixels)


@torch.no_grad()
def export(
    trained: Trained,
    out: Path,
    sample: Sample,
    progress: Progress,
    evaluation: EvaluationConfig,
    promised: Promised | None = None,
) -> tuple[Parity, Likeness]:
    """Write the graph and FILE.json with class names and recipe; what fails a comparison is not kept.

    Args:
        trained: on the CPU in fp32; its model is merged in place.
        sample: what to compare on.
        evaluation: how pictures are cut, and the prior.
        promised: what the graph tells beside logits; None for probabilities without a temperature.

    Raises:
        UserError: no picture can be read, the graph cannot be written, or it does not compute what PyTorch does.
    """
    model = trained.model
    cut = crops(evaluation, model.backbone.facts)
    begin = front(cut)
    model.shift = priors.shift(trained.config, trained.class_names, trained.train_counts, evaluation.prior)
    deployed = Deployed(model, five_crops=evaluation.tte, promised=promised).eval()
    views, expected, gaps = _by_predict(sample, cut, deployed, _session(begin), progress)
    if int(gaps[:, 0].max()) > LEVELS:
        raise UserError(
            f"The installed onnxruntime resizes pictures with values that differ from Pillow's by up to "
            f"{int(gaps[:, 0].max())} of 255, more than {LEVELS}, so the file was not kept. Update onnxruntime and "
            "report it, or export without --with-preprocessing."
        )
    with room_beside(out) as folder:
        file = folder / out.name
        parity = exporting.export(trained, file, "onnx", views, progress, evaluation, promised)
        about = _about(json.loads(exporting.beside(file).read_text(encoding="utf-8")))
        join(begin, file, trained.class_names, about)
        logits, *found = _answers(sample, file, progress)[: len(expected) + 1]
        made = slice(len(views) - len(SHAPES), None)
        _refuse_difference(logits[made], deployed(views[made])[0])
        likeness = _likeness(found, expected, gaps)
        write_json(exporting.beside(file), about | {"compared_with_predict": vars(likeness)})
        for piece in sorted(Path(folder).iterdir()):
            piece.replace(out.parent / piece.name)
    return parity, likeness


def _likeness(found: list[Tensor], expected: list[Tensor], gaps: Tensor) -> Likeness:
    """From probabilities and all that follows them."""
    chances, wanted = found[0], expected[0]
    return Likeness(
        images=len(chances) - len(SHAPES),
        made=len(SHAPES),
        probability=float((chances - wanted).abs().max()),
        same_class=float((chances.argmax(1) == wanted.argmax(1)).float().mean()),
        levels=int(gaps[:, 0].max()),
        changed=float(gaps[:, 1].mean()),
        same_promises=alike(found, expected),
    )


def _about(plain: dict[str, Any]) -> dict[str, Any]:
    """The description of the plain graph, turned into that of the graph with its front."""
    given = plain["input"]
    inside = {key: given[key] for key in ("crops", "crop", "resize", "resize_mode", "interpolation")}
    recipe = given["recipe"].partition("lay it on white, ")[2]
    return plain | {
        "input": {
            "name": INPUT,
            "shape": ["batch", "height", "width", 3],
            "type": "uint8",
            "values": "RGB, 0 to 255",
            "decoding": DECODING,
            "answers": given["answers"],
        },
        "cut_inside": inside | {"recipe": recipe},
        "outputs": plain["outputs"] | {"class_index": ["batch"], "class_name": ["batch"]},
    }


Run = Callable[[NDArray[np.uint8]], list[Any]]


def _session(model: onnx.ModelProto | Path) -> Run:
    """A function that runs a graph on one picture [H, W, 3] and gives all of its outputs."""
    import onnxruntime

    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return lambda pixels: list(session.run(None, {INPUT: pixels[None]}))


def _by_predict(
    sample: Sample, cut: CentreCrop | FiveCrops, deployed: Deployed, begin: Run, progress: Progress
) -> tuple[Tensor, list[Tensor], Tensor]:
    """For each picture the graph's views, `predict`'s probabilities and promises, and how views differ from Pillow's.

    The last is [N, 2]: the largest difference, and the share of values that differ.
    """
    views, told, gaps = [], [], []
    keeping = deployed.model.class_features_kept()
    with keeping, progress.task("Running PyTorch as predict does", len(sample.keys)) as advance:
        for pixels, picture, made in sample:
            view = torch.from_numpy(begin(pixels)[0])[0]
            exact = cut(Image.fromarray(pixels)).float()
            gap = (view - (exact if cut.count > 1 else exact[0])).abs()
            gaps.append(torch.stack([gap.max(), (gap > 0).float().mean()]))
            own = cut(picture).float()
            told.append(deployed(own[None] if cut.count > 1 else own)[1:])
            views.append(view)
            if not made:
                advance()
    if not views:
        raise UserError("None of the pictures to compare on can be read. Give others with --check.")
    return torch.stack(views), [torch.cat(part) for part in zip(*told, strict=True)], torch.stack(gaps)


def _answers(sample: Sample, file: Path, progress: Progress) -> list[Tensor]:
    """What the file gives for all pictures, but for the last output, the names: each [N, ...]."""
    whole = _session(file)
    found = []
    with progress.task("Running onnx from pictures", len(sample.keys)) as advance:
        for pixels, _, made in sample:
            found.append([torch.from_numpy(output) for output in whole(pixels)[:-1]])
            if not made:
                advance()
    return [torch.cat(part) for part in zip(*found, strict=True)]


def _refuse_difference(found: Tensor, expected: Tensor) -> None:
    """Refuse a graph whose parts do not act together as they do alone."""
    difference = largest(found, expected)
    if not within(difference, deviation(expected)):
        raise UserError(
            f"Logits of the exported file differ from PyTorch's on the same crops by up to {difference:.1e}, so it was "
            "not kept. Export without --with-preprocessing, and report it."
        )
