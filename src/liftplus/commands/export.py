"""`liftplus export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from liftplus.commands import options
from liftplus.commands.options import AsJson, FiveCrops, Run
from liftplus.errors import UserError
from liftplus.words import counted

if TYPE_CHECKING:
    from torch import Tensor

    from liftplus.publishing.export import Format
    from liftplus.runs.opening import Session
    from liftplus.training.checkpoint import Trained

CHECKED = 100


def export(
    run: Run,
    out: Annotated[Path, typer.Option("--out", "-o", help="FILE.onnx or FILE.pt2; with --format peft a folder.")],
    form: Annotated[str | None, typer.Option("--format", "-f", help="onnx, pt2 or peft; default: by --out.")] = None,
    prior: Annotated[
        str | None,
        typer.Option(help="Class prior in use: as_trained, training, uniform, or a JSON file of counts."),
    ] = None,
    five_crops: FiveCrops = None,
    check: Annotated[
        list[str] | None, typer.Option(help="Pictures to compare on; default: the run's test split. Repeatable.")
    ] = None,
    as_json: AsJson = False,
    change: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="key=value, e.g. weights=PATH; repeatable.")
    ] = None,
) -> None:
    """Export the model as ONNX or torch.export's .pt2, compared with PyTorch; or its LoRA weights for peft."""
    from liftplus import console
    from liftplus.evaluation import priors
    from liftplus.publishing import export as exporting
    from liftplus.training import checkpoint

    if form == "peft":
        _export_peft(run, out, change, as_json)
        return
    chosen = _format(out, form)
    expected = [] if prior is None else [f"evaluation.prior={prior}"]
    fixed = ("device=cpu", "precision=fp32", "grad_checkpointing=false")
    settings = options.run_settings(run, None, [*(change or []), *options.crops(five_crops, change), *expected, *fixed])
    if note := priors.note(settings, settings.evaluation.prior):
        console.err.print(f"Note: {note}")
    session = options.session(settings)
    trained = checkpoint.load_model(run, session.runtime, settings.backbone)
    images, source = _pictures(session, trained, check)
    parity = exporting.export(trained, out, chosen, images, session.progress, settings.evaluation)
    count = 5 if settings.evaluation.tte else 1
    if as_json:
        print(json.dumps({"file": str(out), "compared_on": source, "crops": count} | vars(parity)))
        return
    console.out.print(
        f"{out} and {exporting.beside(out).name}: logits differ from PyTorch's by at most {parity.difference:.1e} "
        f"(their deviation is {parity.deviation:.1f}) on {counted(parity.images, 'picture')} of {source}. The graph "
        "takes "
        + ("five crops of each picture, as predict --five-crops." if count > 1 else "one crop, as predict --one-crop.")
    )


def _format(out: Path, form: str | None) -> Format:
    """The format, by the file's suffix. Raises UserError before any work if the file cannot be written."""
    from liftplus.machine import disk
    from liftplus.publishing import export as exporting

    by_name = next((known for known, suffix in exporting.SUFFIXES.items() if out.suffix == suffix), None)
    if by_name is None or form not in (None, by_name):
        raise UserError(
            f"--out is {str(out)!r}, but its name must end in .onnx or .pt2 and agree with --format. For peft give "
            "--format peft and a folder."
        )
    disk.check_target(out)
    exporting.required(by_name)
    return by_name


def _pictures(session: Session, trained: Trained, check: list[str] | None) -> tuple[Tensor, str]:
    """The pictures to compare on, and the name of their source."""
    from liftplus import console
    from liftplus.data.dataset import Split
    from liftplus.publishing import export
    from liftplus.runs import inputs

    evaluation = session.config.evaluation
    if check:
        rows = inputs.read(check).complete()
        split = Split(rows.keys, [0] * len(rows))
        return export.views(rows.store, split, evaluation, trained, CHECKED), ", ".join(check)
    try:
        dataset = session.data(for_testing=False)
    except (UserError, OSError) as error:
        raise UserError(f"The run's data cannot be read: {error} Give pictures to compare on with --check.") from error
    name = next((name for name in ("test", "val", "train") if name in dataset.splits), "train")
    console.err.print(f"Comparing on {dataset.name}, split {name}.")
    return export.views(dataset.store, dataset.splits[name], evaluation, trained, CHECKED), dataset.name


def _export_peft(run: Path, out: Path, change: list[str] | None, as_json: bool) -> None:
    from liftplus import console
    from liftplus.publishing import lora_exchange
    from liftplus.training import checkpoint

    settings = options.run_settings(run, None, [*(change or []), "device=cpu", "precision=fp32"])
    trained = checkpoint.load_model(run, options.session(settings).runtime, settings.backbone)
    written = lora_exchange.write_folder(trained, out)
    if as_json:
        print(json.dumps({"folder": str(out), "linears": written}))
        return
    console.out.print(f"LoRA weights of {counted(written, 'linear')} and the head are in {out}, for peft.")
