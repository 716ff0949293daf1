"""The cache of features of frozen towers: on disk, keyed by weights, data, transform, precision and code.

A damaged or foreign file, or one with another key, is ignored. The whole folder may be deleted at any time.
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
from liftplus.data.identity import identity
from liftplus.data.loader import Batch
from liftplus.data.pictures import Picture
from liftplus.data.transforms import Augment, Crops
from liftplus.evaluation.inference import SplitReader, collect
from liftplus.machine.parallel import ALONE, Job
from liftplus.machine.paths import cache_folder
from liftplus.machine.runtime import Runtime, describe
from liftplus.model.classifier import Classifier
from liftplus.words import counted

PAYS = 2.0
"""Features that took fewer seconds than this are not kept."""
LIMIT = 10_000_000_000
"""Limit of the folder's size in bytes; the least recently used files are deleted first."""
_PIECE = 64_000_000  # bytes per message between processes


def folder() -> Path:
    """The folder of the cache."""
    return cache_folder() / "features"


@dataclass
class Cache:
    """A cache of tensors on disk, keyed by everything that determines them.

    Attributes:
        place: the folder; None turns the cache off.
        job: only the leader reads and writes; every process computes its part of what is missing.
        notes: what was read from the cache or could not be written to it, one sentence each.
    """

    place: Path | None = None
    job: Job = ALONE
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, wanted: bool, job: Job = ALONE) -> Cache:
        """The user's cache, or one that is off."""
        return cls(folder() if wanted else None, job)

    @property
    def on(self) -> bool:
        """Whether the cache is on."""
        return self.place is not None

    def tensor(self, key: Callable[[], dict[str, Any] | None], make: Callable[[], Tensor], what: str) -> Tensor:
        """The result of `make`, or the same bits from the cache.

        Args:
            key: gives everything that determines the tensor; None if that is not known for sure.
            make: computes the tensor; called by every process of the job.
            what: the tensor's name in notes.
        """
        if self.place is None:
            return make()
        about = _text(key()) if self.job.leads else None
        path = None if about is None else self.place / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.safetensors"
        found = self._shared(None if path is None or about is None else _read(path, about))
        if found is not None:
            self.notes.append(f"{what} were read from the cache in {self.place}.")
            return found
        clock = time.perf_counter()
        made = make()
        took = time.perf_counter() - clock
        # If a picture changed meanwhile, the features belong to neither key.
        if path is not None and about is not None and took >= PAYS and _text(key()) == about:
            self._write(path, about, made, what)
        return made

    def _shared(self, found: Tensor | None) -> Tensor | None:
        """Send the leader's tensor to all processes, in pieces."""
        if self.job.size == 1:
            return found
        rows = 1 if found is None else max(1, _PIECE * len(found) // max(1, found.nbytes))
        pieces = () if found is None else found.split(rows)
        count = self.job.from_leader(lambda: None if found is None else len(pieces))
        if count is None:
            return None
        return torch.cat([self.job.from_leader(partial(_piece, pieces, number)) for number in range(count)])

    def _write(self, path: Path, about: str, made: Tensor, what: str) -> None:
        """Write to a temporary file and rename it. Processes that do so at once write the same."""
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
            self.notes.append(f"{what} could not be written to the cache in {path.parent} ({reason}).")


def _piece(pieces: Sequence[Tensor], number: int) -> Tensor:
    return pieces[number].clone()  # a view would be sent with its whole storage


def _text(key: dict[str, Any] | None) -> str | None:
    return None if key is None else json.dumps(key, sort_keys=True)


def _digest(rows: Tensor) -> str:
    return hashlib.sha256(rows.flatten().view(torch.uint8).numpy().data).hexdigest()


def _read(path: Path, about: str) -> Tensor | None:
    """The rows of an intact file with this key, else None."""
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
    """Delete the least recently used files beyond `LIMIT` bytes, and temporary files of killed processes."""
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
    """Digest of this package's code: transforms and kernels determine features too."""
    digest = hashlib.sha256()
    for path in sorted(Path(str(files("liftplus"))).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _machine(runtime: Runtime) -> dict[str, Any]:
    """Everything about machine, libraries and precision that can change a bit."""
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
    """Digest of the weight file and a sum of the present weights; None if they are random, trained or hooked."""
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
    """Whether the classifier's features are those of the original backbone."""
    return not model.tuners and untouched(model.backbone)


def image_features(
    cache: Cache, backbone: Backbone, reader: SplitReader, view: Crops, runtime: Runtime, batch_size: int
) -> Tensor:
    """Features of every crop of every image of a split, fp32 [N, crops, D], on the CPU, through the cache."""

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
    """Unit features of the classes' prompts in the joint space [C, joint], on the encoder's device, through the cache.

    Args:
        origin: the backbone's identity.
        texts: prompts of each class.
    """
    prompts = nested(texts)

    def key() -> dict[str, Any] | None:
        weights = _weights(encoder, origin)
        few = [own[0] for own in prompts[:64]]  # another tokenizer gives other ids
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
    """The view of an augmentation that has no randomness, as a crop of one: uint8 [1, 3, R, R]."""

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
    """Batches of features [B, D], in the order and process shares in which a `Loader` gives the pictures."""

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
        """Batches per epoch."""
        return -(-len(self.rows) // self.batch_size)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number `first` on."""
        indices = torch.tensor(list(self.order(epoch)), dtype=torch.long)
        for whole in indices.split(self.batch_size)[first:]:
            own = whole[self.job.rank :: self.job.size]
            yield Batch(self.rows[own], self.labels[own], own)
