"""Train the bundled `mini_clip` on emoji and icons by many artists, with the contrastive loss (Radford et al. 2021,
section 2.3) between image and text and between two artists' pictures of the same thing (Mu et al. 2022, SLIP).

    python scripts/pretrain_mini_clip.py --work .cache/mini_clip --start src/liftplus/weights/mini_clip.safetensors

Fetches the icon sets through the npm client, keeps what it needs of them in the work folder's `icons` (on a machine
without a network, that folder alone is enough), draws them once, then trains. The state is saved every `--save-minutes`
and when the process is asked to end (SIGTERM, Ctrl-C); the same command goes on from there, with the settings that the
state holds. Averaged weights go to `mini_clip.safetensors` in the work folder at each save, the sets' credits and what
was left out to `credits.md`.

Beside the contrastive losses, pictures and captions are told from all concepts at once by a learnt vector for each
(proxies, Movshovitz-Attias et al. 2017). Muon moves the blocks' matrices, AdamW all else. The learning rate stays
constant and falls to zero over the last `--decay-share` of the steps, so that a run can be prolonged: more `--steps`,
before the fall. Half of the image patches are dropped until halfway through the fall (FLIP, Li et al. 2023).

Two styles are held out (`mini_clip_sets.HELD_OUT`): the accuracy on the first is what settings are chosen by. The
accuracy on OpenMoji's pictures, drawn with their own seed, is printed beside it and never chosen by.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.layers import PatchDropout
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import mini_clip_art
import mini_clip_sets
from liftplus.backbones import mini_clip
from liftplus.backbones.text import text_features
from mini_clip_pairs import Batch, Library, Pairs
from mini_clip_watch import Watch, watches

VIEWS = 2
WARM_UP = 300
EMA = 0.998
WATCH_STEPS = 250
MAY_CHANGE = ("steps", "decay_share", "lr")
"""Settings that a run may be given anew when it goes on."""


class Pretrained(nn.Module):
    """The two towers in training, and the learnt vector of each concept, which is not kept with the weights."""

    def __init__(self, concepts: int) -> None:
        super().__init__()
        self.image = mini_clip.image_tower()
        first = self.image.blocks[0]
        first.patch_drop = PatchDropout(0.5, num_prefix_tokens=1)
        first.register_forward_pre_hook(_drop_patches)
        self.image_projection = nn.Parameter(torch.randn(mini_clip.WIDTH, mini_clip.JOINT) * mini_clip.WIDTH**-0.5)
        for block in self.image.blocks:
            block.get_submodule("attn").fused_attn = False  # type: ignore[assignment]  # the fused bf16 backward is 1.5 times slower on CPU at 33 tokens
        self.text = mini_clip.text_tower()
        self.logit_scale = nn.Parameter(torch.tensor(14.0).log())
        self.proxies = nn.Parameter(torch.randn(concepts, mini_clip.JOINT))
        self.proxy_scale = nn.Parameter(torch.tensor(14.0).log())

    @property
    def patch_drop(self) -> PatchDropout:
        return self.image.get_submodule("blocks.0.patch_drop")

    def encode_image(self, images: Tensor) -> Tensor:
        return F.normalize(self.image(images.float() / 127.5 - 1.0).float() @ self.image_projection, dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        return F.normalize(text_features(self.text, ids).float() @ self.text.text_projection, dim=-1)

    @torch.no_grad()
    def begin_proxies(self, concepts: list[str]) -> None:
        """Give each concept the vector of its name: random ones would first undo what the towers know."""
        tokenizer = mini_clip.MiniTokenizer()
        for rows in torch.arange(len(concepts)).split(500):
            ids = tokenizer([f"a photo of a {concepts[row]}." for row in rows.tolist()])
            self.proxies[rows] = self.encode_text(ids.to(self.proxies.device))

    def weights(self) -> dict[str, Tensor]:
        """What the package keeps."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("prox")}


def _drop_patches(block: nn.Module, tokens: tuple[Tensor]) -> Tensor:
    return block.get_submodule("patch_drop")(*tokens)


