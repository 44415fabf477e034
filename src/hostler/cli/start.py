"""`hostler model start`: write down a wish, and follow what comes of it."""

import os
import sys
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from hostler.admin.messages import ModelStatus
from hostler.cli.api import Api
from hostler.cli.client import Client
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.follow import Follow
from hostler.cli.models import TYPE
from hostler.cli.parameters import (
    NO_PARAMETERS,
    EngineOptions,
    Texts,
    engine_of,
    known_parameters,
    read_parameters,
    takes_parameters,
)
from hostler.cli.placing import ANYWHERE, PlaceOptions
from hostler.cli.render import clean, print_json, print_notes
from hostler.cli.routing import (
    AS_MANY_AS_SAID,
    USUAL_ROUTING,
    RoutingOptions,
    ScalingOptions,
)
from hostler.cli.target import NO_OPTIONS, Common, find_target
from hostler.core.model import WorkerType, describe
from hostler.core.worker import WorkerStartupRequest
from hostler.engines.base import EngineKind

_LAST_LINES = 20


@takes_parameters
def start(
    name: str,
    /,
    *,
    worker_type: Annotated[
        WorkerType | None, TYPE, Parameter(help="What it does. Left out: the catalogue's.")
    ] = None,
    engine: str | None = None,
    source: str | None = None,
    replicas: int | None = None,
    concurrency: int | None = None,
    param: Texts = (),
    server: Annotated[
        Texts, Parameter(help="For engine openai: the URL of a running server; repeat for several.")
    ] = (),
    alias: Annotated[Texts, Parameter(help="Another name for it; repeat for several.")] = (),
    wait: bool = True,
    timeout: float | None = None,
    routing: RoutingOptions = USUAL_ROUTING,
    scaling: ScalingOptions = AS_MANY_AS_SAID,
    place: PlaceOptions = ANYWHERE,
    options: EngineOptions = NO_PARAMETERS,
    common: Common = NO_OPTIONS,
) -> int:
    """Ask for a model, and follow it until it is ready.

    The parameters of its engine are options: `hostler model start NAME --help` lists them.

    Example: `hostler model start smollm2-135m-instruct --replicas 2 --context-length 8192`

    Parameters
    ----------
    name: str
        The name to serve it by. What is left out comes from the catalogue entry of that name.
    engine: str
        Who runs it: llama.cpp, onnx, python, openai, or an engine of another package.
    source: str
        Where its files come from: wheel:, https:, or a path.
    replicas: int
        How many copies.
    concurrency: int
        How many requests one copy works on at once.
    param: tuple[str, ...]
        A parameter of the engine, NAME=VALUE, also one unknown to this machine; repeat for several.
    wait: bool
        Stay until it is ready or has failed.
    timeout: float
        Seconds to wait; the server goes on afterwards. Left out: as long as download and start may take.
    """
    target = find_target(common)
    kind = engine_of(name, engine=engine, worker_type=worker_type, source=source, servers=server)
    request = WorkerStartupRequest(
        model=name,
        worker_type=worker_type,
        engine=engine,
        source=source,
        replicas=replicas,
        concurrency=concurrency,
        urls=server or None,
        aliases=alias or None,
        **{"routing": routing.given() or None, "scaling": scaling.given() or None, **place.given()},
    )
    with Client(target) as client:
        api = Api(client)
        params = _params(api, request, kind, options, param)
        if engine == "python" and target.is_local:
            params = _imported_from_here(params)
        request = msgspec.structs.replace(request, params=params or None)
        return _carry_out(api, request, wait=wait, timeout_s=timeout, as_json=common.json)


# Private


def _carry_out(
    api: Api, request: WorkerStartupRequest, *, wait: bool, timeout_s: float | None, as_json: bool
) -> int:
    """Order it, follow it if `wait`, and say how it stands."""
    accepted = api.start_model(request)
    status = accepted.model
    print_notes(status.notes)
    if wait:
        status = Follow(api, status, quiet=as_json).until_ready(accepted.events, timeout_s)
    if as_json:
        print_json(status)
    elif not wait:
        name = request.model
        print(f"{status.worker_key}: wished; `hostler model show {name}` says how it stands")
    if wait and status.ready < status.wanted:
        _show_log(api, status)
        raise CommandFailed(_why(status))
    return Exit.OK


def _params(
    api: Api,
    request: WorkerStartupRequest,
    kind: EngineKind | None,
    options: EngineOptions,
    texts: tuple[str, ...],
) -> dict[str, Any]:
    """The parameters asked for, checked by the engine's own descriptions, or by the server's."""
    if not texts and not options.given():
        return {}
    known = (
        describe(kind.parameters)
        if kind
        else known_parameters(api, request.model, request.worker_type)
    )
    return read_parameters(options, texts, known)


def _imported_from_here(params: dict[str, Any]) -> dict[str, Any]:
    """A class is looked for where the command was called, as Python does with a script."""
    folders = params.get("python_path") or os.curdir
    path = os.pathsep.join(os.path.abspath(one) for one in folders.split(os.pathsep) if one)
    return {**params, "python_path": path}


def _show_log(api: Api, status: ModelStatus) -> None:
    """Show the last log lines on stderr: what the engine said before it failed."""
    for log in api.logs(status.name, status.worker_type, _LAST_LINES).logs:
        for line in log.lines:
            sys.stderr.write(f"  {clean(line)}\n")


def _why(status: ModelStatus) -> str:
    parts = ", ".join(f"{count} {state}" for state, count in sorted(status.states.items()))
    return (
        f"{status.worker_key}: {status.ready} of {status.wanted} instances ready "
        f"({parts or 'none yet'}): {status.reason or 'no reason was given yet'}; "
        f"`hostler events --model {status.name}` says what happened"
    )
