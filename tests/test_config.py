"""Presets, key=value, and what a user is told about a mistake."""

from __future__ import annotations

from typing import Any

import pytest

from liftplus import config
from liftplus.config import full_key
from liftplus.data.config import DataConfig, of_words
from liftplus.errors import UserError
from liftplus.model.heads import Cosine
from liftplus.model.losses import LogitAdjusted
from liftplus.names import presets


def test_default_is_lift_plus() -> None:
    run = config.resolve(backbone="clip_vit_b16")
    assert list(run.tuner) == ["adaptformer"]
    assert (run.train.epochs, run.train.lr, run.train.batch_size) == (5, 0.02, 128)
    assert (run.train.momentum, run.train.weight_decay, run.train.schedule) == (0.9, 5e-4, "epoch")
    assert run.head == Cosine(scale=25) and run.loss == LogitAdjusted(tau=1)
    assert (run.augment.name, run.head_init.name) == ("mda", "semantic")
    assert run.evaluation.tte and run.evaluation.expand == 24


def test_presets_follow_the_papers() -> None:
    lift = config.resolve(method="lift")
    assert (lift.train.epochs, lift.train.lr, lift.augment.name) == (10, 0.01, "lift")
    probe = config.resolve(method="linear_probe")
    assert probe.tuner == {} and (probe.train.epochs, probe.train.lr) == (5, 0.03)
    full = config.resolve(method="full")
    assert list(full.tuner) == ["full"]
    # Our own baselines: random rows and the usual crops, unlike the papers' full fine-tuning.
    assert {run.head_init.name for run in (probe, full)} == {"random"}
    assert {run.augment.name for run in (probe, full)} == {"lift"}
    assert config.resolve(method="zeroshot").train.epochs == 0
    assert config.resolve(data="inat2018").train.epochs == 15
    assert config.resolve(data="inat2018", method="lift").train.epochs == 20
    names = ("full", "linear_probe", "full+", "linear_probe+")
    assert {config.resolve(data="inat2018", method=name).train.epochs for name in names} == {15}


@pytest.mark.parametrize("backbone", ["mini_clip", "clip_vit_b16", "timm/resnet18.a1_in1k"])
@pytest.mark.parametrize(("method", "tuner"), [("full+", ["full"]), ("linear_probe+", [])])
def test_fair_rivals_differ_from_lift_plus_in_what_is_tuned_alone(backbone: str, method: str, tuner: list[str]) -> None:
    ours, rival = (config.flat(config.resolve(backbone=backbone, method=name)) for name in ("lift+", method))
    assert list(config.resolve(backbone=backbone, method=method).tuner) == tuner
    differing = {key for key in {*ours, *rival} if ours.get(key) != rival.get(key)}
    assert {key for key in differing if not key.startswith("tuner")} == {"method", "train.lr"}


def test_lifts_own_choices_belong_to_its_preset() -> None:
    """LIFT's code: bilinear resizing, all pictures for class means, its sizes, a margin of 21 with ViT-L/14."""
    plus = config.resolve(backbone="clip_vit_l14", overrides=["tuner=lora", "head_init=class_mean", "tte=true"])
    lift = config.resolve(
        backbone="clip_vit_l14", method="lift", overrides=["tuner=lora+bitfit", "head_init=class_mean", "tte=true"]
    )
    assert (plus.backbone.interpolation, lift.backbone.interpolation) == (None, "bilinear")
    assert (plus.evaluation.expand, lift.evaluation.expand) == (24, 21)
    assert plus.to_dict()["head_init"]["shots"] == 100 and lift.to_dict()["head_init"]["shots"] is None
    assert [run.to_dict()["tuner"]["lora"]["sizes"] for run in (plus, lift)] == ["lift+", "lift"]
    assert config.resolve(backbone="clip_vit_l14_336", method="lift").evaluation.expand == 21
    assert config.resolve(backbone="clip_vit_b16", method="lift").evaluation.expand == 24
    late = config.resolve(backbone="clip_vit_b16", overrides=["method=lift", "tuner=aft", "tuner.aft.sizes=lift+"])
    assert late.to_dict()["tuner"]["aft"]["sizes"] == "lift+"
    text_free = config.resolve(backbone="vit_b16_in21k", method="lift")
    assert text_free.to_dict()["head_init"] == {"name": "class_mean", "shots": None}
    assert config.from_dict(lift.to_dict()) == lift


def test_short_names_that_changed_keep_their_weights_in_saved_runs() -> None:
    now = config.resolve(backbone="vit_b16_in21k").to_dict()
    assert config.saved(now)["backbone"]["name"] == "vit_b16_in21k"
    del now["backbone"]["interpolation"]
    assert config.saved(now)["backbone"]["name"] == "vit_b16_in21k_raw"


