"""Tuners folded into the weights that they act on give what they gave beside them; the rest stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from liftplus.backbones.base import in_precision
from liftplus.model.classifier import Classifier
from liftplus.tuners.merging import merge_hooks

# What leaves nothing behind wherever it fits: weights of the tower itself, or additions to linear maps.
FOLD = {"aft", "bitfit", "full", "full_all", "lora", "norm", "partial", "projection"}


def hooks(model: nn.Module) -> int:
    """Of tuners, that is all but the one that keeps the residual stream in the run's precision."""
    found = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    return sum(hook is not in_precision for hook in found)


def stir(model: Classifier) -> None:
    """Tuned weights as far from their start as training takes them."""
    torch.manual_seed(3)
    for weight in model.partition()["tuned"].values():
        weight.data += 0.1 * torch.randn_like(weight)


@torch.no_grad()
def equal(model: Classifier, merged: Classifier, lab: Any) -> None:
    expected, out = model(lab.images(model)), merged(lab.images(model))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_merged_is_unmerged(lab: Any, name: str, backbone: str, options: dict[str, Any]) -> None:
    model = lab.attachable(name, backbone, options)
    stir(model)
    merged = copy.deepcopy(model)
    never = merged.never_merge()
    kept = merged.merge()
    equal(model, merged, lab)
    assert never == ([] if name in (*FOLD, "ssf") else kept)
    assert kept == list(merged.tuners) and (kept or hooks(merged) == 0)
    if name in FOLD:
        assert kept == []
        bare = lab.build(backbone, {})
        trunk = {key: value for key, value in merged.backbone.state_dict().items() if key.startswith("image.")}
        wanted = {key: value for key, value in bare.backbone.state_dict().items() if key.startswith("image.")}
        assert trunk.keys() == wanted.keys()
        bare.backbone.load_state_dict(trunk, strict=False)
        bare_out = bare.backbone(lab.images(bare))
        torch.testing.assert_close(bare_out, merged.backbone(lab.images(bare)), rtol=0, atol=0)


@pytest.mark.parametrize("names", ["lora+ssf", "aft+lora", "aft+lora+ssf", "lora+adaptformer", "adapter+ssf"])
@pytest.mark.parametrize("backbone", ["clip_vit", "timm_mean_pool"])
def test_together(lab: Any, names: str, backbone: str) -> None:
    """Tuners on the same linears are folded in the order in which they act."""
    own = {"lora": {"targets": ("q", "k", "v", "out", "fc1", "fc2"), "scale": 0.7}}
    model = lab.build(backbone, {name: lab.tuner(name, **own.get(name, {})) for name in names.split("+")})
    stir(model)
    merged = copy.deepcopy(model)
    assert merged.merge() == [name for name in ("adapter", "adaptformer") if name in names.split("+")]
    equal(model, merged, lab)


class Doubling(nn.Module):
    """A hook that cannot be folded."""

    def double(self, _module: nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        return output.relu() * 2


def test_nothing_is_folded_behind_a_hook_that_stays(lab: Any) -> None:
    model = lab.build("timm_vit", {"ssf": lab.tuner("ssf")})
    layer = nn.Linear(5, 3)
    first, second = Doubling(), next(model.tuners["ssf"].children())["fc1"]
    second = type(second)(3)
    layer.register_forward_hook(first.double)
    layer.register_forward_hook(second.replace)
    x = torch.randn(2, 5)
    expected = layer(x)
    merge_hooks([layer], [first, second])
    assert len(layer._forward_hooks) == 2
    assert torch.equal(layer(x), expected)


def test_layers_that_are_more_than_linear_keep_their_hooks(lab: Any) -> None:
    """A convolution that standardises its weight is not linear in it."""

    class Standardised(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self._conv_forward(x, self.weight / self.weight.std(), self.bias)

    model = lab.build("resnet", {"lora": lab.tuner("lora")})
    branch = next(iter(next(iter(model.tuners["lora"].children())).children()))
    assert not branch.merge(Standardised(4, 4, 1))


def test_grows_a_bias_where_ssf_needs_one(lab: Any) -> None:
    layer = nn.Linear(5, 3, bias=False)
    model = lab.build("timm_vit", {"ssf": lab.tuner("ssf")})
    branch = type(next(model.tuners["ssf"].children())["fc1"])(3)
    x = torch.randn(2, 5)
    expected = branch(layer(x))
    assert branch.merge(layer)
    torch.testing.assert_close(layer(x), expected)
