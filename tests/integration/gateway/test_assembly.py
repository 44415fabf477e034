"""Requests without a stream to an engine that is asked for one: the client sees no difference."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from hostler.core.snapshot import InstanceView
from hostler.wire.client import fetch
from tests.integration.gateway.rig import Rig, error_of, rig, until
from tests.integration.gateway.test_streams import read
from tests.unit.routing.fleet import instance, model

LLAMA = "llama.cpp"


def publish(ours: Rig, *, concurrency: int = 8) -> None:
    """Make the fake engines instances of an engine that is asked by stream."""
    instances: Sequence[InstanceView] = [
        instance(i, "m", concurrency=concurrency, endpoint=e.endpoint, engine=LLAMA)
        for i, e in ours.engines.items()
        if e.process.poll() is None
    ]
    ours.source.publish([model("m", engine=LLAMA)], instances)


async def straight(ours: Rig, path: str, body: dict[str, Any]) -> Any:
    """What the engine answers to the same request, asked without a gateway."""
    answer = await fetch(
        ours.engines["a"].endpoint, "POST", path, body=msgspec.json.encode(body), timeout_s=5
    )
    return msgspec.json.decode(answer.body)


def test_an_assembled_answer_is_the_one_the_engine_gives_unstreamed() -> None:
    async def main() -> None:
        async with rig() as ours:
            engine = await ours.start_engine("a")
            publish(ours)
            for words in ("hi", "[[reasoning=3]]", "[[tool_calls=2]]", "[[tokens=0]]"):
                extras: tuple[dict[str, Any], ...] = ({}, {"n": 2}, {"max_tokens": 3})
                for extra in extras:
                    body = {"model": "m", "messages": [{"role": "user", "content": words}], **extra}
                    got = msgspec.json.decode((await ours.chat(words, **extra)).body)
                    asked = await ours.gateway_to(engine)
                    assert asked["stream"] is asked["return_progress"] is True
                    whole = await straight(ours, "/v1/chat/completions", body)
                    for choice in whole["choices"]:
                        choice.pop("logprobs")  # llama.cpp leaves out what is null there
                        choice["message"]["content"] = choice["message"]["content"] or ""
                    assert got == whole
            for prompt in ("hi", ["a", "b"]):
                body = {"model": "m", "prompt": prompt, "n": 2}
                answer = await ours.post("/v1/completions", body)
                assert answer.header(b"content-type") == b"application/json"
                whole = await straight(ours, "/v1/completions", body)
                assert msgspec.json.decode(answer.body) == whole

    asyncio.run(main())


def test_errors_of_an_engine_asked_by_stream_are_the_same() -> None:
    async def main() -> None:
        async with rig() as ours:
            for name in "ab":
                await ours.start_engine(name)
            publish(ours)
            bad = await ours.chat("[[status=400]]")
            assert (bad.status, error_of(bad)["code"]) == (400, "fake_status")
            for words in (
                "[[ending=no_done]]",
                "[[ending=no_finish]]",
                "[[content_type=text/html]]",
            ):
                answer = await ours.chat(words)
                assert (answer.status, error_of(answer)["code"]) == (502, "upstream_error"), words
                publish(ours)
            died = await ours.chat("[[crash_at=3]]")
            assert (died.status, error_of(died)["code"]) == (502, "worker_lost")

    asyncio.run(main())


def test_F01_a_worker_that_dies_half_way_costs_an_assembled_answer_nothing() -> None:
    async def main() -> None:
        async with rig() as ours:
            for name in "ab":
                await ours.start_engine(name, delay_ms=20)
            publish(ours)
            async with asyncio.TaskGroup() as tasks:
                calls = [tasks.create_task(ours.chat(f"{n}")) for n in range(6)]
                await asyncio.sleep(0.15)
                ours.engines["a"].kill()
            assert {call.result().status for call in calls} == {200}

    asyncio.run(main())


def test_F46_a_client_that_leaves_a_request_without_a_stream_cancels_it() -> None:
    async def main() -> None:
        async with rig() as ours:
            engine = await ours.start_engine("a", delay_ms=50)
            publish(ours)
            async with asyncio.TaskGroup() as tasks:
                call = tasks.create_task(ours.chat("[[tokens=100]]"))
                await until(lambda: bool(ours.gateway.router.load), 5)
                await asyncio.sleep(0.2)
                call.cancel()
            await ours.settled()
            async with asyncio.timeout(1):
                while (await engine.ledger())["counts"]["in_flight"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    asyncio.run(main())


def test_a_stream_asks_for_progress_whatever_its_client_wants() -> None:
    async def main() -> None:
        async with rig() as ours:
            engine = await ours.start_engine("a")
            publish(ours)
            reader = await read(ours, "hi")
            assert reader.is_clean
            asked = await ours.gateway_to(engine)
            assert asked["return_progress"] is True
            assert "stream_options" not in asked

    asyncio.run(main())
