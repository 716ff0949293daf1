"""Features of frozen towers, computed once: kept on disk, keyed by weights, data, transform, precision and code.

A file that is damaged, foreign or of another key is as good as none. The whole folder may be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from liftplus.backbones.base import Backbone, in_precision
from liftplus.backbones.text import ClassTexts, TextEncoder, nested
from liftplus.config import EvaluationConfig
from liftplus.data.identity import identity
from liftplus.data.loader import Batch
from liftplus.data.pictures import Picture
from liftplus.data.transforms import Augment, Crops
from liftplus.evaluation.inference import SplitReader, TopK, best, collect, crops, predict
from liftplus.machine.parallel import ALONE, Job
from liftplus.machine.paths import cache_folder
from liftplus.machine.runtime import Runtime, describe
from liftplus.model.classifier import Classifier
from liftplus.words import counted

PAYS = 2.0
"""Seconds that features must have taken to be worth a file."""
LIMIT = 10_000_000_000
"""Bytes that the folder may hold; the files that were used least recently go first."""
_PIECE = 64_000_000  # bytes that go from process to process at once


def folder() -> Path:
    """Where features are kept."""
    return cache_folder() / "features"


@dataclass
class Cache:
    """Tensors on disk by what they follow from.

    Attributes:
        place: the folder; None: nothing is kept and nothing read.
        job: of several processes the leader alone reads and writes; each makes its part of what is missing.
        notes: what was read from here, or why it could not be kept, one sentence each.
    """

    place: Path | None = None
    job: Job = ALONE
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, wanted: bool, job: Job = ALONE) -> Cache:
        """The user's cache, or none."""
        return cls(folder() if wanted else None, job)

    @property
    def on(self) -> bool:
        """Whether features are to be computed once."""
        return self.place is not None

    def tensor(self, key: Callable[[], dict[str, Any] | None], make: Callable[[], Tensor], what: str) -> Tensor:
        """What `make` gives, read from disk where it was kept under the same key: the same bits.

        Args:
            key: all that the tensor follows from; None where that is not known for sure.
            make: computes it; called by every process of the job.
            what: how a note calls it.
        """
        if self.place is None:
            return make()
        about = _text(key()) if self.job.leads else None
        path = None if about is None else self.place / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.safetensors"
        found = self._shared(None if path is None or about is None else _read(path, about))
        if found is not None:
            self.notes.append(f"{what} were computed before and read from {self.place}.")
            return found
        clock = time.perf_counter()
        made = make()
        took = time.perf_counter() - clock
        # Made while a picture was changed, it would be neither the old one's nor the new one's.
        if path is not None and about is not None and took >= PAYS and _text(key()) == about:
            self._write(path, about, made, what)
        return made

    def _shared(self, found: Tensor | None) -> Tensor | None:
        """The leader's tensor for all processes, in pieces."""
        if self.job.size == 1:
            return found
        rows = 1 if found is None else max(1, _PIECE * len(found) // max(1, found.nbytes))
        pieces = () if found is None else found.split(rows)
        count = self.job.from_leader(lambda: None if found is None else len(pieces))
        if count is None:
            return None
        return torch.cat([self.job.from_leader(partial(_piece, pieces, number)) for number in range(count)])

    def _write(self, path: Path, about: str, made: Tensor, what: str) -> None:
        """Write beside and rename; several processes that do so write the same."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(prefix=f"{path.stem}-", suffix=".tmp", dir=path.parent)
            os.close(handle)
            try:
                rows = made.detach().cpu().contiguous()
                save_file({"rows": rows}, beside, {"key": about, "digest": _digest(rows)})
                os.replace(beside, path)
            finally:
                with suppress(OSError):
                    os.unlink(beside)
            _trim(path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self.notes.append(f"{what} could not be kept in {path.parent} ({reason}).")


def _piece(pieces: Sequence[Tensor], number: int) -> Tensor:
    return pieces[number].clone()  # a view would be sent with all that it is a view of


def _text(key: dict[str, Any] | None) -> str | None:
    return None if key is None else json.dumps(key, sort_keys=True)


def _digest(rows: Tensor) -> str:
    return hashlib.sha256(rows.flatten().view(torch.uint8).numpy().data).hexdigest()


def _read(path: Path, about: str) -> Tensor | None:
    """The rows of a whole file with this key, else None."""
    try:
        with safe_open(path, "pt") as file:
            found = file.metadata() or {}
            if found.get("key") != about:
                return None
            rows: Tensor = file.get_tensor("rows").clone()
        if found.get("digest") != _digest(rows):
            return None
        with suppress(OSError):
            os.utime(path)
    except (OSError, SafetensorError, RuntimeError, ValueError):
        return None
    return rows


def _trim(newest: Path) -> None:
    """Remove what was used least recently, down to `LIMIT` bytes, and what a killed process left half written."""
    files = []
    for path in newest.parent.iterdir():
        with suppress(OSError):  # another process may be trimming too
            about = path.stat()
            if path.suffix == ".tmp" and time.time() - about.st_mtime > 86_400:
                path.unlink()
            elif path.suffix == ".safetensors":
                files.append((about.st_mtime, about.st_size, path))
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > LIMIT and path != newest:
            with suppress(OSError):
                path.unlink()


@cache
def _code() -> str:
    """Digest of this package's own code: transforms and kernels are part of what features follow from."""
    digest = hashlib.sha256()
    for path in sorted(Path(str(files("liftplus"))).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _machine(runtime: Runtime) -> dict[str, Any]:
    """Whatever of machine, libraries and precision can change a bit."""
    own = {part.name: str(getattr(runtime, part.name)) for part in fields(runtime) if part.name != "job"}
    return {
        "code": _code(),
        "versions": {name: value for name, value in describe(runtime).items() if name != "system"},
        "runtime": own,
        "processor": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
        "matmul": torch.get_float32_matmul_precision(),
        "autocast": torch.is_autocast_enabled(runtime.device.type),
    }


def _weights(module: nn.Module, origin: str) -> dict[str, Any] | None:
    """The weight file's digest, and a sum of the weights as they are now; None where they come from no file."""
    if origin == "random" or not untouched(module):
        return None
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = []
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_complex():
            return None
        number = int(tensor.detach().view(whole[tensor.itemsize]).sum(dtype=torch.int64))
        sums.append((name, str(tensor.dtype), list(tensor.shape), number))
    return {"file": origin, "now": hashlib.sha256(repr(sums).encode()).hexdigest()}


def untouched(module: nn.Module) -> bool:
    """Whether nothing in a tower is trained and no hook acts on it."""
    hooks = [
        hook for part in module.modules() for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    ]
    return all(hook is in_precision for hook in hooks) and not any(p.requires_grad for p in module.parameters())


def bare(model: Classifier) -> bool:
    """Whether the classifier's features are those of the backbone as it was loaded."""
    return not model.tuners and untouched(model.backbone)


def image_features(
    cache: Cache, backbone: Backbone, reader: SplitReader, view: Crops, runtime: Runtime, batch_size: int
) -> Tensor:
    """Features of every crop of every image of a split, fp32 [N, crops, D], on the CPU."""

    def key() -> dict[str, Any] | None:
        weights = _weights(backbone.image, backbone.identity)
        if weights is None or not is_dataclass(view):
            return None
        data = identity(reader.store, reader.split.keys)
        apart = ("store", "split", "workers", "progress", "label")
        return data and {
            "kind": "images",
            "backbone": [backbone.name, asdict(backbone.facts)],
            "weights": weights,
            "data": data,
            "view": repr(view),
            "reading": {f.name: repr(getattr(reader, f.name)) for f in fields(reader) if f.name not in apart},
            "batch_size": batch_size,
            "machine": _machine(runtime),
        }

    def make() -> Tensor:
        return collect(backbone, reader, view, backbone.facts, runtime, batch_size, each=True).clone()

    return cache.tensor(key, make, f"Features of {counted(len(reader.split), 'image')}")


def text_features(cache: Cache, encoder: TextEncoder, origin: str, runtime: Runtime, texts: ClassTexts) -> Tensor:
    """Unit features of the classes in the joint space [C, joint] by their prompts, on the encoder's device.

    Args:
        origin: the backbone's identity.
    """
    prompts = nested(texts)

    def key() -> dict[str, Any] | None:
        weights = _weights(encoder, origin)
        few = [own[0] for own in prompts[:64]]  # their ids tell tokenizers apart
        return weights and {
            "kind": "texts",
            "weights": weights,
            "texts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
            "tokens": hashlib.sha256(repr(encoder.tokens(few).tolist()).encode()).hexdigest(),
            "chunk": encoder.chunk,
            "machine": _machine(runtime),
        }

    found = cache.tensor(
        key, lambda: encoder.encode(texts), f"Text features of {counted(len(prompts), 'class', 'classes')}"
    )
    return found.to(encoder.tower.positional_embedding.device)


@dataclass(frozen=True)
class FixedCrop:
    """The one training view of an augmentation that is always the same: uint8 [1, 3, R, R]."""

    augment: Augment
    size: int
    kernel: str

    def picture(self, picture: Image | Picture) -> Tensor:
        """The view itself, uint8 [3, R, R]."""
        return self.augment(picture, self.size, self.kernel, 1.0, torch.Generator())

    def cut(self, pictures: Tensor, sizes: Tensor) -> Tensor:
        """See `Crops`."""
        return pictures.view(len(sizes), 1, 3, self.size, self.size)


class FeatureLoader:
    """Batches of features [B, D] where a `Loader` would give the pictures, in the same order and parts."""

    def __init__(
        self,
        rows: Tensor,
        labels: Sequence[int],
        order: Callable[[int], Sequence[int]],
        batch_size: int,
        job: Job = ALONE,
    ) -> None:
        self.rows, self.labels, self.order = rows, torch.tensor(labels), order
        self.batch_size, self.job = batch_size, job

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-len(self.rows) // self.batch_size)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `first` on."""
        indices = torch.tensor(list(self.order(epoch)), dtype=torch.long)
        for whole in indices.split(self.batch_size)[first:]:
            own = whole[self.job.rank :: self.job.size]
            yield Batch(self.rows[own], self.labels[own], own)


def predict_once(
    model: Classifier, reader: SplitReader, evaluation: EvaluationConfig, runtime: Runtime, cache: Cache
) -> TopK:
    """`inference.predict`, with the features of a bare backbone kept: the same bits."""
    facts = model.backbone.facts
    if not cache.on or not bare(model):
        return predict(model, reader, evaluation, facts, runtime)
    view = crops(evaluation, facts)
    rows = image_features(cache, model.backbone, reader, view, runtime, evaluation.batch_size)
    if runtime.job.size > 1:
        rows = rows[runtime.job.part(len(rows))]
    return best(_logits(model, rows, evaluation.batch_size, runtime), evaluation, runtime, len(reader.split))


@torch.inference_mode()
def _logits(model: Classifier, rows: Tensor, batch_size: int, runtime: Runtime) -> Tensor:
    """Logits averaged over the crops, fp32 [N, C], from features [N, crops, D]."""
    parts = []
    for part in rows.split(batch_size):
        with runtime.autocast():
            out = model(part.to(runtime.device).flatten(0, 1))
        parts.append(out.float().unflatten(0, part.shape[:2]).mean(1).cpu())
    return torch.cat(parts)
