"""A person's own ModelWorker class, in a worker process, over HTTP."""

import asyncio
import signal
import time
from typing import Any

import msgspec

from hostler.core.model import WorkerType
from hostler.wire.client import fetch, stream
from tests.integration.worker.launch import Controller, Worker, controller

SAMPLES = "tests.integration.worker.samples"


async def start(fleet: Controller, name: str, **changes: Any) -> Worker:
    params = {"worker_class": f"{SAMPLES}:{name}"}
    worker = await fleet.launch(fleet.spec(engine="python", params=params, **changes))
    await fleet.ready(worker)
    return worker


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


async def events(worker: Worker, path: str, body: dict[str, Any]) -> list[Any]:
    """Return the decoded data of each event; "[DONE]" as it is."""
    raw = b""
    async for data in stream(
        worker.endpoint,
        "POST",
        path,
        headers=((b"content-type", b"application/json"),),
        body=msgspec.json.encode(body),
        timeout_s=10.0,
        idle_s=10.0,
    ):
        raw += data
    payloads = [event.removeprefix(b"data: ") for event in raw.split(b"\n\n") if event]
    return [p.decode() if p == b"[DONE]" else msgspec.json.decode(p) for p in payloads]


def test_a_chat_has_openai_shape_whole_and_streamed() -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, "SyncEcho")
            status, body = await worker.call("POST", "/v1/chat/completions", chat("one two"))
            assert status == 200
            assert body["object"] == "chat.completion"
            assert body["model"] == "m"
            assert body["id"].startswith("chatcmpl-")
            (choice,) = body["choices"]
            assert choice["message"] == {"role": "assistant", "content": "one two "}
            assert choice["finish_reason"] == "stop"
            assert body["usage"] == {
                "prompt_tokens": 2,
                "completion_tokens": 2,
                "total_tokens": 4,
            }
            options = {"stream": True, "stream_options": {"include_usage": True}}
            got = await events(worker, "/v1/chat/completions", chat("one two", **options))
            *chunks, usage, done = got
            assert done == "[DONE]"
            assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
            assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1
            deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
            assert deltas[0] == {"role": "assistant", "content": ""}
            assert "".join(delta.get("content", "") for delta in deltas) == "one two "
            reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
            assert reasons == [None] * (len(reasons) - 1) + ["stop"]
            assert usage["choices"] == []
            assert usage["usage"]["total_tokens"] == 4

    asyncio.run(main())


def test_a_completion_an_embedding_a_ranking_and_a_count_are_answered() -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, "SyncEcho", worker_type=WorkerType.LLM)
            body = {"prompt": "a b c", "max_tokens": 2}
            _, answer = await worker.call("POST", "/v1/completions", body)
            assert answer["object"] == "text_completion"
            assert answer["choices"][0]["text"] == "a b "
            assert answer["choices"][0]["finish_reason"] == "length"
            got = await events(worker, "/v1/completions", {**body, "stream": True})
            assert "".join(e["choices"][0]["text"] for e in got[:-1]) == "a b "
            _, answer = await worker.call("POST", "/v1/embeddings", {"input": ["ab", [1, 2, 3]]})
            assert [item["embedding"][0] for item in answer["data"]] == [2.0, 3.0]
            question = {"query": "red fox", "documents": ["dog", {"text": "a red fox"}, "red"]}
            _, answer = await worker.call("POST", "/v1/rerank", question)
            ranked = [(item["index"], item["relevance_score"]) for item in answer["results"]]
            assert ranked == [(1, 2.0), (2, 1.0), (0, 0.0)]
            _, answer = await worker.call("POST", "/tokenize", chat("one two three"))
            assert answer == {"count": 3}
            _, answer = await worker.call("GET", "/v1/models")
            assert answer["data"][0]["id"] == "m"

    asyncio.run(main())


def test_F27_a_request_for_another_instance_is_refused_with_421() -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, "SyncEcho")
            wrong = ((b"x-hostler-instance", b"another"),)
            status, body = await worker.call("POST", "/v1/chat/completions", chat("x"), wrong)
            assert (status, body["error"]["code"]) == (421, "wrong_instance")
            right = ((b"x-hostler-instance", worker.spec.instance_id.encode()),)
            answer = await fetch(worker.endpoint, "GET", "/v1/models", headers=right, timeout_s=5)
            assert answer.status == 200
            assert dict(answer.headers)[b"x-hostler-instance"] == worker.spec.instance_id.encode()

    asyncio.run(main())


