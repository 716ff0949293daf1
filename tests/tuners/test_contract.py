"""What holds for every tuner on every backbone it fits; no test looks at a tuner's type."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from liftplus import registry
from liftplus.backbones.base import in_precision
from liftplus.errors import UserError
from liftplus.model.classifier import Classifier
from liftplus.model.heads import Cosine, Joint
from liftplus.model.losses import LogitAdjusted
from liftplus.runs.predicting import copied
from liftplus.tuners.base import Tuner


def test_every_tuner_fits_something(lab: Any) -> None:
    assert {str(case.values[0]) for case in lab.cases()} == set(registry.discover("tuner"))


def test_start(lab: Any, name: str, backbone: str, options: dict[str, Any]) -> None:
    """Before training a tuner changes no bit, unless its definition says otherwise."""
    model = lab.attachable(name, backbone, options)
    bare = lab.build(backbone, {})
    if model.tuners[name] is not None and lab.tuner(name, **options).needs_joint_head:
        trunk = lab.backbone_of(backbone)
        head = Joint().build(trunk, lab.classes)
        head.weight.data.copy_(trunk.text_encoder("the test").encode(lab.texts))
        bare = Classifier(trunk, {}, head, lab.classes)
    for one in (
        model,
        bare,
    ):  # kernels differ where an attention's mask or, in PyTorch 2.8, a linear's input is trained
        one.requires_grad_(False)
    with torch.no_grad():
        out, expected = model(lab.images(model)), bare(lab.images(bare))
    if not lab.tuner(name, **options).identity_at_start:
        assert out.isfinite().all()
        assert not torch.equal(out, expected)
    else:
        assert torch.equal(out, expected)


def test_first_step_reaches_every_tuned_weight(lab: Any, name: str, backbone: str, options: dict[str, Any]) -> None:
    model = lab.attachable(name, backbone, options)
    parts = model.partition()
    assert parts["tuned"]
    LogitAdjusted().build(torch.ones(lab.classes))(model(lab.images(model)), torch.arange(lab.batch)).backward()
    trained = parts["tuned"] | {key: p for key, p in parts["head"].items() if p.requires_grad}
    assert [key for key, p in trained.items() if p.grad is None] == []
    assert [key for key, p in parts["frozen"].items() if p.grad is not None] == []
    assert all(p.grad.isfinite().all() for p in trained.values() if p.grad is not None)


def test_every_hook_belongs_to_the_model(lab: Any, name: str, backbone: str, options: dict[str, Any]) -> None:
    """What acts is registered: a hook of a module that the classifier does not hold would never be trained or saved."""
    model = lab.attachable(name, backbone, options)
    held = {id(module) for module in model.modules()}
    for module in model.modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            assert hook is in_precision or id(hook.__self__) in held


@pytest.mark.costly
def test_a_copy_may_predict_in_the_middle_of_a_batch(
    lab: Any, name: str, backbone: str, options: dict[str, Any]
) -> None:
    """The server's threads do: the copy has the same weights in the same memory, and nothing else in common."""
    model = lab.attachable(name, backbone, options)
    lab.fit(model, 1)
    model.requires_grad_(False).eval()
    twin = copied(model)
    assert {id(one) for one in model.modules()}.isdisjoint(id(one) for one in twin.modules())
    tensors = (*model.named_parameters(), *model.named_buffers())
    shared = dict((*twin.named_parameters(), *twin.named_buffers()))
    assert shared.keys() == dict(tensors).keys() and all(shared[key] is tensor for key, tensor in tensors)
    images, others = lab.images(model), lab.images(model).flip(-1)
    with torch.no_grad():
        expected, expected_of_others = model(images), model(others)
        found = []
        for module in [one for one in model.modules() if not list(one.children())][::5]:
            module.register_forward_hook(lambda *_: found.append(twin(others)))
        assert torch.equal(model(images), expected)
    assert found and all(torch.equal(one, expected_of_others) for one in found)


def test_training_moves_tuned_weights_only(lab: Any, name: str, backbone: str, options: dict[str, Any]) -> None:
    model = lab.attachable(name, backbone, options)
    frozen = {key: p.detach().clone() for key, p in model.partition()["frozen"].items()}
    buffers = {key: b.clone() for key, b in model.named_buffers()}
    tuned = {key: p.detach().clone() for key, p in model.partition()["tuned"].items()}
    lab.fit(model, 3)
    assert all(torch.equal(p, frozen[key]) for key, p in model.partition()["frozen"].items())
    assert all(torch.equal(b, buffers[key]) for key, b in model.named_buffers())
    after = model.partition()["tuned"]
    assert after.keys() == tuned.keys()
    still = [p for key, p in after.items() if p.numel() and torch.equal(p, tuned[key])]
    # Only a zero bias behind ReLUs that let nothing through stays where it was.
    assert len(still) < len(after)
    assert all(p.grad is not None and not p.grad.any() and not p.any() for p in still)


