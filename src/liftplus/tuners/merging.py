"""Fold tuners into the weights that they act on, where that is exact; not a tuner itself.

A tuner's module that hooks a layer may have a method `merge(layer) -> bool`. It changes the layer's own weights so that
the layer gives what it gave with the hook, which is then removed; or it returns False where that cannot be exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn
from typing_extensions import TypeIs


def plain(module: nn.Module) -> TypeIs[nn.Linear | nn.Conv2d]:
    """Whether a layer's output is linear in its weight and bias, with nothing else in its forward pass."""
    return type(module).forward in (nn.Linear.forward, nn.Conv2d.forward)


def merge_hooks(layers: Iterable[nn.Module], owners: Iterable[nn.Module]) -> None:
    """Fold the owners' hooks into these layers, as far as that is exact.

    Each hook after a layer acts on the output of the one before it, so none behind one that stays can be folded.
    """
    of_ours = {id(owner) for owner in owners}

    def foldable(hook: Callable[..., Any]) -> bool:
        owner = getattr(hook, "__self__", None)
        return id(owner) in of_ours and _has_merge(owner)

    for layer in layers:
        folded: set[int] = set()

        def fold(hook: Any, layer: nn.Module = layer, folded: set[int] = folded) -> bool:
            """Fold the hook's owner once; returns whether the hook can be removed."""
            if id(hook.__self__) not in folded and hook.__self__.merge(layer):
                folded.add(id(hook.__self__))
            return id(hook.__self__) in folded

        for key, hook in list(layer._forward_pre_hooks.items()):
            if foldable(hook) and fold(hook):
                _remove(layer, key)
        for key, hook in list(layer._forward_hooks.items()):
            if not foldable(hook) or not fold(hook):
                break
            _remove(layer, key)


def _remove(layer: nn.Module, key: int) -> None:
    """Remove a hook by the number that PyTorch gave it: its handle is not kept, since copies would share it."""
    tables: tuple[dict[int, Any], ...] = (
        layer._forward_pre_hooks,
        layer._forward_pre_hooks_with_kwargs,
        layer._forward_hooks,
        layer._forward_hooks_with_kwargs,
        layer._forward_hooks_always_called,
    )
    for table in tables:
        table.pop(key, None)


def in_use(layers: Iterable[nn.Module], part: nn.Module) -> bool:
    """Whether any module of a part still hooks one of these layers."""
    return any(True for _ in _owners(layers, part))


def never_folds(layers: Iterable[nn.Module], part: nn.Module) -> bool:
    """Whether a part hooks one of these layers by a module that has no way of being folded in."""
    return not all(map(_has_merge, _owners(layers, part)))


def _has_merge(owner: object) -> bool:
    return callable(getattr(owner, "merge", None))


def _owners(layers: Iterable[nn.Module], part: nn.Module) -> Iterator[nn.Module]:
    """The modules of a part whose methods hook these layers, once for each hook."""
    own = {id(module): module for module in part.modules()}
    for layer in layers:
        for hook in (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()):
            if (owner := own.get(id(getattr(hook, "__self__", None)))) is not None:
                yield owner