def test_round_trip_through_plain_values() -> None:
    run = config.resolve(data="x", overrides=["tuner.adaptformer.width=3", "loss.tau=0.5", "augment.schedule=linear"])
    assert config.from_dict(run.to_dict()) == run


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ("epochs=3", "train.epochs", 3),
        ("train.lr=1e-3", "train.lr", 1e-3),
        ("width=8", "tuner.adaptformer.width", 8),
        ("layers=[0,2]", "tuner.adaptformer.layers", [0, 2]),
        ("tte=false", "evaluation.tte", False),
        ("resize=square", "evaluation.resize", "square"),
        ("root=2024", "data.root", "2024"),
        ("root=1.10", "data.root", "1.10"),
        ("template={}", "head_init.template", "{}"),
        ("method=lift", "train.epochs", 10),
        ("backbone.name=clip_vit_b16", "evaluation.expand", 24),
        ("data.source=inat2018", "train.epochs", 15),
        ("template=a picture of {}", "head_init.template", "a picture of {}"),
        ('class_weights={"Hat": 3, "a.b=c": 0.5}', "loss.class_weights", {"Hat": 3, "a.b=c": 0.5}),
        ("loss.class_weights=null", "loss.class_weights", None),
        ("sampler=square_root", "sampler", {"name": "square_root"}),
    ],
)
def test_overrides(given: str, key: str, value: object) -> None:
    values = config.resolve(overrides=[given]).to_dict()
    for part in key.split("."):
        values = values[part]
    assert values == value


def test_a_swapped_part_starts_from_its_own_defaults() -> None:
    run = config.resolve(overrides=["loss=cross_entropy", "head_init=class_mean", "shots=7"])
    assert run.to_dict()["loss"] == {"name": "cross_entropy", "class_weights": None}
    assert run.to_dict()["head_init"] == {"name": "class_mean", "shots": 7}
    assert config.resolve(overrides=["tuner=none"]).tuner == {}


def test_class_weights_are_set_as_a_whole() -> None:
    given = ['class_weights={"Hat": 3, "Top": 2}', "tau=0.5", 'loss.class_weights={"Boat": 4}', "epochs=3"]
    run = config.resolve(overrides=given)
    assert run.loss == LogitAdjusted(tau=0.5, class_weights={"Boat": 4})
    assert config.from_dict(run.to_dict()) == run
    assert config.changed(run.to_dict(), ["class_weights=null"]).loss == LogitAdjusted(tau=0.5)


def test_sampler_options_are_keys() -> None:
    run = config.resolve(overrides=["sampler=effective_number", "beta=0.99"])
    assert run.to_dict()["sampler"] == {"name": "effective_number", "beta": 0.99}
    assert config.resolve().to_dict()["sampler"] == {"name": "instance"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["epoch=3"], "Did you mean 'epochs'? Keys of the same section: train.epochs, train.minutes"),
        (["data.workers=2"], "Did you mean 'train.workers'? Keys of the same section: train.epochs"),
        (["nonsense=1"], "Unknown key 'nonsense'"),
        (["batch_size=4"], "ambiguous; write one of train.batch_size, evaluation.batch_size"),
        (["loss=logit_ajusted"], "Did you mean 'logit_adjusted'"),
        (["tuner=adaptfromer"], "Did you mean 'adaptformer'"),
        (["head=cosin"], "Did you mean 'cosine'"),
        (["train=5"], "is a section"),
        (["epochs"], "key=value"),
        (["lr=-1"], "train.lr = -1 is not allowed: input should be greater than 0"),
        (["augment.schedule=convexe"], "augment.schedule"),
        (['class_weights={"Hat": 0}'], "loss.class_weights.Hat = 0 is not allowed: input should be greater than"),
        (['class_weights={"Hat": NaN}'], "loss.class_weights.Hat"),
        (["class_weights={Hat: 3}"], "loss.class_weights = '{Hat: 3}' is not allowed"),
        (["class_weights.Hat=3"], "Did you mean"),
        (["sampler=class_balance"], "Did you mean 'class_balanced'"),
        (["lr=Infinity"], "train.lr = inf is not allowed: input should be a finite number"),
        (["epochs=" + "1" * 5000], "train.epochs = '111"),
        (["lr=" + "[" * 100_000], "train.lr = '[[["),
    ],
)
def test_mistakes_are_explained(given: list[str], words: str) -> None:
    with pytest.raises(UserError) as told:
        config.resolve(overrides=given)
    assert words in str(told.value)


def test_all_mistakes_at_once() -> None:
    values = config.resolve().to_dict()
    values["train"] |= {"lr": -1, "epochs": "many"}
    values["loss"]["tau"] = "x"
    with pytest.raises(UserError) as told:
        config.from_dict(values)
    for key in ("train.lr", "train.epochs", "loss"):
        assert key in str(told.value)


