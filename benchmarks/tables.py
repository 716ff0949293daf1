"""Write tables of the documentation's pages from the committed results.

    python benchmarks/tables.py            rewrite what stands between the markers
    python benchmarks/tables.py --check    fail where a page does not hold what the results say

A marker pair is `<!-- table FILE -->` … `<!-- end -->`; FILE lies in benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import same_accuracy

HERE = Path(__file__).resolve().parent
PAGES = [
    HERE.parent / "docs" / name for name in ("performance.md", "data-path.md", "recipe.md", "export.md", "serve.md")
]
MARKED = re.compile(r"(<!-- table ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown, numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def caption(record: dict[str, Any]) -> str:
    """Command, machine, versions, date and how it was timed."""
    machine, versions = record["hardware"], record["versions"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores, {machine['vectors']}"
    settings, timed = record["settings"], ""
    if "repeats" in settings:
        timed = f"; warm-up {settings['warm_up']}, {settings['repeats']} repeats, median (spread)"
        timed += "; CPU time of one thread" if settings.get("cpu_time") else ""
    if "cpu_share" in record and "gpu" not in machine:
        timed += f"; the process had {min(1, record['cpu_share']):.0%} of the cores"
    peak = record.get("peak")
    told = f" Peak: {peak['used'] / 1e12:.3g} TFLOP/s in {peak['precision']} ({peak['source']})." if peak else ""
    return (
        f"`{record['command']}` on {where}; torch {versions['torch']}, timm {versions['timm']}, liftplus in "
        f"{versions['precision']}; {record['date']}{timed}.{told}\n\n"
    )


def milliseconds(seconds: dict[str, float]) -> str:
    middle, low, high = (f"{1000 * seconds[key]:,.4g}" for key in ("median", "min", "max"))
    return f"{middle} ({low}–{high})"


def share(row: dict[str, Any]) -> list[str]:
    if row.get("share_of_peak") is None:
        return ["–", "–"]
    return [f"{row['flops_per_second'] / 1e12:.3g}", f"{row['share_of_peak']:.0%}"]


def contenders_table(record: dict[str, Any]) -> str:
    """Of train_step.py and evaluation.py."""
    crops = any("crops" in row for row in record["rows"])
    header = ["", *(["crops"] if crops else []), "images/s", "ms", "× fp32 loop", "useful TFLOP/s", "share of peak"]
    rows = [
        [
            row["name"],
            *([row["crops"]] if crops else []),
            f"{row['images_per_second']:,.4g}",
            milliseconds(row["seconds"]),
            f"{row['times_baseline']['median']:.2f}" if "times_baseline" in row else "–",
            *share(row),
        ]
        for row in record["rows"]
    ]
    return caption(record) + table(header, rows)


def memory_table(record: dict[str, Any]) -> str:
    header = ["batch", "checkpointing", "peak GiB", "predicted GiB", "off by"]
    rows = []
    for row in record["rows"]:
        peak = f"{row['peak_bytes'] / 2**30:.2f}" if "peak_bytes" in row else "too much"
        foretold = f"{row['predicted'] / 2**30:.2f}" if "predicted" in row else "–"
        off = f"{row['off_by']:+.0%}" if "off_by" in row else "–"
        rows.append([row["batch"], "yes" if row["checkpointing"] else "no", peak, foretold, off])
    return caption(record) + table(header, rows)


def scaling_table(record: dict[str, Any]) -> str:
    header = ["", "ms a step", "× first", "× by useful FLOPs"]
    rows = [
        [row["name"], milliseconds(row["seconds"]), f"{row['time_as_multiple']:.2f}", f"{row['expected']:.2f}"]
        for row in record["rows"]
    ]
    return caption(record) + table(header, rows)


def epoch_table(record: dict[str, Any]) -> str:
    row = next(row for row in record["rows"] if row["name"] == "epoch")
    rows: list[Sequence[object]] = [
        ["end-to-end epoch, images/s", f"{row['images_per_second']:,.4g}"],
        ["waiting for data, share of the time after the first batch", f"{row['waiting_share']:.1%}"],
        ["waiting for the epoch's first batch, s", row["first_batch_seconds"]],
    ]
    return caption(record) + table(["", ""], rows)


STARTUP = {
    "import liftplus": "`import liftplus`",
    "--help": "`liftplus --help`",
    "torch": "`liftplus train`: torch is imported",
    "imports": "everything is imported",
    "data": "the pictures are found",
    "model": "the model is built",
    "first step": "the first step is done",
}


def startup_table(record: dict[str, Any]) -> str:
    """Of startup.py: from the start of a process on; with `--base`, two builds side by side."""
    if "same_answers" in record:
        return caption(record) + table(["", "starts each", "other build, s", "this build, s", "ratio"], _builds(record))
    rows = []
    for row in record["rows"]:
        middle, low, high = (f"{row['seconds'][key]:.2f}" for key in ("median", "min", "max"))
        rows.append([STARTUP[row["name"]], f"{middle} ({low}–{high})"])
    return caption(record) + table(["", "s"], rows)


CLOCKS = {"wall": "seconds that pass", "cpu": "seconds of the CPU"}
COMMANDS = {"train": "`liftplus train`, to the end of its first step", "predict": "`liftplus predict RUN one.png`"}


def _builds(record: dict[str, Any]) -> list[list[str]]:
    """A row for each command and clock."""
    rows = []
    for row in record["rows"]:
        spans = ["{median:.1f} ({min:.1f}–{max:.1f})".format(**row[build]) for build in ("base", "this")]
        rows.append(
            [f"{COMMANDS[row['name']]}: {CLOCKS[row['clock']]}", str(row["starts"]), *spans, f"{row['ratio']:.2f}"]
        )
    return rows


LARGE_LIST = {
    "inspect, base": "`data inspect`, commit 2405afc",
    "inspect, this": "`data inspect`, this build",
    "inspect again": "the same once more, with what was kept on disk",
    "train, few": "`train` with 1,000 of the pictures, to its first step",
    "train, all": "`train` with all of them, to its first step",
}


def large_list_table(record: dict[str, Any]) -> str:
    """Of large_list.py: whole commands."""
    rows = [
        [
            LARGE_LIST[row["name"]],
            *(f"{row[key]['median']:.1f}" for key in ("seconds", "cpu_seconds")),
            f"{row['peak_bytes']['median'] / 1e6:,.0f}",
        ]
        for row in record["rows"]
        if row["name"] in LARGE_LIST
    ]
    return caption(record) + table(["", "s", "CPU s", "peak memory, MB"], rows)


def builds_table(record: dict[str, Any]) -> str:
    """Of builds.py: contenders in processes of their own."""
    rows = []
    for row in record["rows"]:
        times = [f"{row['times'][name]['median']:.2f}" if name in row["times"] else "" for name in BUILDS]
        work = {"step": "training step", "test": "test, five crops"}[row["what"]]
        pace, faults = f"{row['images_per_second']:.3g}", f"{row['page_faults']:,.0f}"
        rows.append([work, row["name"], row["precision"], pace, *times, faults])
    return caption(record) + table(
        ["", "", "precision", "images/s", *(f"× {name}" for name in BUILDS), "page faults"], rows
    )


def convolutions_table(record: dict[str, Any]) -> str:
    """Of convolutions.py: a line for each backbone and kind of work, ratios to fp32 in channels-last layout."""
    names = list(dict.fromkeys(row["name"] for row in record["rows"]))
    works = {"step": "training step", "test": "test"}
    rows = []
    for backbone, kind in dict.fromkeys((row["backbone"], row["kind"]) for row in record["rows"]):
        found = {row["name"]: row for row in record["rows"] if (row["backbone"], row["kind"]) == (backbone, kind)}
        pace = f"{found[names[0]]['images_per_second']:.3g}"
        ratios = [f"{found[name]['times_baseline']['median']:.2f}" for name in names[1:]]
        rows.append([backbone.removeprefix("timm/"), works[kind], pace, *ratios])
    return caption(record) + table(["", "", f"{names[0]}, images/s", *(f"× {name}" for name in names[1:])], rows)


BUILDS = ("other build", "plain fp32 loop")

VIEWS = {
    "mda_start": "MDA, first epoch",
    "mda_middle": "MDA, middle",
    "mda_end": "MDA, last epoch",
    "lift": "LIFT's random crop and flip",
    "centre_crop": "one crop (test)",
    "five_crops": "five crops (test)",
}


def data_table(record: dict[str, Any]) -> str:
    header = ["view", "usual, ms", "exact, ms", "fast, ms", "usual / fast", "exact / fast", "mean difference", "worst"]
    rows = []
    for view, found in record["views"].items():
        times = [f"{found[f'ms_{way}']['median']:.2f}" for way in ("usual", "exact", "fast")]
        ratios = [f"{found[f'{way}_to_fast']['median']:.2f}" for way in ("usual", "exact")]
        gap = found["difference"]
        rows.append([VIEWS[view], *times, *ratios, f"{gap['mean']:.4f}", f"{gap['worst_picture']:.3f}"])
    return caption(record) + table(header, rows)


def verdict_table(record: dict[str, Any]) -> str:
    rows = [
        [
            line["line"],
            f"{'≤' if line['at_most'] else '≥'} {line['needed']:g}",
            "–" if line["measured"] is None else f"{line['measured']:g}",
            line["verdict"],
        ]
        for line in record["verdicts"]
    ]
    return caption(record) + table(["", "needed", "measured", ""], rows)


def accuracy_table(path: Path) -> str:
    """Of same_accuracy.py: what each data set was run with, and both arms."""
    lines = same_accuracy.lines(path)
    header = ["data", "group", "seeds", "reference", "fast", "difference ± its error", ""]
    rows = []
    for row in same_accuracy.summary(lines):
        means = [f"{row[arm]['mean']} ± {row[arm]['sd']}" for arm in same_accuracy.ARMS]
        difference = f"{row['difference']:+.2f} ± {row['standard_error']:.2f}"
        name = f"{row['data']}, {row['train_images']:,} images, {row['epochs']} epochs"
        rows.append([name, row["group"], row["seeds"], *means, difference, row["verdict"]])
    told = "`python benchmarks/same_accuracy.py run`. Percent, mean ± standard deviation over seeds.\n\n"
    for where in dict.fromkeys(tuple(line[key] for key in same_accuracy.SAME) for line in lines):
        arms = {line["arm"]: line for line in lines if tuple(line[key] for key in same_accuracy.SAME) == where}
        ways = "; ".join(f"{arm}: `{' '.join(line['keys'])}` ({line['precision']})" for arm, line in arms.items())
        fast, about = arms["fast"], arms["fast"]["versions"]
        told += f"* {fast['data']}, {fast['epochs']} epochs: {ways}; on {about['hardware']}, torch {about['torch']}\n"
    return f"{told}\n{table(header, rows)}"


def stream_table(record: dict[str, Any]) -> str:
    """Of stream_sizes.py: mean squares of what a backbone's branches join."""
    header = ["backbone", "pixels", "tuner", "branches", "least", "median", "most"]
    rows = [
        [
            f"`{row['name']}`",
            row["pixels"],
            f"`{'+'.join(row['tuner'])}`",
            len(row["mean_squares"]),
            *(f"{row[key]:.2g}" for key in ("least", "median", "most")),
        ]
        for row in record["rows"]
    ]
    return caption(record) + table(header, rows)


