"""The benchmarks run through at their smallest size, count what they say; the page holds their results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
QUICK = ("--device", "cpu", "--model", "mini", "--repeats", "2", "--warm-up", "1", "--classes", "7", "--width", "2")
CPU = torch.device("cpu")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module of the folder benchmarks by name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module


def run(*args: object) -> None:
    """A script in a process of its own."""
    ended = subprocess.run(
        [sys.executable, *map(str, args)], cwd=BENCHMARKS, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_contenders_take_turns(script: Callable[[str], Any]) -> None:
    harness, seen = script("harness"), []
    pair = [harness.Contender(name, lambda name=name: seen.append(name), 1) for name in "AB"]
    taken = harness.interleaved(pair, CPU, warm_up=1, repeats=3)
    assert "".join(seen) == "AB" + 3 * "AB"
    assert [len(taken[name]) for name in "AB"] == [3, 3]


def test_ratios_go_turn_by_turn(script: Callable[[str], Any]) -> None:
    """A machine that gets slower and slower leaves the ratio where it is."""
    found = script("harness").ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
    assert found == {"median": 2.0, "min": 2.0, "max": 2.0, "mad": 0.0}


def test_peak_memory_is_what_was_held_at_once(script: Callable[[str], Any]) -> None:
    def work() -> None:
        first = torch.empty(2**20, dtype=torch.uint8)
        second = torch.empty(2**21, dtype=torch.uint8)
        del first, second
        torch.empty(2**20, dtype=torch.uint8)

    assert script("harness").peak_memory(work, CPU) == 3 * 2**20


def test_useful_flops_are_the_closed_form(script: Callable[[str], Any]) -> None:
    """mini_clip by hand: 65 tokens, width 192, 6 blocks, AdaptFormer r 5, 11 classes."""
    flops, contenders = script("flops"), script("contenders")
    tokens, width, depth, r, classes = 65, 192, 6, 5, 11
    work = contenders.Work("mini", 3, classes, r)
    tuned, head = 2 * 2 * tokens * width * r, 2 * classes * width
    forward = flops.vit(width=width, depth=depth, tokens=tokens, patch=8) + depth * tuned + head
    assert flops.of_forward(work) == forward
    block = tokens * 2 * width**2 * 12 + 2 * (2 * 2 * tokens**2 * width)
    # The first block's attention and MLP lie before every tuned weight: no gradient goes through them.
    assert flops.of_step(work) == forward + (depth - 1) * block + depth * 2 * tuned + 2 * head


def test_both_train_the_same_weights(script: Callable[[str], Any]) -> None:
    contenders, runtime = script("contenders"), import_module("liftplus.machine.runtime")
    work, chosen = contenders.Work("mini", 2, 7, 2), runtime.choose("cpu", "fp32")
    pair = (
        contenders.our_model(work, chosen, contenders.dataset(7)),
        contenders.plain_classifier(work, CPU),
    )
    ours, plain = ({name: p.shape for name, p in m.named_parameters() if p.requires_grad} for m in pair)
    assert ours == plain


@pytest.mark.slow
def test_the_step_says_what_it_is(script: Callable[[str], Any], tmp_path: Path) -> None:
    train_step = script("train_step")
    args = train_step.parse([*QUICK, "--batch", "2", "--only", "liftplus", train_step.FP32])
    record = train_step.measure(args)
    assert record.keys() >= {"command", "date", "settings", "hardware", "versions", "work", "peak", "rows"}
    assert record["settings"]["warm_up"] == 1 and record["hardware"]["cores"] >= 1
    assert [row["name"] for row in record["rows"]] == ["liftplus", train_step.FP32]
    for row in record["rows"]:
        assert row["seconds"].keys() == {"median", "min", "max", "mad"}
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"]["median"], rel=1e-2)
        assert row["share_of_peak"] > 0
    script("harness").write(tmp_path / "new" / "step.json", record)
    assert json.loads((tmp_path / "new" / "step.json").read_text()) == json.loads(json.dumps(record))


@pytest.mark.parametrize(("at_most", "good", "bad"), [(False, 4.0, 3.9), (True, 4.0, 4.1)])
def test_verdicts(at_most: bool, good: float, bad: float, script: Callable[[str], Any]) -> None:
    everything = script("all")
    line = everything.Verdict("a line", 4, lambda found: found["x"]["value"], at_most=at_most)
    assert line.judge({"x": {"value": good}})["verdict"] == "holds"
    assert line.judge({"x": {"value": bad}})["verdict"] == "falls short"
    assert line.judge({})["verdict"] == "not measured"


def test_every_script_of_all_takes_its_options(script: Callable[[str], Any]) -> None:
    """So that a mistyped option does not show on the GPU first."""
    everything = script("all")
    for gpu, small in ((True, False), (False, False), (False, True)):
        for command in everything.stages(gpu, small).values():
            script(command[0].removesuffix(".py")).parse(command[1:])


def test_noise_and_difference(script: Callable[[str], Any]) -> None:
    judged = script("same_accuracy").judged
    assert judged([70.0, 71.0, 72.0], [70.2, 70.8, 72.1])["verdict"] == "within noise"
    apart = judged([70.0, 70.1, 70.2], [72.0, 72.1, 72.3])
    assert apart["verdict"] == "differs" and apart["difference"] == pytest.approx(2.03, abs=0.01)


def test_runs_that_are_there_are_not_made_again(
    script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same, asked = script("same_accuracy"), []

    def one(args: Any, arm: str, keys: list[str], seed: int) -> dict[str, Any]:
        asked.append((seed, arm))
        about = {"data": args.data, "backbone": args.backbone, "arm": arm, "seed": seed, "keys": list(keys)}
        about |= {"epochs": 1, "train_images": 9, "test_images": 3, "seconds": 1.0}
        return about | dict.fromkeys(same.GROUPS, 50.0 + seed)

    monkeypatch.setattr(same, "one", one)
    out = tmp_path / "rows.jsonl"
    given = ["run", "--out", str(out), "--reference", "precision=fp32", "--fast", "precision=auto"]
    same.run(same.parse([*given, "--seeds", "2"]))
    assert asked == [(0, "reference"), (0, "fast"), (1, "reference"), (1, "fast")]
    out.write_text(out.read_text()[:-20])  # as if it had been stopped while writing
    same.run(same.parse([*given, "--seeds", "3"]))
    assert asked[4:] == [(1, "fast"), (2, "reference"), (2, "fast")]
    assert {row["verdict"] for row in same.summary(same.lines(out))} == {"within noise"}


def test_the_reference_is_not_compiled(script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As its settings say, also where "auto" would compile."""
    same, asked = script("same_accuracy"), []

    def choose(*_args: str, **options: str) -> None:
        asked.append(options["compiling"])
        raise RuntimeError("that was all")

    monkeypatch.setattr(same.runtime, "choose", choose)
    args = same.parse(["run", "--out", "x", "--device", "cpu"])
    for arm, keys in same.ARMS.items():
        with pytest.raises(RuntimeError, match="that was all"):
            same.one(args, arm, keys, 0)
    assert asked == ["off", "auto"]


