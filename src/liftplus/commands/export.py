"""`liftplus export`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liftplus.commands import options
from liftplus.commands.options import Alarms, AsJson, AtLevel, ClassShare, Coverage, FiveCrops, Run, SetsBy, Sure
from liftplus.errors import UserError
from liftplus.words import counted

if TYPE_CHECKING:
    from liftplus.calibration.promised import Promised
    from liftplus.config import RunConfig
    from liftplus.data.dataset import Split, Store
    from liftplus.publishing.export import Format, Parity
    from liftplus.publishing.moving import Library
    from liftplus.publishing.preprocessing import Likeness
    from liftplus.runs.guesses import Promises
    from liftplus.runs.opening import Session
    from liftplus.training.checkpoint import Trained

CHECKED = 100


def export(
    run: Run,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="FILE.onnx or FILE.pt2; with --to, --page or --format peft a new folder."),
    ],
    form: Annotated[str | None, typer.Option("--format", "-f", help="onnx, pt2 or peft; default: by --out.")] = None,
    to: Annotated[
        str | None, typer.Option(help="Export the whole model to a library: timm, open_clip or transformers.")
    ] = None,
    without_timm: Annotated[
        bool, typer.Option("--without-timm", help="With --to transformers: its own classes; ViT, DINOv2, BEiT.")
    ] = False,
    prior: Annotated[
        str | None,
        typer.Option(help="Class prior in use: as_trained, training, uniform, or a JSON file of counts."),
    ] = None,
    five_crops: FiveCrops = None,
    with_preprocessing: Annotated[
        bool, typer.Option("--with-preprocessing", help="ONNX from decoded pictures of any size to class names.")
    ] = False,
    page: Annotated[bool, typer.Option("--page", help="A folder with a page that answers in the browser.")] = False,
    runtime: Annotated[
        Path | None,
        typer.Option(help="With --page: folder or .tgz of npm's onnxruntime-web; default: fetched by npm, once."),
    ] = None,
    coverage: Coverage = None,
    sets_by: SetsBy = "group",
    class_share: ClassShare = 0.5,
    alarms: Alarms = None,
    level: AtLevel = None,
    sure: Sure = None,
    check: Annotated[
        list[str] | None, typer.Option(help="Pictures to compare on; default: the run's test split. Repeatable.")
    ] = None,
    as_json: AsJson = False,
    change: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="key=value, e.g. weights=PATH; repeatable.")
    ] = None,
) -> None:
    """Export the model as ONNX or torch.export's .pt2, for timm, open_clip or transformers, or as a page that answers.

    Its LoRA can also be exported alone, for peft.
    """
    from liftplus import console
    from liftplus.publishing import export as exporting
    from liftplus.publishing import moving, preprocessing
    from liftplus.training import checkpoint

    if runtime is not None and not page:
        raise UserError(
            f"--runtime is for the page alone, and --page was not given. Add --page, or leave {runtime} out."
        )
    if without_timm and to != "transformers":
        raise UserError("--without-timm is for --to transformers alone. Add that, or leave --without-timm out.")
    promises = options.promises(coverage, sets_by, class_share, alarms)
    if to is not None or form == "peft":
        where = f"--to {to}" if to is not None else "--format peft"
        if promises.any:
            raise UserError(
                f"{where} cannot hold sets or unknown pictures. Leave --sets and --unknown out, or export ONNX."
            )
        if level is not None or sure is not None:
            raise UserError(f"{where} cannot answer at levels. Leave --level and --sure out, or export ONNX.")
    if page:
        _refuse_beside_page(out, to, form)
        exporting.required("onnx")
        settings = _settings(run, change, prior, five_crops)
        _export_page(run, out, runtime, settings, check, promises, (level, sure), as_json)
        return
    if to is not None:
        if with_preprocessing:
            raise UserError(f"--with-preprocessing writes ONNX alone, and --to is {to}. Give one of the two.")
        if form is not None:
            raise UserError(f"--to {to} and --format {form} are two exports. Give one of the two.")
        library = moving.required(to)
        _check_folder(out, "--to", to)
        settings = _settings(run, change, prior, _one_crop(five_crops, change, to))
        _export_whole(run, out, library, settings, check, without_timm, as_json)
        return
    if with_preprocessing and (form == "peft" or out.suffix != ".onnx"):
        raise UserError(
            f"--with-preprocessing writes ONNX alone, and --out is {str(out)!r}. Give --out a name that ends in .onnx, "
            "or leave --with-preprocessing out."
        )
    if form == "peft":
        if five_crops is not None or check:
            raise UserError(
                "--format peft writes weights and compares no pictures. Leave --five-crops, --one-crop and --check out."
            )
        _check_folder(out, "--format", form)
        _refuse_idle_for_peft(change)
        _export_peft(run, out, _settings(run, change, prior, False), as_json)
        return
    chosen = _format(out, form)
    settings = _settings(run, change, prior, five_crops)
    session = options.session(settings)
    trained = checkpoint.load_model(run, session.runtime, settings.backbone, options.BY_SET)
    promised = _promised(session, trained, promises, level, sure)
    store, split, source = _pictures(session, check)
    if with_preprocessing:
        sample = preprocessing.Sample(store, exporting.spread(split, CHECKED), settings.data.decode)
        found = preprocessing.export(trained, out, sample, session.progress, settings.evaluation, promised)
        _tell_preprocessing(out, source, *found, promised, as_json=as_json)
        return
    images = exporting.views(store, split, settings.evaluation, trained, CHECKED)
    parity = exporting.export(trained, out, chosen, images, session.progress, settings.evaluation, promised)
    count = 5 if settings.evaluation.tte else 1
    if as_json:
        print(json.dumps({"file": str(out), "compared_on": source, "crops": count} | vars(parity)))
        return
    console.out.print(
        f"{out} and {exporting.beside(out).name}: logits differ from PyTorch's by at most {parity.difference:.1e} "
        f"(their deviation is {parity.deviation:.1f}) on {counted(parity.images, 'picture')} of {source}. "
        f"{_told(parity.same_promises, promised)}The graph takes "
        + ("five crops of each picture, as predict --five-crops." if count > 1 else "one crop, as predict --one-crop.")
    )


def _settings(run: Path, change: list[str] | None, prior: str | None, five_crops: bool | None) -> RunConfig:
    """The run's settings with those of the command line, on the CPU in fp32. Prints notes on prior and precision."""
    from liftplus import console
    from liftplus.evaluation import priors

    expected = [] if prior is None else [f"evaluation.prior={prior}"]
    given = [*(change or []), *options.crops(five_crops, change), *expected]
    fixed = ("device=cpu", "precision=fp32", "grad_checkpointing=false")
    settings = options.run_settings(run, None, [*given, *fixed])
    notes = priors.note(settings, settings.evaluation.prior), _precision_note(options.run_settings(run, None, given))
    for note in filter(None, notes):
        console.err.print(f"Note: {note}")
    return settings


