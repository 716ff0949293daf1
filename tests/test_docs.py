"""What the documentation says is so: its code runs, its commands exist, its tables are the code's."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from liftplus import checkpoint, cli, config, describe, registry, runtime
from liftplus.backbones import catalogue
from liftplus.backbones.base import BackboneConfig
from liftplus.backbones.weights import put_by_hand
from liftplus.errors import UserError
from liftplus.heads import Cosine
from liftplus.losses import LogitAdjusted, Loss
from liftplus.model import Classifier
from liftplus.tuners.base import Tuner
from zoo import ZOO, backbone_of

from .conftest import Command

ROOT = Path(__file__).resolve().parents[1]
ADDING, BACKBONES = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("add-a-tuner.md", "backbones.md"))
FILES = dict(re.findall(r"^Save this as `(\w+\.py)`:\n\n```python\n(.*?)^```", ADDING, re.MULTILINE | re.DOTALL))
SHELL = [
    line
    for page in (ADDING, BACKBONES)
    for block in re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]

# How docs/backbones.md calls a family, a name that liftplus knows, and its small model in zoo.py, if there is one.
FAMILIES = [
    ("CLIP ViT (OpenAI, LAION, DataComp, MetaCLIP, DFN)", "clip_vit_b16", "clip_vit"),
    ("CLIP ResNet", "clip_rn50", "clip_resnet"),
    ("SigLIP with its text tower", "siglip2_vit_b16", None),
    ("EVA-02-CLIP", "eva02_clip_b16", None),
    ("CLIPA, open_clip's own ViT", "open_clip/ViT-L-14-CLIPA/datacomp1b", "open_clip_vit"),
    ("CLIP with a convolutional or hybrid tower", "laion_convnext_base", "open_clip_timm"),
    ("ViT (DINOv2, DeiT-III, MAE, AugReg)", "dinov2_reg_b14", "timm_vit"),
    ("ViT without class token", "timm/vit_medium_patch16_gap_256.sw_in12k_ft_in1k", "timm_mean_pool"),
    ("SigLIP's image tower alone", "timm/vit_base_patch16_siglip_224.webli", "siglip"),
    ("EVA-02", "eva02_b14", "eva"),
    ("DINOv3 ViT", "dinov3_b16", "dinov3"),
    ("BEiT", "beit_b16", "beit"),
    ("Swin", "swin_t", "swin"),
    ("Swin V2", "timm/swinv2_tiny_window8_256.ms_in1k", "swin_v2"),
    ("MaxViT", "timm/maxvit_tiny_tf_224.in1k", "maxvit"),
    ("ResNet", "resnet50", "resnet"),
    ("ConvNeXt", "convnext_b_in22k", "convnext"),
    ("EfficientNet", "efficientnet_b0", "efficientnet"),
    ("RegNet", "regnety_016", "regnet"),
]


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test registers is gone after it."""
    monkeypatch.delenv(registry.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for kind in registry.HOMES:
        registry.discover(kind)
    parts = {kind: dict(members) for kind, members in registry._PARTS.items()}
    modules = set(sys.modules)
    registry._load_announced.cache_clear()
    yield
    for kind, members in parts.items():
        registry._PARTS[kind].clear()
        registry._PARTS[kind].update(members)
    for name in set(sys.modules) - modules:
        origin = getattr(sys.modules[name], "__file__", None) or ""
        if not origin.startswith((str(ROOT), sys.prefix, sys.base_prefix)):
            del sys.modules[name]
    registry._load_announced.cache_clear()


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The page's files, loaded the way it tells."""
    paths = [tmp_path / name for name in FILES]
    for path in paths:
        path.write_text(FILES[path.name], encoding="utf-8")
    monkeypatch.setenv(registry.VARIABLE, ",".join(map(str, paths)))
    return paths


def tuner(**options: Any) -> Tuner:
    part = registry.get("tuner", "ia3")(**options)
    assert isinstance(part, Tuner)
    return part


def test_every_python_block_is_a_file() -> None:
    assert list(FILES) == ["ia3.py", "vector_scaling.py", "repeat_factor.py"]
    assert ADDING.count("```python") == len(FILES)


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
        env=os.environ | {registry.VARIABLE: ",".join(map(str, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in ended.stdout


def test_the_tuner_holds_the_contract(written: list[Path]) -> None:
    """A dual encoder on both sides, attention with q, k and v apart, one without attention, one that is refused."""
    chosen = "ia3-clip_vit or ia3-eva or ia3-convnext or clip_resnet-ia3 or fits_something"
    contract(written[:1], "tests/tuners/test_contract.py", chosen)


def test_loss_and_sampler_hold_their_contracts(written: list[Path]) -> None:
    loss = "(vector_scaling and (finite or twice or pieces))"
    sampler = "(repeat_factor and (within or follows or one_image or workers or moment))"
    contract(written, "tests/test_losses.py tests/test_samplers.py", f"{loss} or {sampler}")


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


def click_command(words: list[str]) -> tuple[Any, list[str]]:
    """The subcommand that a command line names, and the rest of it."""
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands") and words:
        assert words[0] in command.commands, words[0]
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("line", SHELL)
def test_shell_commands_are_such(line: str) -> None:
    """Options exist, and key=value resolves, with the page's parts loaded."""
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        assert name in (registry.VARIABLE, "LIFTPLUS_WEIGHTS")
        assert name != registry.VARIABLE or set(value.split(",")) <= set(FILES)
    if words[:3] == ["python", "-m", "pytest"]:
        assert (ROOT / words[3]).is_file()
        return
    assert words.pop(0) == "liftplus"
    command, rest = click_command(words)
    options = {spelling: option for option in command.params for spelling in option.opts}
    given: dict[str, str] = {}
    overrides = []
    while rest:
        word = rest.pop(0)
        if word.startswith("-"):
            given[options[word].name] = rest.pop(0)
        elif "=" in word:
            overrides.append(word)
    config.resolve(backbone=given.get("backbone"), method=given.get("method", "lift+"), overrides=overrides)
    assert "find" not in given or catalogue.find(given["find"])


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


def fitting(name: str) -> list[str]:
    with torch.device("meta"):
        return describe.fitting(catalogue.load(BackboneConfig(name=name), weights=False))


def table_of_tuners() -> str:
    """The section of docs/backbones.md, from what the code says."""
    fits = {label: set(fitting(name)) for label, name, _ in FAMILIES}
    everywhere = sorted(set.intersection(*fits.values()))
    rest = sorted(set(registry.discover("tuner")) - set(everywhere))
    lines = [f"| family | for example | {' | '.join(f'`{name}`' for name in rest)} |", "|---" * (len(rest) + 2) + "|"]
    for label, name, _ in FAMILIES:
        cells = " | ".join("yes" if part in fits[label] else "–" for part in rest)
        lines.append(f"| {label} | `{name}` | {cells} |")
    sentence = f"Every family here takes {', '.join(f'`{name}`' for name in everywhere)}."
    return textwrap.fill(sentence, 120, break_on_hyphens=False) + "\n\n" + "\n".join(lines)


def test_table_of_tuners_is_the_code() -> None:
    expected = table_of_tuners()
    assert f"\n\n{expected}\n\n" in BACKBONES, f"docs/backbones.md should hold\n\n{expected}\n"


def test_small_models_take_what_the_published_ones_take() -> None:
    assert {zoo for _, _, zoo in FAMILIES if zoo} == set(ZOO), "name the new family in FAMILIES"
    for _, name, zoo in FAMILIES:
        assert zoo is None or describe.fitting(backbone_of(zoo)) == fitting(name), (name, zoo)


def test_names_of_backbones_and_files_are_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIFTPLUS_WEIGHTS", raising=False)
    names = set(re.findall(r"`((?:timm|open_clip)/[\w./-]+)`", BACKBONES)) - {"timm/ARCH.TAG", "open_clip/ARCH/TAG"}
    with pytest.raises(UserError, match="by their tag"):
        catalogue.load(BackboneConfig(name="timm/vit_base_patch16_224"), weights=False)
    assert names - {"timm/vit_base_patch16_224"} <= set(catalogue.find("/"))
    short = BACKBONES.split("## How to name it")[0]
    assert set(re.findall(r"`(\w+_\w+|resnet50)`", short)) <= set(catalogue.entries())
    for file in re.findall(r"`([\w.]+)\.safetensors`", BACKBONES):
        assert any(put_by_hand(name).name == file for name in (*names, *catalogue.entries())), file
    assert str(put_by_hand("x").parent).endswith(".cache/liftplus/weights")


# The registry's ways in.


def test_a_package_announces_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_package.py").write_text(FILES["ia3.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    asked = []

    def announced(group: str) -> list[EntryPoint]:
        asked.append(group)
        return [EntryPoint("ia3", "their_package", group)]

    monkeypatch.setattr(registry, "entry_points", announced)
    assert registry.get("tuner", "ia3").__module__ == "their_package"
    registry.get("loss", "focal")
    assert asked == ["liftplus.parts"]
    announcement = re.search(r"```toml\n\[project\.entry-points\.\"(.*?)\"\]\nia3 = \"(.*?)\"\n```", ADDING)
    assert announcement and announcement[1] == registry.GROUP


def test_a_package_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint("theirs", "gone_package", group)])
    for _ in range(2):
        with pytest.raises(UserError, match=r"entry point theirs = gone_package of liftplus\.parts .*No module named"):
            registry.get("tuner", "lora")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import liftplus\n1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def broken(:\n", "SyntaxError: .*line 1"),
        ("import package_that_is_not_there\n", "ModuleNotFoundError: No module named 'package_that_is_not_there'"),
        ("from liftplus.registry import register\nregister('tuners', 'x')\n", "Unknown kind .*'tuners'.*'tuner'"),
        (
            "from liftplus.registry import Component, register\n"
            "@register('tuner', 'lora')\nclass Mine(Component):\n    pass\n",
            r"Two .* tuner 'lora': liftplus\.tuners\.lora\.LoRA and mine\.Mine\. .*another name",
        ),
    ],
)
def test_a_file_that_fails_is_named(text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "mine.py"))
    with pytest.raises(UserError, match=rf"mine\.py', which LIFTPLUS_PARTS names, cannot be loaded: {reason}"):
        registry.discover("tuner")
    monkeypatch.delenv(registry.VARIABLE)
    assert registry.get("tuner", "lora").__module__ == "liftplus.tuners.lora"


