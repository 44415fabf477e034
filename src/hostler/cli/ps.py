"""`hostler ps`: what runs, told by the server, or by the processes themselves when it is gone."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated

import msgspec
import psutil
from cyclopts import Parameter

from hostler.app.paths import StatePaths
from hostler.app.record import read_standby
from hostler.cli.api import Api
from hostler.cli.client import Client
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.render import duration, err, print_json, print_table, size
from hostler.cli.target import NO_OPTIONS, Common, find_target, read_up_record
from hostler.core.deployment import HERE
from hostler.core.lifecycle import State
from hostler.core.worker import WorkerRunData
from hostler.manager.workers import INSTANCE_TAG, ROLE_TAG, STATE_TAG


class Leftover(msgspec.Struct, frozen=True, kw_only=True):
    """A process of a state folder, as the kernel shows it.

    role: controller, gateway, worker, or engine (a child of a worker's agent).
    """

    pid: int
    role: str
    instance_id: str = ""
    age_s: float = 0.0
    memory_bytes: int = 0


def ps(
    *, stopped: Annotated[bool, Parameter(negative=())] = False, common: Common = NO_OPTIONS
) -> int:
    """What runs now, also when no server answers.

    Example: `hostler ps`

    Parameters
    ----------
    stopped: bool
        Show instances that have ended as well.
    """
    try:
        target = find_target(common)
        with Client(target) as client:
            instances = Api(client).instances()
    except CommandFailed as failure:
        stands_by = not common.url and read_standby(common.paths) is not None
        if not stands_by and failure.exit_code not in (Exit.UNREACHABLE, Exit.TRY_AGAIN):
            raise
        return _without_server(common, failure)
    shown = [one for one in instances if stopped or not one.stopped]
    if common.json:
        print_json({"server": target.url, "answers": True, "instances": shown})
        return Exit.OK
    column, where = host_column(shown)
    print_table(
        ("MODEL", "TYPE", *column, "STATE", "FOR", "PID", "BUSY", "MEMORY", "BEAT", "INSTANCE"),
        (
            (
                one.model_name,
                one.worker_type.value,
                *where(one),
                one.state.value,
                duration(one.state_for_s),
                one.pid,
                busy(one),
                size(one.memory_bytes),
                duration(one.last_heartbeat_s),
                one.instance_id,
            )
            for one in shown
        ),
        empty=f"{target.url}: no instances; `hostler model start NAME` asks for one",
    )
    return Exit.OK


def host_column(
    shown: Iterable[WorkerRunData],
) -> tuple[tuple[str, ...], Callable[[WorkerRunData], tuple[str, ...]]]:
    """The columns that say where instances are, and their values; nothing when they are all here."""
    shown = tuple(shown)
    if any(one.placement for one in shown):
        return ("HOST", "RAY"), lambda one: (_host(one), one.placement)
    if not any(one.host_id for one in shown):
        return (), lambda one: ()
    return ("HOST",), lambda one: (_host(one),)


def busy(one: WorkerRunData) -> str:
    """Its requests of its slots; while it drains, how many it still waits for."""
    if one.state is State.DRAINING:
        return f"{one.in_flight} left"
    return f"{one.in_flight}/{one.limit_model_concurrency}"


def find_leftovers(paths: StatePaths) -> list[Leftover]:
    """Return the living processes of this state folder, by the tags in their environment."""
    folder = str(paths.state_dir)
    found = []
    for process in psutil.process_iter():
        try:
            tags = process.environ()
            role = _role(tags) if tags.get(STATE_TAG) == folder else None
            if role is None or process.status() == psutil.STATUS_ZOMBIE:
                continue
            found.append(
                Leftover(
                    pid=process.pid,
                    role=role,
                    instance_id=tags.get(INSTANCE_TAG, ""),
                    age_s=max(0.0, time.time() - process.create_time()),
                    memory_bytes=process.memory_info().rss,
                )
            )
        except psutil.Error:
            continue  # it has ended meanwhile, or belongs to somebody else
    return sorted(found, key=lambda one: (one.role, one.pid))


# Private


def _host(one: WorkerRunData) -> str:
    """The machine of an instance; one that waits for a machine has none."""
    return one.host_name or ("" if one.state is State.PENDING else HERE)


def _without_server(common: Common, failure: CommandFailed) -> int:
    """Say what the state folder and the kernel know, when no controller can be asked."""
    if common.url:
        raise failure  # another machine's processes cannot be seen from here
    found = find_leftovers(common.paths)
    record, standby = read_up_record(common.paths), read_standby(common.paths)
    code = Exit.UNREACHABLE if standby is None else Exit.TRY_AGAIN
    if common.json:
        print_json(
            {
                "server": record.url if record else None,
                "answers": False,
                "standby": standby.text if standby else None,
                "processes": found,
            }
        )
        return code
    print_table(
        ("PROCESS", "PID", "INSTANCE", "AGE", "MEMORY"),
        (
            (one.role, one.pid, one.instance_id, duration(one.age_s), size(one.memory_bytes))
            for one in found
        ),
        empty=f"no process of the state folder {common.paths.state_dir} runs",
    )
    if standby is not None:
        err().print(f"hostler: {standby.text}", markup=False)
        return code
    ending = (
        "processes without a controller end by themselves after life.orphan_grace_s "
        "(20 s unless set otherwise); "
        if found
        else ""
    )
    err().print(
        f"hostler: no controller answers; {ending}`hostler up` starts the server again",
        markup=False,
    )
    return code


def _role(tags: Mapping[str, str]) -> str | None:
    """What a process of ours does; a shell in which somebody set the state folder is not ours."""
    return tags.get(ROLE_TAG) or ("engine" if INSTANCE_TAG in tags else None)
