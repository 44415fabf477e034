"""`hostler host list`, `show`, `drain`, `undrain` and `remove`: the machines that work for a controller."""

from typing import Annotated

from cyclopts import Parameter

from hostler.cli.api import HostsApi
from hostler.cli.client import Client
from hostler.cli.exits import Exit
from hostler.cli.ps import busy
from hostler.cli.render import duration, print_json, print_table, size
from hostler.cli.target import NO_OPTIONS, Common, find_target
from hostler.core.hosts import HostView, Standing


def list_hosts(*, common: Common = NO_OPTIONS) -> int:
    """The machines that joined, and how they are.

    Example: `hostler host list`
    """
    with Client(find_target(common)) as client:
        found = HostsApi(client).hosts()
    if common.json:
        print_json(found)
        return Exit.OK
    print_table(
        ("HOST", "ID", "ROLE", "STATE", "HEARD", "INSTANCES", "BUSY", "FREE", "ADDRESS", "LABELS"),
        (
            (
                one.facts.name,
                one.host_id,
                one.role.value,
                one.standing.value,
                duration(one.heard_s),
                one.instances,
                one.in_flight,
                size(one.facts.memory_free_bytes),
                _address(one),
                _labels(one),
            )
            for one in found
        ),
        empty="no other machine has joined; `hostler token create --role host` makes a token for one",
    )
    return Exit.OK


def show(host: str, /, *, common: Common = NO_OPTIONS) -> int:
    """One machine: what it is like, and its instances.

    Example: `hostler host show gpu-1`

    Parameters
    ----------
    host: str
        Its name or id.
    """
    with Client(find_target(common)) as client:
        found = HostsApi(client).host(host)
    if common.json:
        print_json(found)
        return Exit.OK
    one, facts = found.host, found.host.facts
    print(f"{facts.name} ({one.host_id}): {one.role.value}, {one.standing.value}")
    about = {
        "address": _address(one),
        "heard": "never" if one.heard_s is None else f"{duration(one.heard_s)} ago",
        "version": facts.version,
        "engines": " ".join(facts.engines),
        "labels": _labels(one),
        "processors": str(facts.cpus),
        "load": "" if facts.load_1m is None else f"{facts.load_1m:g}",
        "memory": f"{size(facts.memory_free_bytes)} free of {size(facts.memory_bytes)}",
        "disk": f"{size(facts.disk_free_bytes)} free",
        "gpus": ", ".join(facts.gpus),
        "folders": " ".join(facts.folders),
    }
    for name, value in about.items():
        if value:
            print(f"  {name:<11} {value}")
    print_table(
        ("MODEL", "INSTANCE", "STATE", "FOR", "BUSY", "MEMORY", "REASON"),
        (
            (
                each.model_name,
                each.instance_id,
                each.state.value,
                duration(each.state_for_s),
                busy(each),
                size(each.memory_bytes),
                each.reason,
            )
            for each in found.instances
        ),
        empty="  no instances",
    )
    return Exit.OK


def drain(host: str, /, *, common: Common = NO_OPTIONS) -> int:
    """Empty a machine: it gets nothing new, and what it has moves elsewhere, one by one.

    What has no other place stays there and serves on; `hostler model show NAME` says what it waits for.

    Example: `hostler host drain gpu-1`

    Parameters
    ----------
    host: str
        Its name or id.
    """
    return _set_draining(host, common, is_draining=True)


def undrain(host: str, /, *, common: Common = NO_OPTIONS) -> int:
    """Let a machine take instances again. Nothing moves back by itself.

    Example: `hostler host undrain gpu-1`

    Parameters
    ----------
    host: str
        Its name or id.
    """
    return _set_draining(host, common, is_draining=False)


def remove(
    host: str,
    /,
    *,
    force: Annotated[bool, Parameter(negative=())] = False,
    common: Common = NO_OPTIONS,
) -> int:
    """Let a machine work for this server no more; its certificate is worth nothing from now on.

    Example: `hostler host remove gpu-1`

    Parameters
    ----------
    host: str
        Its name or id.
    force: bool
        Also when it has instances: they are given up at once, and their places filled elsewhere.
    """
    with Client(find_target(common)) as client:
        gone = HostsApi(client).remove_host(host, force=force)
    if common.json:
        print_json(gone)
    else:
        print(f"host {gone.facts.name} ({gone.host_id}) is removed")
    return Exit.OK


# Private


def _set_draining(host: str, common: Common, *, is_draining: bool) -> int:
    with Client(find_target(common)) as client:
        now = HostsApi(client).drain_host(host, is_draining=is_draining)
    if common.json:
        print_json(now)
        return Exit.OK
    name = now.facts.name
    if now.standing is Standing.DRAINING and now.instances:
        print(
            f"host {name}: {now.instances} instances move; `hostler host show {name}` says how far"
        )
    else:
        print(f"host {name} is {now.standing.value}")
    return Exit.OK


def _address(one: HostView) -> str:
    if not one.address:
        return ""
    host = f"[{one.address}]" if ":" in one.address else one.address
    return f"{host}:{one.port}" if one.port else host


def _labels(one: HostView) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(one.facts.labels.items()))