def test_imitated_bf16_rounds_as_bf16_does(script: Callable[[str], Any]) -> None:
    """Forward and backward of a small network in autocast, against the CPU's own slow bf16."""
    mode = script("rounded").RoundedProducts
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), torch.nn.Flatten(), torch.nn.Linear(128, 5))
    images, grads, seen = torch.randn(7, 3, 16, 16), [], []
    for imitate in (False, True):
        net.zero_grad()
        with mode() if imitate else nullcontext():
            with torch.autocast("cpu", torch.bfloat16):
                out = net(images)
            out.float().square().sum().backward()
        assert out.dtype is torch.bfloat16
        seen.append(out.detach().float())
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(seen[1], seen[0], rtol=2**-7, atol=2**-9)  # one unit in the last place of bf16
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2**-6 * float(b.abs().max()))
    assert not torch.equal(seen[1], net(images).detach())  # it does round


def test_a_part_keeps_every_class(script: Callable[[str], Any]) -> None:
    from liftplus.data.dataset import Split

    labels = [0] * 50 + [1] * 5 + [2]
    split = Split([str(i) for i in range(len(labels))], labels)
    part = script("same_accuracy").part(split, 10, 1)
    assert set(part.labels) == {0, 1, 2} and 10 <= len(part) <= 12
    assert all(split.labels[int(key)] == label for key, label in zip(part.keys, part.labels, strict=True))


