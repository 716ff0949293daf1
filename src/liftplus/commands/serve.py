"""`liftplus serve`."""

from __future__ import annotations

import json
import math
import os
import re
from typing import Annotated

import typer

from liftplus.commands import options
from liftplus.commands.options import (
    Alarms,
    AsJson,
    AtLevel,
    ClassShare,
    Coverage,
    FiveCrops,
    Prior,
    Run,
    SetsBy,
    Sure,
    TopK,
)
from liftplus.errors import UserError


def serve(
    run: Run,
    host: Annotated[str, typer.Option(help="Address; 0.0.0.0 lets other machines in, without any password.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one, which is printed.")] = 8000,
    top_k: TopK = 5,
    five_crops: FiveCrops = None,
    prior: Prior = None,
    coverage: Coverage = None,
    sets_by: SetsBy = "group",
    class_share: ClassShare = 0.5,
    alarms: Alarms = None,
    level: AtLevel = None,
    sure: Sure = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name under which a proxy or other machines reach it; repeatable.")
    ] = None,
    max_body: Annotated[float, typer.Option(min=0.001, help="MiB of a request.")] = 32.0,
    max_pixels: Annotated[float, typer.Option(min=0.001, help="Millions of pixels of a picture.")] = 50.0,
    max_pictures: Annotated[int, typer.Option(min=1, help="Pictures of a request.")] = 64,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds until a request has its answer.")] = 30.0,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests at a time; others are told to try later.")] = 64,
    max_connections: Annotated[int, typer.Option(min=1, help="Open connections; further ones get 503.")] = 512,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="key=value, e.g. device=cpu or evaluation.batch_size=32; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer over HTTP what `predict` answers for files: JSON for programs, and a page for people.

    SIGTERM and Ctrl-C end it with exit code 0, after the requests that it has accepted.
    """
    from liftplus.serving import server

    server.required()
    for option, value in (("--max-body", max_body), ("--max-pixels", max_pixels), ("--max-seconds", max_seconds)):
        if not math.isfinite(value):
            raise UserError(f"{option} is {value:g}. Give a number, such as the default.")
    for name in allow_host or ():
        if not re.fullmatch(r"[\w.-]+|[0-9a-f:]+", name, re.IGNORECASE):
            raise UserError(f"--allow-host is {name!r}. Give the name alone, such as classify.example.org.")
    server.make_room(max_connections)
    listener = server.bound(host, port)
    from liftplus import console
    from liftplus.data.workers import cores
    from liftplus.machine import parallel
    from liftplus.machine.stopping import StopRequest
    from liftplus.runs.predicting import side_by_side
    from liftplus.serving.app import Limits, Served, Service
    from liftplus.serving.batching import Batcher
    from liftplus.training import checkpoint

    if parallel.job().size > 1:
        raise UserError("One process serves a run. Start it without torchrun.")
    promises = options.promises(coverage, sets_by, class_share, alarms)
    # Batches of any size come here, and each size would be compiled anew.
    settings = options.to_predict(run, top_k, five_crops, prior, change, "compile=off")
    session = options.session(settings)
    trained = checkpoint.load_model(run, session.runtime, settings.backbone, options.BY_SET)
    tells = options.asked(session, trained, promises, level, sure)
    limits = Limits(
        int(max_body * 2**20), int(max_pixels * 1e6), max_pictures, max_seconds, max_requests, max_connections
    )
    about = {
        "top_k": min(settings.evaluation.top_k, len(trained.class_names)),
        "crops": 5 if settings.evaluation.tte else 1,
    }
    served = Served(
        os.path.basename(os.path.abspath(trained.folder)),
        trained.class_names,
        about,
        server.hosts(listener, host, allow_host or ()),
    )
    if not server.is_loopback(listener):
        console.err.print(
            f"Warning: whoever reaches {host} can use this server, which asks for no password. Put it behind a proxy "
            "that does, or leave --host out."
        )

    def ready() -> None:
        address = server.url(listener)
        line = json.dumps({"url": address}) if as_json else f"Serving {run} at {address} until Ctrl-C or SIGTERM."
        print(line, flush=True)

    with (
        StopRequest() as asked,
        Batcher(side_by_side(session, trained, tells), cores(), limits.pixels) as batcher,
    ):
        service = Service(batcher, served, limits)
        server.run(service, listener, lambda: asked() or batcher.failure is not None, ready)
    answered = sum(service.metrics.requests.values())
    console.err.print(f"Ended after {answered:,} requests.")