def test_saved_and_loaded_gives_the_same_bits(lab: Any, name: str, backbone: str, options: dict[str, Any]) -> None:
    model = lab.attachable(name, backbone, options)
    lab.fit(model, 2)
    state = load(save(model.learned_state()))
    other = lab.build(backbone, {name: lab.tuner(name, **options)}, seed=9)
    other.load_learned(state)
    assert torch.equal(other(lab.images(other)), model(lab.images(model)))


@pytest.mark.costly
def test_copies_are_independent(lab: Any, name: str, backbone: str, options: dict[str, Any]) -> None:
    """A deep copy and a pickled one give the same output, and training them leaves the original alone."""
    model = lab.attachable(name, backbone, options)
    lab.fit(model, 1)
    before = model(lab.images(model)).detach()
    stream = io.BytesIO(pickle.dumps(model))
    for twin in (copy.deepcopy(model), pickle.load(stream)):
        assert torch.equal(twin(lab.images(twin)), before)
        lab.fit(twin, 1)
        assert not torch.equal(twin(lab.images(twin)), before)
    assert torch.equal(model(lab.images(model)), before)


def test_layers(lab: Any, name: str, backbone: str, options: dict[str, Any]) -> None:
    """All blocks, the last k and a list; a choice beyond the blocks is refused."""
    part = registry.get("tuner", name)
    assert issubclass(part, Tuner)
    if not part.by_layer:
        with pytest.raises(ValueError, match="leave out"):
            part(**options | {"layers": 1})
        return
    if "sizes" in part.model_fields:  # by the other rule a tuner is as large on fewer blocks
        options = options | {"sizes": "depth"}
    everything = lab.count(lab.attachable(name, backbone, options))
    last = lab.count(lab.attachable(name, backbone, options | {"layers": 1}))
    depth = lab.backbone_of(backbone).depth
    assert lab.count(lab.attachable(name, backbone, options | {"layers": (depth - 1,)})) == last
    assert lab.count(lab.attachable(name, backbone, options | {"layers": depth})) == everything
    # Tuners that act once (on the pooled feature, say) have all their weights there.
    assert last <= everything
    trunk, head = lab.backbone_of(backbone), lab.build(backbone, {}).head
    for wrong in (depth + 1, (0, depth), (), 0, (-1,)):
        with pytest.raises(UserError, match=r"blocks can be chosen"):
            Classifier(trunk, {name: part(**options | {"layers": wrong})}, head, lab.classes)


def test_refused_where_a_site_is_missing(lab: Any, name: str, unfit: str) -> None:
    """A backbone that a tuner does not fit is refused in words, and nothing about it has changed."""
    part, trunk = lab.tuner(name), lab.backbone_of(unfit)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in trunk.modules())
    head = Cosine().build(trunk, lab.classes)
    with pytest.raises(UserError, match="needs"):
        Classifier(trunk, {name: part}, head, lab.classes)
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in trunk.modules())
    assert not any(p.requires_grad for p in trunk.parameters())


def test_mixed_precision(lab: Any, name: str, backbone: str, options: dict[str, Any]) -> None:
    """bf16 keeps to fp32 within 4 eps sqrt(depth) of the cosines' scale, and logits come out in fp32.

    Frozen weights are stored in bf16, trained ones and their gradients stay in fp32.
    """
    model = lab.attachable(name, backbone, options)
    expected = model(lab.images(model))
    model.backbone.store_frozen(torch.bfloat16)
    assert {p.dtype for p in model.trainable()} <= {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(lab.images(model))
    scale = float(getattr(model.head, "scale", 1.0))
    eps, depth = torch.finfo(torch.bfloat16).eps, model.backbone.depth
    assert out.dtype == torch.float32
    assert float((out - expected).detach().abs().max()) <= 4 * eps * depth**0.5 * scale
    if out.requires_grad:
        out.sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.trainable())


def test_checkpointing_changes_no_gradient(lab: Any, name: str, backbone: str, options: dict[str, Any]) -> None:
    """Blocks that are computed again in the backward pass give the same outputs and gradients."""
    plain = lab.attachable(name, backbone, options)
    again = lab.attachable(name, backbone, options)
    again.backbone.recompute()
    lab.fit(plain, 2)
    lab.fit(again, 2)
    kept, repeated = plain.learned_state(), again.learned_state()
    assert kept.keys() == repeated.keys()
    assert all(torch.equal(value, repeated[key]) for key, value in kept.items())


@pytest.mark.costly
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_step_is_whole(lab: Any, name: str, backbone: str, options: dict[str, Any]) -> None:
    """torch.compile takes forward, loss and backward as one graph, which gives the same loss and gradients."""
    torch._dynamo.reset()
    model = lab.attachable(name, backbone, options)
    loss = LogitAdjusted().build(torch.ones(lab.classes))
    labels = torch.arange(lab.batch)
    expected = loss(model(lab.images(model)), labels)
    whole = torch.compile(lambda images: loss(model(images), labels), backend="aot_eager", fullgraph=True)
    found = whole(lab.images(model))
    found.backward()
    torch.testing.assert_close(found, expected)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
