"""ProcessEngine with real child processes: readiness, identity, output, stop, arguments."""

import asyncio
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostler.app.config import engine_environment
from hostler.app.process import tagged
from hostler.core.errors import EngineError, IdentityMismatch, StartupError
from hostler.core.fleet import WorkerSpec
from hostler.core.model import WorkerType
from hostler.engines.command import check_value
from hostler.engines.fake import fake_command
from hostler.engines.output import FILE_BYTES, FILES, RING_BYTES
from hostler.engines.process import Isolation, ProcessEngine, best_isolation
from hostler.wire.client import fetch
from tests.chaos.figures import IS_LONG

TAG = "HOSTLER_INSTANCE"
MODES = [best_isolation()] + [Isolation.PROCESS_TREE] * (
    best_isolation() is Isolation.PID_NAMESPACE
)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pe") as name:
        yield Path(name)


def spec(
    folder: Path, start_timeout_s: float = 15.0, state_dir: str = "", **params: Any
) -> WorkerSpec:
    instance_id = secrets.token_hex(6)
    if isinstance(params.get("script"), dict):
        params["script"] = json.dumps(params["script"])
    return WorkerSpec(
        instance_id=instance_id,
        epoch=1,
        secret="",
        model_name="m",
        worker_type=WorkerType.LLM,
        engine="fake",
        params=params,
        engine_socket=str(folder / f"{instance_id}.sock"),
        agent_socket="",
        registry_socket="",
        state_dir=state_dir,
        start_timeout_s=start_timeout_s,
    )


def engine_of(mode: Isolation, kill_grace_s: float = 1.0) -> ProcessEngine:
    return ProcessEngine(fake_command, isolation_mode=mode, kill_grace_s=kill_grace_s)


async def start_fails(engine: ProcessEngine, given_spec: WorkerSpec) -> EngineError:
    with pytest.raises(EngineError) as raised:
        await engine.start(given_spec)
    assert tagged(TAG, given_spec.instance_id) == {}
    assert not Path(given_spec.engine_socket).exists()
    return raised.value


@pytest.mark.parametrize("mode", MODES)
def test_an_engine_serves_and_goes_with_all_its_processes(folder: Path, mode: Isolation) -> None:
    async def main() -> None:
        engine, mine = engine_of(mode), spec(folder, script={"grandchildren": True})
        started = await engine.start(mine)
        assert started.upstream_model == "m"
        assert started.endpoint.socket == mine.engine_socket
        assert b"fake_engine" in Path(f"/proc/{started.pid}/cmdline").read_bytes()
        assert await engine.probe()
        assert engine.in_flight() == 0
        assert len(tagged(TAG, mine.instance_id)) >= 4
        await engine.stop(5)
        assert tagged(TAG, mine.instance_id) == {}
        assert not await engine.probe()

    uvloop.run(main())


@pytest.mark.parametrize("mode", MODES)
def test_an_engine_that_ignores_sigterm_is_killed(folder: Path, mode: Isolation) -> None:
    async def main() -> None:
        engine, mine = engine_of(mode, 0.3), spec(folder, script={"sigterm": "ignore"})
        await engine.start(mine)
        began_s = time.monotonic()
        await engine.stop(5)
        assert 0.3 <= time.monotonic() - began_s < 2
        assert tagged(TAG, mine.instance_id) == {}

    uvloop.run(main())


def test_a_stop_waits_for_the_requests_under_way(folder: Path) -> None:
    async def main() -> None:
        engine, mine = engine_of(MODES[0]), spec(folder, tokens=5, delay_ms=100)
        started = await engine.start(mine)
        async with asyncio.TaskGroup() as tasks:
            body = b'{"messages":[]}'
            path = "/v1/chat/completions"
            asked = tasks.create_task(fetch(started.endpoint, "POST", path, body=body, timeout_s=5))
            await asyncio.sleep(0.1)
            await engine.stop(5)
            assert (await asked).status == 200

    asyncio.run(main())


def test_a_drain_that_takes_too_long_is_ended(folder: Path) -> None:
    async def main() -> None:
        engine, mine = engine_of(MODES[0]), spec(folder, script={"hang_at": 0})
        started = await engine.start(mine)
        _, writer = await asyncio.open_unix_connection(started.endpoint.socket)
        writer.write(
            b'POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 15\r\n\r\n{"messages":[]}'
        )
        await asyncio.sleep(0.1)
        began_s = time.monotonic()
        await engine.stop(0.4)
        assert 0.4 <= time.monotonic() - began_s < 2
        writer.close()

    asyncio.run(main())


@pytest.mark.parametrize("mode", MODES)
def test_an_engine_that_exits_while_starting_is_told_with_its_last_lines(
    folder: Path, mode: Isolation
) -> None:
    error = asyncio.run(start_fails(engine_of(mode), spec(folder, script={"exit_at_start": 5})))
    assert "exit code 5" in error.message
    assert "fake engine: told to exit at start" in error.message


def test_an_engine_that_is_never_ready_is_ended_in_time(folder: Path) -> None:
    began_s = time.monotonic()
    mine = spec(folder, 1.0, script={"never_ready": True})
    error = asyncio.run(start_fails(engine_of(MODES[0]), mine))
    assert "did not serve within" in error.message
    assert time.monotonic() - began_s < 3


