"""`hostler model`: stop models and look at them. `cli/start.py` starts them."""

import shlex
import sys
from typing import Annotated

import msgspec
from cyclopts import Parameter

from hostler.admin.messages import ModelStatus
from hostler.cli.api import Api
from hostler.cli.client import Client
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.follow import Follow
from hostler.cli.parameters import told_value
from hostler.cli.ps import host_column
from hostler.cli.render import clean, print_json, print_notes, print_table, size
from hostler.cli.routing import told_rules
from hostler.cli.target import NO_OPTIONS, Common, find_target
from hostler.core.model import WorkerType

TYPE = Parameter(name="--type", name_transform=str.lower)  # text2vec, not text2-vec
TypeOption = Annotated[
    WorkerType | None, TYPE, Parameter(help="Needed when two types share the name.")
]

_SHOWN_LINES = 50  # of the log of an instance that failed


def stop(
    name: str,
    /,
    *,
    worker_type: TypeOption = None,
    delete: Annotated[bool, Parameter(negative=())] = False,
    wait: bool = True,
    timeout: float = 120.0,
    common: Common = NO_OPTIONS,
) -> int:
    """Drain and stop a model.

    Example: `hostler model stop smollm2-135m-instruct --delete`

    Parameters
    ----------
    delete: bool
        Also forget the wish. Its files stay on disk.
    wait: bool
        Stay until its processes are gone.
    timeout: float
        Seconds to wait; the server goes on afterwards.
    """
    with Client(find_target(common)) as client:
        api = Api(client)
        status = api.stop_model(name, worker_type, delete=delete)
        left = Follow(api, status, quiet=common.json).until_gone(timeout) if wait else None
    if common.json:
        print_json(status)
    if left:
        raise CommandFailed(
            f"{status.worker_key}: {left} instances still drain after {timeout:.0f} s",
            Exit.TRY_AGAIN,
        )
    if not common.json:
        print(f"{status.worker_key}: {'stopped' if wait else 'is stopping'}")
    return Exit.OK


def list_models(
    *,
    every: Annotated[bool, Parameter(name="--all", negative=())] = False,
    common: Common = NO_OPTIONS,
) -> int:
    """Models that were asked for, or all that could be.

    Example: `hostler model list --all`

    Parameters
    ----------
    every: bool
        What could be started on this server, with sizes and licences.
    """
    with Client(find_target(common)) as client:
        api = Api(client)
        if every:
            return _list_supported(api, as_json=common.json)
        models = api.models()
    if common.json:
        print_json(models)
        return Exit.OK
    print_table(
        ("MODEL", "TYPE", "ENGINE", "READY", "STATE", "REASON"),
        (
            (
                one.name,
                one.worker_type.value,
                one.deployment.engine,
                f"{one.ready}/{one.wanted}",
                model_state(one),
                one.reason if one.ready < one.wanted else "",
            )
            for one in models
        ),
        empty="no models were asked for; `hostler model list --all` says what could run",
    )
    return Exit.OK