@pytest.mark.parametrize(
    ("given", "reason"),
    [("gone.py", "no file .*gone.py"), ("gone", "'gone'. A file is named by its path"), ("json.py", "another module")],
)
def test_names_that_lead_nowhere(given: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(registry.VARIABLE, given)
    with pytest.raises(UserError, match=reason):
        registry.discover("loss")


def test_the_command_line_tells_of_a_broken_part(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.VARIABLE, "gone.py")
    ended = command("info")
    assert ended.code == 2 and "Error: 'gone.py', which LIFTPLUS_PARTS names" in ended.err


def test_importing_again_is_allowed(written: list[Path]) -> None:
    before = registry.get("tuner", "ia3")
    del sys.modules["ia3"]
    registry._load_announced.cache_clear()
    after = registry.get("tuner", "ia3")
    assert after is not before and after.__module__ == before.__module__ == "ia3"
    assert len(written) == 3


def test_files_beside_each_other_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks, doubled commas and a module by name are fine; a folder of one's own is found by its path from here."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "ia3.py").write_text(FILES["ia3.py"], encoding="utf-8")
    (tmp_path / "by_name.py").write_text(FILES["repeat_factor.py"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(registry.VARIABLE, " parts/ia3.py,, by_name ")
    assert "ia3" in registry.discover("tuner")
    assert "repeat_factor" in registry.discover("sampler")


def test_parts_from_a_file_reach_spawned_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "from liftplus.data.transforms import NoAugment",
        "from liftplus.registry import register",
        "@register('augment', 'still')",
        "class Still(NoAugment):",
        "    '''Nothing changes.'''",
    ]
    (tmp_path / "still.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "still.py"))
    part = registry.get("augment", "still")()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(repr, (part,)) == "Still()"
