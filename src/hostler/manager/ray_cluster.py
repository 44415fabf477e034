"""RayCluster: places on the nodes of a Ray cluster, and a host process on each.

A *place* is an actor that holds what an instance asked for (CPUs, GPUs, memory, labels, resources of one's
own) on a node that Ray found; a *keeper* is an actor that keeps a host process running on a node. Ray places,
and carries neither requests nor orders; whether something lives is for our own beats to say: Ray notices
the loss of a node after 5 to 60 s (docs/design/ray.md).

Ray's calls block: each runs in a thread of its own and has a deadline.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from hostler.app.config import environment
from hostler.app.telemetry import logger
from hostler.core.errors import HostlerError, PlacementUnavailable, StartupError
from hostler.core.placing import Needs, NodeView, PlaceView
from hostler.manager.ray_actors import STOP_S, Keeper, Place, only_on, ray_module

log = logger(__name__)

T = TypeVar("T")
Told = tuple[str, tuple[str, ...]]  # by a place: its node, its GPUs

OLDEST = (2, 52)  # the first whose ports ask for a token
NAMESPACE = "hostler"
CONNECT_S = 15.0
CALL_S = 5.0


class RayCluster:
    """A connection to a Ray cluster. `connect` before anything else."""

    def __init__(self, address: str, mark: str = "") -> None:
        """address: of the cluster's head, HOST:PORT; `auto`: the one that runs on this machine.

        mark: of whose places they are, where several servers use one cluster.
        """
        self.address = address
        self._mark = mark
        self._places: dict[str, Any] = {}  # handles of actors
        self._reached: dict[str, Future[Told]] = {}

    async def connect(self) -> None:
        """Join the cluster as a driver.

        Raises:
            StartupError: ray is missing or too old, asks for no token, or the cluster does not answer.
        """
        check_installed()
        check_token()
        try:
            await _call(partial(_connect, self.address), CONNECT_S)
        except TimeoutError:
            raise StartupError(
                f"Ray at {self.address!r} did not let us in within {CONNECT_S:g} s: is it there, and is "
                "its token ours (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token)?"
            ) from None
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise StartupError(f"Ray at {self.address!r}: {_first_line(error)}") from error

    async def own_address(self) -> str:
        """The address by which the nodes know this machine. Raises PlacementUnavailable."""
        return await self._ask(lambda: str(ray_module().util.get_node_ip_address()))

    async def nodes(self) -> tuple[NodeView, ...]:
        """Every node that Ray knows, dead ones for as long as it does.

        Raises:
            PlacementUnavailable: Ray does not answer.
        """
        return await self._ask(_nodes)

    # Places

    async def reserve(
        self,
        place_id: str,
        needs: Needs,
        labels: Mapping[str, str],
        node_id: str = "",
    ) -> None:
        """Ask for a place, or find the one of that id. It is there when `place` names a node; that may
        take for ever. It lasts until it is given back, whoever asked for it.

        labels: that the node must have. node_id: this node and no other; "": any.

        Raises:
            PlacementUnavailable: Ray does not answer.
        """
        name = self._name(place_id)
        actor = await self._ask(partial(_reserve, name, needs, dict(labels), node_id))
        self._places[place_id] = actor
        self._reached[place_id] = await self._ask(partial(_where, actor))

    def place(self, place_id: str) -> PlaceView:
        """How a place stands, as far as Ray has said. Does not block."""
        reached = self._reached.get(place_id)
        if reached is None:
            return PlaceView(place_id=place_id, is_gone=True, why="it was given back")
        if not reached.done():
            return PlaceView(place_id=place_id)
        error = reached.exception()
        if error is not None:
            return PlaceView(place_id=place_id, is_gone=True, why=_first_line(error))
        node_id, gpus = reached.result()
        return PlaceView(place_id=place_id, node_id=node_id, gpus=gpus)

    async def look(self, place_id: str) -> PlaceView:
        """As `place`, once Ray was asked whether it is still there.

        Raises:
            PlacementUnavailable: Ray does not answer: nothing is known.
        """
        seen, actor = self.place(place_id), self._places.get(place_id)
        if actor is None or seen.is_gone or not seen.node_id:
            return seen
        self._reached[place_id] = again = await self._ask(partial(_where, actor))
        try:
            await _call(partial(again.result, CALL_S), CALL_S + 1.0)
        except TimeoutError:
            raise PlacementUnavailable(f"the place {place_id} does not answer Ray") from None
        except Exception:  # boundary: whatever Ray raises for a dead actor; `place` reads it
            log.info("ray.place_gone", place_id=place_id)
        return self.place(place_id)

    async def release(self, place_id: str) -> None:
        """Give a place back. One that is not there (any more) is none.

        Raises:
            PlacementUnavailable: Ray does not answer; ask again.
        """
        actor = self._places.get(place_id)
        end = partial(_end, self._name(place_id)) if actor is None else partial(_kill, actor)
        await self._ask(end)
        self._places.pop(place_id, None)
        self._reached.pop(place_id, None)

    async def clear(self, known: Collection[str]) -> None:
        """Give back the places of ours that are none of these: whoever asked for them has forgotten.

        Raises:
            PlacementUnavailable: Ray does not answer.
        """
        for place_id in await self._ask(partial(_held, self._name(""))):
            if place_id not in known:
                log.info("ray.place_left", place_id=place_id)
                await self._ask(partial(_end, self._name(place_id)))

    # Host processes

    async def keep(
        self, node_id: str, folder: str, arguments: Sequence[str], env: Mapping[str, str]
    ) -> None:
        """Have a `hostler ARGUMENTS` on this node; asked again: start it if it has ended.

        Raises:
            PlacementUnavailable: Ray does not answer, or the node is gone.
        """
        await self._ask(partial(_keep, node_id, folder, tuple(arguments), dict(env)))

    async def dismiss(self, node_id: str) -> None:
        """End the host process of a node, and its keeper.

        Raises:
            PlacementUnavailable: Ray does not answer.
        """
        await self._ask(partial(_dismiss, node_id), STOP_S + CALL_S)

    # Private

    def _name(self, place_id: str) -> str:
        return f"place-{self._mark}-{place_id}"

    async def _ask(self, work: Callable[[], T], timeout_s: float = CALL_S) -> T:
        try:
            return await _call(work, timeout_s)
        except TimeoutError:
            raise PlacementUnavailable(f"Ray at {self.address!r} does not answer") from None
        except HostlerError:
            raise
        except Exception as error:  # boundary: Ray's errors are of many kinds
            raise PlacementUnavailable(f"Ray at {self.address!r}: {_first_line(error)}") from error


def check_installed() -> None:
    """Return when ray is there and new enough.

    Raises:
        StartupError: what to install.
    """
    try:
        found = version("ray")
    except PackageNotFoundError:
        raise StartupError("ray is not installed: pip install 'hostler[ray]'") from None
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        raise StartupError(
            f"ray {found} is too old: before {OLDEST[0]}.{OLDEST[1]} whoever reaches its ports may run code "
            "there; pip install --upgrade 'hostler[ray]'"
        )


def check_token() -> None:
    """Return when Ray was told to ask for a token.

    Raises:
        StartupError: what to set, and why.
    """
    if environment("RAY_AUTH_MODE") != "token":
        raise StartupError(
            "Ray without a token lets whoever reaches its ports run code (CVE-2023-48022): set "
            "RAY_AUTH_MODE=token and the cluster's token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
            "~/.ray/auth_token) here and on every node, then start Ray anew"
        )


# Private


async def _call(work: Callable[[], T], timeout_s: float) -> T:
    """Run blocking work in a thread of its own: one that hangs is left behind, and takes no other's place."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:  # boundary: it is raised again where it is waited for
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="ray.call", daemon=True).start()
    async with asyncio.timeout(timeout_s):
        return await done


