"""A real chat model in llama.cpp, in a worker process."""

import asyncio
import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from hostler.core.snapshot import Endpoint
from hostler.wire.client import fetch, stream
from tests.integration.worker.launch import Controller, Worker, controller
from tests.models import model_path

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"


async def start(fleet: Controller, path: Path, **changes: Any) -> Worker:
    params = {"context_length": 512} | changes.pop("params", {})
    spec = fleet.spec(engine="llama.cpp", model_path=str(path), params=params, **changes)
    worker = await fleet.launch(spec)
    await fleet.ready(worker)
    return worker


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


async def busy(worker: Worker) -> int:
    """Requests the engine itself says it works on."""
    answer = await fetch(worker.endpoint, "GET", "/metrics", timeout_s=10.0)
    for line in answer.body.decode().splitlines():
        if line.startswith("llamacpp:requests_processing "):
            return int(float(line.split()[1]))
    raise AssertionError("no such metric")


def test_the_same_question_at_temperature_0_has_the_same_answer() -> None:
    path = model_path("chat")

    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, path)
            record = fleet.registry.record(worker.spec.instance_id)
            assert record is not None
            assert record.metadata is not None
            assert record.metadata.context_length == 512
            assert "chat" in record.metadata.capabilities
            question = ask("What is the capital of France?", temperature=0, max_tokens=16)
            answers = [await worker.call("POST", CHAT, question) for _ in range(3)]
            texts = {body["choices"][0]["message"]["content"] for _, body in answers}
            assert len(texts) == 1
            assert texts.pop()
            assert answers[0][1]["model"] == "m"

    asyncio.run(main())


def test_tokens_counted_beforehand_are_the_prompt_tokens_of_the_answer() -> None:
    path = model_path("chat")

    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, path)
            for text in ("Hi", "Wie heißt die Hauptstadt? 日本", "word " * 200):
                question = ask(text, max_tokens=1)
                _, counted = await worker.call("POST", f"{CHAT}/input_tokens", question)
                _, answer = await worker.call("POST", CHAT, question)
                assert counted["input_tokens"] == answer["usage"]["prompt_tokens"]
            status, body = await worker.call("POST", CHAT, ask("word " * 600))
            assert status == 400
            assert body["error"]["type"] == "exceed_context_size_error"

    asyncio.run(main())


def test_a_client_that_leaves_a_stream_frees_its_slot() -> None:
    path = model_path("chat")

    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, path, params={"context_length": 4096}, concurrency=1)
            body = msgspec.json.encode(
                ask("Count to ten thousand.", stream=True, max_tokens=4000, ignore_eos=True)
            )
            kind = ((b"content-type", b"application/json"),)
            pieces = stream(
                worker.endpoint, "POST", CHAT, headers=kind, body=body, timeout_s=20.0, idle_s=20.0
            )
            async with contextlib.aclosing(pieces) as events:
                async for _ in events:
                    if await busy(worker) == 1:
                        break
            left_s = time.monotonic()
            while await busy(worker):
                assert time.monotonic() - left_s < 3.0
            status, _ = await worker.call("POST", CHAT, ask("Hi", max_tokens=1))
            assert status == 200

    asyncio.run(main())


def test_a_stop_waits_for_a_stream_and_our_signal_handler_is_the_one_that_counts() -> None:
    path = model_path("chat")

    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, path)
            question = ask("Tell a long story.", max_tokens=60, ignore_eos=True)
            async with asyncio.TaskGroup() as tasks:
                call = tasks.create_task(worker.call("POST", CHAT, question))
                while not await busy(worker):
                    pass
                worker.process.send_signal(signal.SIGTERM)
            status, body = call.result()
            assert (status, body["usage"]["completion_tokens"]) == (200, 60)
            assert await worker.ended() == 0
            assert "worker.leaving" in worker.stderr
            assert not Path(worker.spec.engine_socket).exists()

    asyncio.run(main())


def test_doors_to_files_tools_and_other_requests_are_closed() -> None:
    path = model_path("chat")

    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, path)
            closed = [
                ("GET", "/"),
                ("POST", "/props"),
                ("POST", "/slots/0?action=save"),
                ("GET", "/tools"),
            ]
            for method, target in closed:
                answer = await fetch(worker.endpoint, method, target, body=b"{}", timeout_s=5.0)
                assert answer.status >= 400, target
            image = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
            status, body = await worker.call(
                "POST", CHAT, {"messages": [{"role": "user", "content": [image]}]}
            )
            assert status >= 400
            assert "root:" not in str(body)
            answer = await fetch(worker.endpoint, "GET", "/health", timeout_s=5.0)
            assert not dict(answer.headers).get(b"access-control-allow-origin")
            process = psutil.Process(worker.process.pid)
            assert not process.net_connections(kind="inet")  # Unix sockets only
            assert Path(worker.spec.engine_socket).stat().st_mode & 0o077 == 0
            canary = "tangerine-prompt-canary"
            await worker.call("POST", CHAT, ask(canary, max_tokens=2))
            outside = {"filename": "../slot"}
            assert (await worker.call("POST", "/slots/0?action=save", outside))[0] == 400
            slots = await fetch(worker.endpoint, "GET", "/slots", timeout_s=5.0)
            assert slots.status == 200  # for loans: which are idle, and how full they are
            assert canary not in slots.body.decode()
            worker.process.send_signal(signal.SIGTERM)
            await worker.ended()
            assert canary not in worker.stderr

    asyncio.run(main())


def test_a_cut_or_foreign_file_ends_the_worker_with_exit_code_3(tmp_path: Path) -> None:
    whole = model_path("chat").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[:3_000_000])
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(b"PK\x03\x04" + bytes(1000))

    async def main() -> None:
        async with controller() as fleet:
            for path in (cut, foreign, tmp_path / "missing.gguf"):
                worker = await fleet.launch(fleet.spec(engine="llama.cpp", model_path=str(path)))
                assert await worker.ended() == 3
                (line,) = [ln for ln in worker.stderr.splitlines() if ln.startswith("hostler-err")]
                assert '"code":"model_corrupt"' in line
                record = fleet.registry.record(worker.spec.instance_id)
                assert record is not None
                assert path.name in record.instance.reason

    asyncio.run(main())


def test_the_status_names_the_agent(tmp_path: Path) -> None:
    path = model_path("chat")

    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, path)
            agent = Endpoint(socket=worker.spec.agent_socket)
            answer = await fetch(agent, "GET", "/status", timeout_s=5.0)
            status = msgspec.json.decode(answer.body)
            assert status["engine"] == "llama.cpp"
            assert status["memory_bytes"] > 100e6
            assert status["engine_ok"] is True

    asyncio.run(main())
