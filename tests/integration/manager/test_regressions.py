"""Faults of a system with the same contract, each of which was reproduced there by running it."""

import asyncio
import json
import os
import signal
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from hostler import (
    Config,
    HostlerError,
    LocalWorkerManager,
    ModelConfig,
    WorkerApplyRequest,
    WorkerApplyType,
    WorkerShutdownRequest,
    WorkerStartupRequest,
    WorkerType,
)
from hostler.app.config import ServerConfig
from hostler.app.process import ProcessHandle, tagged
from hostler.catalog.catalog import Catalog
from hostler.core.errors import BadRequest, EngineError, NoReadyInstance
from hostler.core.lifecycle import State
from hostler.manager.resolve import resolve
from hostler.manager.workers import INSTANCE_TAG
from hostler.testing.ledger import check_no_process
from tests.integration.manager.test_local_manager import ECHO, HELLO, run

BAD_LISTS: tuple[object, ...] = (
    {"data": ["a"]},
    {"data": [{"id": "x", "meta": "text"}]},
    {"data": [{"id": "x", "meta": ["n_ctx"]}]},
    {"data": {"id": "x"}},
    [],
    "nothing",
)


def test_a_restart_stops_and_starts() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        before = {data.pid for data in manager.run_data("echo")}
        order = WorkerApplyRequest(model="echo", apply_type=WorkerApplyType.RESTART)
        assert (await manager.worker_apply(order)).success
        after = [data for data in manager.run_data("echo") if data.state is State.READY]
        assert len(after) == 2
        assert not before & {data.pid for data in after}
        assert (await manager.generate(HELLO)).success

    run(body, ECHO)


def test_starting_a_running_model_removes_nothing() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        before = {data.instance_id for data in manager.run_data("echo")}
        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(manager.model_startup(WorkerStartupRequest(model="echo")))
        assert {data.instance_id for data in manager.run_data("echo")} == before

    run(body, ECHO)


def test_a_stopped_manager_judges_and_beats_no_more() -> None:
    async def main() -> None:
        import tempfile

        with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as folder:
            manager = LocalWorkerManager(Config(state_dir=folder), models=(ECHO,))
            before = asyncio.all_tasks()
            async with manager:
                version = manager.registry.snapshot.version
                assert version > 0
            assert asyncio.all_tasks() == before, "something runs on"
            version = manager.registry.snapshot.version
            await asyncio.sleep(0.5)
            assert manager.registry.snapshot.version == version

    asyncio.run(main())


def test_a_second_replica_is_let_in_without_touching_the_first() -> None:
    one = ModelConfig(name="echo", type=WorkerType.LLM, engine="fake")

    async def body(manager: LocalWorkerManager) -> None:
        (first,) = manager.run_data("echo")
        for replicas in (3, 1):
            order = WorkerApplyRequest(
                model="echo", apply_type=WorkerApplyType.UPDATE_PARAMS, replicas=replicas
            )
            assert (await manager.worker_apply(order)).success
            ready = [data for data in manager.run_data("echo") if data.state is State.READY]
            assert len(ready) == replicas
            assert first.instance_id in {data.instance_id for data in ready}

    run(body, one)


def wait_for_no_process(instance_id: str) -> None:
    assert check_no_process(instance_id, within_s=5.0) == []


def test_no_call_is_lost_while_one_of_two_replicas_is_dead() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        victim = manager.run_data("echo")[0]
        assert victim.pid is not None
        handle = ProcessHandle.of(victim.pid)
        assert handle is not None
        handle.kill()
        # Its engine may outlive it by moments, and a text begun there is told as broken, not redone.
        await asyncio.to_thread(wait_for_no_process, victim.instance_id)
        for _ in range(50):
            assert (await manager.generate(HELLO)).success

    run(body, ECHO)


def test_F16_no_new_request_goes_to_a_dead_worker() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        victim = manager.run_data("echo")[0]
        assert victim.pid is not None
        handle = ProcessHandle.of(victim.pid)
        assert handle is not None
        began_s = time.monotonic()
        handle.kill()
        while victim.instance_id in {view.instance_id for view in manager.router.usable("echo")}:
            assert time.monotonic() - began_s < 2.0
            await asyncio.sleep(0.001)

    run(body, ECHO)


