"""Train the bundled `mini_clip` on emoji art with the contrastive loss (Radford et al. 2021, section 2.3), between
image and text and between two artists' pictures of the same thing (Mu et al. 2022, SLIP).

    python scripts/pretrain_mini_clip.py --work .cache/mini_clip --output src/liftplus/weights/mini_clip.safetensors

Fetches the pictures and names through the npm client, draws them once, then trains. The state is saved every 250
steps and the same command continues from there. The learning rate stays constant and falls to zero over the last
`--decay-share` of the steps, so that a run can be prolonged from a saved state. Half of the image patches are
dropped until halfway through that fall (FLIP, Li et al. 2023). The first `--plain-steps` see each concept once a
batch, as drawn; from then on each comes as two artists drew it, restyled at random, and the two pictures are
contrasted too. OpenMoji's pictures are used to watch the transfer to an unseen style, never to train.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import PatchDropout
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from liftplus.backbones import mini_clip
from liftplus.backbones.text import text_features
from liftplus.data.compose import Composition, rasterise
from liftplus.data.openmoji import sprites as openmoji_sprites

PACKAGES = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "emojibase-data": "17.0.0",
}
STYLES = ("noto", "noto-v1", "twemoji", "emojione", "fluent-emoji", "fluent-emoji-flat")
TEMPLATES = (
    "{}",
    "a photo of a {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a drawing of a {}.",
    "an icon of a {}.",
    "a small {}.",
    "a close-up photo of a {}.",
    "there is a {} here.",
    "a cartoon {}.",
    "the {}",
    "a {} on a coloured background.",
    "art of a {}.",
    "a rendering of a {}.",
    "an emoji of a {}.",
    "a blurry photo of a {}.",
    "a tilted {}.",
    "one {}",
)
SPRITE = 64


def fetch(folder: Path) -> Path:
    """Install the pinned npm packages below `folder`, once."""
    modules = folder / "node_modules"
    if not (modules / "emojibase-data").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text(json.dumps({"name": "pairs", "private": True, "dependencies": PACKAGES}))
        subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return modules


def plain(hexcode: str) -> str:
    """A code-point sequence without the variation selector, which the sets use differently."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def concepts(modules: Path) -> dict[str, dict[str, Any]]:
    """Emoji without skin tones: code points -> name, keywords, group and subgroup words."""
    base = modules / "emojibase-data" / "en"
    words = json.loads((base / "messages.json").read_text())
    groups = {entry["order"]: entry["message"] for entry in words["groups"]}
    kinds = {entry["order"]: entry["message"] for entry in words["subgroups"]}
    table = {}
    for entry in json.loads((base / "data.json").read_text()):
        if "group" in entry:
            table[plain(entry["hexcode"])] = {
                "name": entry["label"],
                "tags": entry.get("tags", []),
                "group": groups[entry["group"]],
                "kind": kinds.get(entry.get("subgroup"), ""),
            }
    return table


def icons(modules: Path, style: str, codes_of_name: dict[str, str]) -> dict[str, str]:
    """SVG documents of one artist's set by code points."""
    book = json.loads((modules / "@iconify-json" / style / "icons.json").read_text())
    found = {}
    for name, icon in book["icons"].items():
        code = codes_of_name.get(name)
        if code is not None and code not in found:
            width = icon.get("width", book.get("width", 16))
            height = icon.get("height", book.get("height", 16))
            found[code] = (
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
            )
    return found


def draw(work: Path) -> dict[str, Any]:
    """All pictures as one uint8 tensor with, per concept, the rows that show it. Kept on disk."""
    cache = work / "sprites.pt"
    if cache.exists():
        loaded: dict[str, Any] = torch.load(cache, weights_only=True)
        return loaded
    modules = fetch(work / "npm")
    table = concepts(modules)
    codes_of_name: dict[str, str] = {}
    for style in ("noto", "twemoji", "fluent-emoji-flat"):
        for code, name in json.loads((modules / "@iconify-json" / style / "chars.json").read_text()).items():
            if plain(code) in table:
                codes_of_name.setdefault(name, plain(code))
    rows: list[Tensor] = []
    shown: dict[str, list[int]] = defaultdict(list)
    for style in STYLES:
        before = len(rows)
        for code, svg in icons(modules, style, codes_of_name).items():
            try:
                picture = rasterise(svg, SPRITE)
            except ValueError:  # a document that the renderer refuses is left out
                continue
            shown[code].append(len(rows))
            rows.append(picture)
        print(f"{style}: {len(rows) - before} pictures", flush=True)
    result = {"pictures": torch.stack(rows), "shown": dict(shown), "table": {code: table[code] for code in shown}}
    torch.save(result, cache)
    return result


