"""Text towers of every kind against open_clip's own output, and class prompts: several, in chunks, kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from liftplus import registry
from liftplus.backbones import clip
from liftplus.backbones.base import Backbone
from liftplus.backbones.text import TextEncoder, centred
from liftplus.config import EvaluationConfig
from liftplus.data.arrays import ArrayStore
from liftplus.data.dataset import Split
from liftplus.errors import UserError
from liftplus.evaluation.inference import SplitReader, predict
from liftplus.machine.runtime import choose
from liftplus.model.classifier import Classifier
from liftplus.model.heads import Joint
from liftplus.tuners.base import Tuner

WIDTH, JOINT, CONTEXT, VOCABULARY, END, SIZE = 10, 11, 17, 41, 40, 15
CPU = choose("cpu", "fp32")
TEXTS = ["red ant", "bee", "cat", "old dog", "elk", "fox", "gnu"]
KINDS: dict[str, dict[str, Any]] = {
    "clip": {},
    "siglip": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    "worldwide": {"pool_type": "eos", "eos_id": END},
    "first": {"no_causal_mask": True, "pool_type": "first", "ls_init_value": 0.4},
    "mobile": {"no_causal_mask": True},
    "padded": {"no_causal_mask": True, "use_pad_mask": True, "pool_type": "first", "proj_type": "none"},
    "coca": {"embed_cls": True},
    "coca_mended": {"embed_cls": True, "correct_cls_mask": True},
    "custom": {"block_type": "custom", "qk_norm": True, "scale_fc": True},
}


class Letters:
    """A tokenizer of one token a letter: start 1, end 40, padding 0."""

    def __call__(self, texts: list[str]) -> Tensor:
        ids = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
        for row, text in enumerate(texts):
            tokens = [1, *(2 + ord(letter) % 37 for letter in text), END]
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids


def tower_of(kind: str) -> TextTransformer:
    torch.manual_seed(0)
    tower = TextTransformer(
        context_length=CONTEXT,
        vocab_size=VOCABULARY,
        width=WIDTH,
        heads=2,
        layers=3,
        output_dim=JOINT,
        act_layer=nn.GELU,
        **KINDS[kind],
    )
    for parameter in tower.parameters():  # away from zero biases and unit norms
        parameter.data += 0.1 * torch.randn_like(parameter)
    return tower.eval().requires_grad_(False)


def encoder_of(kind: str, chunk: int = 256) -> TextEncoder:
    return TextEncoder(tower_of(kind), Letters(), 2.0, chunk)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.std()))


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_open_clips_own(kind: str) -> None:
    own = tower_of(kind)
    expected = F.normalize(own(Letters()(TEXTS)), dim=-1)
    encoder = encoder_of(kind)
    close(encoder.encode(TEXTS), expected)
    encoder.read(TEXTS)
    assert torch.equal(encoder(), encoder.encode(TEXTS))
    # What stands beside a text has no say.
    close(encoder.encode(TEXTS[1:2]), expected[1:2])


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_padding_that_nothing_reads_is_cut(kind: str) -> None:
    cut = encoder_of(kind).tokens(["bee"]).shape[1] < CONTEXT
    assert cut == (kind in ("clip", "custom"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_projection(kind: str) -> None:
    encoder = encoder_of(kind)
    joint = encoder.encode(TEXTS).shape[1]
    assert encoder.joint_dim == joint == (WIDTH if kind == "padded" else JOINT)
    assert encoder.projection.shape == (WIDTH, joint)
    weight = encoder.to_joint
    if kind == "padded":
        assert weight is None
        return
    assert weight is not None
    assert any(weight is parameter for parameter in encoder.parameters())
    weight.requires_grad_(True)
    encoder.read(TEXTS)
    encoder()[:, 0].sum().backward()
    assert weight.grad is not None
    assert weight.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_split_once_and_looking_changes_nothing(kind: str) -> None:
    encoder = encoder_of(kind)
    assert not any(isinstance(module, nn.MultiheadAttention) for module in encoder.modules())
    before = [id(module) for module in encoder.modules()]
    features = encoder.encode(TEXTS)
    kinds = encoder.kinds()
    assert [id(module) for module in encoder.modules()] == before
    assert torch.equal(encoder.encode(TEXTS), features)
    assert {"block", "fc1", "fc2", "norm", "embedding", "joint"} <= kinds
    assert ("qkv" in kinds) == (kind != "custom")
    # Where every text has a mask of its own, no token can be added.
    assert ("tokens" in kinds) == (kind not in ("padded", "coca", "coca_mended"))


def test_what_cannot_be_read_is_refused() -> None:
    tower = tower_of("clip")
    tower.pool_type = "none"
    with pytest.raises(UserError, match="pools by 'none'"):
        TextEncoder(tower, Letters(), 2.0)
    with pytest.raises(UserError, match="is a Linear"):
        TextEncoder(nn.Linear(2, 3), Letters(), 2.0)


SEVERAL = [[f"a {name}", name, f"{name}!"][: 1 + k % 3] for k, name in enumerate(TEXTS)]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_several_prompts_a_class(kind: str) -> None:
    """A class's feature is normalise(mean of its prompts' unit features)."""
    encoder = encoder_of(kind)
    expected = torch.cat([F.normalize(encoder.encode(own).mean(0, keepdim=True), dim=-1) for own in SEVERAL])
    close(encoder.encode(SEVERAL), expected)
    encoder.read(SEVERAL)
    close(encoder(), expected)
    encoder.read(SEVERAL, centre=True)
    close(encoder(), F.normalize(expected - expected.mean(0), dim=-1))
    assert torch.equal(encoder(), centred(encoder.encode(SEVERAL)))


@pytest.mark.parametrize("texts", [TEXTS, SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_neither_values_nor_gradients(texts: Any, chunk: int) -> None:
    found = []
    for size in (256, chunk):
        encoder = encoder_of("clip", size).requires_grad_(True)
        encoder.read(texts)
        features = encoder()
        (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        found.append((features.detach(), [p.grad for p in encoder.parameters()]))
        close(encoder.encode(texts), features.detach())
    (whole, gradients), (chunked, again) = found
    close(chunked, whole)
    for ours, theirs in zip(again, gradients, strict=True):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_chunks_keep_no_activations() -> None:
    """With gradients, only the inputs of each chunk are held until the backward pass."""
    sizes = []
    for chunk in (256, 1):
        encoder = encoder_of("clip", chunk).requires_grad_(True)
        encoder.read(TEXTS)
        held: list[int] = []

        def keep(tensor: Tensor, held: list[int] = held) -> Tensor:
            held.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            encoder()
        sizes.append(sum(held))
    assert sizes[1] < sizes[0] / 10


def clip_backbone() -> Backbone:
    torch.manual_seed(0)
    shape = clip.Shape(
        image_size=SIZE,
        patch=5,
        width=12,
        layers=3,
        heads=2,
        joint=JOINT,
        text_width=WIDTH,
        text_layers=3,
        text_heads=2,
        context=CONTEXT,
        vocabulary=VOCABULARY,
    )
    return clip.clip_backbone("tiny", shape, None, tokenizer=Letters())


def classifier(texts: Any = TEXTS, name: str = "lora", centre: bool = False, **options: Any) -> Classifier:
    backbone = clip_backbone()
    torch.manual_seed(1)
    tuner = registry.get("tuner", name)(side="text", **options)
    assert isinstance(tuner, Tuner)
    head = Joint().build(backbone, len(TEXTS))
    return Classifier.assemble(backbone, {name: tuner}, head, texts, centre=centre)


def test_every_tuner_trains_alike_in_chunks() -> None:
    """Hooks run again in the backward pass and leave the same gradients, whichever tuner they belong to."""
    images = torch.randn(2, 3, SIZE, SIZE)
    for name in registry.discover("tuner"):
        options: dict[str, Any] = {"places": (0, -1)} if name == "coop" else {}
        if not registry.get("tuner", name)(side="text", **options).fits(clip_backbone()):  # type: ignore[attr-defined]
            continue
        found = []
        for chunk in (256, 3):
            model = classifier(name=name, **options)
            assert model.backbone.text is not None
            model.backbone.text.chunk = chunk
            model(images)[:, 0].sum().backward()
            found.append([p.grad for p in model.trainable()])
        for ours, theirs in zip(*found, strict=True):
            assert ours is not None
            assert theirs is not None
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.norm()), msg=name)


class Counted:
    """How often the text encoder of a model was run."""

    def __init__(self, model: Classifier) -> None:
        self.times = 0
        assert model.backbone.text is not None
        model.backbone.text.register_forward_hook(self)

    def __call__(self, *_: object) -> None:
        self.times += 1


@pytest.mark.parametrize("centre", [False, True])
def test_evaluation_encodes_class_prompts_once(centre: bool) -> None:
    model = classifier(SEVERAL, centre=centre)
    pictures = torch.randint(0, 256, (9, 20, 20, 3), dtype=torch.uint8).numpy()
    split, evaluation = Split(list(range(9)), [0] * 9), EvaluationConfig(batch_size=2, tte=False, top_k=7)
    counted = Counted(model)
    found = read(model, pictures, split, evaluation)
    assert counted.times == 1
    plain = nn.Sequential(model)  # offers nothing to keep
    again = read(plain, pictures, split, evaluation)
    assert counted.times == 1 + 5
    assert torch.equal(found.classes, again.classes)
    assert torch.equal(found.probabilities, again.probabilities)


def read(model: nn.Module, pictures: Any, split: Split, evaluation: EvaluationConfig) -> Any:
    facts = clip_backbone().facts
    return predict(model, SplitReader(ArrayStore(pictures), split, workers=0), evaluation, facts, CPU)


def test_training_encodes_afresh_after_evaluation() -> None:
    model, images = classifier(), torch.randn(2, 3, SIZE, SIZE)
    counted = Counted(model)
    with torch.inference_mode(), model.class_features_kept():
        before = model(images)
        assert torch.equal(model(images), before)
    assert counted.times == 1
    optimiser = torch.optim.SGD(model.trainable(), lr=1.0)
    for _ in range(2):  # the second, since LoRA's first step has half of its gradients zero
        model(images)[:, 0].sum().backward()
        optimiser.step()
    assert counted.times == 3
    with torch.inference_mode(), model.class_features_kept():
        assert not torch.equal(model(images), before)


def test_kept_features_are_dropped_after_an_error() -> None:
    model = classifier()
    with pytest.raises(KeyboardInterrupt), model.class_features_kept():
        stopped(model)
    counted = Counted(model)
    model(torch.randn(1, 3, SIZE, SIZE))
    assert counted.times == 1


def stopped(model: Classifier) -> None:
    model(torch.randn(1, 3, SIZE, SIZE))
    raise KeyboardInterrupt


def test_coop_with_several_prompts() -> None:
    """The same words stand at the learned places of all prompts of all classes."""
    texts = [[f"my {name}.", f"my {name} !"] for name in TEXTS]
    model = classifier(texts, "coop", places=(0, 1), start="words")
    text = model.backbone.text
    assert text is not None
    assert text.ids is not None
    with torch.no_grad():
        torch.testing.assert_close(text(), clip_backbone().text_encoder("the test").encode(texts))
    with pytest.raises(UserError, match="templates of the prompt set differ"):
        classifier([[f"my {name}.", f"no {name}."] for name in TEXTS], "coop", places=(0, 1), start="words")
    with pytest.raises(UserError, match="shortest class prompt"):
        classifier([[f"my {name}.", "x"] for name in TEXTS], "coop", places=(0, 1))


def test_coop_counts_from_the_end_of_text_by_its_id() -> None:
    encoder = encoder_of("worldwide")
    encoder.read(TEXTS)
    context = registry.get("tuner", "coop")(places=(0, -1)).attach(encoder, len(TEXTS))  # type: ignore[attr-defined]
    ids = Letters()(TEXTS)
    lengths = torch.tensor([len(text) for text in TEXTS])
    assert torch.equal(context.columns(ids), torch.stack([torch.ones_like(lengths), lengths], dim=1))
    encoder.read(TEXTS)
    encoder()[:, 0].sum().backward()
    assert context.context.grad is not None


def test_coop_is_refused_where_the_end_of_text_is_not_known() -> None:
    with pytest.raises(UserError, match="pools by 'last'"):
        registry.get("tuner", "coop")().kinds(encoder_of("siglip"))  # type: ignore[attr-defined]
