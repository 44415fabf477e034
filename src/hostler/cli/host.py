"""`hostler host`: this machine works for a controller on another one."""

import asyncio
import socket
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from hostler.app.config import Config, default_host_dir
from hostler.app.config import state_dir as _state_dir
from hostler.app.loading import load_config
from hostler.app.paths import StatePaths
from hostler.app.telemetry import configure_logging
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.meter import Meter
from hostler.cli.processes import ConfigFile, until_asked
from hostler.cli.render import duration, print_json, print_table
from hostler.core.hosts import InstanceReport
from hostler.core.snapshot import Endpoint
from hostler.manager.host_process import HostStatus, run_host
from hostler.manager.membership import Membership, load_membership
from hostler.wire.client import UpstreamLost, fetch
from hostler.wire.listening import relay_socket

HostDir = Annotated[
    Path | None,
    Parameter(
        name="--state-dir",
        help="Where this host keeps everything. [default: the data folder's hostler-host]",
    ),
]
JsonLog = Annotated[bool | None, Parameter(name="--json", negative=(), help="Log in JSON lines.")]


def run(*, state_dir: HostDir = None, config: ConfigFile = None, json: JsonLog = None) -> int:
    """Go on working for the controller that this machine has joined. Ctrl-C drains and leaves.

    Example: `hostler host run --state-dir /var/lib/hostler-host`
    """
    settings = host_settings(config, state_dir, json)
    paths = StatePaths(_state_dir(settings))
    membership = joined(paths)
    paths.claim()
    sock = None if membership.is_near else relay_socket(membership.address, membership.port)
    return serve(settings, paths, membership, sock)


def status(
    *, state_dir: HostDir = None, json: Annotated[bool, Parameter(negative=())] = False
) -> int:
    """Show how the host process of this machine is, and its instances.

    Example: `hostler host status`
    """
    paths = StatePaths(_state_dir(host_settings(None, state_dir, None)))
    membership = joined(paths)
    found = asyncio.run(_ask(paths))
    if found is None:
        raise CommandFailed(
            f"host {membership.name} ({membership.host_id}) has joined {membership.controllers[0]} and "
            f"does not run; start it with `hostler host run --state-dir {paths.state_dir}`",
            Exit.UNREACHABLE,
        )
    if json:
        print_json(found)
        return Exit.OK
    print(_told(found))
    rows = [_row(one) for one in found.instances]
    columns = ("INSTANCE", "STATE", "PID", "IN FLIGHT", "SLOTS", "WHY")
    print_table(columns, rows, "It runs no model now.")
    return Exit.OK


# For `join` and for workers brought by hand


def host_settings(config: Path | None, state_dir: Path | None, json: bool | None) -> Config:
    """The settings of a host: its own state folder, unless another is named."""
    settings = load_config(
        config, {"state_dir": str(state_dir) if state_dir else None, "log_json": json}
    )
    if settings.state_dir:
        return settings
    return msgspec.structs.replace(settings, state_dir=str(default_host_dir()))


def joined(paths: StatePaths) -> Membership:
    """What this folder remembers of having joined.

    Raises:
        CommandFailed: nothing.
    """
    found = load_membership(paths.host_membership)
    if found is None:
        raise CommandFailed(
            f"state folder {paths.state_dir}: this machine has joined no controller; "
            "`hostler host join --controller URL --token TOKEN` does that (`hostler token create` there "
            "makes a token)",
            Exit.CONFIG,
        )
    return found


def serve(
    settings: Config,
    paths: StatePaths,
    membership: Membership,
    sock: socket.socket | None = None,
) -> int:
    """Run the host process in the foreground until SIGTERM or Ctrl-C; a second one hastens.

    sock: bound, for the relay.
    """
    configure_logging(
        json_lines=settings.log_json, level="INFO" if settings.log_json else "WARNING"
    )
    meter = Meter(quiet=settings.log_json)
    where = " or ".join(membership.controllers)

    async def main(stop: asyncio.Event, hasten: asyncio.Event) -> None:
        def up() -> None:
            what = (
                f"brings model {membership.offer.model_name}"
                if membership.offer
                else "takes orders from"
            )
            meter.line(
                f"host {membership.name} ({membership.host_id}) {what} "
                f"{'to ' if membership.offer else ''}{where}; Ctrl-C drains and leaves"
            )

        await run_host(paths, settings, membership, stop, hasten, sock=sock, hear=meter.show, up=up)

    with meter:
        return until_asked(main)


# Private


async def _ask(paths: StatePaths) -> HostStatus | None:
    try:
        answer = await fetch(
            Endpoint(socket=str(paths.host_socket)), "GET", "/status", timeout_s=5.0
        )
        return msgspec.json.decode(answer.body, type=HostStatus)
    except (UpstreamLost, TimeoutError, OSError, msgspec.MsgspecError):
        return None


def _told(one: HostStatus) -> str:
    heard = (
        f"heard {duration(one.heard_s)} ago"
        if one.is_heard
        else f"NOT HEARD for {duration(one.heard_s)}: what runs goes on"
    )
    lines = [
        f"host {one.name} ({one.host_id}), role {one.role.value}",
        f"controller {', '.join(one.controllers)}: {heard}",
    ]
    if one.is_draining:
        lines.append("it drains, and leaves then")
    if one.is_fenced:
        lines.append(
            "fenced: it refuses new requests until a controller is heard (host.fence_after_s)"
        )
    return "\n".join(lines)


def _row(one: InstanceReport) -> tuple[object, ...]:
    return (one.instance_id, one.state.value, one.pid, one.in_flight, one.concurrency, one.reason)
