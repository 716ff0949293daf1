"""docs/add-a-tuner.md: its parts hold the contracts, are their formulas, and run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from doc_pages import PARTS, ROOT, page
from liftplus import config, describe, registry
from liftplus.machine import runtime
from liftplus.model.classifier import Classifier
from liftplus.model.heads import Cosine
from liftplus.model.losses import LogitAdjusted, Loss
from liftplus.training import checkpoint
from liftplus.tuners.base import Tuner
from zoo import ZOO, backbone_of

from ..conftest import Command

ADDING = page("add-a-tuner.md")


def tuner(**options: Any) -> Tuner:
    part = registry.get("tuner", "ia3")(**options)
    assert isinstance(part, Tuner)
    return part


def test_every_python_block_is_a_file() -> None:
    assert list(PARTS) == ["ia3.py", "vector_scaling.py", "repeat_factor.py"]
    assert ADDING.count("```python") == len(PARTS)


def contract(paths: list[Path], tests: str, chosen: str) -> None:
    """Run the project's own tests with these files loaded, in a process of its own."""
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            *tests.split(),
            "-k",
            chosen,
        ],
        cwd=ROOT,
        env=os.environ | {registry.VARIABLE: ",".join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in ended.stdout


@pytest.mark.slow
def test_the_tuner_holds_the_contract(written: list[Path]) -> None:
    """A dual encoder on both sides, attention with q, k and v apart, one without attention, one that is refused."""
    chosen = "ia3-clip_vit or ia3-eva or ia3-convnext or ia3-clip_resnet or fits_something"
    contract(written[:1], "tests/tuners/test_contract.py", chosen)


@pytest.mark.slow
def test_loss_and_sampler_hold_their_contracts(written: list[Path]) -> None:
    loss = "(vector_scaling and (finite or twice or pieces))"
    sampler = "(repeat_factor and (within or follows or one_image or workers or moment))"
    contract(written, "tests/model/test_losses.py tests/data/test_samplers.py", f"{loss} or {sampler}")


@pytest.mark.usefixtures("written")
def test_ia3_is_its_formula() -> None:
    """Attention and MLP of a block, written out with the three vectors, against the hooked block."""
    model = Classifier(trunk := backbone_of("timm_mean_pool"), {"ia3": tuner()}, Cosine().build(trunk, 7), 7)
    for vector in (vectors := model.tuners["ia3"]).parameters():
        vector.data.normal_(0, 0.5)
    block = trunk.image.blocks[1]
    x, heads = torch.randn(2, 9, 14), block.attn.num_heads
    k, v, hidden = (1 + vectors[f"{kind}_1"].offset for kind in ("k", "v", "fc2"))

    def split(part: Tensor) -> Tensor:
        return part.view(2, 9, heads, -1).transpose(1, 2)

    q, key, value = block.attn.qkv(y := block.norm1(x)).chunk(3, -1)
    raw = F.linear(y, block.attn.qkv.weight, block.attn.qkv.bias).chunk(3, -1)
    torch.testing.assert_close((q, key, value), (raw[0], raw[1] * k, raw[2] * v))
    weights = (split(raw[0]) @ split(raw[1] * k).mT / (14 // heads) ** 0.5).softmax(-1)
    x1 = x + block.attn.proj((weights @ split(raw[2] * v)).transpose(1, 2).reshape(2, 9, 14))
    inner = F.gelu(block.mlp.fc1(block.norm2(x1)))
    expected = x1 + F.linear(inner * hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5 * float(expected.detach().std()))


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("backbone", ["clip_vit", "timm_vit", "eva", "maxvit"])
def test_the_tuner_trains_all_it_hooks(backbone: str) -> None:
    model = Classifier(trunk := backbone_of(backbone), {"ia3": tuner()}, Cosine().build(trunk, 7), 7)
    sites = [site for kind in ("k", "v", "fc2") for site in trunk.sites(kind)]
    assert len(model.partition()["tuned"]) == len(sites) > 0


@pytest.mark.usefixtures("written")
def test_the_number_of_weights_is_as_told() -> None:
    run = config.resolve(backbone="clip_vit_b16", overrides=["tuner=ia3"])
    assert f"{describe.planned(run, 1000)[0].count()['tuned']:,}" in ADDING


@pytest.mark.usefixtures("written")
def test_the_loss_is_its_formula() -> None:
    counts = torch.tensor([311, 17, 0, 5])
    logits, labels = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 4
    part = registry.get("loss", "vector_scaling")
    assert issubclass(part, Loss)
    smoothed = counts.double().clamp_min(1)
    z = (smoothed / 311) ** 0.3 * logits + 0.7 * (smoothed / smoothed.sum()).log()
    value = part(gamma=0.3, tau=0.7).build(counts)(logits, labels)
    torch.testing.assert_close(value, F.cross_entropy(z, labels), rtol=1e-10, atol=0)
    same = LogitAdjusted(tau=0.7).build(counts)(logits, labels)
    assert torch.equal(part(gamma=0, tau=0.7).build(counts)(logits, labels), same)


@pytest.mark.usefixtures("written")
def test_the_sampler_is_its_formula() -> None:
    part: Any = registry.get("sampler", "repeat_factor")(threshold=0.04)
    shown = part.probabilities(torch.tensor([900.0, 90.0, 10.0]).double(), 0.5)
    torch.testing.assert_close(shown, torch.tensor([900.0, 90.0, 20.0]).double(), rtol=1e-10, atol=0)


@pytest.mark.slow
@pytest.mark.usefixtures("written")
def test_a_run_with_the_tuner_and_again_from_its_folder(
    photos: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ("tuner=ia3", "epochs=1", "train.batch_size=8", "tte=false", "workers=0", "device=cpu", "precision=fp32")
    ended = command("train", "--data", photos, "--out", "run", "--json", *quick)
    assert ended.code == 0, ended.err
    trained = json.loads(ended.out)
    assert trained["parameters"]["tuned"] == 6 * (192 + 192 + 4 * 192)
    again = command("eval", "run", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["overall"] == trained["overall"]
    loaded = checkpoint.load_model(tmp_path / "run", runtime.choose("cpu", "fp32"))
    assert list(loaded.config.tuner) == ["ia3"]
    assert any(vector.any() for vector in loaded.model.tuners.parameters())

    monkeypatch.delenv(registry.VARIABLE)
    del registry._PARTS["tuner"]["ia3"]
    ended = command("eval", "run")
    assert ended.code == 2 and "Unknown tuner 'ia3'" in ended.err and registry.VARIABLE in ended.err


def test_kinds_of_parts_and_sites_are_told() -> None:
    table = re.findall(r"^\| (\w+) \| `(liftplus[\w.]+)\.(\w+)` \|", ADDING, re.MULTILINE)
    assert [kind for kind, _, _ in table] == list(registry.HOMES)
    for _, module, base in table:
        assert issubclass(getattr(sys.modules[module], base), registry.Component)
    section = ADDING.split("| kind | what a hook there sees |")[1].split("\n\n")[0]
    told = {kind for line in section.splitlines()[2:] for kind in re.findall(r"`(\w+)`", line.split("|")[1])}
    towers: list[Any] = [backbone_of(name) for name in ZOO]
    towers += [backbone.text for backbone in towers if backbone.text is not None]
    assert told == {kind for tower in towers for kind in tower.kinds()}
