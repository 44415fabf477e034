"""Simulated hosts: a fleet of machines in one process, which join a real controller and work for it.

Joining, certificates, link (`manager/host_link.py`) and relay (`wire/relay.py`) of each are the real ones.
What runs there exists on paper: an instance has loaded some time after it was ordered, and one engine in
this process answers for all.
"""

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from hostler.app.config import HostConfig, HttpLimits
from hostler.core.errors import HostlerError, NotFound
from hostler.core.hosts import HostBeat, HostBeatAnswer, HostFacts, HostOrders, OrderWish, Role
from hostler.core.lifecycle import State
from hostler.manager.controllers import Controllers
from hostler.manager.host_link import Link
from hostler.manager.host_rules import has_changed
from hostler.manager.membership import endpoint_of, pin
from hostler.registry.joining import join
from hostler.testing.cluster import LOOPBACK
from hostler.testing.paper_host import PaperWorker
from hostler.wire.client import Pool
from hostler.wire.exchange import Exchange
from hostler.wire.identity import ClientContexts, server_certificates
from hostler.wire.listening import relay_socket
from hostler.wire.relay import Relay
from hostler.wire.server import HttpServer

LOADS_S = 1.0  # from an order until the instance has loaded
MEMORY_BYTES, MODEL_BYTES = 256 << 30, 4 << 30
_JOIN_AT_ONCE = 8
_AGAIN_S = 1.0  # after a join that failed: the controller may be busy
_CONNECT_S, _IDLE_S = 3.0, 30.0  # as of a real host process
_JSON = ((b"content-type", b"application/json"),)
_SERVING = frozenset({State.READY, State.SUSPECT})


class Diary:
    """What all hosts of a fleet saw, by time.monotonic.

    beats: when each was answered, and how many seconds that took. refused: that got no good answer.
    cut_off: given up when their controller ended.
    back_at_s: by host: the first one that the newest controller answered.
    """

    def __init__(self) -> None:
        self.beats: list[tuple[float, float]] = []
        self.refused = self.cut_off = 0
        self.back_at_s: dict[str, float] = {}
        self.incarnation = 0

    def heard(self, host_id: str, took_s: float, incarnation: int) -> None:
        """A beat was answered just now."""
        now_s = time.monotonic()
        self.beats.append((now_s, took_s))
        if incarnation > self.incarnation:
            self.incarnation, self.back_at_s = incarnation, {}
        if incarnation == self.incarnation:
            self.back_at_s.setdefault(host_id, now_s)


class SimVoice:
    """What one simulated host says: as `manager/host_voice.py`, of workers on paper."""

    def __init__(self, host_id: str, facts: HostFacts, port: int, diary: Diary) -> None:
        self.workers: dict[str, PaperWorker] = {}
        self.known = (0, 0)  # the newest orders that are obeyed
        self._host_id, self._facts, self._port = host_id, facts, port
        self._diary = diary
        self.answered = 0
        self._run_id, self._seq = secrets.token_hex(6), 0
        self._told_facts: HostFacts | None = None
        self._began_at_s: dict[int, float] = {}

    def beat(self) -> HostBeat:
        self._seq += 1
        self._began_at_s[self._seq] = time.monotonic()
        taken = sum(one.state in _SERVING for one in self.workers.values()) * MODEL_BYTES
        facts = msgspec.structs.replace(self._facts, memory_free_bytes=MEMORY_BYTES - taken)
        return HostBeat(
            host_id=self._host_id,
            run_id=self._run_id,
            seq=self._seq,
            incarnation=self.known[0],
            version=self.known[1],
            facts=facts if has_changed(self._told_facts, facts) else None,
            address=LOOPBACK,
            port=self._port,
            instances=tuple(one.report(full=not one.told) for one in self.workers.values()),
        )

    def heard(self, beat: HostBeat, answer: HostBeatAnswer) -> bool:
        self.answered += 1
        began_s = self._began_at_s.pop(beat.seq, time.monotonic())
        self._began_at_s.clear()  # of those that nobody answered
        self._diary.heard(self._host_id, time.monotonic() - began_s, answer.incarnation)
        if beat.facts is not None:
            self._told_facts = beat.facts
        if answer.facts_wanted:
            self._told_facts = None
        for report in beat.instances:
            if report.metadata is not None and report.instance_id in self.workers:
                self.workers[report.instance_id].told = True
        wanted = [self.workers[one] for one in answer.wanted if one in self.workers]
        is_news = any(one.told for one in wanted)
        for one in wanted:
            one.told = False
        return answer.facts_wanted or is_news

    def forget(self) -> None:
        self._told_facts = None
        for one in self.workers.values():
            one.told = False


class SimLink(Link):
    """A link whose beats are written down, also those that nobody answers."""

    voice: SimVoice
    diary: Diary

    async def beat(self) -> float:
        before = self.voice.answered
        try:
            due_s = await super().beat()
        except HostlerError:
            self.diary.refused += 1
            raise
        self.diary.cut_off += self.voice.answered == before
        return due_s


