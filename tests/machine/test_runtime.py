"""Where the training step spends nothing: frozen weights, compiled models, batches of another size."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame, StdConv2d
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from liftplus import config
from liftplus.backbones.clip import LeanQuickGELU, Shape, clip_backbone
from liftplus.data import sources
from liftplus.errors import UserError
from liftplus.evaluation import inference
from liftplus.machine import compiling, convolutions, runtime
from liftplus.machine.compiling import Compiled
from liftplus.machine.runtime import Runtime
from liftplus.model.classifier import Classifier
from liftplus.model.heads import Cosine
from liftplus.training import assembly, loop
from liftplus.tuners.adaptformer import AdaptFormer

from ..conftest import write_folder

Forward = Callable[[nn.Module, torch.Tensor], torch.Tensor]
DEPTH, WIDTH, TOKENS, BATCH, CLASSES, RANK = 3, 24, 17, 5, 7, 2


def classifier() -> Classifier:
    """A CLIP ViT of 3 blocks on 16 patches, AdaptFormer and cosine head."""
    torch.manual_seed(0)
    shape = Shape(32, 8, WIDTH, DEPTH, 2, 13, 16, 1, 2, context=5, vocabulary=11)
    backbone = clip_backbone("tiny", shape, None, tokenizer=object())
    head = Cosine().build(backbone, CLASSES)
    nn.init.normal_(head.weight)
    return Classifier.assemble(backbone, {"adaptformer": AdaptFormer(width=RANK)}, head, ["a"] * CLASSES)


def test_frozen_weights_take_the_precision_of_the_run() -> None:
    """Trained weights, the head and all norms stay in fp32; in fp32 nothing changes."""
    model = classifier()
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.put(Runtime(torch.device("cpu"), "fp32"))
    assert all(torch.equal(p, before[name]) and p.dtype == torch.float32 for name, p in model.named_parameters())
    model.put(Runtime(torch.device("cpu"), "bf16"))
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    kept = {"backbone.image_projection"}
    for name, p in model.named_parameters():
        whole = p.requires_grad or id(p) in norms or name in kept
        assert p.dtype == (torch.float32 if whole else torch.bfloat16), name


def test_the_residual_stream_runs_in_the_precision_of_the_run() -> None:
    """Also where a norm before the blocks gives fp32, as on a GPU."""
    model = classifier()
    place = Runtime(torch.device("cpu"), "bf16")
    model.put(place)
    model.backbone.image.norm_pre.register_forward_hook(lambda _m, _a, out: out.float())
    seen: list[torch.dtype] = []
    for block in model.backbone.image.blocks:
        block.register_forward_hook(lambda _m, args, out: seen.extend((args[0].dtype, out.dtype)))
    with place.autocast():
        model(torch.randn(2, 3, 32, 32))
    assert seen == [torch.bfloat16] * (2 * DEPTH)


def test_a_step_computes_nothing_for_frozen_weights() -> None:
    """Forward and backward take the forward pass, input gradients from the first tuned site on, and the tuner's own."""
    model = classifier()
    for block in model.backbone.image.blocks:
        block.attn.fused_attn = False  # not every PyTorch counts the fused kernel
    images = torch.randn(BATCH, 3, 32, 32)
    with FlopCounterMode(display=False) as forward:
        out = model(images)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    rows = BATCH * TOKENS
    adapter = 2 * rows * WIDTH * RANK  # one of its two products
    mlp = 2 * 2 * rows * WIDTH * 4 * WIDTH
    attention = 2 * rows * WIDTH * 4 * WIDTH + 2 * 2 * rows * TOKENS * WIDTH
    head = 2 * BATCH * WIDTH * CLASSES
    patches = 2 * BATCH * 16 * WIDTH * 3 * 8 * 8
    assert forward.get_total_flops() == patches + DEPTH * (attention + mlp + 2 * adapter) + head
    # The first block's attention and MLP lie before the first tuned site.
    linears = 2 * rows * WIDTH * 4 * WIDTH
    kernels = 4 * 2 * rows * TOKENS * WIDTH
    products = backward.get_total_flops() - 2 * head
    assert products == (DEPTH - 1) * (mlp + linears + kernels) + DEPTH * 4 * adapter