def onnx_pictures_table(record: dict[str, Any]) -> str:
    """Of onnx_pictures.py: answers, then times."""
    answers = [
        [
            row["name"],
            row["way"] + (f" ({row['precision']})" if row["way"] == "predict" else ""),
            f"{row['pictures']:,}",
            f"{row['same_class']:.1%}",
            f"{row['largest']:.2g}",
            f"{row['mean']:.1g}",
        ]
        for row in record["rows"]
        if "way" in row
    ]
    times = [
        [
            row["name"],
            f"{row['pictures']} {row['times']}",
            *(milliseconds(row["seconds"][who]) for who in ("graph", "predict")),
        ]
        for row in record["rows"]
        if "times" in row
    ]
    header = ["run", "compared with", "photographs", "same class", "largest difference", "mean of the largest"]
    spent = ["run", "photographs", "decoded, and the graph: ms each", "predict in fp32: ms each"]
    onnx = f"onnxruntime {record['versions']['onnxruntime']}, Pillow {record['versions']['pillow']}"
    return f"{caption(record)}{onnx}.\n\n{table(header, answers)}\n{table(spent, times)}"


def serving_rates_table(record: dict[str, Any]) -> str:
    """Of serving.py rates."""

    def cell(values: dict[str, float], digits: int = 0) -> str:
        middle, low, high = (f"{values[key]:,.{digits}f}" for key in ("median", "min", "max"))
        return f"{middle} ({low}–{high})"

    rows = [
        [
            row["name"],
            f"{row['photographs']:,}",
            row["photographs_per_request"],
            *(cell(row["pictures_per_second"][who]) for who in ("predict", "serve")),
            cell(row["serve_over_predict"], 2),
            f"{row['milliseconds']['median']:,.0f} / {row['milliseconds']['99 %']:,.0f}",
        ]
        for row in record["rows"]
    ]
    spent = [
        [
            row["name"],
            row["photographs_per_request"],
            *(cell(row["cpu_milliseconds_per_picture"][who], 2) for who in ("predict", "server", "clients")),
            *(cell(row["other_processes_share_of_cores"][who], 2) for who in ("predict", "serve")),
        ]
        for row in record["rows"]
    ]
    header = ["run", "photographs", "in a request", "predict: pictures/s", "serve: pictures/s", "ratio, turn by turn"]
    header.append("wait, ms: median / 99 %")
    costs = ["run", "in a request", *(f"{who}: CPU ms a picture" for who in ("predict", "the server", "its clients"))]
    costs += [f"other processes, share of the cores during {who}" for who in ("predict", "serve")]
    told = f"{record['clients']} clients, each with a connection that stays open."
    return f"{caption(record)}{told}\n\n{table(header, rows)}\n{table(costs, spent)}"


