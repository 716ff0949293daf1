"""Reference figures: a pair of files PATH.json and PATH.safetensors, compared group by group.

`pytest tests/reference --reference PATH` runs the same tests on any other pair of files of that form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

DEFAULT = Path(__file__).parent / "data" / "reference_public"
MODELS = "clip_vit|timm_vit|clip_rn"
PART = r"none|fft_last\d+|fft|bitfit|vpt_deep|vpt_shallow|vpt|lora|adaptformer|adapter|ssf|aft"
LOSSES = "ce|focal|ldam|class_balanced|generalized_reweight|balanced_softmax|logit_adjusted|lade"

# Every key of either file belongs to the first pattern that matches it: (kind of group, pattern). What a group
# is called follows from the pattern's named parts; "input" holds no outputs to compare.
KEYS = [
    ("input", rf"loss/(logits|labels|class_counts)|head/(features|weight|bias)|({MODELS})/(backbone/.+|images)"),
    ("input", r"text/tokens|train/(labels|class_counts)|eval/(class_counts|y_true|y_pred)|cifar_lt/labels"),
    ("input", r"tte/image\d+"),
    ("loss", rf"loss/(?P<group>({LOSSES})(_(tau|gamma|beta|rho)[\d.]+)?)/(value|grad)"),
    ("head", r"head/(?P<group>linear|cosine|l2norm|layernorm)/logits"),
    ("mda_min_scale", r"mda_min_scale"),
    ("mda_crops", r"mda_crops"),
    ("auto_sizes", r"auto_sizes"),
    ("eval", r"eval"),
    ("cifar", r"cifar_lt/(?P<group>ir[\d.]+)/(index|counts)"),
    ("tte", r"tte/(?P<group>image\d+)/(center|expand\d+/(crops|logits))"),
    ("text_features", rf"(?P<group>{MODELS})/text_features"),
    ("semantic", rf"(?P<group>{MODELS})/semantic_init_weight"),
    ("zero_shot", rf"(?P<group>{MODELS})/zero_shot/logits"),
    ("joint", rf"(?P<group>({MODELS})/(coop\w*|clip_adapter|text(_({PART}))+))/(tuner/.+|logits|ctx_loc|tuned_params)"),
    (
        "image",
        rf"(?P<group>({MODELS})/({PART})(_({PART}))*)"
        r"/(tuner/.+|features|logits|logits_after_sgd|tuned_params|sgd_losses)",
    ),
]


@dataclass(frozen=True)
class Reference:
    """The two files: tensors and plain values, by name."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def groups(self) -> dict[str, list[str]]:
        """Groups by kind; "unknown" lists the keys that no pattern matches."""
        found: dict[str, set[str]] = {}
        for key in [*self.tensors, *self.values]:
            for kind, pattern in KEYS:
                if match := re.fullmatch(pattern, key):
                    found.setdefault(kind, set()).add(match.groupdict().get("group") or kind)
                    break
            else:
                found.setdefault("unknown", set()).add(key)
        return {kind: sorted(names) for kind, names in found.items()}

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with "prefix/", by the rest of it."""
        start = prefix + "/"
        return {key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)}


def read(config: pytest.Config) -> Reference:
    stash = config.stash
    if _KEY not in stash:
        path = str(config.getoption("--reference", default=None) or DEFAULT)
        values = json.loads(Path(path + ".json").read_text(encoding="utf-8"))
        stash[_KEY] = Reference(load_file(path + ".safetensors"), values)
    return stash[_KEY]


_KEY: pytest.StashKey[Reference] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reference", default=None, help="reference files, without .json and .safetensors")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `<kind>_group` runs for every group of that kind."""
    for argument in metafunc.fixturenames:
        if argument.endswith("_group"):
            metafunc.parametrize(argument, read(metafunc.config).groups().get(argument.removesuffix("_group"), []))


@pytest.fixture
def reference(request: pytest.FixtureRequest) -> Reference:
    return read(request.config)


Close = Callable[..., None]


@pytest.fixture
def close(record_property: Callable[[str, object], None]) -> Close:
    """close(group, ours, theirs, tolerance): differences in units of the standard deviation of theirs.

    A single number has no deviation: its own size takes the place. The largest difference is reported.
    """

    def compare(group: str, ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
        assert ours.shape == theirs.shape
        ours, theirs = ours.detach().double(), theirs.double()
        unit = theirs.std() if theirs.numel() > 1 else theirs.abs()
        difference = float((ours - theirs).abs().max() / unit.clamp_min(1e-30))
        record_property("difference", [group, difference, tolerance])
        assert difference <= tolerance, f"{group}: {difference:.2e} x std, allowed {tolerance:.0e}"

    return compare


@pytest.fixture
def exact(record_property: Callable[[str, object], None]) -> Close:
    """exact(group, ours, theirs): equal, number by number; floats to `rounding` relative."""

    def compare(group: str, ours: Any, theirs: Any, rounding: float = 0.0) -> None:
        left, right = torch.as_tensor(ours).double(), torch.as_tensor(theirs).double()
        assert left.shape == right.shape
        difference = float(((left - right).abs() / right.abs().clamp_min(1e-30)).max()) if right.numel() else 0.0
        record_property("difference", [group, difference, rounding])
        assert difference <= rounding, f"{group} differs by {difference:.2e} relative"

    return compare


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the largest difference of every group."""
    largest: dict[str, tuple[float, float]] = {}
    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, [])]
    for report in reports:
        for name, value in getattr(report, "user_properties", []):
            if name == "difference":
                group, difference, tolerance = value
                largest[group] = max(largest.get(group, (-1.0, 0.0)), (difference, tolerance))
    if largest:
        terminalreporter.section("largest difference by reference group (and what is allowed)")
    for group, (difference, tolerance) in sorted(largest.items()):
        terminalreporter.write_line(f"{group:48s} {difference:9.2e}  ({tolerance:.0e})")