def caption(entry: dict[str, Any], rng: random.Random) -> str:
    """One description of a concept: mostly its name in a template, else keywords or its kind."""
    name, tags, draw_of = entry["name"], entry["tags"], rng.random()
    template = rng.choice(TEMPLATES)
    if draw_of < 0.78:
        return template.format(name)
    if draw_of < 0.90 and tags:
        return template.format(name) + " " + " ".join(rng.sample(tags, min(len(tags), 2)))
    if draw_of < 0.95 and tags:
        return template.format(rng.choice(tags))
    return template.format(name) + f" {entry['kind']}"


def restyle(art: Tensor, generator: torch.Generator) -> Tensor:
    """Change the style of placed objects [n, 4, s, s] at random: outline, inked edges, flat or faded colours."""

    def some(share: float) -> Tensor:
        return (torch.rand(len(art), generator=generator) < share).float().view(-1, 1, 1, 1)

    colour, alpha = art[:, :3], art[:, 3:]
    levels = torch.randint(2, 5, (len(art), 1, 1, 1), generator=generator)
    colour = torch.lerp(colour, (colour * levels).round() / levels, some(0.25))
    tone = torch.rand(len(art), 3, 1, 1, generator=generator) * 0.6 + 0.4
    colour = torch.lerp(colour, tone, some(0.15) * (0.5 + 0.5 * torch.rand(len(art), 1, 1, 1, generator=generator)))
    colour = torch.lerp(colour, colour.mean(1, keepdim=True).expand_as(colour), some(0.1))
    light = art[:, :3].mean(1, keepdim=True) * alpha
    edges = F.max_pool2d(light, 3, 1, 1) + F.max_pool2d(-light, 3, 1, 1)
    colour = colour * (1 - (edges * 2.5).clamp(0, 1) * some(0.35))
    ink = torch.rand(len(art), 1, 1, 1, generator=generator) * 0.25
    ink = torch.where(torch.rand(len(art), 1, 1, 1, generator=generator) < 0.15, 1 - ink, ink)
    wide = torch.lerp(alpha, F.max_pool2d(alpha, 3, 1, 1), some(0.4))
    return torch.cat([torch.lerp(ink.expand_as(colour), colour, alpha / wide.clamp_min(1e-4)), wide], 1)


class Pairs:
    """Endless batches of two pictures a concept, where possible by two artists, and one caption.

    No concept comes twice in a batch, since it would be a false negative.
    """

    def __init__(self, data: dict[str, Any], batch: int, size: int, seed: int) -> None:
        self.data, self.batch, self.size = data, batch, size
        self.rng, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.codes = list(data["shown"])
        # Flags are a seventh of all emoji and resemble each other; people and clock variants hardly less.
        weight = {"flags": 0.25, "people & body": 0.5, "symbols": 0.6, "smileys & emotion": 0.7}
        self.weights = torch.tensor([weight.get(data["table"][code]["group"], 1.0) for code in self.codes])
        self.tokenizer = mini_clip.MiniTokenizer()

    def next(self, views: int) -> tuple[Tensor, Tensor]:
        """A batch of `batch` pictures, `views` of each concept.

        Returns:
            uint8 [views x concepts, 3, s, s], all first views, then all second ones; token ids [concepts, tokens].
        """
        count = self.batch // views
        chosen = torch.multinomial(self.weights, count, generator=self.generator).tolist()
        others = torch.randint(len(self.codes), (views, count), generator=self.generator).tolist()
        art: list[list[list[int]]] = [[] for _ in range(views)]
        texts, present = [], torch.ones(views, count, 2, dtype=torch.bool)
        for row, main in enumerate(chosen):
            shown = self.data["shown"][self.codes[main]]
            pictures = self.rng.sample(shown, views) if len(shown) >= views else shown * views
            text = caption(self.data["table"][self.codes[main]], self.rng)
            for view in range(views):
                second = self.codes[others[view][row]]
                art[view].append([pictures[view], self.rng.choice(self.data["shown"][second])])
                present[view, row, 1] = self.rng.random() < 0.25
            if present[0, row, 1] and self.rng.random() < 0.5:
                other = self.data["table"][self.codes[others[0][row]]]["name"]
                text = text.rstrip(".") + self.rng.choice((" and a {}", " with a {}", ", {}")).format(other)
            texts.append(text)
        sprites = self.data["pictures"][torch.tensor(art).flatten(0, 1)]
        styled = partial(restyle, generator=self.generator) if views > 1 else None
        world = Composition(present.flatten(0, 1), self.size, self.generator, scale=(0.45, 1.0), restyle=styled)
        images = world.draw(sprites)
        # Long captions are rare: most batches are cut to 16 tokens, an eighth trains all positions.
        return images, self.tokenizer(texts, mini_clip.CONTEXT_LENGTH if self.rng.random() < 0.125 else 16)


