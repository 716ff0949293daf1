"""Layer-wise learning rates: the deeper a weight lies below the classifier, the less a step changes it.

Clark et al. 2020 (ELECTRA, arXiv 2003.10555), as BEiT, MAE and timm use them for vision: layer 0 are the embeddings or
the stem, layers 1 to L the tower's L residual blocks, layer L + 1 what follows them and the classifier. A weight of
layer i takes the rate lr * decay^(L + 1 - i).

differs: a final norm counts as what follows the blocks, as in BEiT and MAE; timm counts it to the last block.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from torch import nn

from liftplus.backbones.sites import Tower, residual_blocks
from liftplus.config import RunConfig
from liftplus.errors import UserError
from liftplus.model.classifier import Classifier


def check(config: RunConfig) -> None:
    """Refuse a decay that has no block to act on.

    Raises:
        UserError: the decay is below 1, the run trains, and its tuner is none.
    """
    decay = config.train.layer_decay
    if decay < 1 and config.train.epochs and not config.tuner:
        raise UserError(
            f"train.layer_decay={decay:g} gives each block of the backbone its own learning rate, but the tuner is "
            "none, so no block is trained. Use train.layer_decay=1."
        )


def multiples(model: Classifier, decay: float) -> dict[str, float]:
    """decay^(L + 1 - i) by name of each trained weight of a tower or a light module; empty at decay 1.

    A weight that is not named takes the whole rate, as the classifier does.
    """
    if decay == 1:
        return {}
    backbone = model.backbone
    towers: list[Tower] = [backbone] if backbone.text is None else [backbone, backbone.text]
    below: dict[int, int] = {}
    for tower in towers:
        layers = layers_of(tower)
        below |= {id(parameter): tower.depth + 1 - layer for parameter, layer in layers.items()}
    return {
        name: decay ** below[id(parameter)]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and below.get(id(parameter))
    }


def layers_of(tower: Tower) -> dict[nn.Parameter, int]:
    """The layer, 0 to L + 1, of each of a tower's weights, and of those of light modules that hook it.

    What a tower registers between two blocks, such as the convolution that begins a stage, belongs to the second one. A
    light module belongs to the first block that it hooks.
    """
    number = {
        id(module): place for place, block in enumerate(residual_blocks(tower.trunk), 1) for module in block.modules()
    }
    found: dict[nn.Parameter, int] = {}
    layer = last = tower.depth + 1
    # Backwards, so that the next block is known at each module that is in none.
    for module in reversed(list(_inner(tower.trunk))):
        layer = number.get(id(module), last if layer == last else 0 if layer == 1 else layer)
        found |= dict.fromkeys(_weights(module), layer)
    found |= dict.fromkeys(tower.trunk.parameters(recurse=False), 0)
    return {parameter: last if parameter is tower.to_joint else layer for parameter, layer in found.items()}


def _inner(trunk: nn.Module) -> Iterator[nn.Module]:
    """All modules below a trunk in the order in which they are registered."""
    return (module for module in trunk.modules() if module is not trunk)


def _weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """A module's own weights, and those of the modules that hook it."""
    hooks = chain(module._forward_pre_hooks.values(), module._forward_hooks.values())
    owners = [owner for hook in hooks if isinstance(owner := getattr(hook, "__self__", None), nn.Module)]
    return chain(module.parameters(recurse=False), *(owner.parameters() for owner in owners))