def test_lookups_of_unknown_models_leave_nothing_behind() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        def sizes() -> tuple[int, ...]:
            return (
                len(manager.wishes.all()),
                len(manager.registry.records()),
                len(manager.router.models()),
                len(manager.router.load),
                len(asyncio.all_tasks()),
            )

        before = sizes()
        for number in range(1000):
            name = f"nobody-{number}"
            assert await manager.get_model_instances(WorkerType.LLM, name) == []
            for ask in (manager.generate, manager.count_token):
                if number % 10 == 0:
                    with pytest.raises(HostlerError):
                        await ask({"model": name, "prompt": "x"})
            with pytest.raises(HostlerError):
                await manager.select_one_instance(WorkerType.LLM, name)
        assert sizes() == before
        assert (await manager.generate(HELLO)).success

    run(body, ECHO)


def test_a_late_heartbeat_revives_nobody() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        victim = manager.run_data("echo")[0]
        assert victim.pid is not None
        handle = ProcessHandle.of(victim.pid)
        assert handle is not None
        handle.signal(signal.SIGSTOP)  # its next beat comes after the stop
        stop = WorkerShutdownRequest(model="echo")
        await manager.model_shutdown(stop, wait=False)
        await asyncio.sleep(0.3)
        handle.signal(signal.SIGCONT)
        await manager.until_gone("echo", 20)
        await asyncio.sleep(0.3)
        assert manager.run_data("echo") == []
        with pytest.raises(NoReadyInstance):
            await manager.select_one_instance(WorkerType.LLM, "echo")

    run(body, ECHO)


@contextmanager
def server_that_says(lists: tuple[object, ...]) -> Iterator[int]:
    """An HTTP server whose list of models is another piece of nonsense each time."""
    answers = iter([*lists] * 50)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = json.dumps(next(answers)).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            serving.join()


def test_one_bad_server_stops_nobody_and_supported_models_answers() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        with server_that_says(BAD_LISTS) as port:
            await manager.model_startup(
                WorkerStartupRequest(
                    model="given", engine="openai", urls=(f"http://127.0.0.1:{port}/v1",)
                ),
                wait=False,
            )
            await asyncio.sleep(0.2)
            for _ in range(2 * len(BAD_LISTS)):
                await manager.servers.look()
            (manager.paths.models_dir / "broken.gguf").write_bytes(b"GGUF\x03nonsense")
            assert await manager.supported_models()
            assert (await manager.generate(HELLO)).success
            await manager.model_shutdown(WorkerShutdownRequest(model="given", delete_after=True))

    run(body, ECHO)


def test_there_is_no_daemon_flag_to_raise_a_key_error() -> None:
    assert not [name for name in ServerConfig.__struct_fields__ if "daemon" in name]
    with pytest.raises(TypeError):
        WorkerStartupRequest(model="echo", daemon=True)  # type: ignore[call-arg]


def test_a_weight_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(TypeError):
        WorkerStartupRequest(model="echo", weight=2)  # type: ignore[call-arg]
    with pytest.raises(BadRequest, match="count with policy 'weighted' alone"):
        resolve(
            WorkerStartupRequest(model="echo", engine="fake", routing={"weights": [2]}), Catalog()
        )


@pytest.mark.slow
def test_F12_a_crash_loop_ends_in_a_verdict_with_the_last_lines_and_can_be_reset() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        loops = WorkerStartupRequest(
            model="loops", engine="fake", params={"script": json.dumps({"exit_at_start": 7})}
        )
        with pytest.raises(EngineError, match="given up after 5 tries"):
            await manager.model_startup(loops)
        await asyncio.sleep(0.2)
        events = manager.journal.after(0, 500, "loops")
        (verdict,) = [event for event in events if event.kind == "instance.given_up"]
        assert verdict.fields["tries"] == 5
        assert verdict.fields["log"]
        epoch = manager.run_data("loops")[0].epoch
        with pytest.raises(EngineError):
            await manager.model_startup(loops)  # again: it is tried anew
        assert manager.run_data("loops")[0].epoch > epoch

    run(body)


def test_F75_a_second_stop_hastens_the_first_and_what_is_left_shows() -> None:
    slow = ModelConfig(
        name="echo", type=WorkerType.LLM, engine="fake", params={"tokens": 2000, "delay_ms": 20}
    )

    async def body(manager: LocalWorkerManager) -> None:
        async def ask() -> None:
            assert not (await manager.generate(HELLO)).success  # cut off, and told so

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask())
            await asyncio.sleep(0.3)
            stop = WorkerShutdownRequest(model="echo")
            await manager.model_shutdown(stop, wait=False)
            await manager.model_shutdown(stop, wait=False)  # the same order twice: nothing
            await asyncio.sleep(1.5)
            (data,) = manager.run_data("echo")
            assert (data.state, data.in_flight) == (State.DRAINING, 1)
            began_s = time.monotonic()
            await manager.model_shutdown(stop)
            assert time.monotonic() - began_s < 3.0  # not the drain's 5 s
        kinds = {event.kind for event in manager.journal.after(0, 500, "echo")}
        assert "drain.progress" in kinds

    run(body, slow)


