"""Ray's calls that block: each is run in a thread of its own, by ray_cluster.RayCluster."""

import socket
import tempfile
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from hostler.core.errors import BadRequest
from hostler.core.placing import Needs, NodeView
from hostler.core.runtime_env import RuntimeEnv
from hostler.manager.ray_actors import (
    STOP_S,
    Keeper,
    Place,
    environment_of,
    first_of_group,
    only_on,
    ray_module,
)

Told = dict[str, Any]  # what a place tells of itself
NAMESPACE = "hostler"
CALL_S = 5.0
# Ray would kill the host process with its keeper, and with it whoever could end the workers (F42)
ALIVE_AFTER_KEEPER = {"RAY_kill_child_processes_on_worker_exit": "false"}
UPLOAD_BYTES = 100 << 20  # of a working folder
_TOLD = 500  # characters of what Ray says


def connect(address: str, *, is_ours: bool) -> bool:
    """Return whether the connection is ours from now on: one that the program had is used as it is.

    Raises:
        ValueError: the program is connected to another cluster than this.
    """
    ray = ray_module()
    if ray.is_initialized():
        if not is_ours:
            has = ray.get_runtime_context().gcs_address
            if not is_same(address, has):
                raise ValueError(
                    f"this program is connected to the Ray at {has}; a process has one at a time: name that "
                    "one, or call ray.shutdown() before"
                )
            return False
        ray.shutdown()
    ray.init(
        address=address,
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level="error",
        configure_logging=False,
    )
    return True


def is_same(address: str, other: str) -> bool:
    """Are these of one cluster's head? `auto` may be any, as may what is no HOST:PORT."""
    host, _, port = address.rpartition(":")
    other_host, _, other_port = other.rpartition(":")
    if not port.isdigit() or "/" in host:
        return True
    return port == other_port and bool(_addresses(host) & _addresses(other_host))


def nodes() -> tuple[NodeView, ...]:
    ray = ray_module()
    free = ray._private.state.available_resources_per_node()
    return tuple(
        NodeView(
            node_id=node["NodeID"],
            address=node["NodeManagerAddress"],
            is_alive=node["Alive"],
            free=free.get(node["NodeID"], {}),
        )
        for node in ray.nodes()
    )


def reserve(
    name: str,
    needs: Needs,
    labels: dict[str, str],
    node_id: str,
    env: RuntimeEnv,
    *,
    lifetime: str | None,
) -> Any:
    """Ask for a place, or find the one of that name; return its actor."""
    asked = needs.by_name()
    options: dict[str, Any] = {
        "num_cpus": asked.pop("CPU", 0.0),
        "num_gpus": asked.pop("GPU", 0.0),
        "memory": asked.pop("memory", None),
        "resources": asked,
        "name": name,
        "lifetime": lifetime,  # a controller that starts again finds the same place, the same GPUs
        "get_if_exists": True,
        "max_restarts": 0,
    }
    group = None
    if needs.bundles:
        group = _group(name, needs, labels, lifetime)
        options["scheduling_strategy"] = first_of_group(group)
    elif node_id:
        options["scheduling_strategy"] = only_on(node_id)
    else:
        options["scheduling_strategy"] = "SPREAD"  # copies of a model on as many nodes as there are
        if labels:
            options["label_selector"] = labels
    ray = ray_module()
    try:
        if env.pip or env.working_dir:
            options["runtime_env"] = _environment(env)
        place = ray.remote(Place).options(**options)
        group_id = group.id.hex() if group is not None else ""
        return place.remote(bool(env.pip), bool(env.working_dir), group_id)
    except (ValueError, TypeError, ray.exceptions.RuntimeEnvSetupError) as error:
        raise BadRequest(f"Ray does not take it: {what_failed(error)}") from error


def where(actor: Any) -> Future[Told]:
    found: Future[Told] = actor.tell.remote().future()
    return found


def held_places(prefix: str) -> list[str]:
    """The ids of the places whose names begin so, and of the groups for them."""
    util = ray_module().util
    groups = util.placement_group_table().values()
    names = {*util.list_named_actors(), *(g["name"] for g in groups if g["state"] != "REMOVED")}
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def end(name: str) -> None:
    """Give a place back, and the group with its bundles. What is not there (any more) is none."""
    ray = ray_module()
    with suppress(ValueError):
        ray.kill(ray.get_actor(name))
    with suppress(ValueError):
        ray.util.remove_placement_group(ray.util.get_placement_group(name))


def keeper(node_id: str, folder: str, lifetime: str | None) -> Any:
    """Have a keeper on a node, or find it; return the actor."""
    return (
        ray_module()
        .remote(Keeper)
        .options(
            num_cpus=0,
            name=f"keeper-{folder}-{node_id}",
            lifetime=lifetime,
            get_if_exists=True,
            max_restarts=-1,
            runtime_env={"env_vars": ALIVE_AFTER_KEEPER},
            scheduling_strategy=only_on(node_id),
        )
        .remote(folder)
    )


def look(actor: Any, arguments: tuple[str, ...], env: dict[str, str]) -> bool:
    """Have a keeper look at its host process, which it starts as is said now. False: it is no more."""
    ray = ray_module()
    try:
        ray.get(actor.look.remote(arguments, env), timeout=CALL_S)
    except ray.exceptions.ActorDiedError:
        return False
    return True


def dismiss(actor: Any) -> None:
    """End a keeper, once its host process has drained."""
    ray = ray_module()
    try:
        ray.get(actor.stop.remote(), timeout=CALL_S)
        ends_s = time.monotonic() + STOP_S
        while not ray.get(actor.has_ended.remote(), timeout=CALL_S) and time.monotonic() < ends_s:
            time.sleep(0.2)
    finally:
        ray.kill(actor)


def what_failed(error: BaseException) -> str:
    """Why there is no place, or no more: the line of pip that says so, where it failed."""
    for line in reversed(str(error).splitlines()):
        if line.strip().startswith("ERROR: "):
            kind = type(error).__name__
            return f"{kind}: {line.strip().removeprefix('ERROR: ')[:_TOLD]}"
    return first_line(error)[:_TOLD]


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


# Private


def _group(name: str, needs: Needs, labels: dict[str, str], lifetime: str | None) -> Any:
    util = ray_module().util
    try:
        return util.get_placement_group(name)
    except ValueError:
        bundles = [bundle.by_name() for bundle in needs.bundles]
        selector = {"bundle_label_selector": [labels] * len(bundles)} if labels else {}
        how = needs.strategy.value
        return util.placement_group(bundles, how, name, lifetime=lifetime, **selector)


def _environment(env: RuntimeEnv) -> dict[str, Any]:
    if env.working_dir.startswith("/"):
        files = (one for one in Path(env.working_dir).rglob("*") if one.is_file())
        if not Path(env.working_dir).is_dir() or sum(map(_size, files)) > UPLOAD_BYTES:
            raise BadRequest(
                f"runtime_env.working_dir: {env.working_dir} is no folder on the controller's machine, or "
                f"has more than {UPLOAD_BYTES >> 20} MiB; what is larger belongs into an archive at a URL",
                param="runtime_env",
            )
    with tempfile.TemporaryDirectory(prefix="hostler-") as scratch:
        return environment_of(env, Path(scratch))


def _addresses(host: str) -> frozenset[str]:
    try:
        return frozenset(str(one[4][0]) for one in socket.getaddrinfo(host, None))
    except OSError:
        return frozenset({host})


def _size(path: Path) -> int:
    return path.stat().st_size