class SimHost:
    """One machine that has joined."""

    def __init__(self, url: str, host_id: str, facts: HostFacts, port: int, tls_dir: Path,
                 engine: str, diary: Diary) -> None:  # fmt: skip
        """engine: the Unix socket that answers for every instance here."""
        self.host_id = host_id
        self.voice = SimVoice(host_id, facts, port, diary)
        self._engine, self._tls_dir = engine, tls_dir
        self._kept: set[str] = set()  # answered for, though they are gone
        contexts = ClientContexts(tls_dir)
        controllers = Controllers(
            [endpoint_of(pin(url))],
            lambda at: Pool(at, connect_timeout_s=_CONNECT_S, idle_s=_IDLE_S, tls=contexts),
        )
        self.dismissed = asyncio.Event()
        self.link = SimLink(
            controllers,
            self.voice,
            HostConfig(),
            known=(0, 0),
            take=self._take,
            dismissed=lambda why: self.dismissed.set(),
            clock=time.monotonic,
        )
        self.link.voice, self.link.diary = self.voice, diary

    async def live(self, sock: socket.socket) -> None:
        """Work for the controller until cancelled, or dismissed. sock: bound, for its relay."""
        relay = Relay(
            self._sockets,
            server_certificates(self._tls_dir, clients_must_show=True),
            beat=lambda: msgspec.json.encode(self.link.asked()),
        )
        async with relay.running(sock), self.link.running():
            await self.dismissed.wait()

    def fail(self, instance_id: str) -> float:
        """Let an instance be found dead now, and say so; return the moment.

        Its relay goes on answering for it, so that whoever still chooses it is seen.
        """
        self._kept.add(instance_id)
        self.voice.workers[instance_id].state = State.FAILED
        at_s = time.monotonic()
        self.link.hurry()
        return at_s

    # Private

    async def _take(self, orders: HostOrders) -> None:
        workers = self.voice.workers
        named = {one.instance_id: one for one in orders.orders}
        for instance_id in workers.keys() - named.keys():
            del workers[instance_id]
            self.link.hurry()
        for instance_id, order in named.items():
            mine = workers.get(instance_id)
            if mine is None and order.wish is OrderWish.RUN:
                workers[instance_id] = PaperWorker(order)
                self.link.hurry()
                asyncio.get_running_loop().call_later(LOADS_S, self._loaded, instance_id)
            elif mine is not None and order.wish is not OrderWish.RUN:
                mine.state = State.STOPPED
                self.link.hurry()
        self.voice.known = (orders.incarnation, orders.version)

    def _loaded(self, instance_id: str) -> None:
        worker = self.voice.workers.get(instance_id)
        if worker is not None and worker.state is State.STARTING:
            worker.state = State.READY
            self.link.hurry()

    def _sockets(self, instance_id: str) -> tuple[str, str] | None:
        worker = self.voice.workers.get(instance_id)
        is_here = worker is not None and worker.state in _SERVING
        if not is_here and instance_id not in self._kept:
            return None
        return self._engine, self._engine


class SimFleet:
    """So many hosts. They join when they start, a few at once, and work as soon as they have joined."""

    def __init__(
        self,
        url: str,
        token: str,
        count: int,
        folder: Path,
        labels: Callable[[int], Mapping[str, str]] = lambda number: {},
    ) -> None:
        """url, token: of the control port. folder: for keys and a socket; its path is short.

        labels: of each machine, by its number.
        """
        self.diary = Diary()
        self.hosts: dict[str, SimHost] = {}
        self._url, self._token, self._count = url, token, count
        self._folder, self._labels = folder, labels
        self._engine = folder / "engine.sock"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = HttpServer(_answer, limits=HttpLimits(), name="sim", is_bare=True)
        await server.listen_unix(self._engine)
        try:
            async with asyncio.TaskGroup() as tasks:
                turns = asyncio.Semaphore(_JOIN_AT_ONCE)
                lives = [tasks.create_task(self._live(n, turns)) for n in range(self._count)]
                yield
                for life in lives:
                    life.cancel()
        finally:
            await server.close(0.0)

    def ready(self) -> dict[str, SimHost]:
        """The host of each instance that serves."""
        return {
            instance_id: host
            for host in self.hosts.values()
            for instance_id, worker in host.voice.workers.items()
            if worker.state in _SERVING
        }

    def serving(self, model: str) -> str:
        """An instance of this model that serves; "": none does."""
        for instance_id, host in self.ready().items():
            if host.voice.workers[instance_id].order.model_name == model:
                return instance_id
        return ""

    # Private

    async def _live(self, number: int, turns: asyncio.Semaphore) -> None:
        facts = HostFacts(
            name=f"sim{number}",
            version="simulated",
            cpus=16,
            memory_bytes=MEMORY_BYTES,
            memory_free_bytes=MEMORY_BYTES,
            engines=("fake",),
            labels=self._labels(number),
        )
        sock = relay_socket(LOOPBACK, 0)
        port, tls_dir = sock.getsockname()[1], self._folder / str(number)
        async with turns:
            host_id = ""
            while not host_id:
                with suppress(HostlerError):
                    answer = await join(
                        self._url, self._token, Role.HOST, facts, LOOPBACK, port, tls_dir
                    )
                    host_id = answer.host_id
                if not host_id:
                    await asyncio.sleep(_AGAIN_S)
            host = SimHost(self._url, host_id, facts, port, tls_dir, str(self._engine), self.diary)
            self.hosts[host_id] = host
        await host.live(sock)


# Private


def _answer(exchange: Exchange) -> None:
    """The one engine: a chat's answer of one word, and that it is well."""
    match exchange.request.method, exchange.request.path:
        case "POST", "/v1/chat/completions":
            exchange.send(200, _CHAT, _JSON)
        case "GET", "/health" | "/status":
            exchange.send(200, b'{"status":"ok"}', _JSON)
        case _:
            exchange.send_error(NotFound())


_CHAT = msgspec.json.encode(
    {
        "id": "sim",
        "object": "chat.completion",
        "created": 0,
        "model": "sim",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "paper"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
)