def _connect(address: str) -> None:
    ray_module().init(
        address=address,
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level="error",
        configure_logging=False,
    )


def _nodes() -> tuple[NodeView, ...]:
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


def _reserve(name: str, needs: Needs, labels: dict[str, str], node_id: str) -> Any:
    options: dict[str, Any] = {
        "num_cpus": needs.cpus,
        "num_gpus": needs.gpus,
        "resources": dict(needs.resources),
        "name": name,
        "lifetime": "detached",  # a controller that starts again finds the same place, the same GPUs
        "get_if_exists": True,
        "max_restarts": 0,
    }
    if needs.memory_bytes:
        options["memory"] = needs.memory_bytes
    if node_id:
        options["scheduling_strategy"] = only_on(node_id)
    else:
        options["scheduling_strategy"] = "SPREAD"  # copies of a model on as many nodes as there are
        if labels:
            options["label_selector"] = labels
    return ray_module().remote(Place).options(**options).remote()


def _where(actor: Any) -> Future[Told]:
    found: Future[Told] = actor.tell.remote().future()
    return found


def _held(prefix: str) -> list[str]:
    """The ids of the places whose names begin so."""
    names = ray_module().util.list_named_actors()
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _kill(actor: Any) -> None:
    ray_module().kill(actor)


def _end(name: str) -> None:
    try:
        actor = ray_module().get_actor(name)
    except ValueError:
        return  # it has ended meanwhile
    _kill(actor)


def _keep(node_id: str, folder: str, arguments: tuple[str, ...], env: dict[str, str]) -> None:
    ray = ray_module()
    actor = (
        ray.remote(Keeper)
        .options(
            num_cpus=0,
            name=f"keeper-{node_id}",
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            scheduling_strategy=only_on(node_id),
        )
        .remote(folder, arguments, env)
    )
    ray.get(actor.look.remote(), timeout=CALL_S)


def _dismiss(node_id: str) -> None:
    ray = ray_module()
    try:
        actor = ray.get_actor(f"keeper-{node_id}")
    except ValueError:
        return  # there is none
    try:
        ray.get(actor.stop.remote(), timeout=CALL_S)
        ends_s = time.monotonic() + STOP_S
        while not ray.get(actor.has_ended.remote(), timeout=CALL_S) and time.monotonic() < ends_s:
            time.sleep(0.2)
    finally:
        ray.kill(actor)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
