"""RaySeats: finds a node for each instance by asking Ray for a place, and has a host process on each node.

Ray places. Whether a node lives is for the beats of its host to say, whether an instance does for its own:
a Ray that is away costs no request, it only leaves new instances waiting (`placement_unavailable`).
"""

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import msgspec

from hostler.app.background import Background, begin
from hostler.app.telemetry import logger
from hostler.app.tokens import JOIN_VARIABLE
from hostler.core.deployment import Deployment
from hostler.core.errors import BadRequest, HostlerError
from hostler.core.hosts import Standing
from hostler.core.placing import Held, Needs, NodeView, PlaceView, Seat
from hostler.core.runtime_env import RuntimeEnv
from hostler.manager.placement import Unplaced
from hostler.registry.host import Host

log = logger(__name__)

NODE_LABEL = "ray.node"  # of a host: the id of the node it is on
LOOK_EVERY_S = 1.0
LOOK_AT_PLACES_S = 5.0
AGAIN_S = 5.0  # until Ray is called again that did not answer
RECONNECT_S = 8.0  # of no answer, until we join it anew
KEEP_EVERY_S = 5.0  # one that ended is started again before its workers end (life.orphan_grace_s)
INVITED_S = 300.0  # an invitation is good for so long, and longer by far
_TOLD = 8  # nodes in a reason
_NAMED = 80  # characters of requirements in it
_AWAY = (Standing.LOST, Standing.LEFT)
_WELL = (Standing.ALIVE, Standing.DRAINING)


class Cluster(Protocol):
    """ray_cluster.RayCluster, as far as it is needed here."""

    address: str

    async def connect(self) -> None: ...
    async def nodes(self) -> tuple[NodeView, ...]: ...
    async def reserve(
        self,
        place_id: str,
        needs: Needs,
        labels: Mapping[str, str],
        node_id: str = "",
        env: RuntimeEnv | None = None,
    ) -> None: ...
    def place(self, place_id: str) -> PlaceView: ...
    async def look(self, place_id: str) -> PlaceView: ...
    async def release(self, place_id: str) -> None: ...
    async def clear(self, known: Collection[str]) -> None: ...
    async def keep(
        self, node_id: str, folder: str, arguments: Sequence[str], env: Mapping[str, str]
    ) -> None: ...


class Asked(msgspec.Struct):
    """A place that an instance asked for. node_id: it must be this one; "": any. uses: what a process
    that runs already was given.
    """

    needs: Needs
    labels: Mapping[str, str]
    env: RuntimeEnv = RuntimeEnv()
    node_id: str = ""
    uses: Held = Held()
    is_reserved: bool = False
    looked_s: float = 0.0


class Seated(msgspec.Struct, frozen=True, kw_only=True):
    """A living instance on a host, and what it was given there."""

    instance_id: str
    deployment: Deployment
    host_id: str
    held: Held = Held()


class Invitation(msgspec.Struct, frozen=True):
    """How the host process of a node joins: what it is told beside its labels. token: good for once."""

    arguments: tuple[str, ...]
    folder: str
    token: str


