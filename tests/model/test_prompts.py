"""Prompt sets, own templates and descriptors, and the first rows that follow from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from liftplus import config
from liftplus.backbones import clip
from liftplus.backbones.base import Backbone
from liftplus.errors import UserError
from liftplus.model.head_init import (
    ClassMean,
    HeadInit,
    InitContext,
    Semantic,
    centres,
    class_prompts,
    templates_of,
    text_rows,
)
from liftplus.model.heads import Cosine, Joint
from liftplus.names import presets
from zoo import Letters

NAMES = ["red_ant", "Bee", "old dog"]
SPOKEN = ["red ant", "Bee", "old dog"]


def backbone() -> Backbone:
    torch.manual_seed(0)
    shape = clip.Shape(
        image_size=10,
        patch=5,
        width=12,
        layers=1,
        heads=2,
        joint=11,
        text_width=6,
        text_layers=1,
        text_heads=2,
        context=70,
        vocabulary=41,
    )
    made = clip.clip_backbone("tiny", shape, None, tokenizer=Letters(70))
    for parameter in made.parameters():  # away from zero biases and unit norms
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def context(trunk: Backbone) -> InitContext:
    def no_features(_shots: int) -> tuple[Tensor, Tensor]:
        raise AssertionError("no features are needed")

    return InitContext(trunk, NAMES, no_features, torch.Generator())


def test_every_set_has_a_summary_and_templates() -> None:
    sets = {name: entry["summary"] for name, entry in presets("prompts").items()}
    assert {"name", "default", "simple", "ensemble", "species", "place", "food", "drawing"} <= set(sets)
    for name, summary in sets.items():
        assert summary
        found = templates_of(name)
        assert found
        assert len(set(found)) == len(found)
        assert all(template.count("{}") == 1 for template in found)
        assert Semantic(prompts=name).texts(["x y"]) == [[template.replace("{}", "x y") for template in found]]


def test_sets_of_the_library_are_its_own() -> None:
    for name, own, number in (
        ("simple", open_clip.SIMPLE_IMAGENET_TEMPLATES, 7),
        ("ensemble", open_clip.OPENAI_IMAGENET_TEMPLATES, 80),
    ):
        (found,) = Semantic(prompts=name).texts(["golden retriever"])
        assert found == [fill("golden retriever") for fill in own]
        assert len(found) == number


def test_the_default_and_an_own_template() -> None:
    assert class_prompts(Semantic(), NAMES) == [[f"a photo of a {name}."] for name in SPOKEN]
    assert class_prompts(ClassMean(), NAMES) == class_prompts(Semantic(), NAMES)
    assert class_prompts(Semantic(template="one {}, {}", prompts="ensemble"), NAMES)[1] == ["one Bee, Bee"]
    assert (centres(Semantic()), centres(Semantic(centre=True)), centres(ClassMean())) == (False, True, False)


def test_a_configuration_saved_with_a_template_still_loads() -> None:
    values = config.RunConfig().to_dict()
    values["head_init"] = {"name": "semantic", "template": "a photo of a {}."}
    init = config.from_dict(values).head_init
    assert class_prompts(init, NAMES) == class_prompts(Semantic(), NAMES)
    assert config.from_dict(config.from_dict(values).to_dict()).head_init == init


def test_options_by_key() -> None:
    run = config.resolve(overrides=["prompts=ensemble", "centre=true"])
    assert run.head_init == Semantic(prompts="ensemble", centre=True)
    run = config.resolve(overrides=["descriptors=birds.json"])
    assert run.head_init == Semantic(descriptors="birds.json")


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match=r"prompt set 'ensembel'. Did you mean 'ensemble'.*Known: .*default"):
        Semantic(prompts="ensembel")
    with pytest.raises(UserError, match=r'needs "\{\}" where the class name goes'):
        Semantic(template="a photo")
    with pytest.raises(UserError, match="Leave the other out"):
        Semantic(template="a {}", descriptors="file.json")
    with pytest.raises(ValidationError):
        Semantic(centre="perhaps")
    with pytest.raises(UserError, match="Did you mean 'species'"):
        config.resolve(overrides=["prompts=specis"])


def write(path: Path, table: Any) -> str:
    file = path / "descriptors.json"
    file.write_text(table if isinstance(table, str) else json.dumps(table), encoding="utf-8")
    return str(file)


DESCRIBED = {"RED ANT": ["a {} with six legs"], "bee": ["a bee", "the {}, {}"], "Old_Dog": ["grey fur"], "more": ["x"]}


def test_descriptors(tmp_path: Path) -> None:
    """Whole prompts for each class, matched without case; further classes do no harm."""
    found = class_prompts(Semantic(descriptors=write(tmp_path, DESCRIBED)), NAMES)
    assert found == [["a red ant with six legs"], ["a bee", "the Bee, Bee"], ["grey fur"]]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"bee": ["a bee"]}, r"lack 2 of 3 classes: red_ant, old dog\. Give every class"),
        (DESCRIBED | {"bee": []}, r"descriptors of 'bee' .* are \[\]; allowed is a list of one or more prompts"),
        (DESCRIBED | {"bee": "a bee"}, 'are "a bee"; allowed is a list'),
        (DESCRIBED | {"bee": ["a bee", 3]}, r"are \[\"a bee\", 3\]; allowed is a list"),
        (DESCRIBED | {"bee": [" "]}, "allowed is a list"),
        (DESCRIBED | {"BEE": ["again"]}, "name the class 'BEE' twice"),
        (["a bee"], "holds a list. Give a JSON file"),
        ("{not json", "cannot be read"),
    ],
)
def test_wrong_descriptors_are_refused(tmp_path: Path, table: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_prompts(Semantic(descriptors=write(tmp_path, table)), NAMES)


def test_missing_descriptors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"descriptors is .*nowhere.*cannot be read.*Give a JSON file"):
        class_prompts(Semantic(descriptors=str(tmp_path / "nowhere.json")), NAMES)
    file = tmp_path / "latin.json"
    file.write_bytes(b'{"b\xe9": []}')
    with pytest.raises(UserError, match="cannot be read"):
        class_prompts(Semantic(descriptors=str(file)), NAMES)


def test_default_rows_are_the_text_features_of_one_prompt() -> None:
    trunk = backbone()
    joint = trunk.text_encoder("the test").encode([f"a photo of a {name}." for name in SPOKEN])
    for init in (Semantic(), Semantic(template="a photo of a {}.")):
        assert torch.equal(init.rows(context(trunk)), text_rows(trunk, joint))
        assert torch.equal(Joint().rows(context(trunk), init), joint)


@pytest.mark.parametrize("centre", [False, True])
def test_rows_of_a_set(centre: bool) -> None:
    """normalise(mean of the prompts' unit features), less the mean over classes where asked, then through P_img."""
    trunk, init = backbone(), Semantic(prompts="simple", centre=centre)
    text = trunk.text_encoder("the test")
    means = [text.encode(own).double().mean(0) for own in class_prompts(init, NAMES)]
    joint = F.normalize(torch.stack(means), dim=-1)
    if centre:
        joint = F.normalize(joint - joint.mean(0), dim=-1)
    assert trunk.image_projection is not None
    expected = F.normalize(joint @ trunk.image_projection.double().T, dim=-1)
    atol = 1e-5 * float(joint.std())
    torch.testing.assert_close(Joint().rows(context(trunk), init).double(), joint, rtol=1e-5, atol=atol)
    torch.testing.assert_close(Cosine().rows(context(trunk), init).double(), expected, rtol=1e-5, atol=atol)


def test_rows_of_descriptors(tmp_path: Path) -> None:
    trunk, init = backbone(), Semantic(descriptors=write(tmp_path, DESCRIBED))
    text = trunk.text_encoder("the test")
    rows = Joint().rows(context(trunk), init)
    torch.testing.assert_close(rows[1], F.normalize(text.encode(["a bee", "the Bee, Bee"]).mean(0), dim=-1))
    torch.testing.assert_close(rows[2], text.encode(["grey fur"])[0])


def test_class_prompts_take_any_initialisation() -> None:
    class Other(HeadInit):
        def rows(self, context: InitContext) -> Tensor:
            raise NotImplementedError

    assert class_prompts(Other(), ["a_b"]) == [["a photo of a a b."]]