def contrast(left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of two lists of unit vectors, row i of one belonging to row i of the other."""
    logits = scale * left @ right.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class Pretrained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = mini_clip.image_tower()
        self.patch_drop = PatchDropout(0.5, num_prefix_tokens=1)
        self.image.blocks[0].register_forward_pre_hook(lambda _block, args: self.patch_drop(*args))
        self.image_projection = nn.Parameter(torch.randn(mini_clip.WIDTH, mini_clip.JOINT) * mini_clip.WIDTH**-0.5)
        for block in self.image.blocks:
            block.get_submodule("attn").fused_attn = False  # type: ignore[assignment]  # the fused bf16 backward is 1.5 times slower on CPU at 33 tokens
        self.text = mini_clip.text_tower()
        self.logit_scale = nn.Parameter(torch.tensor(14.0).log())

    def encode_image(self, images: Tensor) -> Tensor:
        return F.normalize(self.image(normalised(images)).float() @ self.image_projection, dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        return F.normalize(text_features(self.text, ids).float() @ self.text.text_projection, dim=-1)


def normalised(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1.0


def watch(model: Pretrained, per_class: int = 10) -> float:
    """Zero-shot accuracy in percent on OpenMoji pictures drawn with their own seed."""
    names, art = openmoji_sprites(128)
    generator = torch.Generator().manual_seed(77)
    labels = torch.arange(len(names)).repeat_interleave(per_class)
    ids = mini_clip.MiniTokenizer()([f"a photo of a {name}." for name in names])
    model.eval()
    right = 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        classes = model.encode_text(ids)
        for rows in labels.split(250):
            second = torch.randint(len(names), (len(rows),), generator=generator)
            present = torch.rand(len(rows), 2, generator=generator) < 0.3
            world = Composition(present, 64, generator, scale=(0.5, 1.0))
            images = world.draw(torch.stack([art[rows], art[second]], 1))
            right += int((model.encode_image(images) @ classes.T).argmax(1).eq(rows).sum())
    model.train()
    return 100 * right / len(labels)


def rate(step: int, args: argparse.Namespace) -> float:
    falling = int(args.steps * (1 - args.decay_share))
    warm = min(1.0, (step + 1) / 300)
    return float(args.lr * warm * min(1.0, (args.steps - step) / max(1, args.steps - falling)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads, pictures and the saved state")
    parser.add_argument("--steps", type=int, default=4700)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--plain-steps", type=int, default=1250, help="steps with one view a concept and no restyling")
    parser.add_argument("--decay-share", type=float, default=0.38)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=None, help="where the fp16 weights go")
    args = parser.parse_args()
    data = draw(args.work)
    print(f"{len(data['shown'])} concepts, {len(data['pictures'])} pictures", flush=True)
    torch.manual_seed(0)
    model = Pretrained().to(args.device)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    saved, step, seconds = args.work / "state.pt", 0, 0.0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds = state["step"], state["seconds"]
    pairs = Pairs(data, args.batch, 64, seed=1000 + step)
    started, losses = time.time(), []
    while step < args.steps:
        if step >= args.steps * (1 - args.decay_share / 2):
            model.patch_drop.prob = 0.0
        for group in optimiser.param_groups:
            group["lr"] = rate(step, args)
        images, ids = pairs.next(1 if step < args.plain_steps else 2)
        with torch.autocast(args.device, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            left, right = model.encode_image(images.to(args.device)), model.encode_text(ids.to(args.device))
        scale, right = model.logit_scale.exp().clamp(max=100), right.float()
        views = left.float().split(len(right))
        matches = [contrast(view, right, scale) for view in views]
        if len(views) == 2:
            matches.append(contrast(views[0], views[1], scale))
        loss = torch.stack(matches).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.detach())
        step += 1
        if step % 250 == 0 or step == args.steps:
            seconds, started = seconds + time.time() - started, time.time()
            accuracy = watch(model) if args.device == "cpu" else float("nan")
            print(
                f"step {step} loss {torch.stack(losses).mean():.3f} unseen style {accuracy:.1f}% {seconds:.0f} s",
                flush=True,
            )
            losses = []
            torch.save(
                {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "seconds": seconds},
                saved.with_suffix(".tmp"),
            )
            os.replace(saved.with_suffix(".tmp"), saved)
            started = time.time()
    if args.output is not None:
        weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
        save_file(weights, args.output, metadata={"model": "mini_clip", "steps": str(step), "batch": str(args.batch)})


if __name__ == "__main__":
    main()