def contrast(left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of two lists of unit vectors, row i of one belonging to row i of the other."""
    logits = scale * left @ right.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def objective(model: Pretrained, batch: Batch, device: str) -> Tensor:
    """The mean of the contrastive losses and of the losses against all concepts' vectors."""
    with torch.autocast(device, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        images, texts = model.encode_image(batch.pictures.to(device)), model.encode_text(batch.ids.to(device))
    images, texts = images.float(), texts.float()
    scale, views = model.logit_scale.exp().clamp(max=100), images.split(len(texts))
    matches = [contrast(view, texts, scale) for view in views] + [contrast(views[0], views[1], scale)]
    proxies = model.proxy_scale.exp().clamp(max=100) * F.normalize(model.proxies, dim=-1)
    target = batch.concepts.to(device)
    matches += [F.cross_entropy(part @ proxies.T, target) for part in (*views, texts)]
    return torch.stack(matches).mean()


def optimisers(model: Pretrained, rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, at AdamW's step size; AdamW for all else."""
    blocks = [*model.image.blocks.parameters(), *model.text.transformer.parameters()]
    hidden = [value for value in blocks if value.ndim == 2]
    known = {id(value) for value in hidden}
    rest = [value for value in model.parameters() if id(value) not in known]
    matrices, vectors = ([value for value in rest if (value.ndim >= 2) is wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    muon = torch.optim.Muon(hidden, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))]


class Run:
    """A training run that can be stopped and goes on: model, averaged model, optimisers, step and settings."""

    def __init__(self, args: argparse.Namespace, concepts: list[str]) -> None:
        torch.manual_seed(0)
        self.work, self.device, self.concepts = args.work, args.device, concepts
        self.settings = {name: getattr(args, name) for name in ("steps", "batch", "lr", "decay_share", "emoji_share")}
        self.model = Pretrained(len(concepts)).to(args.device)
        self.step, self.seconds = 0, 0.0
        if args.start is not None:
            weights = {name: value.float() for name, value in load_file(args.start).items()}
            self.model.load_state_dict(weights, strict=False)
            self.model.begin_proxies(concepts)
        self.optimisers = optimisers(self.model, args.lr)
        self.mean = deepcopy(self.model).eval().requires_grad_(False)
        if self.state.exists():
            self._load()

    @property
    def state(self) -> Path:
        return self.work / "state.pt"

    def _load(self) -> None:
        state = torch.load(self.state, weights_only=True, map_location=self.device)
        if state["concepts"] != self.concepts:
            sys.exit(f"{self.state} was trained on other drawings. Give another --work folder, or remove the state.")
        for name, value in state["settings"].items():
            if name not in MAY_CHANGE and value != self.settings[name]:
                sys.exit(f"{self.state} was trained with {name} {value}, not {self.settings[name]}. Give {value}.")
        self.model.load_state_dict(state["model"])
        self.mean.load_state_dict(state["mean"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the state and the averaged weights, each in one piece."""
        state: dict[str, Any] = {"model": self.model.state_dict(), "mean": self.mean.state_dict()}
        state |= {"optimisers": [optimiser.state_dict() for optimiser in self.optimisers]}
        state |= {"step": self.step, "seconds": self.seconds}
        torch.save(state | {"settings": self.settings, "concepts": self.concepts}, self.state.with_suffix(".tmp"))
        os.replace(self.state.with_suffix(".tmp"), self.state)
        weights = {name: value.half().cpu().contiguous() for name, value in self.mean.weights().items()}
        told = {"model": "mini_clip", "steps": str(self.step), "batch": str(self.settings["batch"])}
        save_file(weights, self.work / "weights.tmp", metadata=told)
        os.replace(self.work / "weights.tmp", self.work / "mini_clip.safetensors")

    def rate(self) -> float:
        """The learning rate of the next step."""
        steps, share = self.settings["steps"], self.settings["decay_share"]
        left = (steps - self.step) / max(1.0, steps * share)
        return float(self.settings["lr"] * min(1.0, (self.step + 1) / WARM_UP) * min(1.0, left))

    def take(self, batch: Batch) -> Tensor:
        """One step."""
        steps, share = self.settings["steps"], self.settings["decay_share"]
        self.model.patch_drop.prob = 0.0 if self.step >= steps * (1 - share / 2) else 0.5
        loss = objective(self.model, batch, self.device)
        self.model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.rate()
            optimiser.step()
        self.step += 1
        keep = min(EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.mean.parameters()), list(self.model.parameters()), 1 - keep)
        return loss.detach()


@contextmanager
def asked_to_end() -> Iterator[list[int]]:
    """A list that is empty until the process gets SIGTERM or SIGINT."""
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda got, _frame: asked.append(got))
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Endless(IterableDataset[Batch]):
    """The batches of a run from a step on, each worker's from a seed of its own."""

    def __init__(self, library: Library, run: Run) -> None:
        self.library, self.settings, self.seed = library, run.settings, 1000 + run.step

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        seed = self.seed + (0 if worker is None else 1_000_003 * (1 + worker.id))
        count, share = self.settings["batch"], self.settings["emoji_share"]
        pairs = Pairs(self.library, count, VIEWS, mini_clip.IMAGE_SIZE, share, seed)
        while True:
            yield pairs.next()


def _alone(_worker: int) -> None:
    """A worker leaves Ctrl-C to the process that saves the state."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def train(run: Run, batches: Iterable[Batch], watched: list[Watch], save_minutes: float) -> None:
    """Take steps until the last one, or until asked to end; the state is saved then too."""
    losses: list[Tensor] = []
    saved = started = time.monotonic()
    coming = iter(batches)
    with asked_to_end() as asked:
        while run.step < run.settings["steps"] and not asked:
            losses.append(run.take(next(coming)))
            run.seconds += time.monotonic() - started
            started = time.monotonic()
            if run.step % WATCH_STEPS == 0 or run.step == run.settings["steps"]:
                told = [f"{watch.style} {watch.accuracy(watch.ranks(run.mean, run.device)):.1f}%" for watch in watched]
                loss, hours = float(torch.stack(losses).mean()), run.seconds / 3600
                print(f"step {run.step} loss {loss:.3f} {', '.join(told)} {hours:.2f} h", flush=True)
                losses, started = [], time.monotonic()
            if time.monotonic() - saved > 60 * save_minutes:
                run.save()
                saved = started = time.monotonic()
        run.save()


def report(run: Run, watched: list[Watch]) -> None:
    """Retrieval on the unseen styles, for the card."""
    for watch in watched:
        ranks = watch.ranks(run.mean, run.device)
        few = ", ".join(f"{ways}-way {watch.accuracy(ranks, ways):.1f}%" for ways in (5, 20))
        print(f"{watch.style}: {few}, {len(watch.names)}-way {watch.accuracy(ranks):.1f}%", flush=True)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads, drawings, state and weights")
    parser.add_argument("--start", type=Path, default=None, help="weights to begin with; random ones without it")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=256, help="pictures of a batch, two of each concept")
    parser.add_argument("--lr", type=float, default=1.0e-3)
    parser.add_argument("--decay-share", type=float, default=0.3)
    parser.add_argument("--emoji-share", type=float, default=0.65, help="share of a batch's concepts that are emoji")
    parser.add_argument("--save-minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw; a GPU wants many")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    args = options()
    icons, drawn = args.work / "icons", args.work / "drawn"
    mini_clip_sets.collect(args.work / "npm", icons)
    mini_clip_art.draw(icons, drawn, args.workers)
    (args.work / "credits.md").write_text(mini_clip_art.credits(drawn), encoding="utf-8")
    words = mini_clip_sets.emoji_words(icons)
    library = Library(drawn, words)
    run = Run(args, [concept.name for concept in library.concepts])
    print(f"{len(library.concepts)} concepts, {library.size} pictures; from step {run.step}", flush=True)
    batches = DataLoader(Endless(library, run), batch_size=None, num_workers=args.workers, worker_init_fn=_alone)
    watched = watches(drawn, words)
    train(run, batches, watched, args.save_minutes)
    if run.step == run.settings["steps"]:
        report(run, watched)


if __name__ == "__main__":
    main()