def test_answers_of_a_graph_are_compared_picture_by_picture(script: Callable[[str], Any]) -> None:
    pytest.importorskip("onnxruntime")
    found = np.array([[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]], dtype=np.float32)
    expected = np.array([[0.25, 0.75, 0.0], [0.25, 0.25, 0.5]], dtype=np.float32)
    said = script("onnx_pictures").compared(found, expected)
    assert said == {"pictures": 2, "same_class": 0.5, "largest": 0.25, "mean": 0.25}


def test_files_of_results_that_pages_name_are_there() -> None:
    """So that a figure's source does not vanish behind it; NAME stands for the user's."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {name for page in pages for name in re.findall(r"benchmarks/results/[\w./-]+", page.read_text("utf-8"))}
    missing = [name for name in named if not (ROOT / name.rstrip(".")).exists() and "NAME" not in name]
    assert "benchmarks/results/stream-sizes.json" in named and not missing


def test_stream_sizes_are_those_of_every_branch(
    script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unrounded mean squares, also above 1, where a rate would stay as it is."""
    stream, safeguard = script("stream_sizes"), import_module("liftplus.training.safeguard")
    monkeypatch.setattr(safeguard, "PICTURES", 4)
    options = ["--backbone", "mini_clip", "--size", "mini_clip=32", "--device", "cpu", "--precision", "fp32"]
    monkeypatch.setattr(sys, "argv", ["stream_sizes.py", *options, "--out", str(tmp_path / "stream-sizes.json")])
    stream.main()
    record = json.loads((tmp_path / "stream-sizes.json").read_text())
    assert record["command"].startswith("python benchmarks/stream_sizes.py --backbone mini_clip")
    (row,) = record["rows"]
    assert row["pictures"] == 4 and row["pixels"] == 32 and row["tuner"] == ["adaptformer"]
    sizes = row["mean_squares"]
    assert list(sizes) == [f"tuners.adaptformer.{i}" for i in range(6)]
    assert 0 < row["least"] == min(sizes.values()) < 1 < row["median"] < row["most"] == max(sizes.values())
    assert "| `mini_clip` | 32 | `adaptformer` | 6 |" in script("tables").of_kind("stream-sizes.json", record)


@pytest.mark.parametrize("given", [["--size", "mini_clip"], ["--weights", "dinov2_s14=x.pt"]])
def test_stream_sizes_refuse_an_option_of_no_backbone(given: list[str], script: Callable[[str], Any]) -> None:
    with pytest.raises(SystemExit):
        script("stream_sizes").parse(["--backbone", "mini_clip", *given])


def test_the_pages_hold_the_results(script: Callable[[str], Any]) -> None:
    tables = script("tables")
    for path in tables.PAGES:
        page = path.read_text(encoding="utf-8")
        assert tables.MARKED.search(page)
        assert tables.filled(page) == page, "run python benchmarks/tables.py"


@pytest.mark.slow
def test_everything_at_small_size(tmp_path: Path) -> None:
    """The one command for a GPU, on a CPU with tiny models: every stage runs and every line has a number."""
    out = tmp_path / "all.json"
    run("all.py", "--device", "cpu", "--small", "--out", out)
    record = json.loads(out.read_text())
    assert not [stage["failed"] for stage in record["stages"].values() if "failed" in stage]
    unmeasured = {line["line"] for line in record["verdicts"] if line["measured"] is None}
    assert unmeasured == {"times a plain eager fp16-autocast loop"}  # there is no fp16 on a CPU
    evaluation, memory, scaling, epoch = (record["stages"][k] for k in ("evaluation", "memory", "scaling", "epoch"))
    assert {row["crops"] for row in evaluation["rows"]} == {1, 5}
    assert {row["checkpointing"] for row in memory["rows"]} == {False, True}
    assert {row["axis"] for row in scaling["rows"]} == {"batch", "size", "classes", "width"}
    assert 0 <= epoch["rows"][0]["waiting_share"] <= 1 and epoch["rows"][0]["steps"] == 5
    assert any("peft" in row["name"] for row in record["stages"]["step"]["rows"])


