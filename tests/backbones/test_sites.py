"""Sites against what hooks really see: for every family of towers, no test looks at a family's type."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import timm
import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from liftplus.backbones.base import Backbone
from liftplus.backbones.sites import Site, residual_blocks, sites_of
from liftplus.backbones.unfilled import Unfilled
from zoo import ZOO, backbone_of

# Attention without a norm, a rotation or a cosine between k and the softmax.
PLAIN_ATTENTION = ("clip_vit", "timm_mean_pool", "siglip", "beit", "swin", "open_clip_vit")
# Blocks that normalise behind the MLP, or whose MLP is no branch between a norm and the residual.
NO_MLP_SITE = {"clip_resnet", "resnet", "convnext", "efficientnet", "regnet", "swin_v2", "open_clip_timm"}
IMAGES = 2


class Seen:
    """What went into and came out of every site's modules in one forward pass."""

    def __init__(self, backbone: Backbone) -> None:
        self.calls: Counter[int] = Counter()
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        handles = [module.register_forward_hook(self._keep) for module in backbone.modules()]
        size = backbone.facts.image_size
        images = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(4))
        with torch.no_grad():
            features = backbone(images)
            if backbone.text is not None:
                backbone.joint(features)
        for handle in handles:
            handle.remove()

    def _keep(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.calls[id(module)] += 1
        if args and isinstance(args[0], Tensor):
            self.inputs[id(module)] = args[0]
        self.outputs[id(module)] = output[0] if isinstance(output, tuple) else output

    def into(self, site: Site) -> Tensor:
        return self.inputs[id(site.entry)]

    def out_of(self, site: Site) -> Tensor:
        return self.outputs[id(site.exit)]


@cache
def seen(name: str) -> tuple[Backbone, list[Site], Seen]:
    backbone = backbone_of(name)
    return backbone, backbone.all_sites(), Seen(backbone)


def axis(site: Site) -> int:
    """Of the features: the first behind the batch for feature maps, else the last."""
    maps = (nn.Conv2d, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, LayerNorm2d)
    return 1 if site.kind == "map" or isinstance(site.entry, maps) else -1


@pytest.fixture(params=sorted(ZOO))
def member(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_site_is_passed_once(member: str) -> None:
    """A hook on a module that is not called, or called twice, would do nothing or act twice."""
    _, sites, record = seen(member)
    assert {
        (site.kind, site.key): (record.calls[id(site.entry)], record.calls[id(site.exit)]) for site in sites
    } == dict.fromkeys(((site.kind, site.key) for site in sites), (1, 1))


def test_widths_are_what_hooks_see(member: str) -> None:
    _, sites, record = seen(member)
    for site in sites:
        if site.kind == "block":
            continue
        x, y, at = record.into(site), record.out_of(site), axis(site)
        part = site.kind in ("q", "k", "v")
        assert y.shape[at] == site.out_width if not part else y.shape[at] >= site.start + site.out_width, site
        if site.kind != "pool":  # the whole tower, entered by images
            assert x.shape[at] == site.width, site
        assert x.shape[0] % IMAGES == 0, site  # windows of an image may have been folded into the batch


def test_keys_are_unique(member: str) -> None:
    """Tuners name their weights by them."""
    _, sites, _ = seen(member)
    for kind in {site.kind for site in sites}:
        keys = [site.key for site in sites if site.kind == kind]
        assert len(set(keys)) == len(keys), kind
        assert not any("." in key for key in keys), kind


def test_kinds_and_layers_agree(member: str) -> None:
    backbone, sites, _ = seen(member)
    assert backbone.kinds() == {site.kind for site in sites}
    assert all(backbone.sites(kind) == [site for site in sites if site.kind == kind] for kind in backbone.kinds())
    assert [site.layer for site in sites if site.kind == "block"] == list(range(backbone.depth))
    blocks = residual_blocks(backbone.image)
    for site in sites:
        if site.kind not in ("pool", "joint"):
            inside = {id(module) for module in blocks[site.layer].modules()}
            assert {id(site.entry), id(site.exit)} <= inside, site


def test_every_block_has_something_to_tune(member: str) -> None:
    backbone, sites, _ = seen(member)
    reached = {site.layer for site in sites if site.kind in ("q", "fc1", "map", "conv1x1")}
    assert reached == set(range(backbone.depth))


def test_tokens_are_the_sequence_with_its_prefix(member: str) -> None:
    backbone, sites, record = seen(member)
    for site in (site for site in sites if site.kind == "tokens"):
        x = record.into(site)
        assert backbone.facts.patch_size is not None or member == "open_clip_vit"
        grid = backbone.facts.image_size // (backbone.facts.patch_size or 5)
        assert x.shape == (IMAGES, site.prefix + grid**2, site.width)
        assert record.out_of(site).shape == x.shape


def test_mlp_is_the_branch_of_the_residual_stream(member: str) -> None:
    """The entry sees x, the exit gives f(x), and what follows in the network is x + f(x), bit for bit."""
    backbone, sites, record = seen(member)
    branches = [site for site in sites if site.kind == "mlp"]
    assert bool(branches) == (member not in NO_MLP_SITE)
    for site in branches:
        holder = next(
            module
            for module in residual_blocks(backbone.image)[site.layer].modules()
            if {id(site.entry), id(site.exit)} <= {id(child) for child in module.children()}
        )
        stream, branch = record.into(site), record.out_of(site)
        out = record.outputs[id(holder)]
        assert stream.shape == branch.shape
        assert torch.equal((stream + branch).flatten(), out.flatten())
        assert branch.any()


def test_parts_tile_the_joint_output(member: str) -> None:
    """q, k and v of a joint linear stand side by side; a linear of its own is one part."""
    _, sites, record = seen(member)
    parts = [site for site in sites if site.kind in ("q", "k", "v")]
    assert len({sum(site.kind == kind for site in parts) for kind in "qkv"}) == 1
    for linear in {id(site.exit) for site in parts}:
        own = sorted((site for site in parts if id(site.exit) == linear), key=lambda site: site.start)
        assert "".join(site.kind for site in own) in ("qkv", "q", "k", "v")
        ends = [site.start + site.out_width for site in own]
        assert [site.start for site in own] == [0, *ends[:-1]]
        assert ends[-1] == record.outputs[linear].shape[-1]


@pytest.mark.parametrize("name", PLAIN_ATTENTION)
def test_each_part_is_what_it_is_called(name: str) -> None:
    """The same vector added to every k cancels in the softmax; to every v it does not, nor to every q."""
    backbone = backbone_of(name)
    size = backbone.facts.image_size
    images = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(4))
    bare, changed = backbone(images), {}
    for kind in "qkv":
        site = backbone.sites(kind)[-1]
        shift = torch.zeros(site.exit.out_features)  # type: ignore[arg-type]
        shift[site.start : site.start + site.out_width] = torch.linspace(-1, 2, site.out_width)
        handle = site.exit.register_forward_hook(lambda _module, _args, out, shift=shift: out + shift)
        changed[kind] = not torch.allclose(backbone(images), bare, rtol=1e-4, atol=1e-5)
        handle.remove()
    assert changed == {"q": True, "k": False, "v": True}


@pytest.mark.parametrize(
    ("arch", "parts"),
    [
        ("maxvit_rmlp_pico_rw_256", False),
        ("maxvit_tiny_tf_224", True),
        ("tiny_vit_5m_224", False),
        ("efficientformer_l1", False),
        ("fastvit_sa12", True),
        ("mvitv2_tiny", True),
    ],
)
def test_joint_linears_in_another_order_have_no_parts(arch: str, parts: bool) -> None:
    """Where each head has its q, k and v side by side, thirds of the output are not q, k and v."""
    with torch.device("meta"):
        kinds = Counter(site.kind for site in sites_of(residual_blocks(timm.create_model(arch)), None))
    assert kinds["qkv"] > 0
    assert (kinds["q"], kinds["k"], kinds["v"]) == ((kinds["qkv"],) * 3 if parts else (0, 0, 0))


def test_attention_without_a_query_of_its_own_has_no_parts() -> None:
    """GCViT's blocks take turns: half of them share one global query."""
    with torch.device("meta"):
        blocks = residual_blocks(timm.create_model("gcvit_xxtiny"))
    sites = sites_of(blocks, None)
    assert {site.layer for site in sites if site.kind == "q"} == {
        layer for layer, block in enumerate(blocks) if not block.attn.use_global
    }
    assert all(site.out_width == site.width for site in sites if site.kind in ("q", "k", "v"))


@pytest.mark.parametrize(
    ("arch", "count"),
    [
        ("resnet50", 16),
        ("swin_tiny_patch4_window7_224", 12),
        ("convnext_tiny", 18),
        ("regnety_002", 13),
        ("efficientnet_b0", 16),
        ("vit_small_patch16_dinov3", 12),
        ("vit_base_patch16_224", 12),
        ("beit_base_patch16_224", 12),
        ("mobilenetv3_small_100", 12),
        ("densenet121", 0),
    ],
)
def test_number_of_blocks(arch: str, count: int) -> None:
    """As the papers count them; RegNetY-200MF has stages of 1, 1, 4 and 7."""
    with Unfilled():
        assert len(residual_blocks(timm.create_model(arch))) == count


def test_text_towers_sites() -> None:
    """The same holds on the text side."""
    backbone = backbone_of("clip_vit")
    text = backbone.text_encoder("the test")
    calls: Counter[int] = Counter()
    outputs: dict[int, Tensor] = {}

    def keep(module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        calls[id(module)] += 1
        outputs[id(module)] = output

    for module in text.modules():
        module.register_forward_hook(keep)
    text.encode(["red ant", "bee"])
    for site in text.all_sites():
        assert (calls[id(site.entry)], calls[id(site.exit)]) == (1, 1), site
        if site.kind not in ("block", "q", "k", "v"):
            assert outputs[id(site.exit)].shape[-1] == site.out_width, site
    assert {"tokens", "q", "k", "v", "proj", "fc1", "fc2", "mlp", "norm", "embedding", "joint"} <= text.kinds()