def _precision_note(predicting: RunConfig) -> str | None:
    """Where `predict` computes less exactly on this machine than the exported model does."""
    from liftplus.machine import runtime

    try:
        found = runtime.choose(predicting.device, predicting.precision).precision
    except UserError:  # a device of another machine
        return None
    if found == "fp32":
        return None
    return (
        f"predict computes in {found} on this machine, so it can give another class where it is unsure. The exported "
        "model computes in fp32, as predict --set precision=fp32 does."
    )


def _promised(
    session: Session,
    trained: Trained,
    promises: Promises | None = None,
    level: str | None = None,
    sure: float | None = None,
) -> Promised:
    """What is told beside logits, by the run's calibration if it holds for these crops and this prior.

    Notes on it are printed.

    Args:
        promises: None for the temperature alone.
        level, sure: as for `predict`.
    """
    from liftplus.calibration.promised import Promised
    from liftplus.runs.guesses import Promises

    promises = promises or Promises()
    asked = options.asked(session, trained, promises, level, sure)
    levels, least = ((), None) if asked.level is None else (asked.level.levels, asked.level.sure)
    return Promised(asked.calibration, promises.sets, promises.by, promises.class_share, promises.alarms, levels, least)


def _told(same: float, promised: Promised) -> str:
    """How sets, unknown pictures and groups of the graph compare with PyTorch's; empty if none were asked for."""
    what = {"in_set": "set", "unknown": "answer to unknown", "group": "group"}
    asked = " and ".join(said for name, said in what.items() if name in promised.outputs)
    return f"{same:.1%} of the pictures have the same {asked}. " if asked else ""


