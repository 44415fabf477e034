"""The life of a worker process: what ends it, what it outlives, what it says."""

import asyncio
import os
import signal
import time
from functools import partial
from typing import Any

import msgspec

from hostler.core.lifecycle import State
from hostler.core.snapshot import Endpoint
from hostler.wire.client import fetch, stream
from tests.integration.worker.launch import Controller, Worker, controller, until

SAMPLES = "tests.integration.worker.samples"


def spec(fleet: Controller, name: str = "SyncEcho", **changes: Any) -> Any:
    return fleet.spec(engine="python", params={"worker_class": f"{SAMPLES}:{name}"}, **changes)


async def start(fleet: Controller, name: str = "SyncEcho", **changes: Any) -> Worker:
    worker = await fleet.launch(spec(fleet, name, **changes))
    await fleet.ready(worker)
    return worker


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


async def drip(worker: Worker) -> bytes:
    """Read an endless stream until it ends, however it ends."""
    received = b""
    try:
        async for data in stream(
            worker.endpoint,
            "POST",
            "/v1/chat/completions",
            body=msgspec.json.encode(chat("go", stream=True)),
            timeout_s=20.0,
            idle_s=10.0,
        ):
            received += data
    except Exception:  # the end of it is what the test looks at
        received += b"LOST"
    return received


def test_F75_sigterm_lets_running_requests_finish_and_exits_0() -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet)
            async with asyncio.TaskGroup() as tasks:
                text = "sleep sleep sleep"
                call = tasks.create_task(worker.call("POST", "/v1/chat/completions", chat(text)))
                await asyncio.sleep(0.2)
                worker.process.send_signal(signal.SIGTERM)
                record = fleet.registry.record(worker.spec.instance_id)
                assert record is not None
                await until(lambda: record.draining)
            status, body = call.result()
            assert status == 200
            assert body["choices"][0]["message"]["content"] == f"{text} "
            assert await worker.ended() == 0
            assert not os.path.exists(worker.spec.engine_socket)

    asyncio.run(main())


def test_F75_a_drain_ends_at_its_deadline_and_a_second_signal_ends_it_at_once() -> None:
    async def main() -> None:
        async with controller() as fleet:
            for drain_s, signals, longest_s in ((0.5, 1, 3.0), (60.0, 2, 3.0)):
                worker = await start(fleet, "AsyncDrip", drain_timeout_s=drain_s)
                async with asyncio.TaskGroup() as tasks:
                    reader = tasks.create_task(drip(worker))
                    await asyncio.sleep(0.3)
                    began_s = time.monotonic()
                    for _ in range(signals):
                        worker.process.send_signal(signal.SIGTERM)
                        await asyncio.sleep(0.2)
                    assert await worker.ended() == 0
                    assert time.monotonic() - began_s < longest_s
                assert b"[DONE]" not in reader.result()

    asyncio.run(main())


def test_the_agents_own_socket_tells_and_obeys() -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet)
            record = fleet.registry.record(worker.spec.instance_id)
            assert record is not None
            await until(lambda: record.beat_seq > 0)
            status = await worker.status()
            assert status["state"] == "serving"
            assert status["registered"] is True
            assert status["pid"] == worker.process.pid
            agent = Endpoint(socket=worker.spec.agent_socket)
            health = await fetch(agent, "GET", "/health", timeout_s=5.0)
            assert health.status == 200
            nothing = await fetch(agent, "GET", "/other", timeout_s=5.0)
            assert nothing.status == 404
            answer = await fetch(agent, "POST", "/stop?hasten=1", timeout_s=5.0)
            assert answer.status == 202
            assert await worker.ended() == 0

    asyncio.run(main())


def test_a_worker_without_a_controller_serves_on_and_then_ends_itself() -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, orphan_grace_s=1.5)
            await fleet.stop()
            began_s = time.monotonic()
            await asyncio.sleep(0.7)
            status, _ = await worker.call("POST", "/v1/chat/completions", chat("still here"))
            assert status == 200
            assert await worker.ended() == 0
            assert 1.0 < time.monotonic() - began_s < 5.0
            assert "no controller" in worker.stderr

    asyncio.run(main())


def test_a_controller_that_comes_back_adopts_the_worker() -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, orphan_grace_s=10.0)
            await fleet.stop()
            await asyncio.sleep(0.5)
            fleet.expect(worker.spec, adopted=True)
            await fleet.start()
            record = await fleet.reaches(worker, State.READY, timeout_s=3.0)
            assert record.pid == worker.process.pid
            assert record.expected.endpoint.socket == worker.spec.engine_socket
            assert worker.process.returncode is None

    asyncio.run(main())


def test_a_worker_that_is_not_wanted_any_more_ends_itself() -> None:
    async def main() -> None:
        async with controller() as fleet:
            replaced = await start(fleet)
            forgotten = await start(fleet)
            fleet.expect(msgspec.structs.replace(replaced.spec, epoch=2))
            assert await replaced.ended() == 0
            assert "stale_epoch" in replaced.stderr
            fleet.registry.forget(forgotten.spec.instance_id)
            assert await forgotten.ended() == 0
            assert "unknown_instance" in forgotten.stderr

    asyncio.run(main())


def test_F75_a_start_that_takes_too_long_or_is_called_off_ends() -> None:
    async def main() -> None:
        async with controller() as fleet:
            slow = await fleet.launch(spec(fleet, "LoadsSlowly", start_timeout_s=0.5))
            assert await slow.ended() == 1
            record = fleet.registry.record(slow.spec.instance_id)
            assert record is not None
            assert "did not start within 0.5 s" in record.instance.reason
            for name in ("LoadsSlowly", "LoadsStuck"):
                called_off = await fleet.launch(spec(fleet, name))
                await until(partial(os.path.exists, called_off.spec.agent_socket))
                called_off.process.send_signal(signal.SIGTERM)
                assert await called_off.ended(timeout_s=5.0) == 0

    asyncio.run(main())


def test_wrong_parameters_end_the_worker_with_their_reason() -> None:
    async def main() -> None:
        async with controller() as fleet:
            for params in ({"worker_class": "nonsense"}, {"worker_class": "a:B", "more": 1}, {}):
                worker = await fleet.launch(fleet.spec(engine="python", params=params))
                assert await worker.ended() == 1
                assert "hostler-error" in worker.stderr
                assert "param" in worker.stderr

    asyncio.run(main())
