"""The bundled model's own parts are those of timm and open_clip, and its runs start without either."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from open_clip import SimpleTokenizer
from open_clip.transformer import TextTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from liftplus.backbones import mini_clip
from liftplus.backbones.clip import clip_tokenizer
from liftplus.backbones.text import TextEncoder, text_features
from liftplus.machine.determinism import own_stream
from liftplus.machine.runtime import fuse_attention

LIBRARIES = {
    "image": lambda: VisionTransformer(
        img_size=64, patch_size=8, embed_dim=192, depth=6, num_heads=3, num_classes=0, global_pool="token"
    ),
    "text": lambda: TextTransformer(
        context_length=24, vocab_size=6514, width=192, heads=3, layers=4, output_dim=128, act_layer=nn.GELU
    ),
}
OWN = {"image": mini_clip.image_tower, "text": mini_clip.text_tower}
START = """
import sys
import torch
from liftplus.backbones import catalogue
from liftplus.backbones.base import BackboneConfig
from liftplus.config import resolve
from liftplus.runs import execution, inputs, predicting
from liftplus.training.momentum import Momentum
resolve(data="openmoji_lt", backbone="mini_clip", method="lift+")
backbone = catalogue.load(BackboneConfig())
backbone.text.encode(["a photo of a dog."])
weight = backbone.image.cls_token.requires_grad_(True)
backbone(torch.zeros(1, 3, 64, 64)).sum().backward()
Momentum([{"params": [weight]}], lr=0.1, momentum=0.9, weight_decay=0.0).step()
print(*{name for name in sys.modules})
"""
HEAVY = {
    "timm",
    "open_clip",
    "torchvision",
    "transformers",
    "torch._dynamo",
    "sklearn",
    "scipy",
    "matplotlib",
    "pandas",
}


@pytest.fixture(params=["image", "text"])
def towers(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """The library's tower and ours, both with the first weights that they draw from one seed."""
    with own_stream(0):
        theirs = LIBRARIES[request.param]()
    with own_stream(0):
        return theirs.eval(), OWN[request.param]().eval()


def _answer(tower: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if hasattr(tower, "token_embedding"):
        ids = mini_clip.MiniTokenizer()(["a photo of a dog.", "several words that are cut into pieces"])
        return text_features(tower, ids[:, :15]) @ tower.text_projection
    return tower(torch.randn(2, 3, 64, 64, generator=generator))


def test_first_weights_are_the_librarys(towers: tuple[nn.Module, nn.Module]) -> None:
    theirs, ours = (tower.state_dict() for tower in towers)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_answers_and_gradients_are_the_librarys_to_the_bit(
    towers: tuple[nn.Module, nn.Module], half: bool, fused: bool
) -> None:
    answers = []
    for tower in towers:
        fuse_attention(tower, fused)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            answers.append(_answer(tower))
        answers[-1].float().square().sum().backward()
    assert torch.equal(*answers)
    gradients = [{name: p.grad for name, p in tower.named_parameters()} for tower in towers]
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


def test_split_attention_of_the_text_tower_answers_alike() -> None:
    with own_stream(0):
        encoders = [TextEncoder(make(), mini_clip.MiniTokenizer(), 1.0) for make in (LIBRARIES["text"], OWN["text"])]
    encoders[1].load_state_dict(encoders[0].state_dict())
    ids = encoders[0].tokens(["a photo of a dog.", "two"])
    assert torch.equal(encoders[0].joint(ids), encoders[1].joint(ids))
    assert [(s.kind, s.layer, s.width, s.name) for s in encoders[0].all_sites()] == [
        (s.kind, s.layer, s.width, s.name) for s in encoders[1].all_sites()
    ]


class Cut(SimpleTokenizer):
    """open_clip's tokenizer with the first merges alone."""

    def __init__(self) -> None:
        super().__init__(context_length=mini_clip.CONTEXT_LENGTH)
        merges = sorted(self.bpe_ranks, key=self.bpe_ranks.__getitem__)[: mini_clip.MERGES]
        pieces = sorted(self.encoder, key=self.encoder.__getitem__)[:512]
        pieces += ["".join(merge) for merge in merges] + ["<start_of_text>", "<end_of_text>"]
        self.encoder = {piece: number for number, piece in enumerate(pieces)}
        self.bpe_ranks = {merge: rank for rank, merge in enumerate(merges)}
        self.sot_token_id, self.eot_token_id = len(pieces) - 2, len(pieces) - 1


def test_ids_are_those_of_open_clips_tokenizer() -> None:
    texts = [
        *(
            "a photo of a delivery truck.",
            "Ünïcode 漢字 🚚",
            "word " * 100,
            "",
            "  ",
            "aaaa aaaaa ababab",
            "x\x00\n\ty",
        ),
        *("don't they'll &amp;lt;", "<start_of_text> x<END_OF_TEXT>y", "ﬁ ½ Ⅷ", "12,345.6e-7", "â€œmojibakeâ€\x9d"),
    ]
    assert torch.equal(mini_clip.MiniTokenizer()(texts), Cut()(texts))


@pytest.mark.parametrize("read", [mini_clip.MiniTokenizer, lambda: clip_tokenizer(77)], ids=["mini", "clip"])
def test_a_typographic_apostrophe_is_an_apostrophe(read: Any) -> None:
    """transformers' tokenizer makes other tokens of it, as it leaves out CLIP's repair of text."""
    tokenizer = read()
    assert torch.equal(tokenizer(["Anna\u2019s hummingbird"]), tokenizer(["Anna's hummingbird"]))


def test_a_start_with_the_bundled_model_imports_neither_libraries_nor_the_compiler() -> None:
    out = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(out.split())