def _one_crop(five_crops: bool | None, change: list[str] | None, to: str) -> bool:
    five = [item for item in change or () if item.replace(" ", "").lower() in ("tte=true", "evaluation.tte=true")]
    if five_crops or five:
        asked = five[0] if five else "--five-crops"
        raise UserError(f"{to} takes one crop of a picture. Leave {asked} out, or export to .onnx or .pt2.")
    return False


def _export_whole(
    run: Path,
    out: Path,
    library: Library,
    settings: RunConfig,
    check: list[str] | None,
    without_timm: bool,
    as_json: bool,
) -> None:
    from liftplus import console
    from liftplus.publishing import export as exporting
    from liftplus.publishing import moving

    session = options.session(settings)
    trained = _loaded(run, session)
    checked = moving.checked(trained, library, settings.evaluation, without_timm)
    store, split, source = _pictures(session, check)
    images = exporting.views(store, split, settings.evaluation, trained, CHECKED)
    written, difference = moving.move(checked, out, images, session.progress)
    notes = [*written.notes, *difference.notes(library), *_warmth(session, trained, library)]
    load = written.how.format(folder=json.dumps(str(out), ensure_ascii=False)[1:-1])  # Python text, also with quotes
    if as_json:
        about = {
            "folder": str(out),
            "load": load,
            "notes": notes,
            "compared_on": source,
        }
        print(json.dumps(about | vars(difference)))
        return
    console.out.print(
        f"{out} is for {library}: {load}. Its logits differ from liftplus's by at most {difference.logits:.1e} (their "
        f"deviation is {difference.deviation:.1f}) on {counted(difference.images, 'picture')} of {source}, and "
        f"{difference.agree:.1%} have the same top class. It takes one crop, as predict --one-crop."
    )
    for note in notes:
        console.out.print(note)


def _loaded(run: Path, session: Session) -> Trained:
    """The run's model, and its settings with the place where the backbone's weights are by now."""
    from liftplus.training import checkpoint

    trained = checkpoint.load_model(run, session.runtime, session.config.backbone, options.BY_SET)
    return replace(trained, config=trained.config.model_copy(update={"backbone": session.config.backbone}))


def _warmth(session: Session, trained: Trained, what: str) -> list[str]:
    """A note on the temperature of a calibrated run, which `what` does not have."""
    warmth = _promised(session, trained).temperature
    if warmth == 1:
        return []
    return [f"{what} gives plain logits. For calibrated probabilities divide them by {warmth:.6g} first."]


def _refuse_beside_page(out: Path, to: str | None, form: str | None) -> None:
    """Refuse another export, a folder that exists, and a name that no folder should have, before any work."""
    for option, given in (("--to", to), ("--format", form)):
        if given is not None:
            raise UserError(f"--page and {option} {given} are two exports. Give one of the two.")
    _check_folder(out, "--page")


def _check_folder(out: Path, option: str, value: str = "") -> None:
    """Refuse a folder that exists, and a name that no folder should have.

    Args:
        option: the one that asks for a folder.
        value: what was given to it.
    """
    from liftplus.machine import disk
    from liftplus.publishing import export as exporting

    if out.suffix in exporting.SUFFIXES.values():
        given = f"{option} {value}".rstrip()
        raise UserError(f"{given} writes a folder, and --out is {str(out)!r}. Give a folder, or leave {option} out.")
    disk.check_new_folder(out)