@pytest.mark.slow
def test_two_arms_for_real(script: Callable[[str], Any], tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    small = ["--epochs", 1, "--train-images", 200, "--test-images", 50, "--seeds", 2, "--device", "cpu"]
    run("same_accuracy.py", "run", "--out", out, *small, "--reference", "precision=fp32", "--fast", "precision=auto")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["seed"], row["arm"]) for row in rows] == [(s, arm) for s in (0, 1) for arm in ("reference", "fast")]
    assert all(0 <= row["overall"] <= 100 and len(row["losses"]) == 1 for row in rows)
    table = script("tables").accuracy_table(out)
    assert f"| openmoji_lt, {rows[0]['train_images']} images, 1 epochs | overall | 2 |" in table
    assert rows[0]["versions"]["hardware"] in table


@pytest.mark.slow
def test_convolutions(script: Callable[[str], Any], tmp_path: Path) -> None:
    """Every way is timed for steps and for tests, and the table has a line for each backbone and kind."""
    out = tmp_path / "cpu-convolutions.json"
    quick = ["--size", 64, "--batch", 2, "--repeats", 2, "--warm-up", 1, "--device", "cpu"]
    run("convolutions.py", "--backbones", "efficientnet_lite0", *quick, "--out", out)
    record = json.loads(out.read_text())
    assert {(row["kind"], row["name"]) for row in record["rows"]} >= {
        (kind, f"fp32 {layout}") for kind in ("step", "test") for layout in ("contiguous", "channels-last")
    }
    table = script("tables").of_kind(out.name, record)
    assert "| efficientnet_lite0 | training step |" in table and "| efficientnet_lite0 | test |" in table


@pytest.mark.slow
def test_start_times_are_told(script: Callable[[str], Any], tmp_path: Path) -> None:
    """In the order in which they pass; each is from the start of the process on."""
    out = tmp_path / "cpu-startup.json"
    run("startup.py", "--device", "cpu", "--repeats", 1, "--out", out)
    record = json.loads(out.read_text())
    assert [row["name"] for row in record["rows"]][:2] == ["import liftplus", "--help"]
    assert all(row["seconds"]["median"] > 0 for row in record["rows"])
    stages = [(row["name"], row["seconds"]["median"]) for row in record["rows"][2:]]
    assert [name for name, _ in stages] == list(script("startup").STAGES)
    assert 0 < stages[0][1] < stages[1][1] < stages[2][1] < stages[3][1] < stages[4][1]
    assert "the first step is done" in script("tables").of_kind(out.name, record)


@pytest.mark.slow
def test_a_long_list_is_inspected_and_trained_on(script: Callable[[str], Any], tmp_path: Path) -> None:
    out = tmp_path / "cpu-large-list.json"
    run("large_list.py", "--pictures", 1500, "--classes", 30, "--repeats", 1, "--out", out)
    record = json.loads(out.read_text())
    assert [row["name"] for row in record["rows"]] == ["inspect, this", "inspect again", "train, few", "train, all"]
    assert all(row["peak_bytes"]["median"] > 2**24 for row in record["rows"])
    assert "to its first step" in script("tables").of_kind(out.name, record)