def test_a_class_that_raises_harms_its_own_request_only() -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, "SyncEcho")
            path = "/v1/chat/completions"
            status, body = await worker.call("POST", path, chat("die"))
            assert (status, body["error"]["code"]) == (500, "engine_failed")
            assert "secret" not in str(body)
            good, bad = await asyncio.gather(
                worker.call("POST", path, chat("one two")),
                worker.call("POST", path, chat("die die", stream=True)),
            )
            assert good[0] == 200
            assert bad[0] == 500
            for broken in (b"{", b'{"messages": 3}', b'{"messages": []}', b"[]"):
                answer = await fetch(worker.endpoint, "POST", path, body=broken, timeout_s=5.0)
                assert answer.status == 400, broken
            assert (await worker.status())["in_flight"] == 0
            worker.process.send_signal(signal.SIGTERM)
            assert await worker.ended() == 0
            assert "secret" not in worker.stderr
            assert "samples.py:" in worker.stderr  # where it was raised

    asyncio.run(main())


def test_F61_a_fault_inside_a_stream_is_an_error_event_and_an_unclean_end() -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, "SyncEcho")
            body = msgspec.json.encode(chat("one die", stream=True))
            length = b"content-length: %d\r\n" % len(body)
            reader, writer = await asyncio.open_unix_connection(worker.spec.engine_socket)
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + length
            writer.write(head + b"content-type: application/json\r\n\r\n" + body)
            async with asyncio.timeout(10.0):
                raw = await reader.read()
            writer.close()
            assert b'"content":"one "' in raw
            assert b'"code":"engine_failed"' in raw
            assert b"[DONE]" not in raw
            assert not raw.endswith(b"0\r\n\r\n")

    asyncio.run(main())


def test_blocking_methods_share_the_slots_and_nothing_else_waits() -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, "SyncEcho", concurrency=2)
            path = "/v1/chat/completions"
            began_s = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                calls = [
                    tasks.create_task(worker.call("POST", path, chat("sleep sleep")))
                    for _ in range(4)
                ]
                await asyncio.sleep(0.1)
                asked_s = time.monotonic()
                _, counted = await worker.call("POST", "/tokenize", {"content": "a b"})
                assert counted == {"count": 2}
                assert time.monotonic() - asked_s < 0.6
                assert (await worker.status())["in_flight"] == 4
            assert [call.result()[0] for call in calls] == [200] * 4
            assert 0.75 < time.monotonic() - began_s < 3.0  # two at a time, 0.4 s each

    asyncio.run(main())


def test_a_client_that_leaves_closes_the_generator_and_frees_the_slot() -> None:
    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, "AsyncDrip", concurrency=1)
            body = msgspec.json.encode(chat("go", stream=True))
            received = b""
            async for data in stream(
                worker.endpoint,
                "POST",
                "/v1/chat/completions",
                body=body,
                timeout_s=10.0,
                idle_s=10.0,
            ):
                received += data
                if b'"content":"3 "' in received:
                    break
            await asyncio.sleep(0.5)
            assert (await worker.status())["in_flight"] == 0
            _, closed = await worker.call("POST", "/tokenize", {"content": ""})
            assert closed == {"count": 1}

    asyncio.run(main())


def test_a_class_that_cannot_load_says_why() -> None:
    cases = [
        (f"{SAMPLES}:LoadsNever", "no such weights"),
        (f"{SAMPLES}:Missing", "Missing"),
        ("no_such_module:Worker", "no_such_module"),
        ("collections:OrderedDict", "ModelWorker"),
    ]

    async def main() -> None:
        async with controller() as fleet:
            for name, reason in cases:
                worker = await fleet.launch(
                    fleet.spec(engine="python", params={"worker_class": name})
                )
                assert await worker.ended() == 1
                (line,) = [ln for ln in worker.stderr.splitlines() if ln.startswith("hostler-err")]
                assert reason in line
                record = fleet.registry.record(worker.spec.instance_id)
                assert record is not None
                assert reason in record.instance.reason

    asyncio.run(main())
