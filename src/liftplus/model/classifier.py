"""The classifier: backbone, tuners, head; every parameter is exactly one of frozen, tuned or head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from liftplus.backbones.base import Backbone
from liftplus.backbones.text import ClassTexts
from liftplus.errors import UserError
from liftplus.machine.runtime import Runtime
from liftplus.model.heads import HeadModule, JointModule
from liftplus.tuners.base import Tuner
from liftplus.tuners.merging import in_use, merge_hooks, never_folds


class Classifier(nn.Module):
    """Images [B, 3, R, R], or features [B, D] that the backbone gave for them, -> logits [B, C].

    Attributes:
        backbone: frozen but for what tuners set free in it.
        tuners: added weights, by tuner name.
        head: the classifier on the backbone's features.
        notes: what was decided when it was built, one sentence each.
        shift: what is added to the logits [C] for the prior expected in use (`priors.shift`), or None.
    """

    shift: Tensor | None

    def __init__(self, backbone: Backbone, tuners: dict[str, Tuner], head: HeadModule, num_classes: int) -> None:
        super().__init__()
        for tuner in tuners.values():
            tuner.check(backbone)
            if tuner.needs_joint_head and not isinstance(head, JointModule):
                raise UserError(
                    f"Tuner {tuner.name!r} with side={tuner.side} acts on CLIP's joint space or on the text "
                    "side, which only the logits of head=joint depend on. Set head=joint."
                )
        self.backbone = backbone
        self.tuners = nn.ModuleDict()
        # What comes first in a block is attached first (LoRA before SSF), in whatever order the user gave them.
        for name, tuner in sorted(tuners.items(), key=lambda item: (item[1].order, item[0])):
            self.tuners[name] = tuner.place(backbone, num_classes)
        self.head = head
        self.register_buffer("shift", None, persistent=False)
        self.reads_text = any(tuner.side != "image" for tuner in tuners.values())
        self.notes: tuple[str, ...] = ()
        self._keeps = False
        self._kept: Tensor | None = None

    @classmethod
    def assemble(
        cls,
        backbone: Backbone,
        tuners: dict[str, Tuner],
        head: HeadModule,
        class_texts: ClassTexts,
        *,
        centre: bool = False,
        sized_for: int | None = None,
    ) -> Classifier:
        """A classifier that keeps the text encoder only where a tuner acts on it.

        Args:
            class_texts: the prompt or the prompts of each class [C].
            centre: whether class features are centred, where they are encoded in every step.
            sized_for: number of classes by which tuners choose their width; by default that of the texts.
        """
        reads_text = any(tuner.side != "image" for tuner in tuners.values())
        if reads_text:
            backbone.text_encoder("a tuner on the text side").read(class_texts, centre=centre)
        model = cls(backbone, tuners, head, sized_for or len(class_texts))
        if not reads_text:
            backbone.text = None
        return model

    def put(self, runtime: Runtime) -> None:
        """Move it to the device; frozen weights take the precision of the run, trained ones stay in fp32."""
        runtime.place(self)
        self.backbone.store_frozen(runtime.dtype)

    def forward(self, images: Tensor) -> Tensor:
        logits = self._logits(images)
        return logits if self.shift is None else logits + self.shift

    def _logits(self, images: Tensor) -> Tensor:
        features = images if images.ndim == 2 else self.backbone(images)
        if isinstance(self.head, JointModule):
            features = self.backbone.joint(features)
            if self.reads_text:
                return self.head.compare(features, self._class_features())
        return self.head(features)

    def _class_features(self) -> Tensor:
        """Unit vectors of the classes [C, joint]: encoded now, or as kept."""
        encoder = self.backbone.text_encoder("a trained text side")
        if not self._keeps:
            return encoder()
        if self._kept is None:
            with torch.no_grad():
                self._kept = encoder()
        return self._kept

    @contextmanager
    def class_features_kept(self) -> Iterator[None]:
        """While weights stand still, encode the class prompts at the first use only; no gradients reach them."""
        self._keeps = True
        try:
            yield
        finally:
            self._keeps, self._kept = False, None

    @torch.no_grad()
    def merge(self) -> list[str]:
        """Fold tuners into the weights that they act on, in place, where that is exact; returns the names of the rest.

        A trained text side is replaced by the class features that it gives. The model is then for use, not for
        training: weights that tuners had set free are frozen like the others.
        """
        if self.reads_text:
            self.head.weight.copy_(self.backbone.text_encoder("a trained text side")())
            self.reads_text = False
        self.backbone.text = None
        layers = list(self.backbone.modules())
        merge_hooks(layers, list(self.tuners.modules()))
        for name, part in list(self.tuners.items()):
            if not in_use(layers, part):
                del self.tuners[name]
        self.requires_grad_(False)
        return list(self.tuners)

    def never_merge(self) -> list[str]:
        """Names of the tuners that `merge` is sure to leave as they are; no weight is changed."""
        text = set() if self.backbone.text is None else set(self.backbone.text.modules())
        layers = [layer for layer in self.backbone.modules() if layer not in text]
        return [name for name, part in self.tuners.items() if never_folds(layers, part)]

    def partition(self) -> dict[str, dict[str, nn.Parameter]]:
        """Every parameter by its part: "frozen", "tuned" or "head"."""
        parts: dict[str, dict[str, nn.Parameter]] = {"frozen": {}, "tuned": {}, "head": {}}
        for name, parameter in self.named_parameters():
            if name.startswith("head."):
                part = "head"
            elif parameter.requires_grad:
                part = "tuned"
            else:
                part = "frozen"
            parts[part][name] = parameter
        stray = [name for name in parts["frozen"] if name.startswith("tuners.")]
        if stray:
            raise AssertionError(f"tuner weights that would never be trained: {stray}")
        return parts

    def trainable(self) -> Iterator[nn.Parameter]:
        """Tuned and head parameters, in a fixed order."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def learned_state(self) -> dict[str, Tensor]:
        """What training changed or created: tuned and head weights, by name, on the CPU."""
        parts = self.partition()
        return {name: value.detach().cpu().contiguous() for name, value in (parts["tuned"] | parts["head"]).items()}

    def load_learned(self, state: dict[str, Tensor]) -> None:
        """Load what `learned_state` gave. Raises `ValueError` for a missing or unknown name or another shape."""
        parts = self.partition()
        own = parts["tuned"] | parts["head"]
        if own.keys() != state.keys():
            raise ValueError(f"weights do not belong to this model: {sorted(own.keys() ^ state.keys())[:4]}")
        for name, parameter in own.items():
            if parameter.shape != state[name].shape:
                raise ValueError(f"{name} is {tuple(state[name].shape)}, the model has {tuple(parameter.shape)}")
            parameter.data.copy_(state[name])

    def count(self) -> dict[str, int]:
        """Number of parameters of each part; "tuned" excludes the head."""
        return {part: sum(p.numel() for p in values.values()) for part, values in self.partition().items()}