@pytest.mark.slow
def test_builds_take_turns(tmp_path: Path) -> None:
    out, ours, plain = tmp_path / "builds.json", "liftplus", "plain fp32 loop"
    given = ("--device", "cpu", "--model", "mini", "--batch", 2, "--repeats", 2, "--warm-up", 1, "--only", ours, plain)
    run("builds.py", *given, "--out", out)
    rows = {(row["what"], row["name"]): row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == [("step", ours), ("step", plain), ("test", ours), ("test", plain)]
    for what in ("step", "test"):
        ratios = (rows[what, ours]["times"][plain]["median"], rows[what, plain]["times"][ours]["median"])
        assert ratios[0] > 0 and rows[what, ours]["turns"] == 2


def test_the_page_on_settings_has_the_tables_of_its_study(script: Callable[[str], Any]) -> None:
    page = (ROOT / "docs" / "recipe.md").read_text()
    assert script("recipe_study").filled(page, BENCHMARKS / "results" / "recipe.jsonl") == page
    assert page.count("| 17 clothes, ViT-S/14 |") == 3


def test_the_page_on_speed_has_the_table_of_patches_left_out(script: Callable[[str], Any]) -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    assert script("keep_study").filled(page, BENCHMARKS / "results" / "keep.jsonl") == page
    assert page.count("| half, equal epochs |") == 2


def test_the_page_on_choosing_has_the_table_of_rivals(script: Callable[[str], Any]) -> None:
    page = (ROOT / "docs" / "choosing.md").read_text()
    assert script("rivals").filled(page, BENCHMARKS / "results" / "rivals.jsonl") == page
    assert page.count("| full+, layer decay | lr 0.1, layer_decay 0.5 |") == 1


def test_the_page_on_classes_has_the_table_of_added_ones(script: Callable[[str], Any]) -> None:
    page = (ROOT / "docs" / "export.md").read_text()
    assert script("added_classes").filled(page, BENCHMARKS / "results" / "added-classes.jsonl") == page
    assert page.count("| 17 clothes, mini_clip_v1, lift+ |") == 1


def test_the_page_on_checking_data_has_the_tables_of_its_study(script: Callable[[str], Any]) -> None:
    page = (ROOT / "docs" / "data-check.md").read_text()
    assert script("data_check").filled(page, BENCHMARKS / "results" / "data-check.jsonl") == page
    assert page.count("| clothing17, efficientnet_lite0 | 2 |") == 1
    assert page.count("| 100,000 | features |") == 1


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_shares_of_lt_soups_are_those_of_its_recursion(script: Callable[[str], Any], share: float) -> None:
    rivals, runs = script("rivals"), [5.0, -2.0, 11.0, 0.5]
    weight = 3.0  # the start's
    for own in runs:
        weight = share * weight + (1 - share) * own
    counts = rivals.shares(4, share)
    assert sum(counts) == pytest.approx(1)
    assert sum(c * own for c, own in zip(counts, [3.0, *runs], strict=True)) == pytest.approx(weight)


def test_subsets_of_lt_soups_double_until_all_are_in(script: Callable[[str], Any]) -> None:
    limits = script("rivals").limits
    assert limits([12, 5, 0, 2]) == [2, 4, 8, 16]
    assert limits([16, 2]) == [2, 4, 8, 16]
    assert limits([7, 7]) == [7]


@pytest.mark.slow
def test_every_rival_is_made_and_tabled(
    script: Callable[[str], Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its cost; LT-Soups trains on subsets from the most even one to all pictures."""
    rivals = script("rivals")
    monkeypatch.setattr(rivals, "LEAST_STEPS", 2)
    monkeypatch.setattr(rivals, "SEEDS", (0,))
    few = {"lr": (0.01,)}
    further = {"full+, layer decay": {"layer_decay": (0.5,)}, "LT-Soups": {"share": (0.3, 0.7)}}
    further["full+, between it and its start"] = {"start": (0.5,)}
    small = {name: rivals.Rival(one.make, few | further.get(name, {})) for name, one in rivals.RIVALS.items()}
    monkeypatch.setattr(rivals, "RIVALS", small)
    given = ("epochs=1", "train.batch_size=8", "workers=0", "device=cpu", "precision=fp32", "val_share=0.3")
    work, rows = rivals.Work(str(photos), "mini_clip", given, tmp_path / "runs"), tmp_path / "rows.jsonl"
    for stage in ("search", "test"):
        rivals.fill(rows, rivals.keys(stage, list(small), rows, work), lambda key: rivals.one(key, work))
    found = {row["rival"]: row for row in rivals.read(rows) if row["stage"] == "test"}
    assert found.keys() == small.keys() and len(list(rivals.table(rivals.read(rows)))) == 2 + len(small)
    assert found["full+, mean of 3 seeds"]["epochs"] == 3 and found["lift+, GLA"]["test_passes"] == 2
    assert found["full+"]["epochs"] == 1 and found["LT-Soups"]["epochs"] > 3


def test_the_page_on_choosing_and_the_package_have_the_measured_pairs(script: Callable[[str], Any]) -> None:
    rows, page = BENCHMARKS / "results" / "tuning_map.jsonl", (ROOT / "docs" / "choosing.md").read_text()
    assert script("tuning_map").filled(page, rows) == page
    kept = ROOT / "src" / "liftplus" / "evaluation" / "tuning_map.json"
    assert script("tuning_map").packed(rows) == kept.read_text()