@pytest.mark.parametrize("values", [[], None, 5, {"tuner": {"lora": 5}}, {"tuner": {"lora": {1: 2}}}, {5: 1}])
def test_configurations_that_are_no_tables_are_explained(values: Any) -> None:
    with pytest.raises(UserError, match="is not allowed"):
        config.from_dict(values)


def test_unknown_method_and_backbone() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'lift\+'"):
        config.resolve(method="lift++")


def test_every_preset_resolves() -> None:
    for method in presets("methods"):
        for backbone in presets("backbones"):
            assert config.resolve(method=method, backbone=backbone).backbone.name == backbone


@pytest.mark.parametrize(
    ("backbone", "tuner", "start"),
    [
        ("mini_clip", "adaptformer", "semantic"),
        ("dinov3_s16", "adaptformer", "class_mean"),
        ("resnet50", "conv_adapter", "class_mean"),
        ("clip_rn50", "conv_adapter", "semantic"),
        ("timm/swinv2_tiny_window8_256.ms_in1k", "lora", "class_mean"),
    ],
)
def test_a_method_fits_itself_to_the_backbone(backbone: str, tuner: str, start: str) -> None:
    """What a method asks for gives way to its counterpart, and is said; what the user asks for does not."""
    run = config.resolve(backbone=backbone)
    assert (list(run.tuner), run.head_init.name) == ([tuner], start)
    changes = (tuner != "adaptformer") + (start != "semantic")
    assert len(config.replaced(run)) == changes
    own = config.resolve(backbone=backbone, overrides=["tuner=adaptformer", "head_init=semantic"])
    assert (list(own.tuner), own.head_init.name) == (["adaptformer"], "semantic")
    assert config.replaced(own) == []
    assert config.from_dict(run.to_dict()) == run


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("source=openmoji_lt", "data.source=openmoji_lt"),
        ("name=efficientnet_lite0", "backbone.name=efficientnet_lite0"),
        ("name=mini_clip", "backbone.name=mini_clip"),
        (" source = openmoji_lt", "data.source=openmoji_lt"),
        ("backbone.name = efficientnet_lite0 ", "backbone.name=efficientnet_lite0"),
        ("method = linear_probe", "method=linear_probe"),
    ],
)
@pytest.mark.parametrize("method", ["lift+", "linear_probe"])
def test_a_short_key_is_its_full_key(short: str, full: str, method: str) -> None:
    """Presets and stand-ins included."""
    one, two = (config.resolve(method=method, overrides=[given]) for given in (short, full))
    assert one == two != config.resolve(method="lift")
    assert config.full_key(short.partition("=")[0]) == full.partition("=")[0].strip()


def test_presets_reach_short_keys() -> None:
    assert config.resolve(overrides=["source=openmoji_lt"]).train.lr == 0.4
    run = config.resolve(overrides=["name=efficientnet_lite0"])
    assert (list(run.tuner), run.head_init.name) == (["conv_adapter"], "class_mean")
    for given in ("source", "name", "method"):
        with pytest.raises(UserError, match="not of the form key=value"):
            config.resolve(overrides=[given])


@pytest.mark.parametrize(
    "words",
    [
        ["data.root=1"],
        ["root=x y", "val_share=0.1", "decode=exact"],
        ["data.class_names=7", "unreadable=skip", "split_seed=3", "level=null", "num_classes=null"],
        ["imbalance_ratio=10"],
    ],
)
def test_words_about_data_alone_are_read_as_in_a_run(words: list[str]) -> None:
    found = of_words("some.csv", words)
    assert found is not None and found == config.resolve(data="some.csv", overrides=words).data


@pytest.mark.parametrize(
    "word", ["train.lr=1", "root", "val_share=2", "nothing=1", "source=x", "level=planet", "cache=false"]
)
def test_other_words_are_left_to_the_whole_configuration(word: str) -> None:
    assert of_words("some.csv", [word]) is None


def test_short_keys_of_data_mean_data_alone() -> None:
    for name in DataConfig.model_fields:
        assert full_key(name) == f"data.{name}"


def test_what_may_change_after_training() -> None:
    """Also what commands set by themselves, such as export; a value that the recipe chose is as fixed as any other."""
    run = config.resolve(overrides=["grad_checkpointing=true"])
    values = run.model_copy(update={"automatic": ("train.lr",)}).to_dict()
    words = ["grad_checkpointing=false", "weights=a.pt", "workers=0", "device=cpu", "precision=fp32", "tte=true"]
    after = config.after_training(values, words)
    assert (after.backbone.grad_checkpointing, after.train.workers, after.evaluation.tte) == (False, 0, True)
    assert config.after_training(values, [f"lr={run.train.lr}"]).train.lr == run.train.lr
    for word, key in (("lr=3", "train.lr"), ("image_size=96", "backbone.image_size"), ("loss.tau=2", "loss")):
        with pytest.raises(UserError, match=f"^{key} belongs to the trained run"):
            config.after_training(values, [word])
