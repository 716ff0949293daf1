"""The catalogue itself: every experiment resolves, and every figure is a published one."""

from __future__ import annotations

from pathlib import Path

import pytest

from doc_pages import ROOT
from liftplus.backbones import catalogue as towers
from liftplus.errors import UserError
from liftplus.reproduce import catalogue, needs
from liftplus.reproduce.plan import Plan
from liftplus.runs.changes import changes

# Accuracies with CLIP ViT-B/16 and TTE unless said otherwise, in percent; LIFT's where the name says lift.
FIGURES = {
    "imagenet_lt/clip_vit_b16/lift+": {"overall": 78.3, "many": 81.2, "medium": 77.4, "few": 73.5},
    "places_lt/clip_vit_b16/lift+": {"overall": 52.1, "many": 51.4, "medium": 53.0, "few": 51.4},
    "cifar100_lt_ir100/clip_vit_b16/lift_five_crops": {"overall": 81.7},
    "cifar100_lt_ir50/clip_vit_b16/lift_five_crops": {"overall": 83.1},
    "cifar100_lt_ir10/clip_vit_b16/lift_five_crops": {"overall": 84.9},
    "inat2018/clip_vit_b16/lift+_one_crop": {"overall": 79.4},
    "imagenet_lt/clip_vit_l14/lift_five_crops": {"overall": 82.9},
    "places_lt/clip_vit_l14/lift_five_crops": {"overall": 53.7},
    "inat2018/clip_vit_l14/lift_five_crops": {"overall": 85.2},
    "imagenet_lt/clip_vit_b16/zeroshot": {"overall": (67.7, 68.3)},
}
# Issue 7's list of what the papers' tables vary.
TABLES = {
    *("main", "ablation", "tuners", "losses", "heads", "initialisations", "prompts", "widths", "epochs", "schedules"),
    *("expand", "partial", "arbitrary", "backbones", "levels"),
}
KNOWN = catalogue.load()


def test_the_papers_figures() -> None:
    found = {one.name: one.expected for one in KNOWN.experiments.values() if one.group == "papers" and one.expected}
    wanted = {
        name: {key: value if isinstance(value, tuple) else (value, value) for key, value in figures.items()}
        for name, figures in FIGURES.items()
    }
    assert found == wanted
    for name in found:  # whose figure it is, and that nobody has compared it with the paper's table
        origin = KNOWN.experiments[name].origin
        assert "not checked" in origin and origin.startswith("LIFT+ (" if "lift+" in name else "LIFT ("), name
    assert KNOWN.experiments["imagenet_lt/clip_vit_b16/lift+"].tolerance["overall"] == 0.3
    assert KNOWN.experiments["imagenet_lt/clip_vit_b16/lift+"].tolerance["few"] == 1.0


def test_the_papers_tables() -> None:
    papers = [one for one in KNOWN.experiments.values() if one.group == "papers"]
    assert {one.table for one in papers} >= TABLES
    main = {(one.data, one.backbone, one.variant) for one in papers if one.table == "main"}
    for data in ("imagenet_lt", "places_lt", "inat2018", *(f"cifar100_lt_ir{ratio}" for ratio in (100, 50, 10))):
        for backbone in ("clip_vit_b16", "clip_vit_l14", "vit_b16_in21k"):
            for variant in ("lift+", "lift", "linear_probe", "full"):
                assert (data, backbone, variant) in main
        assert (data, "clip_vit_b16", "zeroshot") in main and (data, "vit_b16_in21k", "zeroshot") not in main


@pytest.mark.slow
def test_every_experiment_resolves() -> None:
    """Without weights or data; and what has the same folder has the same training."""
    plan = Plan(tuple(KNOWN.experiments.values()), Path("r"))
    plan.check()
    trained = {}
    for one in plan.experiments:
        config = plan.config(one, 0)
        traits = towers.traits(config.backbone.name)
        reads = config.head.name == "joint" or config.head_init.name == "semantic"
        assert traits.reads_text or not reads, one.name
        begun, name = trained.setdefault(plan.folder(one, 0), (config, one.name))
        assert changes(begun.model_copy(update={"evaluation": config.evaluation}), config) == [], (name, one.name)


