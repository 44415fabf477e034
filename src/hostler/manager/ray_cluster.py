"""RayCluster: places on the nodes of a Ray cluster, and a host process on each.

A *place* is an actor that holds what an instance asked for (CPUs, GPUs, memory, labels, resources of one's
own) on a node that Ray found; a *keeper* is an actor that keeps a host process running on a node. Ray places,
and carries neither requests nor orders; whether something lives is for our own beats to say: Ray notices
the loss of a node after 5 to 60 s (docs/design/ray.md).

Ray's calls block: each runs in a thread of its own and has a deadline.
"""

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from hostler.app.orphan import ENDS_WITH_IT, STDIN_VARIABLE
from hostler.app.telemetry import logger
from hostler.core.errors import HostlerError, PlacementUnavailable, StartupError
from hostler.core.placing import Needs, NodeView, PlaceView
from hostler.core.runtime_env import RuntimeEnv
from hostler.manager import ray_calls
from hostler.manager.ray_actors import STOP_S, ray_module
from hostler.manager.ray_calls import CALL_S, first_line, what_failed
from hostler.manager.ray_checks import check_installed, check_token

log = logger(__name__)

T = TypeVar("T")

CONNECT_S = 30.0
UPLOAD_S = 60.0  # of a working folder


class RayCluster:
    """A connection to a Ray cluster. `connect` before anything else."""

    def __init__(
        self,
        address: str,
        mark: str = "",
        *,
        is_lasting: bool = True,
        answered: Callable[[], None] = lambda: None,
    ) -> None:
        """address: of the cluster's head, HOST:PORT; `auto`: the one that runs on this machine.

        mark: of whose places they are, where several servers use one cluster.
        is_lasting: places and keepers outlive this process, for the next one; else they end with it.
        answered: called in the event loop when Ray has said what became of a place that was asked for.
        """
        self._answered = answered
        self.address = address
        self._mark = mark
        self._lifetime = "detached" if is_lasting else None
        self._ends = {} if is_lasting else {STDIN_VARIABLE: ENDS_WITH_IT}  # of the host processes
        self._is_ours = False  # the connection: not one that the program had before
        self._keepers: dict[str, Any] = {}  # by node; one that nobody holds would end
        self._places: dict[str, Any] = {}  # handles of actors
        self._reached: dict[str, Future[ray_calls.Told]] = {}
        self._joining: Future[bool] | None = None

    async def connect(self) -> None:
        """Join the cluster as a driver; again: leave the one before, whatever has become of it.

        Raises:
            StartupError: ray is missing or too old, asks for no token, or the cluster does not answer.
        """
        check_installed()
        check_token()
        self._places.clear()  # what is ours is found again by its name
        self._reached.clear()
        self._keepers.clear()
        # a try from before that still hangs is waited for: two at once never end well
        if self._joining is None:
            self._joining = _in_thread(
                partial(ray_calls.connect, self.address, is_ours=self._is_ours)
            )
        try:
            async with asyncio.timeout(CONNECT_S):
                self._is_ours |= await asyncio.wrap_future(self._joining)
            self._joining = None
        except TimeoutError:
            raise StartupError(
                f"Ray at {self.address!r} did not let us in within {CONNECT_S:g} s: is it there, and is "
                "its token ours (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token)?"
            ) from None
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            self._joining = None
            raise StartupError(f"Ray at {self.address!r}: {first_line(error)}") from error

    async def leave(self) -> None:
        """Close the connection, if `connect` made it."""
        if self._is_ours:
            self._is_ours = False
            await self._ask(lambda: ray_module().shutdown(), CONNECT_S)

    async def own_address(self) -> str:
        """The address by which the nodes know this machine. Raises PlacementUnavailable."""
        return await self._ask(lambda: str(ray_module().util.get_node_ip_address()))

    async def nodes(self) -> tuple[NodeView, ...]:
        """Every node that Ray knows, dead ones for as long as it does.

        Raises:
            PlacementUnavailable: Ray does not answer.
        """
        return await self._ask(ray_calls.nodes)

    # Places

    async def reserve(
        self,
        place_id: str,
        needs: Needs,
        labels: Mapping[str, str],
        node_id: str = "",
        env: RuntimeEnv | None = None,
    ) -> None:
        """Ask for a place, or find the one of that id. It is there when `place` names a node; that may
        take for ever. It lasts until it is given back, whoever asked for it.

        labels: that the node must have. node_id: this node and no other; "": any. env: an environment to
            be made there; the place is gone when that cannot be done.

        Raises:
            PlacementUnavailable: Ray does not answer. BadRequest: Ray does not take what is asked for.
        """
        name, env = self._name(place_id), env or RuntimeEnv()
        reserve = partial(ray_calls.reserve, name, needs, dict(labels), node_id, env)
        actor = await self._ask(
            partial(reserve, lifetime=self._lifetime), UPLOAD_S if env.working_dir else CALL_S
        )
        self._places[place_id] = actor
        self._reached[place_id] = found = await self._ask(partial(ray_calls.where, actor))
        loop = asyncio.get_running_loop()
        found.add_done_callback(lambda _: _tell(loop, self._answered))

    def place(self, place_id: str) -> PlaceView:
        """How a place stands, as far as Ray has said. Does not block."""
        reached = self._reached.get(place_id)
        if reached is None:
            return PlaceView(place_id=place_id, is_gone=True, why="it was given back")
        if not reached.done():
            return PlaceView(place_id=place_id)
        error = reached.exception()
        if error is not None:
            cannot_be = type(error).__name__ == "RuntimeEnvSetupError"
            why = what_failed(error)
            return PlaceView(place_id=place_id, is_gone=True, cannot_be=cannot_be, why=why)
        return PlaceView(place_id=place_id, **reached.result())

    async def look(self, place_id: str) -> PlaceView:
        """As `place`, once Ray was asked whether it is still there.

        Raises:
            PlacementUnavailable: Ray does not answer: nothing is known.
        """
        seen, actor = self.place(place_id), self._places.get(place_id)
        if actor is None or seen.is_gone or not seen.node_id:
            return seen
        self._reached[place_id] = again = await self._ask(partial(ray_calls.where, actor))
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
        await self._ask(partial(ray_calls.end, self._name(place_id)))
        self._places.pop(place_id, None)
        self._reached.pop(place_id, None)

    async def clear(self, known: Collection[str]) -> None:
        """Give back the places of ours that are none of these: whoever asked for them has forgotten.

        Raises:
            PlacementUnavailable: Ray does not answer.
        """
        for place_id in await self._ask(partial(ray_calls.held_places, self._name(""))):
            if place_id not in known:
                log.info("ray.place_left", place_id=place_id)
                await self._ask(partial(ray_calls.end, self._name(place_id)))

    # Host processes

    async def keep(
        self, node_id: str, folder: str, arguments: Sequence[str], env: Mapping[str, str]
    ) -> None:
        """Have a `hostler ARGUMENTS` on this node; asked again: start it if it has ended, with these.

        Raises:
            PlacementUnavailable: Ray does not answer, or the node is gone.
        """
        keeper = self._keepers.get(node_id)
        if keeper is None:
            keeper = self._keepers[node_id] = await self._ask(
                partial(ray_calls.keeper, node_id, folder, self._lifetime)
            )
        if not await self._ask(
            partial(ray_calls.look, keeper, tuple(arguments), {**env, **self._ends})
        ):
            del self._keepers[node_id]
            raise PlacementUnavailable(f"the keeper of Ray node {node_id[:8]} has ended")

    async def put_away(self) -> None:
        """End the host processes, their keepers, and the places: as far as Ray answers."""
        async with asyncio.TaskGroup() as tasks:
            for node_id in tuple(self._keepers):
                tasks.create_task(self._put_away(node_id), name="ray.dismiss")
        for place_id in tuple(self._places):
            with suppress(PlacementUnavailable):
                await self.release(place_id)

    async def dismiss(self, node_id: str) -> None:
        """End the host process of a node, and its keeper.

        Raises:
            PlacementUnavailable: Ray does not answer.
        """
        if (keeper := self._keepers.pop(node_id, None)) is not None:
            await self._ask(partial(ray_calls.dismiss, keeper), STOP_S + CALL_S)

    # Private

    def _name(self, place_id: str) -> str:
        return f"place-{self._mark}-{place_id}"

    async def _put_away(self, node_id: str) -> None:
        try:
            await self.dismiss(node_id)
        except PlacementUnavailable as error:
            log.warning("ray.not_dismissed", node_id=node_id, why=error.message)

    async def _ask(self, work: Callable[[], T], timeout_s: float = CALL_S) -> T:
        try:
            return await _call(work, timeout_s)
        except TimeoutError:
            raise PlacementUnavailable(f"Ray at {self.address!r} does not answer") from None
        except HostlerError:
            raise
        except Exception as error:  # boundary: Ray's errors are of many kinds
            raise PlacementUnavailable(f"Ray at {self.address!r}: {first_line(error)}") from error


# Private


def _tell(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(what)


def _in_thread(work: Callable[[], T]) -> Future[T]:
    """Run blocking work in a thread of its own: one that hangs is left behind, and takes no other's place."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # who waits no more does not cancel it

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # boundary: it is raised again where it is waited for
            done.set_exception(error)
        else:
            done.set_result(result)

    threading.Thread(target=run, name="ray.call", daemon=True).start()
    return done


async def _call(work: Callable[[], T], timeout_s: float) -> T:
    async with asyncio.timeout(timeout_s):
        return await asyncio.wrap_future(_in_thread(work))
