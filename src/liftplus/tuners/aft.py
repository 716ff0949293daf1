"""Arbitrary fine-tuning: a random share of the weights, LIFT's evidence that lightness matters more than the module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from liftplus.backbones.sites import Tower
from liftplus.registry import register
from liftplus.tuners.base import Tuner, nest

_KINDS = {"attention": ("qkv", "proj"), "mlp": ("fc1", "fc2"), "both": ("qkv", "proj", "fc1", "fc2")}


def auto_ratio(num_classes: int, depth: int, width: int, targets: str) -> float:
    """The share that trains about C weights for each unit of width: C/(L(12D+9)), for one part its own count."""
    per_unit = {"attention": 4 * width + 4, "mlp": 8 * width + 5, "both": 12 * width + 9}[targets]
    return min(1.0, num_classes / (depth * per_unit))


class Masked(nn.Module):
    """Trains the masked values of one linear's weight and bias.

    Attributes:
        values: "weight" and, where there is one, "bias": the trained values in row-major order of their mask.
    """

    def __init__(self, linear: nn.Linear, ratio: float, seed: int) -> None:
        super().__init__()
        self.values = nn.ParameterDict()
        for name, parameter in linear.named_parameters(recurse=False):
            mask = draw(parameter.shape, ratio, seed).to(parameter.device)
            self.register_buffer(f"{name}_mask", mask, persistent=False)
            # The count is known without reading the values, so that parameters can be counted on the meta device.
            size = int(parameter.numel() * ratio)
            chosen = parameter.new_empty(size) if parameter.is_meta else parameter.detach()[mask]
            self.values[name] = nn.Parameter(chosen)

    def swap(self, module: nn.Module, _args: object) -> None:
        """Hook before the linear: lay the patched tensors over its own, which stay frozen and untouched.

        An instance attribute wins over a registered parameter of that name, for this one call.
        """
        for name, values in self.values.items():
            mask = getattr(self, f"{name}_mask")
            module.__dict__[name] = module._parameters[name].masked_scatter(mask, values)  # type: ignore[union-attr]

    def restore(self, module: nn.Module, _args: object, _output: Any) -> None:
        """Hook after the linear, also after an error in it."""
        for name in self.values:
            module.__dict__.pop(name, None)


def draw(shape: torch.Size, ratio: float, seed: int) -> Tensor:
    """Mask of a tensor: the first int(n ratio) places of a permutation drawn from the seed alone."""
    mask = torch.zeros(shape.numel(), dtype=torch.bool, device="cpu")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    mask[torch.randperm(len(mask), generator=generator, device="cpu")[: int(len(mask) * ratio)]] = True
    return mask.view(shape)


@register("tuner", "aft")
class AFT(Tuner):
    """Train a random share of every weight and bias of the blocks' linears (LIFT's arbitrary fine-tuning)."""

    ratio: float | None = Field(default=None, gt=0, le=1)
    """Share of the values of each tensor; by default C / (L (12D + 9)), which is about C D weights in all."""

    seed: int = 0
    """Seed of the masks; each tensor draws from it afresh."""

    targets: Literal["attention", "mlp", "both"] = "both"
    """Linears to take values from."""

    def kinds(self, tower: Tower) -> Sequence[str]:
        return _KINDS[self.targets]

    def attach(self, tower: Tower, num_classes: int) -> nn.Module:
        ratio = self.ratio or auto_ratio(num_classes, tower.depth, tower.dim, self.targets)
        found = [site for kind in self.kinds(tower) for site in self.sites(tower, kind)]
        layers = nn.ModuleDict()
        for site in found:
            assert isinstance(site.entry, nn.Linear)
            branch = Masked(site.entry, ratio, self.seed)
            site.entry.register_forward_pre_hook(branch.swap)
            site.entry.register_forward_hook(branch.restore, always_call=True)
            nest(layers, site.layer, site.kind, branch)
        return layers
