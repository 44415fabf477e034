"""A manager in a program, and a machine that joined it: every straight call reaches the engines there."""

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from hostler import (
    Config,
    GenerateParams,
    LocalWorkerManager,
    ModelConfig,
    WorkerStartupRequest,
    WorkerType,
)
from hostler.app.config import HeartbeatConfig, LifeConfig
from hostler.app.machines_section import ControlConfig
from hostler.app.process import tagged
from hostler.core.errors import BadRequest, Conflict, NotFound, StartupError, WorkerLost
from hostler.core.hosts import Role, Standing
from hostler.manager.workers import STATE_TAG
from hostler.storage.sql import SqlStore
from hostler.testing.host_run import HostRun

THERE = {"at": "b"}
SOON_S = 30.0
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


def settings(folder: Path, **more: Any) -> Config:
    return Config(
        state_dir=str(folder / "s"),
        control=ControlConfig(host="127.0.0.1", port=0, names=("127.0.0.1",)),
        life=LifeConfig(drain_timeout_s=3.0, kill_grace_s=1.0, backoff_first_s=0.1),
        heartbeat=HeartbeatConfig(interval_s=0.3, suspect_after_s=0.9, lost_after_s=2.0),
        **more,
    )


def there(name: str, kind: WorkerType, **more: Any) -> ModelConfig:
    return ModelConfig(name=name, type=kind, engine="fake", labels=THERE, **more)


MODELS = (
    there("echo", WorkerType.LLM, concurrency=4),
    there("vectors", WorkerType.TEXT2VEC),
    there("ranks", WorkerType.RERANKER),
)


@asynccontextmanager
async def cluster(
    models: tuple[ModelConfig, ...] = MODELS, store: SqlStore | None = None
) -> AsyncIterator[tuple[LocalWorkerManager, HostRun]]:
    """A manager that serves its own control port, and a host process that joined it by a token of it."""
    with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as folder, HostRun() as host:
        manager = LocalWorkerManager(settings(Path(folder)), store=store, models=models)
        async with manager:
            await join(manager, host)
            for model in models:
                await manager.model_startup(WorkerStartupRequest(model=model.name))
            yield manager, host
        assert tagged(STATE_TAG, str(Path(folder) / "s")) == {}


async def join(manager: LocalWorkerManager, host: HostRun) -> None:
    token = await manager.create_join_token("host", name="b")
    assert token.command.startswith(f"hostler host join --controller {token.url} --token hstj_")
    host.start(
        *("host", "join", f"--controller={token.url}", f"--token={token.token}"),
        *("--name=b", "--labels=at=b", "--address=127.0.0.1", "--port=0"),
    )

    async def is_here() -> bool:
        return [one.standing for one in await manager.hosts()] == [Standing.ALIVE]

    await until(is_here)


async def until(is_so: Callable[[], Any]) -> None:
    async with asyncio.timeout(SOON_S):
        while not await is_so():  # noqa: ASYNC110 - conditions of any kind
            await asyncio.sleep(0.05)


@LOOPS
def test_every_straight_call_reaches_engines_on_a_machine_that_joined(run: Any) -> None:
    """And what runs there ends with the manager, since no store says what it was."""

    async def body() -> None:
        async with cluster() as (manager, host):
            found = await manager.select_one_instance(WorkerType.LLM, "echo")
            assert found.host_name == "b"
            assert len(host.workers()) == 3
            asked = GenerateParams(model="echo", messages=[{"role": "user", "content": "one two"}])
            whole = await manager.generate(asked)
            assert (whole.success, bool(whole.text)) == (True, True)
            parts = [part async for part in manager.generate_stream(asked)]
            assert "".join(part.text for part in parts) == whole.text
            assert parts[-1].usage == whole.usage
            vectors = await manager.embeddings({"model": "vectors", "input": ["a", "b"]})
            assert len(vectors) == 2
            scores = await manager.embeddings({"model": "ranks", "input": ["a", "b"], "query": "a"})
            assert [len(one) for one in scores] == [1, 1]
            count = await manager.count_token({"model": "echo", "prompt": "one two three"})
            assert count >= 3
            assert (await manager.get_model_metadata({"model": "echo"})).model == "echo"
            many = (manager.generate(asked) for _ in range(20))
            assert {one.text for one in await asyncio.gather(*many)} == {whole.text}
            await check_connections(manager, asked)
            await manager.stop()
            assert host.workers() == {}
            host.wait_gone()

    run(body())


