"""A gateway on a loopback port over real fake-engine processes; snapshots are set by hand."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hostler.app.auth import new_key
from hostler.app.config import Config, GatewayConfig, TelemetryConfig
from hostler.core.change import Change, Picture
from hostler.core.model import PrefixReach
from hostler.core.serving import Priority
from hostler.core.snapshot import Endpoint, InstanceView, KeyView, ModelView, Snapshot
from hostler.gateway.gateway import Gateway
from hostler.wire.client import Response, fetch
from hostler.wire.identity import ClientContexts
from hostler.wire.server import HttpServer
from tests.unit.routing.fleet import instance, model

USER = new_key(["inference"])
OTHER_USER = new_key(["inference"])
LIMITED = new_key(["inference"], models=["m"])
METRICS = new_key(["metrics"])
ADMIN = new_key(["admin"])
HEAVY = new_key(["inference"], weight=3.0)
LOW = new_key(["inference"], priority=Priority.LOW)
EXPIRED = new_key(["inference"], expires_at_s=1.0)
KEYS = (USER, OTHER_USER, LIMITED, METRICS, ADMIN, HEAVY, LOW, EXPIRED)


class Source:
    """Snapshots, one after the other."""

    def __init__(self) -> None:
        self.connected = True
        self._picture = Picture()
        self._listeners: list[Callable[[Change], None]] = []

    @property
    def snapshot(self) -> Snapshot:
        return self._picture.snapshot()

    def listen(self, listener: Callable[[Change], None], /) -> None:
        self._listeners.append(listener)
        if self.snapshot.version:
            listener(Picture().become(self.snapshot))

    def publish(self, models: Sequence[ModelView], instances: Sequence[InstanceView]) -> None:
        keys: tuple[KeyView, ...] = tuple(key.view for key in KEYS)
        change = self._picture.become(
            Snapshot(
                version=self.snapshot.version + 1,
                models=tuple(models),
                instances=tuple(instances),
                keys=keys,
            )
        )
        for listener in self._listeners:
            listener(change)


class FakeProcess:
    """One fake engine."""

    def __init__(self, process: subprocess.Popen[bytes], endpoint: Endpoint) -> None:
        self.process = process
        self.endpoint = endpoint

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    async def ledger(self) -> dict[str, Any]:
        answer = await fetch(self.endpoint, "GET", "/_fake/ledger", timeout_s=5)
        data: dict[str, Any] = msgspec.json.decode(answer.body)
        return data

    async def script(self, **changes: object) -> None:
        body = msgspec.json.encode(changes)
        answer = await fetch(self.endpoint, "POST", "/_fake/script", body=body, timeout_s=5)
        assert answer.status == 200, answer.body


class Rig:
    """The gateway, its engines, and a client."""

    def __init__(self, gateway: Gateway, source: Source, port: int, folder: Path) -> None:
        self.gateway = gateway
        self.source = source
        self.port = port
        self.folder = folder
        self.engines: dict[str, FakeProcess] = {}
        self.ways: dict[str, Endpoint] = {}  # to engines that the gateway reaches by a relay
        self.endpoint = Endpoint(host="127.0.0.1", port=port)
        self.base_url = f"http://127.0.0.1:{port}/v1"

    async def start_engine(
        self,
        instance_id: str,
        name: str = "m",
        *,
        port: int | None = None,
        folder: Path | None = None,
        **script: object,
    ) -> FakeProcess:
        """Start a fake engine and wait until it answers. port: TCP instead of a Unix socket in a folder."""
        path = str((folder or self.folder) / f"{instance_id}.sock")
        where, endpoint = ["--socket", path], Endpoint(socket=path)
        if port is not None:
            where = ["--port", str(port)]
            endpoint = Endpoint(host="127.0.0.1", port=port)
        command = [sys.executable, "-m", "hostler.testing.fake_engine", *where, "--model", name]
        command += ["--script", msgspec.json.encode(script).decode()]
        source = str(Path(__file__).parents[3] / "src")
        process = subprocess.Popen(  # noqa: ASYNC220 - tests may block for a moment
            command, env={**os.environ, "PYTHONPATH": source}, stderr=subprocess.DEVNULL
        )
        engine = self.engines[instance_id] = FakeProcess(process, endpoint)
        for _ in range(400):
            with contextlib.suppress(Exception):
                await fetch(endpoint, "GET", "/_fake/script", timeout_s=1)
                return engine
            await asyncio.sleep(0.025)
        raise AssertionError("the fake engine did not come up")

    def publish(
        self,
        *,
        concurrency: int = 8,
        models: Sequence[ModelView] | None = None,
        prefix_reach: PrefixReach = PrefixReach.SLOT,
    ) -> None:
        """Make every engine a ready instance of model `m` (or of the only other model given)."""
        names = models or [model("m")]
        self.source.publish(
            names,
            [
                instance(
                    i,
                    names[0].name,
                    concurrency=concurrency,
                    endpoint=self.ways.get(i, e.endpoint),
                    prefix_reach=prefix_reach,
                )
                for i, e in self.engines.items()
                if e.process.poll() is None
            ],
        )

    async def post(
        self,
        path: str,
        body: object,
        *,
        key: str = USER.plain,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> Response:
        return await fetch(
            self.endpoint,
            "POST",
            path,
            headers=[
                (b"authorization", b"Bearer " + key.encode()),
                (b"content-type", b"application/json"),
                *headers,
            ],
            body=body if isinstance(body, bytes) else msgspec.json.encode(body),
            timeout_s=20,
        )

    async def chat(self, prompt: str, *, key: str = USER.plain, **fields: object) -> Response:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": "m", "messages": messages, **fields}
        return await self.post("/v1/chat/completions", body, key=key)

    async def gateway_to(self, engine: FakeProcess) -> dict[str, Any]:
        """The body of the last request that reached this engine."""
        answer = await fetch(engine.endpoint, "GET", "/_fake/last", timeout_s=5)
        body: dict[str, Any] = msgspec.json.decode(answer.body)["body"]
        return body

    async def settled(self) -> None:
        """Wait until no slot is out; fail after a second (F54)."""
        for _ in range(100):
            if not self.gateway.router.load and not self.gateway.relays.under_way:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"slots out: {dict(self.gateway.router.load)}")


async def until(is_so: Callable[[], bool], seconds: float) -> None:
    """Wait until something is so; fail after so many seconds."""
    async with asyncio.timeout(seconds):
        while not is_so():  # noqa: ASYNC110 - what is awaited has no event
            await asyncio.sleep(0.02)


def error_of(answer: Response) -> Mapping[str, Any]:
    error: Mapping[str, Any] = msgspec.json.decode(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def text_of(answer: Response) -> str:
    data = msgspec.json.decode(answer.body)
    text: str = data["choices"][0]["message"]["content"]
    return text


@contextlib.asynccontextmanager
async def rig(
    settings: GatewayConfig | None = None,
    telemetry: TelemetryConfig | None = None,
    tls: ClientContexts | None = None,
) -> AsyncIterator[Rig]:
    """A gateway without engines; start some, then publish. Checks at the end that no slot is out."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    config = Config(gateway=settings or GatewayConfig(), telemetry=telemetry or TelemetryConfig())
    source = Source()
    gateway = Gateway(config, source, folder / "admin.sock", tls=tls)
    server = HttpServer(
        gateway.handle, limits=config.limits, on_head=gateway.judge_head, turn=gateway.turn
    )
    sock = socket.create_server(("127.0.0.1", 0))
    made = Rig(gateway, source, sock.getsockname()[1], folder)
    try:
        async with gateway.running():
            await server.listen(sock)
            try:
                yield made
                await made.settled()
            finally:
                await server.close(0.0)
    finally:
        for engine in made.engines.values():
            if engine.process.poll() is None:
                engine.kill()
        shutil.rmtree(folder)
