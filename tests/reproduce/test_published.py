"""scripts/published.py: every command of the papers' repositories has an experiment of equal settings, or a reason."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import pytest

from doc_pages import ROOT, page

_spec = spec_from_file_location("published", ROOT / "scripts" / "published.py")
assert _spec is not None and _spec.loader is not None
published: Any = module_from_spec(_spec)
sys.modules["published"] = published
_spec.loader.exec_module(published)

COMMANDS = list(published.published())
# Commands in each repository's scripts, counted in them: LIFT-plus at ea555ea, LIFT at 661ead9.
COUNTS = {"lift_plus": 536, "lift": 482}
LEFT_OUT = {"run_tab8_training_acc.sh": 15, "run_tab12_tte_methods.sh": 5, "run_tab13_init_prompts..sh": 1}


@pytest.fixture(scope="module")
def known() -> dict[Any, str]:
    return dict(published.experiments())


def test_every_command_is_written_down() -> None:
    assert Counter(one.repository for one in COMMANDS) == COUNTS
    assert Counter(one.file for one in COMMANDS if one.settings is None) == LEFT_OUT
    assert all(one.left_out for one in COMMANDS if one.settings is None)


@pytest.mark.slow
def test_every_command_has_an_experiment_of_equal_settings(known: dict[Any, str]) -> None:
    lacking = [(one.file, dict(one.settings)) for one in COMMANDS if one.settings and one.settings not in known]
    assert lacking == []


@pytest.mark.parametrize(
    ("repository", "data", "given", "name"),
    [
        ("lift_plus", "imagenet_lt", {"tuner": "none", "lr": 0.03, "five_crops": True}, "tuners/none"),
        ("lift_plus", "imagenet_lt", {"tuner": "full", "lr": 0.001, "five_crops": True}, "tuners/full_lr_0.001"),
        ("lift", "places_lt", {"tuner": "lora"}, "lift_tuners/lora"),
        ("lift", "inat2018", {"backbone": "clip_vit_l14", "five_crops": True}, "lift_five_crops"),
    ],
)
def test_commands_by_hand(known: dict[Any, str], repository: str, data: str, given: dict[str, Any], name: str) -> None:
    table = published.read()[repository]
    (settings,) = published.settings(table, {"set": given | {"data": data}})
    assert known[published.meaning(repository, settings)].endswith(name)


def test_a_wrong_setting_is_seen(known: dict[Any, str]) -> None:
    """The comparison is no formality: another rate, kernel, start or size has no experiment."""
    table = published.read()["lift_plus"]
    for given in ({"lr": 0.017}, {"kernel": "bilinear"}, {"crops": "lift", "epochs": 7}, {"size": 3}, {"margin": 31}):
        (settings,) = published.settings(table, {"set": given | {"data": "imagenet_lt"}})
        assert published.meaning("lift_plus", settings) not in known, given


def test_the_page_tells_what_is_left_out() -> None:
    text = " ".join(page("papers-code.md").split())
    for why in {one.left_out for one in COMMANDS if one.settings is None}:
        assert why in text