def test_grids_are_every_combination(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(
        '[t]\nabout = "x"\ndata = ["a", "c"]\nbackbones = ["b"]\n[[t.grids]]\nname = "{n}_{lr}"\n'
        'over = { n = [1, 2], lr = [0.5, 0.0005] }\nsettings = ["epochs={n}", "lr={lr}"]\ndata = ["c"]\n',
        encoding="utf-8",
    )
    found = catalogue.load(tmp_path).experiments
    assert list(found) == ["c/b/t/1_0.5", "c/b/t/1_0.0005", "c/b/t/2_0.5", "c/b/t/2_0.0005"]
    assert found["c/b/t/2_0.0005"].settings == ("epochs=2", "lr=0.0005")


def test_every_backbone_of_the_papers_is_a_short_name() -> None:
    assert {one.backbone for one in KNOWN.experiments.values()} <= set(towers.entries())


def test_names_select() -> None:
    name = "imagenet_lt/clip_vit_b16/lift+"
    assert [one.name for one in KNOWN.select([name])] == [name]
    assert {one.table for one in KNOWN.select(["losses"])} == {"losses"}
    assert {one.group for one in KNOWN.select(["papers"])} == {"papers"}
    assert {(one.group, one.table) for one in KNOWN.select(["papers/ablation"])} == {("papers", "ablation")}
    assert {one.backbone for one in KNOWN.select(["imagenet_lt/clip_vit_b16/"])} == {"clip_vit_b16"}
    both = KNOWN.select(["losses", name, name])
    assert len({one.name for one in both}) == len(both) and both[0].name == name
    with pytest.raises(UserError, match=r"Did you mean 'losses'.*papers with the tables main, ablation"):
        KNOWN.select(["loses"])
    with pytest.raises(UserError, match=r"imagenet_lt/clip_vit_b16/lift\+"):
        KNOWN.select(["imagenet_lt/clip_vit_b16/lift"[:-1]])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[t]\nabout = "x"\ndata = ["a"]\nbackbones = ["b"]\n', "variants"),
        ('[t]\nabout = "x"\ndata = ["a"]\nbackbones = ["b"]\nsed = 1\n[t.variants]\nv = {}\n', "sed"),
        (
            '[t]\nabout = "x"\ndata = ["a"]\nbackbones = ["b"]\n[t.variants]\nv = {}\n'
            '[t.expected]\n"a/b/v" = { few = 1 }\n',
            "a/b/v, but the table has no such",
        ),
        (
            '[t]\nabout = "x"\ndata = ["a"]\nbackbones = ["b"]\n[[t.grids]]\nname = "one"\nover = { n = [1, 1] }\n',
            "defined twice",
        ),
        (
            '[t]\nabout = "x"\ndata = ["a", { name = "a", data = "c" }]\nbackbones = ["b"]\n[t.variants]\nv = {}\n',
            "defined twice",
        ),
    ],
)
def test_a_wrong_table_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=told):
        catalogue.load(tmp_path)


def test_needs_of_the_papers_data() -> None:
    """Each data set has a layout and an address, which the page tells in the same words; counts are published ones."""
    papers = {one.source for one in KNOWN.experiments.values() if one.group == "papers"}
    for name in papers:
        need = needs.data(name)
        assert need is not None and "http" in need.get and need.layout and need.wanted
        page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
        assert all(f"* {line}\n" in page for line in need.layout) and need.get[1:] in page, name
    counts = {name: (need.train, need.classes) for name, need in needs.all_data().items() if name in papers}
    assert counts == {
        "imagenet_lt": (115_846, 1000),
        "places_lt": (62_500, 365),
        "inat2018": (437_513, 8142),
        "cifar100_lt": (None, 100),
    }
    plan = Plan(tuple(KNOWN.select(["cifar100_lt_ir100/clip_vit_b16/lift+"])), Path("r"))
    images = needs.training_images(plan.outline(plan.experiments[0]), "cifar100_lt")
    assert images == sum(int(500 * 0.01 ** (k / 99)) for k in range(100))


def test_times_are_estimates_with_a_basis() -> None:
    def seconds(name: str) -> float | None:
        plan = Plan(tuple(KNOWN.select([name])), Path("r"))
        return needs.estimate(plan.outline(plan.experiments[0]), plan.experiments[0].source)

    assert seconds("imagenet_lt/clip_vit_b16/lift+") == pytest.approx(115_846 * 5 / 440)
    assert seconds("inat2018/clip_vit_b16/lift+") == pytest.approx(437_513 * 15 / 440)
    assert seconds("imagenet_lt/clip_vit_b16/zeroshot") == 0
    assert seconds("imagenet_lt/clip_vit_b16/full") is None and seconds("imagenet_lt/clip_vit_l14/lift+") is None
