"""Named places in a tower on which a tuner may act, found by the structure of its blocks.

Towers name sites and know no tuner; tuners ask for kinds of sites and know no tower. A tuner
acts through forward hooks, so that the library's own modules stay as their authors made them.

| kind      | module                          | what a tuner sees                                     |
|-----------|---------------------------------|-------------------------------------------------------|
| block     | a residual block                | its parameters                                        |
| tokens    | a block of a plain transformer  | the sequence [B, T, width] that enters it             |
| map       | a convolutional block           | feature maps [B, C, H, W], before and after           |
| qkv       | attention's input linears       | input and output, [.., 3 x width] where they are one  |
| q, k, v   | the same                        | input, and the part of the output that is q, k or v   |
| proj      | attention's output linear       | its input and output                                  |
| fc1       | first linears of the MLP        | their input and output                                |
| fc2       | last linear of the MLP          | its input and output                                  |
| mlp       | norm before the MLP .. its end  | the residual stream before the norm; the branch's end |
| norm      | a normalisation layer           | its input and output                                  |
| conv      | a convolution of a block        | its input and output                                  |
| conv1x1   | a 1 x 1 convolution, ungrouped  | its input and output                                  |
| pool      | a convolutional tower           | the pooled feature it gives                           |
| embedding | the token embedding of a text   | token ids and their vectors                           |
| joint     | the end of a dual encoder       | features in the joint space, before normalisation     |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Side = Literal["image", "text"]


@dataclass(frozen=True)
class Site:
    """One place: `entry` sees the input, `exit` gives the output (the same module, but for `mlp`).

    Attributes:
        kind: what the place is, see the table above.
        layer: number of the block it belongs to, from 0; of the last block for what follows the blocks.
        entry, exit: the modules to hook.
        width, out_width: size of the features' axis of its input and of its output.
        start: where its part of the output begins (q, k and v of a joint linear), else 0.
        prefix: for `tokens`, how many tokens stand before those of the input (class token, registers).
        name: the kind; the module's path in the block where the block has several of that kind.
    """

    kind: str
    layer: int
    entry: nn.Module
    exit: nn.Module
    width: int
    out_width: int
    start: int = 0
    prefix: int = 0
    name: str = ""

    @property
    def key(self) -> str:
        """A name for what one tuner puts here, unique among the tower's sites of this kind."""
        return str(self.layer) if self.name in ("", self.kind) else f"{self.layer}_{self.name}"


class Tower(nn.Module):
    """What tuners act on: the image side of a backbone, or its text encoder.

    Attributes:
        side: image or text.
        label: its name in errors.
        joint_end: passes joint-space features through; a place for hooks.
    """

    side: Side
    label: str

    def __init__(self) -> None:
        super().__init__()
        self.joint_end = nn.Identity()

    @property
    def dim(self) -> int:
        """Width of its features."""
        raise NotImplementedError

    @property
    def trunk(self) -> nn.Module:
        """The library's own module, with all its parameters."""
        raise NotImplementedError

    @property
    def to_joint(self) -> nn.Parameter | None:
        """Projection of its features to the joint space, where there is one."""
        raise NotImplementedError

    def all_sites(self) -> list[Site]:
        """Its sites of all kinds, in order of the layers."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        """Number of residual blocks, L in the papers."""
        return len(residual_blocks(self.trunk))

    def kinds(self) -> frozenset[str]:
        """Kinds of sites it has."""
        return frozenset(site.kind for site in self.all_sites())

    def sites(self, kind: str) -> list[Site]:
        """Its sites of one kind."""
        return [site for site in self.all_sites() if site.kind == kind]


def residual_blocks(tower: nn.Module) -> list[nn.Module]:
    """The residual blocks of a tower in order, found by the names that timm and open_clip give their containers."""
    found = [child for name, child in tower.named_children() if name in _CONTAINERS]
    if not found:  # open_clip wraps its own transformers and timm's towers once
        inner = [child for name, child in tower.named_children() if name in ("transformer", "trunk")]
        return residual_blocks(inner[0]) if inner else []
    return [block for container in found for block in _expanded(container)]


_CONTAINERS = {"blocks", "stages", "layers", "resblocks"} | {
    f"{kind}{n}" for kind in ("layer", "s") for n in range(1, 5)
}


def _expanded(module: nn.Module) -> Iterator[nn.Module]:
    """A stage's blocks: what it lists, its own list `blocks`, or (RegNet) its children b1, b2, ..."""
    children = dict(module.named_children())
    if isinstance(module, nn.Sequential | nn.ModuleList):
        inner = list(children.values())
    elif isinstance(children.get("blocks"), nn.Sequential | nn.ModuleList):
        inner = [children["blocks"]]
    elif children and all(name[0] == "b" and name[1:].isdigit() for name in children):
        inner = list(children.values())
    else:
        yield module
        return
    for child in inner:
        if not isinstance(child, nn.Identity):
            yield from _expanded(child)