def _export_page(
    run: Path,
    out: Path,
    runtime: Path | None,
    settings: RunConfig,
    check: list[str] | None,
    promises: Promises,
    at: tuple[str | None, float | None],
    as_json: bool,
) -> None:
    from liftplus import console
    from liftplus.publishing import export as exporting
    from liftplus.publishing import onnxruntime_web, preprocessing, to_page
    from liftplus.training import checkpoint

    found = onnxruntime_web.found(runtime, lambda said: console.err.print(said, highlight=False))
    session = options.session(settings)
    trained = checkpoint.load_model(run, session.runtime, settings.backbone, options.BY_SET)
    promised = _promised(session, trained, promises, *at)
    store, split, source = _pictures(session, check)
    sample = preprocessing.Sample(store, exporting.spread(split, CHECKED), settings.data.decode)
    parity, likeness = to_page.export(trained, out, sample, session.progress, settings.evaluation, found, promised)
    size = sum(file.stat().st_size for file in out.iterdir())
    if as_json:
        print(json.dumps({"folder": str(out), "bytes": size} | _figures(source, parity, likeness)))
        return
    console.out.print(
        f"{out} has {size / 1e6:.1f} MB. Open {out / to_page.PAGE} in a browser, or put the folder on any server of "
        f"files. {_compared(source, likeness)} {_told(likeness.same_promises, promised)}".rstrip()
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


def _pictures(session: Session, check: list[str] | None) -> tuple[Store, Split, str]:
    """The pictures to compare on, and the name of their source."""
    from liftplus import console
    from liftplus.data.dataset import Split
    from liftplus.runs import inputs

    if check:
        rows = inputs.read(check).complete()
        return rows.store, Split(rows.keys, [0] * len(rows)), ", ".join(check)
    try:
        dataset = session.data(for_testing=False)
    except (UserError, OSError) as error:
        raise UserError(f"The run's data cannot be read: {error} Give pictures to compare on with --check.") from error
    name = next((name for name in ("test", "val", "train") if name in dataset.splits), "train")
    console.err.print(f"Comparing on {dataset.name}, split {name}.")
    return dataset.store, dataset.splits[name], dataset.name


def _tell_preprocessing(
    out: Path, source: str, parity: Parity, likeness: Likeness, promised: Promised, *, as_json: bool
) -> None:
    from liftplus import console
    from liftplus.publishing.export import beside

    if as_json:
        print(json.dumps({"file": str(out)} | _figures(source, parity, likeness)))
        return
    console.out.print(
        f"{out} and {beside(out).name}: the graph takes decoded pictures of any size. {_compared(source, likeness)} "
        f"{_told(likeness.same_promises, promised)}".rstrip()
    )


def _figures(source: str, parity: Parity, likeness: Likeness) -> dict[str, Any]:
    return {"compared_on": source} | vars(likeness) | {"logits": vars(parity)}


def _compared(source: str, likeness: Likeness) -> str:
    return (
        f"On {counted(likeness.images, 'picture')} of {source} and {likeness.made} made from them in odd sizes, "
        f"probabilities differ from predict's in fp32 by at most {likeness.probability:.1e}, and "
        f"{likeness.same_class:.1%} have the same best class. Resized values differ from Pillow's by at most "
        f"{likeness.levels} of 255 ({likeness.changed:.2%} of them differ)."
    )


IN_PEFTS_FOLDER = ("evaluation.prior", "evaluation.resize", "evaluation.one_crop_expand")


def _refuse_idle_for_peft(change: list[str] | None) -> None:
    """Refuse settings of tests and data that act on nothing in the folder for peft."""
    from liftplus.config import full_key

    for word in change or ():
        key = full_key(word.partition("=")[0])
        if key.startswith(("evaluation.", "data.")) and key not in IN_PEFTS_FOLDER:
            raise UserError(
                f"{key} does not act on --format peft, which writes weights and compares no pictures. Of settings of "
                f"tests, {', '.join(IN_PEFTS_FOLDER)} do. Leave {word} out."
            )


def _export_peft(run: Path, out: Path, settings: RunConfig, as_json: bool) -> None:
    from liftplus import console
    from liftplus.publishing import lora_exchange

    session = options.session(settings)
    trained = _loaded(run, session)
    written = lora_exchange.write_folder(trained, out, settings.evaluation)
    notes = [*written.notes, *_warmth(session, trained, "The classifier")]
    if as_json:
        print(json.dumps({"folder": str(out), "linears": written.linears, "notes": notes}))
        return
    console.out.print(f"LoRA weights of {counted(written.linears, 'linear')} and the head are in {out}, for peft.")
    for note in notes:
        console.out.print(note, highlight=False, markup=False)