@pytest.mark.parametrize(("shape", "biased"), [((24, 24), True), ((30, 25), False)])
def test_a_patch_embedding_is_one_product(shape: tuple[int, int], biased: bool) -> None:
    """Values and gradients of the convolution, which leaves a rest at the right and the bottom out."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 7, (8, 6), (8, 6), bias=biased).double()
    images = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    assert convolutions.cuts_into_patches(convolution)
    found = []
    for forward in (convolution.forward, convolutions.PatchProduct(convolution)):
        out = forward(images)
        found.append((out, *torch.autograd.grad(out.square().sum(), (images, *convolution.parameters()))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    for other in ({"stride": 4}, {"padding": 1}, {"dilation": 2}):
        assert not convolutions.cuts_into_patches(nn.Conv2d(3, 7, 8, **({"stride": 8} | other)))


@pytest.mark.slow
def test_on_a_gpu_patches_are_cut_by_a_product_and_a_copy_has_its_own() -> None:
    model, images = classifier().eval(), torch.randn(2, 3, 32, 32)
    before = model(images)
    Runtime(torch.device("cuda"), "fp32").prepare(model)
    again = copy.deepcopy(model)
    for one in (model, again):
        embedding = one.backbone.image.patch_embed.proj
        assert isinstance(embedding.forward, convolutions.PatchProduct) and embedding.forward.convolution is embedding
        torch.testing.assert_close(one(images), before)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(images), before)


STRIDED = {"stride": 2, "groups": 6, "bias": False}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("given", [STRIDED, STRIDED | {"padding": 1, "bias": True}, STRIDED | {"stride": (2, 1)}])
@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
def test_strided_depthwise_gradients_are_computed_in_fp32(kind: Any, given: dict[str, Any], trained: bool) -> None:
    """The output is the convolution's in bf16, bit by bit; the gradients are those of fp32, rounded once."""
    torch.manual_seed(0)
    convolution = kind(6, 6, 3, **given).requires_grad_(trained)
    assert convolutions.strides_by_channel(convolution)
    images = torch.randn(2, 6, 9, 12).bfloat16().requires_grad_()
    wanted = (images, *(convolution.parameters() if trained else ()))
    with torch.autocast("cpu", torch.bfloat16):
        before, out = convolution(images), convolutions.WideGradient(convolution)(images)
    assert out.dtype == torch.bfloat16 and torch.equal(out, before)
    upstream = torch.randn_like(out)
    found = torch.autograd.grad(out, wanted, upstream)
    exact = convolution(images.float())  # of the same rounded pictures; only the weights are not rounded
    for gradient, right in zip(found, torch.autograd.grad(exact, wanted, upstream.float()), strict=True):
        assert gradient.dtype == right.dtype
        torch.testing.assert_close(gradient.float(), right.float(), rtol=0.02, atol=0.02)


def test_which_convolutions_stride_by_channel() -> None:
    for other in ({"stride": 1}, {"groups": 3}, {"groups": 1}, {"padding_mode": "reflect"}):
        assert not convolutions.strides_by_channel(nn.Conv2d(6, 6, 3, **(STRIDED | {"padding": 1} | other)))
    assert not convolutions.strides_by_channel(nn.Conv2d(6, 6, 3, groups=6, padding="same"))
    assert not convolutions.strides_by_channel(StdConv2d(6, 6, 3, stride=2, groups=6))  # changes its weights first