def sites_of(blocks: Sequence[nn.Module], prefix: int | None) -> list[Site]:
    """Sites in residual blocks, in order of the layers. A part that a block does not have gives no site.

    Args:
        blocks: the tower's residual blocks.
        prefix: tokens before those of the input, where blocks pass on one sequence of one width; else None.
    """
    sites: list[Site] = []
    for layer, block in enumerate(blocks):
        sites.append(Site("block", layer, block, block, 0, 0))
        linears = _distinct(_linears(layer, block))
        mixed = {id(module.qkv) for module in block.modules() if _mixes_heads(module)}
        parts = _distinct(part for site in linears if id(site.entry) not in mixed for part in _parts(site))
        mlps = _distinct(_mlps(layer, block))
        if prefix is not None and mlps and not _fixed_length(block):
            sites.append(Site("tokens", layer, block, block, mlps[0].width, mlps[0].width, prefix=prefix))
        sites += linears + parts + mlps
        sites += _distinct(_norms(layer, block)) + _convolutions(layer, block)
    return sites


# The kind of a linear by its name in timm's and open_clip's blocks.
_LINEARS = {
    **dict.fromkeys(("qkv", "q_proj", "k_proj", "v_proj"), "qkv"),
    **dict.fromkeys(("proj", "out_proj"), "proj"),
    **dict.fromkeys(("fc1", "fc1_g", "fc1_x", "c_fc", "w12"), "fc1"),
    **dict.fromkeys(("fc2", "c_proj", "w3"), "fc2"),
}


def _linears(layer: int, block: nn.Module) -> Iterator[Site]:
    hidden = {
        id(child)
        for parent in block.modules()
        if isinstance(parent, nn.MultiheadAttention) or _adds_its_own_bias(parent)
        for name, child in parent.named_modules()
        if isinstance(parent, nn.MultiheadAttention) or name == "qkv"
    }
    for path, module in block.named_modules():
        kind = _LINEARS.get(path.rpartition(".")[2])
        if kind and isinstance(module, nn.Linear) and id(module) not in hidden:
            yield Site(kind, layer, module, module, module.in_features, module.out_features, name=path)


def _adds_its_own_bias(attention: nn.Module) -> bool:
    """Whether attention computes q, k and v past its linear, so that no hook on the linear would run."""
    return getattr(attention, "q_bias", None) is not None and not getattr(attention, "qkv_bias_separate", False)


def _mixes_heads(attention: nn.Module) -> bool:
    """Whether a joint linear's output is not q, k and v in thirds.

    That of some MaxViTs, of TinyViT and EfficientFormer is in the order of the heads, each with its q, k and v; that of
    GCViT's global attention has no q.
    """
    marks = ("head_first", "key_dim", "use_global")
    return hasattr(attention, "qkv") and any(getattr(attention, mark, False) for mark in marks)


def _parts(site: Site) -> Iterator[Site]:
    """q, k and v of an attention's input linear: thirds of a joint one, or a linear of their own."""
    third = site.out_width // 3
    for number, kind in enumerate("qkv"):
        if site.name.endswith(f"{kind}_proj"):
            yield replace(site, kind=kind)
        elif site.name.endswith("qkv"):
            path = site.name.removesuffix("qkv") + kind
            yield replace(site, kind=kind, name=path, out_width=third, start=number * third)


def _mlps(layer: int, block: nn.Module) -> Iterator[Site]:
    """MLP branches x + end(.. mlp(norm(x))): norm, MLP and end stand in this order, with nothing else behind.

    Blocks that normalise after the MLP, or that scale the residual, list their parts in another order.
    """
    for path, part in block.named_modules():
        children = dict(part.named_children())
        norm = next((name for name in ("norm2", "ln_2") if name in children), None)
        if norm is None or "mlp" not in children:
            continue
        order = list(children)
        behind = order[order.index("mlp") + 1 :]
        if order.index(norm) > order.index("mlp") or not behind or not set(behind) <= {"ls2", "ls_2", "drop_path2"}:
            continue
        linear = next((module for module in children["mlp"].modules() if isinstance(module, nn.Linear)), None)
        if linear is not None:
            width = linear.in_features
            yield Site("mlp", layer, children[norm], children[behind[-1]], width, width, name=path)