def serving_soak_table(record: dict[str, Any]) -> str:
    """Of serving.py soak."""
    soak = record["soak"]
    memory, starts = soak["resident_mb"], soak["start_seconds"]
    again = f"{min(starts['after_a_kill']):.1f}–{max(starts['after_a_kill']):.1f} s"
    rows = [
        ["requests, every tenth of them damaged or hostile", f"{soak['requests']:,} in {soak['seconds']:,.0f} s"],
        ["without an answer", soak["lost"]],
        ["with another answer than `predict`'s, or another status than expected", len(soak["wrong"])],
        ["tracebacks", soak["tracebacks"]],
        ["exit code after SIGTERM", soak["exit_code"]],
        ["memory after a tenth, after half, at the end", ", ".join(f"{memory[k]:,.0f} MB" for k in (1, 9, -1))],
        ["first start; started again after SIGKILL", f"{starts['first']:.1f} s; {again}"],
    ]
    return f"{caption(record)}{table(['', 'mini_clip, one crop'], rows)}"


def browser_page_table(record: dict[str, Any]) -> str:
    """Of browser_page.py: size, times, answers."""

    def seconds(values: dict[str, float]) -> str:
        return "{median:.1f} ({min:.1f}–{max:.1f})".format(**values)

    rows = [
        [
            row["name"],
            f"{row['bytes']['all'] / 1e6:.1f}",
            f"{row['bytes']['model'] / 1e6:.1f}",
            *(seconds(row["first_answer"][clock]) for clock in ("wall", "cpu")),
            *(f"{1000 * row['each'][clock]:,.0f}" for clock in ("wall", "cpu")),
            f"{row['same_class']:.0%} of {row['pictures']}",
            f"{row['largest']:.1g}",
        ]
        for row in record["rows"]
    ]
    header = ["run", "folder, MB", "of it the model", "first answer, s", "its CPU s", "further ones, ms each", "CPU ms"]
    header += ["same class", "largest difference"]
    versions = record["versions"]
    told = f"Chromium {versions['chromium']}, onnxruntime-web {versions['onnxruntime-web']}."
    return f"{caption(record)}{told}\n\n{table(header, rows)}"


