"""The bundled model: a small CLIP trained on emoji art (see `mini_clip.md` beside the weights)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from open_clip import SimpleTokenizer
from open_clip.transformer import TextTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

IMAGE_SIZE = 64
WIDTH, JOINT = 192, 128
MERGES = 6000
CONTEXT_LENGTH = 24
WEIGHTS = Path(str(files("liftplus"))) / "weights" / "mini_clip.safetensors"


class MiniTokenizer(SimpleTokenizer):
    """CLIP's byte-pair encoding with only its first `MERGES` merges, so that the table stays small.

    Rare words split into more pieces; every text still has an encoding.
    """

    encoder: dict[str, int]
    bpe_ranks: dict[tuple[str, str], int]

    def __init__(self) -> None:
        super().__init__(context_length=CONTEXT_LENGTH)
        merges = sorted(self.bpe_ranks, key=self.bpe_ranks.__getitem__)[:MERGES]
        vocabulary = sorted(self.encoder, key=self.encoder.__getitem__)[:512]
        vocabulary += ["".join(merge) for merge in merges] + ["<start_of_text>", "<end_of_text>"]
        self.encoder = {token: index for index, token in enumerate(vocabulary)}
        self.decoder = {index: token for token, index in self.encoder.items()}
        self.bpe_ranks = {merge: rank for rank, merge in enumerate(merges)}
        self.vocab_size = len(self.encoder)
        self.all_special_ids = [self.vocab_size - 2, self.vocab_size - 1]
        self.sot_token_id, self.eot_token_id = self.all_special_ids


def image_tower(image_size: int = IMAGE_SIZE) -> VisionTransformer:
    """ViT of width 192, 6 blocks, 3 heads, patch 8, on 64 x 64 pixels; features are the class token."""
    return VisionTransformer(
        img_size=image_size,
        patch_size=8,
        embed_dim=WIDTH,
        depth=6,
        num_heads=3,
        num_classes=0,
        global_pool="token",
    )


def text_tower() -> TextTransformer:
    """Causal text transformer of width 192, 4 blocks, 3 heads; joint space of 128 dimensions."""
    return TextTransformer(
        context_length=CONTEXT_LENGTH,
        vocab_size=512 + MERGES + 2,
        width=WIDTH,
        heads=3,
        layers=4,
        output_dim=JOINT,
        act_layer=nn.GELU,
    )