@pytest.mark.parametrize(("precision", "stands_in"), [("bf16", True), ("fp32", False)])
def test_a_cnn_is_prepared_for_bf16_on_a_cpu(precision: str, stands_in: bool) -> None:
    """Values and gradients stay; a copy uses its own weights."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, stride=2, groups=4), nn.Conv2d(4, 2, 1))
    images = torch.randn(2, 3, 8, 8)
    before = model(images)
    Runtime(torch.device("cpu"), precision).prepare(model)
    again = copy.deepcopy(model)
    for one in (model, again):
        assert isinstance(one[1].forward, convolutions.WideGradient) is stands_in
        torch.testing.assert_close(one(images), before)
    if stands_in:
        assert again[1].forward.convolution is again[1]
        torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(images), before)


def test_activations_kept_for_the_backward_pass() -> None:
    """QuickGELU keeps one tensor, and agrees with its definition in value and gradient."""
    x = torch.randn(64, 3, dtype=torch.float64, requires_grad=True)
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = LeanQuickGELU()(x)
    assert sum(kept) == x.numel()
    torch.testing.assert_close(out, x * torch.sigmoid(1.702 * x), rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(LeanQuickGELU(), x[:4].detach().requires_grad_())


def test_a_small_last_batch_is_not_compiled_anew() -> None:
    """It gives the same logits and gradients as without compiling."""
    model, sizes = classifier(), []

    def compiler(function: Forward, dynamic: bool) -> Forward:
        assert not dynamic

        def forward(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return function(module, images)

        return forward

    run = Compiled(model, compiler)
    images = torch.randn(BATCH, 3, 32, 32)
    run(images)
    out = run(images[:2])
    assert sizes == [BATCH, BATCH] and len(out) == 2
    out.sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    whole = model(images[:2])
    whole.sum().backward()
    torch.testing.assert_close(out, whole)
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, msg=name)


def test_compiling_that_fails_is_done_without() -> None:
    model = classifier()

    def compiler(_function: Forward, dynamic: bool) -> Forward:
        def broken(_module: nn.Module, _images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no compiler\nhere")

        return broken

    run = Compiled(model, compiler)
    images = torch.randn(2, 3, 32, 32)
    with pytest.warns(UserWarning, match="no compiler"):
        out = run(images)
    torch.testing.assert_close(out, model(images))
    assert run(images[:1]).shape == (1, CLASSES)


def test_every_model_of_a_process_runs_compiled() -> None:
    """Twelve of different shapes, where torch.compile keeps eight of one code; what is made goes with its model."""
    made: list[int] = []
    ran: list[int] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., Any]:
        made.append(1)

        def run(*inputs: torch.Tensor) -> Any:
            ran.append(1)
            return graph(*inputs)

        return run

    models = [nn.Sequential(nn.Linear(3, width), nn.ReLU()) for width in range(1, 13)]
    images = torch.randn(4, 3)
    for _ in range(2):
        for model in models:
            out = Compiled(model, partial(torch.compile, backend=backend))(images)
            torch.testing.assert_close(out, model(images))
    assert len(made) == 12 and len(ran) == 24
    kept = len(compiling._OWN)
    models.clear()
    del model
    gc.collect()
    assert len(compiling._OWN) == kept - 12


@pytest.mark.slow
def test_a_compiled_model_agrees() -> None:
    """By the real compiler up to its code generator."""
    model = classifier()
    run = Compiled(model, partial(torch.compile, backend="aot_eager"))
    images = torch.randn(BATCH, 3, 32, 32)
    torch.testing.assert_close(run(images), model(images))


def test_cuda_graphs_need_a_gpu_and_one_backward_pass_a_step() -> None:
    with pytest.raises(UserError, match="compile=graphs needs an NVIDIA GPU"):
        runtime.choose("cpu", "fp32", compiling="graphs")
    place, model = Runtime(torch.device("cpu"), "fp32", compiles=True, graphs=True), classifier()
    assert place.compiled(model).graphs
    assert not place.compiled(model, adds=True).graphs


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("backbone", "more"),
    [
        ("mini_clip", ()),
        ("mini_clip", ("micro_batch=2",)),
        ("mini_clip", ("grad_checkpointing=true",)),
        ("mini_clip", ("tuner=full",)),
        ("timm/resnet18.a1_in1k", ("tuner=norm", "pretrained=false", "image_size=64")),
    ],
)
def test_graphs_give_the_same_on_a_gpu(tmp_path: Path, backbone: str, more: tuple[str, ...]) -> None:
    """Bit for bit: losses, accuracies between epochs, weights and predictions; the last batch is a smaller one."""
    photos = write_folder(tmp_path / "photos", {"train": (4, 3, 2), "val": (2, 1, 1), "test": (2, 1, 1)})
    settings = ["epochs=4", "train.batch_size=4", "workers=0", "validate_every=1", "head_init=random", "seed=1"]
    settings += ["deterministic=true", "device=cuda", *more]
    found = []
    for way in ("on", "graphs"):
        run = config.resolve(data=str(photos), backbone=backbone, overrides=[*settings, f"compile={way}"])
        data, place = sources.load(run.data), runtime.choose("cuda", "auto", compiling=run.compile)
        model, notes = assembly.build(run, data, place), []
        fitted = loop.fit(model, run, data, place, log=notes.append)
        tested = inference.predict(
            model, inference.SplitReader(data.store, data.splits["test"]), run.evaluation, model.backbone.facts, place
        )
        for note in notes:
            note.pop("seconds")
        found.append((fitted.losses, notes, model.learned_state(), tested.probabilities))
    assert found[0][0] == found[1][0] and found[0][1] == found[1][1]
    assert all(torch.equal(value, found[1][2][name]) for name, value in found[0][2].items())
    assert torch.equal(found[0][3], found[1][3])


@pytest.mark.parametrize(("asked", "compiles"), [("auto", False), ("on", True), ("off", False)])
def test_compiling_is_chosen_by_device(asked: str, compiles: bool) -> None:
    assert runtime.choose("cpu", "fp32", compiling=asked).compiles is compiles
    assert config.resolve(data="x", overrides=[f"compile={asked}"]).compile == asked
    assert math.isclose(config.resolve(data="x").train.lr, 0.02)