def test_an_engine_that_ignores_sigterm_is_gone_after_a_stop() -> None:
    deaf = ModelConfig(
        name="echo",
        type=WorkerType.LLM,
        engine="fake",
        params={"script": json.dumps({"sigterm": "ignore", "grandchildren": True})},
    )

    async def body(manager: LocalWorkerManager) -> None:
        (data,) = manager.run_data("echo")
        await manager.model_shutdown(WorkerShutdownRequest(model="echo"))
        assert tagged(INSTANCE_TAG, data.instance_id) == {}

    run(body, deaf)


def test_without_memory_for_two_the_old_one_goes_first_and_requests_wait() -> None:
    one = ModelConfig(name="echo", type=WorkerType.LLM, engine="fake")

    async def body(manager: LocalWorkerManager) -> None:
        manager.room.free_bytes = lambda: 0
        most = 0
        over = asyncio.Event()
        answered = 0

        async def ask() -> None:
            nonlocal answered, most
            while not over.is_set():
                assert (await manager.generate(HELLO)).success
                answered += 1
                alive = [d for d in manager.run_data("echo") if not d.stopped]
                most = max(most, len(alive))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask())
            order = WorkerApplyRequest(model="echo", apply_type=WorkerApplyType.RESTART)
            output = await manager.worker_apply(order)
            over.set()
        assert output.success, output.message
        assert answered > 0
        assert most == 1
        assert len(manager.run_data("echo")) == 1

    run(body, one)


def test_a_failing_hand_or_probe_stops_no_loop_and_a_dead_loop_is_told() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        real = manager.workers.launch

        def failing(deployment: object, replica: int) -> None:
            if getattr(deployment, "name", "") == "other":
                raise OSError("no more of anything")
            real(deployment, replica)  # type: ignore[arg-type]

        manager.workers.launch = failing  # type: ignore[method-assign, assignment]
        other = WorkerStartupRequest(model="other", engine="fake")
        await manager.model_startup(other, wait=False)
        third = WorkerStartupRequest(model="third", engine="fake")
        assert len(await manager.model_startup(third)) == 1
        await manager.model_shutdown(WorkerShutdownRequest(model="other", delete_after=True))

        def broken(paused_s: float = 0.0) -> None:
            raise RuntimeError("a bug in the judge")

        manager.registry.silences.judge = broken  # type: ignore[method-assign]
        with pytest.raises(ExceptionGroup):
            await manager.watch()
        pids = [data.pid for data in manager.run_data("third")]
        assert all(pid and os.path.exists(f"/proc/{pid}") for pid in pids)

    with pytest.raises(ExceptionGroup):
        run(body)


def test_a_wish_that_changes_while_files_are_fetched_calls_the_fetch_off() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        asked, left = asyncio.Event(), asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            await reader.read()  # until the other side goes
            left.set()
            writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            wish = WorkerStartupRequest(
                model="far",
                engine="llama.cpp",
                source=f"http://127.0.0.1:{port}/far.gguf#sha256={'0' * 64}",
            )
            await manager.model_startup(wish, wait=False)
            async with asyncio.timeout(10):
                await asked.wait()
                assert [d.state for d in manager.run_data("far")] == [State.FETCHING]
                await manager.model_shutdown(WorkerShutdownRequest(model="far"))
                await left.wait()
        assert manager.run_data("far") == []

    run(body)


def test_F29_a_beat_of_an_older_epoch_is_told_stale_and_its_process_leaves() -> None:
    one = ModelConfig(name="echo", type=WorkerType.LLM, engine="fake")

    async def body(manager: LocalWorkerManager) -> None:
        (old,) = manager.run_data("echo")
        record = manager.registry.record(old.instance_id)
        assert record is not None
        # A newer process has the identity now, as after a split of two controllers.
        newer = await asyncio.to_thread(manager.store.next_epoch, old.worker_key, old.replica)
        manager.registry.expect(old.instance_id, record.expected, epoch=newer)
        async with asyncio.timeout(30):
            while manager.registry.record(old.instance_id) is not None:
                await manager.registry.news().wait()
            await manager.until_ready(manager.wishes.find("echo"), 20)
        log = manager.paths.worker_log(old.instance_id).read_text()
        assert "stale_epoch" in log
        (new,) = manager.run_data("echo")
        assert new.pid != old.pid
        assert (await manager.generate(HELLO)).success

    run(body, one)