def show(name: str, /, *, worker_type: TypeOption = None, common: Common = NO_OPTIONS) -> int:
    """One model: its wish, its instances, its parameters.

    Example: `hostler model show smollm2-135m-instruct`
    """
    with Client(find_target(common)) as client:
        api = Api(client)
        status = api.model(name, worker_type)
        if common.json:
            print_json(status)
            return Exit.OK
        described = api.parameters(name, status.worker_type)
    wish = status.deployment
    print(
        f"{status.worker_key}: {status.ready} of {status.wanted} instances ready ({model_state(status)})"
    )
    facts = {
        "engine": wish.engine,
        "source": wish.source,
        "servers": " ".join(wish.urls),
        "aliases": " ".join(wish.aliases),
        "at once": f"{wish.concurrency} requests an instance",
        "routing": told_rules(wish.routing),
        "scaling": told_rules(wish.scaling),
        "host": wish.host,
        "labels": " ".join(f"{key}={value}" for key, value in sorted(wish.labels.items())),
        "reason": status.reason,
    }
    print("\n".join(f"  {key}: {clean(value)}" for key, value in facts.items() if value))
    for note in status.notes:
        print(f"  note: {clean(note)}")
    column, where = host_column(status.instances)
    print_table(
        ("INSTANCE", *column, "STATE", "PID", "BUSY", "MEMORY", "REASON"),
        (
            (
                one.instance_id,
                *where(one),
                one.state.value,
                one.pid,
                f"{one.in_flight}/{one.limit_model_concurrency}",
                size(one.memory_bytes),
                one.reason,
            )
            for one in status.instances
        ),
        empty="no instances",
    )
    for one in status.instances:
        if one.command_args:
            print(f"command of {one.instance_id}: {clean(shlex.join(one.command_args))}")
    print_table(
        ("PARAMETER", "VALUE", "TYPE", "WHAT IT DOES"),
        ((one.name, told_value(wish.params, one), one.type, one.help) for one in described),
        empty="no parameters",
    )
    if "failed" in status.states:
        for log in api.logs(status.name, status.worker_type, _SHOWN_LINES).logs:
            lines = log.lines or (log.error,)
            print("\n".join([f"last lines of {log.instance_id}:", *map(clean, lines)]))
    return Exit.OK


def logs(
    name: str,
    /,
    *,
    worker_type: TypeOption = None,
    tail: int = 100,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative=())] = False,
    common: Common = NO_OPTIONS,
) -> int:
    """The log of a model's workers, on whatever machine they are. `logs` and `model logs` are the same.

    Example: `hostler logs -f smollm2-135m-instruct`

    Example: `hostler model logs smollm2-135m-instruct --tail 20 --json`

    Parameters
    ----------
    tail: int
        How many of the last lines.
    follow: bool
        Wait for more, until Ctrl-C. With --json: one object a line.
    """
    with Client(find_target(common)) as client:
        api = Api(client)
        if follow and common.json:
            for line in api.follow_log_lines(name, worker_type, tail):
                print(msgspec.json.encode(line).decode(), flush=True)
            return Exit.OK
        if follow:
            for part in api.follow_logs(name, worker_type, tail):
                sys.stdout.write(clean(part.decode(errors="replace")))
                sys.stdout.flush()
            return Exit.OK
        answer = api.logs(name, worker_type, tail)
    if common.json:
        print_json(answer)
    else:
        for log in answer.logs:
            if len(answer.logs) > 1:
                print(f"==> {log.instance_id} <==")
            print("\n".join(map(clean, log.lines)))
    missing = [f"the log of {one.instance_id}: {one.error}" for one in answer.logs if one.error]
    if missing:
        raise CommandFailed(clean("; ".join(missing)))
    return Exit.OK


def model_state(status: ModelStatus) -> str:
    """How a model stands, in one word or a few."""
    if status.wanted and status.ready >= status.wanted:
        return "ready"
    if not status.wanted:
        return "draining" if status.states else "stopped"
    return ", ".join(sorted(status.states)) or "pending"


# Private


def _list_supported(api: Api, *, as_json: bool) -> int:
    found = api.supported()
    print_notes(found.problems)
    if as_json:
        print_json(found.models)
        return Exit.OK
    print_table(
        ("MODEL", "TYPE", "ENGINE", "DOWNLOAD", "MEMORY", "FITS", "HERE", "LICENCE", "WHAT IT IS"),
        (
            (
                one.model,
                one.worker_type.value,
                one.engine,
                size(one.download_bytes),
                size(one.memory_bytes),
                {True: "yes", False: "no", None: "-"}[one.fits],
                "yes" if one.present else "no",
                one.license,
                one.description,
            )
            for one in found.models
        ),
        empty="the catalogue is empty",
    )
    return Exit.OK
