"""Arbitrary fine-tuning: a random share of the weights, LIFT's evidence that lightness matters more than the module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from liftplus.backbones.sites import Tower
from liftplus.registry import register
from liftplus.tuners.base import Sized, nest

_KINDS = {
    "attention": ("qkv", "proj"),
    "mlp": ("fc1", "fc2"),
    "both": ("qkv", "proj", "fc1", "fc2"),
    "conv": ("conv",),
}


def auto_ratio(num_classes: int, width: int, weights: int) -> float:
    """The share C D / weights, at most 1; C / (L (12D + 9)) for all linears of a plain transformer."""
    return min(1.0, num_classes / (weights / width))


def lift_ratio(num_classes: int, width: int, depth: int) -> float:
    """LIFT's share: C / (12 L D), rounded down to thousandths, at least 0.001 and at most 1."""
    return min(1.0, max(0.001, num_classes / (12 * depth * width) // 0.001 * 0.001))


class Masked(nn.Module):
    """Trains the masked values of one linear's or convolution's weight and bias.

    Attributes:
        values: "weight" and, where there is one, "bias": the trained values in row-major order of their mask.
    """

    def __init__(self, layer: nn.Module, ratio: float, seed: int) -> None:
        super().__init__()
        self.values = nn.ParameterDict()
        for name, parameter in layer.named_parameters(recurse=False):
            mask = draw(parameter.shape, ratio, seed).to(parameter.device)
            self.register_buffer(f"{name}_mask", mask, persistent=False)
            # The count is known without reading the values, so that parameters can be counted on the meta device.
            size = int(parameter.numel() * ratio)
            chosen = parameter.new_empty(size) if parameter.is_meta else parameter.detach()[mask]
            self.values[name] = nn.Parameter(chosen)

    def swap(self, module: nn.Module, _args: object) -> None:
        """Hook before the layer: lay the patched tensors over its own, which stay frozen and untouched.

        An instance attribute wins over a registered parameter of that name, for this one call.
        """
        for name, values in self.values.items():
            mask = getattr(self, f"{name}_mask")
            own: Tensor = module._parameters[name]  # type: ignore[assignment]
            module.__dict__[name] = own.masked_scatter(mask, values.to(own.dtype))

    def restore(self, module: nn.Module, _args: object, _output: Any) -> None:
        """Hook after the layer, also after an error in it."""
        for name in self.values:
            module.__dict__.pop(name, None)

    @torch.no_grad()
    def merge(self, module: nn.Module) -> bool:
        """Write the trained values into the layer's tensors, which is exact for any kind of layer."""
        for name, values in self.values.items():
            module._parameters[name].masked_scatter_(getattr(self, f"{name}_mask"), values)  # type: ignore[union-attr]
        return True


def draw(shape: torch.Size, ratio: float, seed: int) -> Tensor:
    """Mask of a tensor: the first int(n ratio) places of a permutation drawn from the seed alone."""
    mask = torch.zeros(shape.numel(), dtype=torch.bool, device="cpu")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    mask[torch.randperm(len(mask), generator=generator, device="cpu")[: int(len(mask) * ratio)]] = True
    return mask.view(shape)


@register("tuner", "aft")
class AFT(Sized):
    """Train a random share of every weight and bias of the blocks' linears (LIFT's arbitrary fine-tuning).

    In a tower without linears, it is a share of the blocks' convolutions.
    """

    ratio: float | None = Field(default=None, gt=0, le=1)
    """Share of the values of each tensor. By default C D over the number of values, C / (L (12D + 9)) in a ViT; with
    sizes=lift C / (12 L D), rounded down to thousandths, at least 0.001."""

    seed: int = 0
    """Seed of the masks; each tensor's mask starts from it anew."""

    targets: Literal["attention", "mlp", "both", "conv"] = "both"
    """Where to take values from: linears of the attention, the MLP or both; or convolutions."""

    def kinds(self, tower: Tower) -> Sequence[str]:
        if self.targets != "both":
            return _KINDS[self.targets]
        there = tower.kinds()
        return [kind for kind in _KINDS["both"] if kind in there] or _KINDS["conv"]

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        found = [site for kind in self.kinds(tower) for site in self.sites(tower, kind)]
        ratio = self.ratio or self._auto_ratio(tower, num_classes)
        layers = nn.ModuleDict()
        for site in found:
            branch = Masked(site.entry, ratio, self.seed)
            site.entry.register_forward_pre_hook(branch.swap)
            site.entry.register_forward_hook(branch.restore, always_call=True)
            nest(layers, site.layer, site.name, branch)
        return layers

    def _auto_ratio(self, tower: Tower, num_classes: int) -> float:
        if self.sizes == "lift":
            return lift_ratio(num_classes, tower.dim, tower.depth)
        every = self.sizes == "depth"
        sites = [
            site for kind in self.kinds(tower) for site in (tower.sites(kind) if every else self.sites(tower, kind))
        ]
        return auto_ratio(num_classes, tower.dim, sum(p.numel() for site in sites for p in site.entry.parameters()))
