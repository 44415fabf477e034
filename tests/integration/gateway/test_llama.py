"""The gateway before a real llama.cpp: what it assembles, and what a client that leaves sets free."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from hostler.core.serving import RoutingRules
from hostler.wire.client import Pool, fetch
from tests.integration.gateway.rig import Rig, rig, text_of
from tests.integration.gateway.test_streams import begin
from tests.integration.worker.launch import Worker, controller
from tests.integration.worker.test_llama_worker import busy, start
from tests.models import model_path
from tests.unit.routing.fleet import instance, model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

LLAMA = "llama.cpp"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MOMENT = {"created", "id", "timings", "prompt_tokens_details"}  # differ from answer to answer


@asynccontextmanager
async def serving(slots: int, context: int) -> AsyncIterator[tuple[Rig, Worker]]:
    """A gateway before one worker."""
    path = await asyncio.to_thread(model_path, "chat")
    async with controller() as fleet, rig() as ours:
        params = {"context_length": context}
        worker = await start(fleet, path, params=params, concurrency=slots)
        one = instance("a", "m", concurrency=slots, endpoint=worker.endpoint, engine=LLAMA)
        ours.source.publish([model("m", engine=LLAMA)], [one])
        yield ours, worker


def lasting(answer: Any) -> Any:
    """An answer without what is of the moment."""
    if isinstance(answer, dict):
        return {k: lasting(v) for k, v in answer.items() if k not in MOMENT}
    if isinstance(answer, list):
        return [lasting(item) for item in answer]
    return round(answer, 3) if isinstance(answer, float) else answer


async def works_on(worker: Worker, count: int) -> None:
    """Wait until the engine says that it works on so many requests."""
    async with asyncio.timeout(20):
        while await busy(worker) != count:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.02)


def test_an_assembled_answer_equals_the_engine_s_own_whole_one() -> None:
    user = {"role": "user", "content": "What is the capital of France?"}
    chat: dict[str, Any] = {"messages": [user], "temperature": 0, "max_tokens": 12}
    text: dict[str, Any] = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 6}
    city = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": city}}
    function = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
    cases: list[tuple[str, dict[str, Any]]] = [
        (CHAT, chat),
        (CHAT, {**chat, "n": 2}),
        (CHAT, {**chat, "logprobs": True, "top_logprobs": 2}),
        (CHAT, {**chat, "response_format": schema, "max_tokens": 40}),
        (CHAT, {**chat, "tools": [{"type": "function", "function": function}]}),
        (CHAT, {**chat, "stop": [" "]}),
        (CHAT, {**chat, "stop": ["L", "T", "P"]}),
        (CHAT, {**chat, "messages": [user, {"role": "assistant", "content": "It is, as"}]}),
        (COMPLETIONS, text),
        (COMPLETIONS, {**text, "logprobs": 2, "n": 2}),
        (COMPLETIONS, {**text, "prompt": ["One two", "three four"]}),
        (COMPLETIONS, {**text, "return_tokens": True, "timings_per_token": True}),
    ]

    async def main() -> None:
        async with serving(2, 2048) as (ours, worker):
            for path, body in cases:
                status, own = await worker.call("POST", path, {"model": "m", **body})
                answer = await ours.post(path, {"model": "m", **body})
                assert (status, answer.status) == (200, 200), answer.body
                got = msgspec.json.decode(answer.body)
                assert lasting(got) == lasting(own), body
                assert own.keys() == got.keys()
                assert own["timings"].keys() == got["timings"].keys()
            long = {**text, "model": "m", "prompt": "word " * 3000}
            status, own = await worker.call("POST", COMPLETIONS, long)
            answer = await ours.post(COMPLETIONS, long)
            assert status == answer.status == 400
            error = msgspec.json.decode(answer.body)["error"]
            assert error["message"] == own["error"]["message"]
            assert error["code"] == "context_length_exceeded"

    asyncio.run(main())


def test_F46_a_lost_request_without_a_stream_frees_its_slot_while_others_stream() -> None:
    async def main() -> None:
        async with serving(3, 4096) as (ours, worker):
            pool = Pool(ours.endpoint, connect_timeout_s=5, idle_s=1)
            endless: dict[str, Any] = {"max_tokens": 3000, "ignore_eos": True}
            streams = [begin(ours, pool, f"Tell a story {n}.", **endless) for n in range(2)]
            for reader in streams:
                await asyncio.wait_for(reader.began.wait(), 20)
            cases = (
                ("word " * 3000, 1.0),  # in the prompt
                ("Count to a thousand.", 1.5),  # in the answer
            )
            for prompt, after_s in cases:
                async with asyncio.TaskGroup() as tasks:
                    call = tasks.create_task(ours.chat(prompt, **endless))
                    await works_on(worker, 3)
                    await asyncio.sleep(after_s)
                    assert not call.done()
                    call.cancel()
                left_s = time.monotonic()
                await works_on(worker, 2)
                took_s = time.monotonic() - left_s
                assert (
                    took_s < 10.0
                )  # less than 1 s where others leave a core; to its end it takes 30
            assert not any(reader.ended.is_set() for reader in streams)
            health = await fetch(worker.endpoint, "GET", "/health", timeout_s=5)
            assert health.status == 200
            await pool.close()

    asyncio.run(main())


def test_a_stream_goes_on_at_another_llama_cpp_when_its_worker_is_killed() -> None:
    async def main() -> None:
        path = await asyncio.to_thread(model_path, "chat")
        async with controller() as fleet, rig() as ours:
            params = {"context_length": 1024}
            workers = {n: await start(fleet, path, params=params, concurrency=1) for n in "ab"}
            instances = [
                instance(n, "m", endpoint=w.endpoint, engine=LLAMA) for n, w in workers.items()
            ]
            rules = RoutingRules(continue_streams=True)
            view = msgspec.structs.replace(model("m", engine=LLAMA), routing=rules)
            ours.source.publish([view], instances)
            asked = {"temperature": 0, "max_tokens": 40}
            whole = await ours.chat("Tell a story about a horse.", **asked)  # type: ignore[arg-type]
            pool = Pool(ours.endpoint, connect_timeout_s=5, idle_s=1)
            reader = begin(ours, pool, "Tell a story about a horse.", **asked)  # type: ignore[arg-type]
            async with asyncio.timeout(30):
                while reader.data.count(b"data:") < 10:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            workers[reader.headers[b"x-hostler-instance"].decode()].process.kill()
            await asyncio.wait_for(reader.ended.wait(), 30)
            assert reader.is_clean
            assert reader.data.count(b": continued") == 1
            assert reader.text == text_of(whole)
            await pool.close()

    asyncio.run(main())


def test_every_kind_of_answer_of_it_is_counted_whole() -> None:
    async def main() -> None:
        async with serving(2, 2048) as (ours, _):
            body: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
            kinds: list[dict[str, Any]] = [{}, {"stream": True}, {"n": 2}, {"n": 2, "stream": True}]
            found = []
            for more in kinds:
                await ours.chat("Count from one.", **body, **more)
                used = list(ours.gateway.relays.ring)[-1].used
                assert used is not None
                assert not used.is_estimated
                assert 0 <= used.cached <= used.prompt
                found.append((used.prompt, used.completion))
            prompt = found[0][0]
            assert prompt > 3
            assert found == [(prompt, 6), (prompt, 6), (prompt, 12), (prompt, 12)]

    asyncio.run(main())