def test_a_start_that_is_given_up_leaves_nothing(folder: Path) -> None:
    async def main() -> None:
        engine, mine = engine_of(MODES[0]), spec(folder, script={"never_ready": True})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await engine.start(mine)
        assert tagged(TAG, mine.instance_id) == {}

    asyncio.run(main())


def test_F28_an_engine_with_another_model_is_never_ready(folder: Path) -> None:
    error = asyncio.run(start_fails(engine_of(MODES[0]), spec(folder, script={"lie_model": "x"})))
    assert isinstance(error, IdentityMismatch)
    assert "'x', not 'm'" in error.message


def test_an_engine_that_loads_slowly_is_ready_when_it_says_so(folder: Path) -> None:
    async def main() -> None:
        engine, mine = engine_of(MODES[0]), spec(folder, script={"load_s": 0.6})
        began_s = time.monotonic()
        await engine.start(mine)
        assert time.monotonic() - began_s >= 0.6
        await engine.stop(0)

    asyncio.run(main())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("word", "told"),
    [("[[die]]", "signal 9"), ("[[segv]]", "signal 11"), ("[[die]] [[crash_with=7]]", "code 7")],
)
def test_a_crash_is_told_with_its_kind(folder: Path, mode: Isolation, word: str, told: str) -> None:
    async def main() -> str:
        engine = engine_of(mode)
        started = await engine.start(spec(folder))
        _, writer = await asyncio.open_unix_connection(started.endpoint.socket)
        body = b'{"prompt":"%b"}' % word.encode()
        head = b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        async with asyncio.timeout(5):
            reason = await engine.exited()
        writer.close()
        await engine.stop(0)
        return reason

    assert told in asyncio.run(main())


def test_F16_engines_survive_the_end_of_every_other_thread(folder: Path) -> None:
    async def main() -> None:
        engines = [engine_of(mode) for mode in (*MODES, MODES[0])]
        specs = [spec(folder) for _ in engines]
        with ThreadPoolExecutor(4) as pool:
            await asyncio.gather(
                *(
                    asyncio.get_running_loop().run_in_executor(pool, time.sleep, 0.05)
                    for _ in "1234"
                )
            )
            for engine, mine in zip(engines, specs, strict=True):
                await engine.start(mine)
        await asyncio.sleep(5 if IS_LONG else 1)  # every thread but this one has ended
        for engine in engines:
            assert await engine.probe()
            await engine.stop(0)

    asyncio.run(main())


def test_F16_no_engine_is_started_from_another_thread(folder: Path) -> None:
    async def main() -> None:
        engine, mine = engine_of(MODES[0]), spec(folder)
        with pytest.raises(StartupError, match="main thread"):
            await asyncio.to_thread(lambda: asyncio.run(engine.start(mine)))
        assert tagged(TAG, mine.instance_id) == {}

    asyncio.run(main())


def test_F18_a_flood_neither_throttles_the_engine_nor_fills_the_disk(folder: Path) -> None:
    logs = folder / "logs"
    logs.mkdir()
    megabytes = 60

    async def main() -> None:
        engine = engine_of(MODES[0])
        mine = spec(folder, state_dir=str(folder), script={"start_stdout_mb": megabytes})
        worst_s, began_s = 0.0, time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            starting = tasks.create_task(engine.start(mine))
            while not starting.done():
                before_s = time.monotonic()
                await asyncio.sleep(0.01)
                worst_s = max(worst_s, time.monotonic() - before_s - 0.01)
        assert megabytes / (time.monotonic() - began_s) > 10
        assert worst_s < 0.25
        assert sum(len(line) + 1 for line in engine.last_lines(10**9)) <= RING_BYTES
        await engine.stop(0)

    asyncio.run(main())
    files = list(logs.iterdir())
    assert 0 < sum(file.stat().st_size for file in files) <= FILES * FILE_BYTES + RING_BYTES
    assert any(b"dropped" in file.read_bytes() for file in files)


def is_allowed(text: str) -> bool:
    try:
        check_value("x", text)
    except Exception:  # boundary: any refusal means it is not for the engine
        return False
    return True


hostile = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["$(id)", "`id`", "a b", "'\"", "; rm -rf /", "a --socket=/x", "=", "‖", "a\\nb"]
    ),
).filter(lambda text: bool(text) and is_allowed(text))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(hostile)
def test_F103_the_engine_gets_exactly_these_arguments_and_this_environment(model: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pe") as name:
        dump = Path(name) / "dump.json"
        mine = spec(Path(name), model=model, state_dir=name, script={"dump": str(dump)})

        async def main() -> None:
            engine = ProcessEngine(fake_command)
            started = await engine.start(mine)
            assert started.upstream_model == model
            await engine.stop(0)

        asyncio.run(main())
        found = json.loads(dump.read_text())
        tags = {TAG: mine.instance_id, "HOSTLER_STATE_DIR": name}
        assert found["argv"] == list(fake_command(mine).argv)
        assert found["env"] == engine_environment(tags)


def test_no_variable_of_ours_but_the_tags_reaches_an_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTLER_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    dump = folder / "dump.json"

    async def main() -> None:
        engine = ProcessEngine(fake_command)
        await engine.start(spec(folder, script={"dump": str(dump)}))
        await engine.stop(0)

    asyncio.run(main())
    assert "secret" not in dump.read_text()
    assert os.environ["OPENAI_API_KEY"] == "secret"