_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_TIMM_NORMS = {"RmsNorm", "RmsNorm2d", "SimpleNorm", "SimpleNorm2d"}
"""timm's own norms by name, so that timm is not imported to look for them in other towers."""


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises, in any of the forms that timm and open_clip use."""
    return isinstance(module, _NORMS) or any(
        kind.__name__ in _TIMM_NORMS and kind.__module__.startswith("timm.") for kind in type(module).__mro__
    )


def _norms(layer: int, block: nn.Module) -> Iterator[Site]:
    for path, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if is_norm(module) and weight is not None:
            yield Site("norm", layer, module, module, weight.numel(), weight.numel(), name=path)


def _convolutions(layer: int, block: nn.Module) -> list[Site]:
    """The convolutions of a block, and the block itself where it maps one feature map to another."""
    found = {path: module for path, module in block.named_modules() if isinstance(module, nn.Conv2d)}
    if not found:
        return []
    sites = [Site("conv", layer, m, m, m.in_channels, m.out_channels, name=path) for path, m in found.items()]
    single = [site for site in sites if found[site.name].kernel_size == (1, 1) and found[site.name].groups == 1]
    convs = list(found.values())
    whole = Site("map", layer, block, block, convs[0].in_channels, convs[-1].out_channels)
    return [whole, *_distinct(sites), *_distinct(replace(site, kind="conv1x1") for site in single)]


def _distinct(sites: Iterable[Site]) -> list[Site]:
    """One block's sites, named by their kind where there is one of it, else by their path."""
    listed = list(sites)
    number = Counter(site.kind for site in listed)
    return [replace(s, name=s.kind if number[s.kind] == 1 else s.name.replace(".", "_") or s.kind) for s in listed]


def _fixed_length(block: nn.Module) -> bool:
    """Whether attention adds a bias for each pair of positions, which prompts would not fit."""
    attention = getattr(block, "attn", None)
    names = ("relative_position_bias_table", "rel_pos", "rel_pos_bias", "attention_biases")
    return any(getattr(attention, name, None) is not None for name in names)


def expect_tokens(block: nn.Module, count: int) -> None:
    """Tell a block's rotary attention that `count` more tokens stand before those with a position."""
    attention = getattr(block, "attn", None)
    if isinstance(getattr(attention, "num_prefix_tokens", None), int):
        attention.num_prefix_tokens += count  # type: ignore[union-attr]


class SplitAttention(nn.Module):
    """nn.MultiheadAttention's self-attention with its own weights behind two plain linears, which hooks can reach."""

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        assert packed.in_proj_weight is not None
        width = packed.embed_dim
        self.heads = packed.num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=packed.in_proj_bias is not None, device="meta")
        self.qkv.weight, self.qkv.bias = packed.in_proj_weight, packed.in_proj_bias
        self.proj = packed.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """[B, T, width] -> ([B, T, width], no weights); query, key and value are one and the same.

        The mask is added to the attention's logits: [T, T], or [B x heads, T, T], or none.
        """
        batch, length, width = query.shape
        q, k, v = self.qkv(query).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if attn_mask is None else attn_mask.to(q.dtype)
        if mask is not None and mask.ndim == 3:
            mask = mask.view(batch, self.heads, length, length)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(out.transpose(1, 2).reshape(batch, length, width)), None


def split_packed_attention(tower: nn.Module) -> None:
    """Open the attention of a tower's blocks to hooks, once and for every tuner; the weights stay the same.

    nn.MultiheadAttention calls neither of its linears; BEiT's and EVA's attention can add their biases behind theirs.
    """
    for block in residual_blocks(tower):
        for part in list(block.modules()):
            packed = getattr(part, "attn", None)
            if isinstance(packed, nn.MultiheadAttention) and packed.in_proj_weight is not None and packed.batch_first:
                part.attn = SplitAttention(packed)
            if getattr(part, "qkv_bias_separate", None) is False:
                part.qkv_bias_separate = True  # type: ignore[assignment]