KINDS = {
    "browser-page": browser_page_table,
    "serving-rates": serving_rates_table,
    "serving-soak": serving_soak_table,
    "onnx-pictures": onnx_pictures_table,
    "step": contenders_table,
    "evaluation": contenders_table,
    "memory": memory_table,
    "scaling": scaling_table,
    "epoch": epoch_table,
    "startup": startup_table,
    "large-list": large_list_table,
    "data_path": data_table,
    "stream": stream_table,
    "builds": builds_table,
    "convolutions": convolutions_table,
}


def of_kind(name: str, record: dict[str, Any]) -> str:
    """The table that goes with a benchmark's name."""
    return next(make for kind, make in KINDS.items() if kind in name)(record)


def everything(record: dict[str, Any]) -> str:
    """Of all.py: the verdicts, then a table for each stage; a stage that did not end is named."""
    parts = [verdict_table(record)]
    for stage, found in record["stages"].items():
        if found["rows"]:
            parts.append(of_kind(stage, found))
        if "failed" in found:
            parts.append(f"`{stage}`: {found['failed']}.\n")
    return "\n".join(parts)


def rendered(name: str, results: Path) -> str:
    """The table of one results file; a line that says so where there is none."""
    path = results / name
    if not path.is_file():
        return f"Not measured: `benchmarks/results/{name}` is not there.\n"
    if path.suffix == ".jsonl":
        return accuracy_table(path)
    record = json.loads(path.read_text(encoding="utf-8"))
    return everything(record) if "verdicts" in record else of_kind(name, record)


def filled(text: str, results: Path = HERE / "results") -> str:
    """The page with every table as the results have it."""
    return MARKED.sub(lambda found: f"{found[1]}{rendered(found[2], results)}{found[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = filled(before)
        if args.check and before != after:
            sys.exit(f"docs/{page.name} is not what the results say: run python benchmarks/tables.py")
        page.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
