"""The same training step in several hands: liftplus, plain loops, timm with peft, full fine-tuning. Random weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.layers import QuickGELU
from torch import Tensor, nn

from liftplus import config
from liftplus.backbones import catalogue, clip
from liftplus.backbones.base import Backbone, BackboneConfig
from liftplus.backbones.normalise import Normalise
from liftplus.config import RunConfig
from liftplus.data.arrays import ArrayStore
from liftplus.data.dataset import DataSet, Split
from liftplus.data.loader import Batch
from liftplus.machine import runtime
from liftplus.model.classifier import Classifier
from liftplus.training import assembly
from liftplus.training import step as training_step
from liftplus.tuners.base import auto_width

# Our name, timm's of the same architecture.
MODELS = {
    "vit_b16": ("clip_vit_b16", "vit_base_patch16_clip_quickgelu_224"),
    "vit_l14": ("clip_vit_l14", "vit_large_patch14_clip_quickgelu_224"),
    "vit_l14_336": ("clip_vit_l14_336", "vit_large_patch14_clip_quickgelu_336"),
    "mini": ("mini_clip", None),
}

Step = Callable[[], object]


@dataclass(frozen=True)
class Work:
    """What is done: one of MODELS with AdaptFormer of this width, on a batch of this size, over so many classes."""

    model: str
    batch: int
    classes: int
    width: int | None = None
    size: int | None = None
    tuner: str = "adaptformer"
    checkpointing: bool = False
    extra: tuple[str, ...] = ()

    def settings(self, chosen: runtime.Runtime) -> RunConfig:
        """The run's configuration, with a classifier that starts from random rows."""
        keys = [f"train.batch_size={self.batch}", "head_init=random", f"tuner={self.tuner}"]
        if self.width is not None:
            keys.append(f"tuner.{self.tuner}.width={self.width}")
        if self.size is not None:
            keys.append(f"backbone.image_size={self.size}")
        if self.checkpointing:
            keys.append("backbone.grad_checkpointing=true")
        keys += [f"precision={chosen.precision}", f"device={chosen.device}", *self.extra]
        return config.resolve(backbone=MODELS[self.model][0], overrides=keys)

    @property
    def shown(self) -> dict[str, object]:
        """For the record."""
        return {"model": self.model, "batch": self.batch, "classes": self.classes, "width": self.width} | {
            "size": self.size or catalogue_size(self.model)
        }


def catalogue_size(model: str) -> int:
    """Native input side."""
    return {"vit_l14_336": 336, "mini": 64}.get(model, 224)


def dataset(classes: int, images: int = 0) -> DataSet:
    """A long tail of labels from 500 down to 5 a class, over `images` or that many noise pictures in memory."""
    counts = [max(5, round(500 * 0.01 ** (k / max(1, classes - 1)))) for k in range(classes)]
    labels = [k for k, count in enumerate(counts) for _ in range(count)]
    pixels = np.random.default_rng(0).integers(0, 256, (max(1, images), 64, 64, 3), dtype=np.uint8)
    keys = [str(index % len(pixels)) for index in range(len(labels))]
    names = tuple(f"class {k}" for k in range(classes))
    test = Split([str(index) for index in range(images)], [index % classes for index in range(images)])
    return DataSet("synthetic", names, names, {"train": Split(keys, labels), "test": test}, ArrayStore(pixels))


def batch_of(work: Work, device: torch.device) -> Batch:
    """Random uint8 pictures and labels, resident on the device."""
    generator = torch.Generator().manual_seed(0)
    side = work.size or catalogue_size(work.model)
    images = torch.randint(256, (work.batch, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(work.classes, (work.batch,), generator=generator)
    return Batch(images.to(device), labels.to(device), torch.arange(work.batch), seeds=torch.arange(work.batch))


def our_model(work: Work, chosen: runtime.Runtime, data: DataSet) -> Classifier:
    """liftplus's classifier as `train` builds and places it."""
    with mock.patch.object(catalogue, "load", partial(catalogue.load, weights=False)):
        return assembly.build(work.settings(chosen), data, chosen)


def ours(work: Work, chosen: runtime.Runtime, batch: Batch) -> Step:
    """liftplus as `train` runs it: its own placement and its own step."""
    data = dataset(work.classes)
    step = training_step.Step(our_model(work, chosen, data), work.settings(chosen), data, chosen)
    return lambda: step(batch)


def plain_classifier(work: Work, device: torch.device) -> Classifier:
    """The same module with fp32 weights as the libraries made it, nothing placed or chosen for speed."""
    settings = work.settings(runtime.Runtime(device, "fp32"))
    torch.manual_seed(0)
    with mock.patch.object(clip, "LeanQuickGELU", QuickGELU):
        backbone: Backbone = catalogue.load(settings.backbone, weights=False)
    head = settings.head.build(backbone, work.classes)
    names = tuple(f"class {k}" for k in range(work.classes))
    model = Classifier.assemble(backbone, dict(settings.tuner), head, names)
    return model.to(device)


def plain_loop(
    model: nn.Module, work: Work, batch: Batch, normalise: nn.Module, dtype: torch.dtype | None = None
) -> Step:
    """The loop that one writes first: forward, logit-adjusted cross-entropy, backward, SGD."""
    device = batch.images.device
    counts = torch.tensor(dataset(work.classes).counts(), dtype=torch.float32, device=device)
    prior = (counts / counts.sum()).log()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.02, momentum=0.9, weight_decay=5e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    def step() -> Tensor:
        with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
            logits = model(normalise(batch.images))
        loss = F.cross_entropy(logits.float() + prior, batch.labels)
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        return loss

    return step


def plain(work: Work, batch: Batch, dtype: torch.dtype | None = None, *, fused: bool = True) -> Step:
    """The plain loop around liftplus's own module; unless `fused`, with attention as two products and a softmax."""
    model = plain_classifier(work, batch.images.device)
    if not fused:
        runtime.fuse_attention(model, False)
    normalise = Normalise(model.backbone.facts).to(batch.images.device)
    return plain_loop(model, work, batch, normalise, dtype)


def full(work: Work, batch: Batch, dtype: torch.dtype | None) -> Step:
    """The plain loop that trains every block: what light tuning is compared with."""
    return plain(replace(work, tuner="full", width=None), batch, dtype)


def timm_model(work: Work) -> nn.Module:
    """timm's own ViT of the same architecture with a linear classifier."""
    name = MODELS[work.model][1]
    if name is not None:
        out: nn.Module = timm.create_model(name, pretrained=False, num_classes=work.classes, img_size=work.size)
        return out
    shape = {"img_size": work.size or 64, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3}
    return timm.models.VisionTransformer(**shape, num_classes=work.classes)


def lora_rank(work: Work) -> int:
    """liftplus's default rank for so many classes."""
    with torch.device("meta"):
        depth = catalogue.load(BackboneConfig(name=MODELS[work.model][0]), weights=False).depth
    return auto_width(work.classes, 4, depth)


def peft_lora(work: Work, batch: Batch, dtype: torch.dtype | None) -> Step:
    """timm's model with peft's LoRA on qkv, in the plain loop."""
    from peft import LoraConfig, get_peft_model

    rank = lora_rank(work)
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=["qkv"], modules_to_save=["head"])
    model = get_peft_model(timm_model(work), lora).to(batch.images.device)
    with torch.device("meta"):
        facts = catalogue.load(BackboneConfig(name=MODELS[work.model][0]), weights=False).facts
    return plain_loop(model, work, batch, Normalise(facts).to(batch.images.device), dtype)