async def check_connections(manager: LocalWorkerManager, asked: GenerateParams) -> None:
    """A stream that is closed early gives its slot back, and its connection is not used again."""
    stream = manager.generate_stream(asked)
    await anext(stream)
    await stream.aclose()
    pool = manager.caller.ways.pool(manager.router.select("echo").endpoint)
    assert pool is not None
    async with asyncio.timeout(1):
        while pool.busy_count:  # noqa: ASYNC110 - the cut connection is gone a turn of the loop later
            await asyncio.sleep(0)
    assert pool.connection_count > 0
    before = pool.connection_count
    for _ in range(3):
        assert (await manager.generate(asked)).success
    assert pool.connection_count == before


def test_F01_an_engine_that_dies_with_a_request_there_is_told_as_lost() -> None:
    """The relay lives and says so; a request that began is not asked of another process."""

    async def body() -> None:
        async with cluster((there("slow", WorkerType.LLM, params={"delay_ms": 50.0}),)) as rig:
            manager, host = rig
            (instance_id,) = host.workers()
            outputs = manager.generate_stream(
                GenerateParams(model="slow", prompt="a long one", max_tokens=500)
            )
            assert (await anext(outputs)).success
            host.kill_worker(instance_id)
            rest = [output async for output in outputs]
            assert rest[-1].error_code == WorkerLost.http_status

            async def is_renewed() -> bool:
                ready = await manager.get_model_instances(WorkerType.LLM, "slow")
                return [one.instance_id for one in ready] not in ([], [instance_id])

            await until(is_renewed)
            assert (
                await manager.generate({"model": "slow", "prompt": "x", "max_tokens": 2})
            ).success

    asyncio.run(body())


def test_what_runs_on_other_machines_goes_on_when_a_store_says_what_it_is(tmp_path: Path) -> None:
    store = SqlStore(tmp_path / "hostler.sqlite")

    async def body() -> None:
        async with cluster(MODELS[:1], store) as (manager, host):
            before = host.workers()
            assert len(before) == 1
            await manager.stop()
            assert host.workers() == before

    try:
        asyncio.run(body())
    finally:
        store.close()


def test_a_start_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    """The port is taken: the error is the reason itself, no group of it."""

    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            control = ControlConfig(host="127.0.0.1", port=port)
            config = msgspec.structs.replace(settings(tmp_path), control=control)
            manager = LocalWorkerManager(config, models=())
            with pytest.raises(StartupError, match=f"port {port} on 127.0.0.1 is in use"):
                await manager.start()
        async with manager:  # the same one, once the port is free
            assert (await manager.create_join_token()).url.endswith(f":{port}")

    asyncio.run(body())


def test_tokens_are_made_revoked_and_refused_in_the_program(tmp_path: Path) -> None:
    async def body() -> None:
        manager = LocalWorkerManager(settings(tmp_path), models=())
        async with manager:
            made = await manager.create_join_token(Role.GATEWAY, uses=None, name="edge")
            assert made.command.startswith("hostler gateway run --controller https://127.0.0.1:")
            (stored,) = manager.store.tokens()
            assert (stored.role, stored.uses_left, stored.name) == (Role.GATEWAY, None, "edge")
            await manager.revoke_join_token(made.token_id)
            assert manager.store.tokens()[0].revoked
            with pytest.raises(NotFound):
                await manager.revoke_join_token("nobody")
            with pytest.raises(BadRequest, match="host, worker, gateway"):
                await manager.create_join_token("admin")
            with pytest.raises(BadRequest, match="uses"):
                await manager.create_join_token(uses=0)
            assert await manager.hosts() == []
            in_thread = await asyncio.to_thread(manager.sync_create_join_token)
            assert in_thread.role is Role.HOST
        plain = msgspec.structs.replace(settings(tmp_path), control=None)
        async with LocalWorkerManager(plain, models=()) as manager:
            with pytest.raises(Conflict, match="control port"):
                await manager.create_join_token()

    asyncio.run(body())