class RaySeats:
    """The places of one controller's instances on Ray."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        hosts: Callable[[], Iterable[Host]],
        seated: Callable[[], Iterable[Seated]],
        invite: Callable[[NodeView], Awaitable[Invitation]],
        wake: Callable[[], None],
        lost: Callable[[str, str], bool],
        failed: Callable[[str, str], None],
        clock: Callable[[], float],
    ) -> None:
        """seated: the living instances on hosts.

        wake: something may be placed now. lost: an instance has its place no more, and why; False: ask
            again, since its host is silent, and by that it is judged. failed: it cannot have one, and why.
        """
        self._cluster = cluster
        self._hosts = hosts
        self._seated = seated
        self._invite = invite
        self._wake = wake
        self._lost = lost
        self._failed = failed
        self._clock = clock
        self._asked: dict[str, Asked] = {}  # by instance
        self._left: set[str] = set()  # whose places are to be given back
        self._nodes: tuple[NodeView, ...] = ()
        self._kept_s: dict[str, float] = {}  # by node: when its host process was looked at
        self._invited: dict[str, tuple[float, Invitation]] = {}  # by node
        self._trouble = "it has not answered yet"
        self._is_connected = False
        self._is_clear = False  # of places that nobody knows
        self._has_news = asyncio.Event()  # somebody asked for a place, or needs one no more

    # For the hands

    def seat(self, instance_id: str, deployment: Deployment) -> Seat | Unplaced:
        """Return the host whose node has a place for an instance; ask for one at the first time."""
        asked = self._asked.get(instance_id)
        if asked is None:
            labels, env = dict(deployment.labels), deployment.runtime_env
            self._asked[instance_id] = Asked(needs=deployment.resources, labels=labels, env=env)
            self._has_news.set()
            return Unplaced(reason=f"waits for Ray: {deployment.resources}")
        if self._trouble:
            return Unplaced(reason=f"waits for Ray (placement_unavailable): {self._trouble}")
        seen = self._cluster.place(instance_id) if asked.is_reserved else None
        if seen is None or not seen.node_id:
            return Unplaced(reason=self._why(asked))
        host = self._by_node().get(seen.node_id)
        if host is None:
            return Unplaced(reason=f"waits for the host process of Ray node {seen.node_id[:8]}")
        held = Held(
            gpus=None if seen.group else seen.gpus,  # its engine takes them, of all bundles
            group=seen.group,
            python=seen.python,
            folder=seen.folder,
            env_vars=deployment.runtime_env.env_vars,
        )
        return Seat(host_id=host.host_id, held=held)

    def leave(self, instance_id: str) -> None:
        """An instance needs its place no more."""
        if self._asked.pop(instance_id, None) is not None:
            self._left.add(instance_id)
            self._has_news.set()

    def has_room(self, deployment: Deployment) -> bool:
        """Whether a node has a place for one instance more now. Ray's autoscaler may bring one later."""
        alive = [node for node in self._nodes if node.is_alive]
        return all(any(not node.lacks(p) for node in alive) for p in deployment.resources.parts)

    def view(self, instance_id: str) -> str:
        """How Ray sees the place of an instance: what is held, and whether the node lives."""
        asked = self._asked.get(instance_id)
        if asked is None:
            return ""
        seen = self._cluster.place(instance_id) if asked.is_reserved else None
        if self._trouble:
            how = "no answer"
        elif seen is None or not seen.node_id:
            how = "waits" if seen is None or not seen.is_gone else "gone"
        else:
            node = next((one for one in self._nodes if one.node_id == seen.node_id), None)
            how = "alive" if node is not None and node.is_alive else "node dead"
        return f"{asked.needs}: {how}"

    # Life

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask for places and keep host processes while the block lasts. Ends none of them."""
        async with asyncio.TaskGroup() as tasks:
            loop = begin(tasks, Background.PLACES, self._loop())
            yield
            loop.cancel()

    async def look(self) -> None:
        """Do once what is to be done.

        Raises:
            HostlerError: Ray does not answer; what was not done is done the next time.
        """
        if not self._is_connected:
            await self._connect()
        nodes, known = await self._cluster.nodes(), {node.node_id for node in self._nodes}
        if known and not known & {node.node_id for node in nodes}:
            log.warning("ray.started_anew")  # it keeps the dead in mind: this one remembers nobody
            await self._connect()
            nodes = await self._cluster.nodes()
        self._nodes, known = nodes, {node.node_id for node in nodes}
        for table in (self._kept_s, self._invited):
            for node_id in table.keys() - known:
                del table[node_id]
        hosts = self._by_node()
        async with asyncio.TaskGroup() as tasks:  # one that does not answer holds up nobody else
            for node in self._nodes:
                if node.is_alive:
                    tasks.create_task(self._keep(node, hosts.get(node.node_id)), name="ray.keep")
        self._adopt()
        if not self._is_clear:
            await self._cluster.clear(
                self._asked.keys() | {one.instance_id for one in self._seated()}
            )
            self._is_clear = True
        for instance_id in tuple(self._left):
            await self._cluster.release(instance_id)
            self._left.discard(instance_id)
        for instance_id, asked in tuple(self._asked.items()):
            await self._look_at(instance_id, asked)
        self._trouble = ""

    # Private

    async def _connect(self) -> None:
        """Be a driver of Ray, and forget what one before was told: those who have a node ask anew for it."""
        await self._cluster.connect()
        self._is_connected, self._is_clear = True, False
        seated = {one.instance_id for one in self._seated()}
        for instance_id, asked in tuple(self._asked.items()):
            if instance_id in seated:
                del self._asked[instance_id]
            else:
                asked.is_reserved = False

    async def _loop(self) -> None:
        away_since_s: float | None = None
        while True:
            before = self._trouble
            self._has_news.clear()
            try:
                await self.look()
                away_since_s = None
            except HostlerError as error:
                self._trouble = error.message
                away_since_s = away_since_s or self._clock()
                if self._clock() - away_since_s > RECONNECT_S:  # a driver of a dead Ray stays dead
                    self._is_connected = False
            if self._trouble != before:
                log.warning("ray.answers" if not self._trouble else "ray.away", why=self._trouble)
            self._wake()
            if self._trouble:
                await asyncio.sleep(AGAIN_S)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._has_news.wait()

    async def _keep(self, node: NodeView, host: Host | None) -> None:
        """See that a node has a host process. A new one gets a token of its own."""
        if host is not None and host.standing in _WELL:
            self._invited.pop(node.node_id, None)  # its token is used up
            return
        now_s = self._clock()
        if now_s - self._kept_s.get(node.node_id, -KEEP_EVERY_S) < KEEP_EVERY_S:
            return
        self._kept_s[node.node_id] = now_s
        try:
            told = await self._invitation(node, now_s)
            await self._cluster.keep(
                node.node_id,
                told.folder,
                (*told.arguments, f"--labels={NODE_LABEL}={node.node_id}"),
                {JOIN_VARIABLE: told.token},
            )
        except HostlerError as error:  # this node; the others' are looked at all the same
            log.warning("ray.no_host_process", node_id=node.node_id, why=error.message)

    async def _invitation(self, node: NodeView, now_s: float) -> Invitation:
        """One that is asked for again and again would leave a token in the store each time."""
        at_s, told = self._invited.get(node.node_id, (0.0, None))
        if told is None or now_s - at_s > INVITED_S:
            told = await self._invite(node)
            self._invited[node.node_id] = (now_s, told)
        return told

    def _adopt(self) -> None:
        """Ask anew for the places of instances that a controller before this one placed."""
        alive = {node.node_id for node in self._nodes if node.is_alive}
        node_of = {
            host.host_id: node_id
            for node_id, host in self._by_node().items()
            if node_id in alive and host.standing not in _AWAY
        }
        for one in self._seated():
            node_id, instance_id = node_of.get(one.host_id, ""), one.instance_id
            if node_id and instance_id not in self._asked and instance_id not in self._left:
                self._asked[instance_id] = Asked(
                    needs=one.deployment.resources,
                    labels={},
                    env=one.deployment.runtime_env,
                    node_id=node_id,
                    uses=one.held,
                )

    async def _look_at(self, instance_id: str, asked: Asked) -> None:
        now_s = self._clock()
        if not asked.is_reserved:
            asked.is_reserved, asked.looked_s = True, now_s
            try:
                await self._cluster.reserve(
                    instance_id, asked.needs, asked.labels, asked.node_id, asked.env
                )
            except BadRequest as error:  # this one's; the others' are looked at all the same
                self._give_up(instance_id, error.message)
            except HostlerError:
                asked.is_reserved = False
                raise
            return
        seen = self._cluster.place(instance_id)
        if seen.node_id and now_s - asked.looked_s > LOOK_AT_PLACES_S:
            asked.looked_s = now_s
            seen = await self._cluster.look(instance_id)
        if seen.cannot_be:
            return self._give_up(instance_id, f"Ray cannot make its environment: {seen.why}")
        why = f"its place on Ray is gone: {seen.why}" if seen.is_gone else ""
        if seen.node_id and _is_another(seen, asked):
            why = "Ray has lost its place, and holds another one for it now"
        if why and instance_id in self._asked and self._lost(instance_id, why):
            self.leave(instance_id)

    def _give_up(self, instance_id: str, why: str) -> None:
        """What an instance asked for cannot be had, there or anywhere."""
        self.leave(instance_id)
        self._failed(instance_id, why)

    def _by_node(self) -> dict[str, Host]:
        """The host on each node; of several (it joined anew) the one heard last.

        On a node where Ray was started anew: the one at its address from before, if it is well.
        """
        hosts = sorted(self._hosts(), key=lambda host: host.heard_at_s)
        found = {_node_of(host): host for host in hosts}
        alive = [node for node in self._nodes if node.is_alive]
        known = {node.node_id for node in alive}
        for node in alive:
            here = found.get(node.node_id)
            if here is None or here.standing not in _WELL:
                for host in hosts:
                    is_left = _node_of(host) and _node_of(host) not in known
                    if is_left and host.address == node.address and host.standing in _WELL:
                        found[node.node_id] = host
        return found

    def _why(self, asked: Asked) -> str:
        """What a place waits for, and what each node lacks of it now."""
        alive = [node for node in self._nodes if node.is_alive]
        parts = asked.needs.parts
        part = next((p for p in parts if all(node.lacks(p) for node in alive)), parts[0])
        lacks = [(node.address, node.lacks(part)) for node in alive]
        labels = "".join(f", {key}={value}" for key, value in sorted(asked.labels.items()))
        what = f"waits for Ray: {asked.needs}{labels}"
        if alive and asked.env.pip and not all(lack for _, lack in lacks):
            return f"{what}, and its environment ({', '.join(asked.env.pip)[:_NAMED]})"
        if not alive or not all(lack for _, lack in lacks):
            return what if alive else f"{what} (it has no node)"
        told = "; ".join(f"{address} lacks {lack}" for address, lack in lacks[:_TOLD])
        told = f"for {part}: {told}" if asked.needs.bundles else told
        return f"{what} ({told}{'; ...' if len(lacks) > _TOLD else ''})"


# Private


def _node_of(host: Host) -> str:
    return host.facts.labels.get(NODE_LABEL, "")


def _is_another(seen: PlaceView, asked: Asked) -> bool:
    """Whether a place is not the one whose instance runs already: its GPUs may be another one's by now."""
    uses = asked.uses
    gpus = uses.gpus is not None and uses.gpus != seen.gpus
    node = bool(asked.node_id) and asked.node_id != seen.node_id
    return gpus or node or bool(uses.group and uses.group != seen.group)
