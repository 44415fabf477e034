"""Whose tokens were how many: what the relay writes down of each kind of answer."""

import asyncio

import pytest

from hostler.gateway.usage import Used
from hostler.testing import fake_text
from hostler.wire.client import Pool
from tests.integration.gateway.rig import Rig, rig
from tests.integration.gateway.test_streams import begin, read


def last(ours: Rig) -> Used | None:
    return list(ours.gateway.relays.ring)[-1].used


def numbers(used: Used | None) -> tuple[int, int, bool]:
    assert used is not None
    return (used.prompt, used.completion, used.is_estimated)


def prompt_tokens(prompt: str) -> int:
    return fake_text.prompt_tokens({"messages": [{"role": "user", "content": prompt}]})


def test_every_kind_of_answer_is_counted_as_its_engine_says() -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("i1", tokens=5)
            ours.publish()
            read_tokens = prompt_tokens("hello")
            await ours.chat("hello")
            assert numbers(last(ours)) == (read_tokens, 5, False)
            await ours.chat("hello", n=3)
            assert numbers(last(ours)) == (read_tokens, 15, False)
            await ours.post("/v1/embeddings", {"model": "m", "input": ["a b", "c"]})
            embedded = numbers(last(ours))
            assert embedded[0] > 0
            assert embedded[1:] == (0, False)
            await ours.post("/v1/rerank", {"model": "m", "query": "q", "documents": ["a", "b c"]})
            assert numbers(last(ours))[0] > 0
            await ours.post("/v1/completions", {"model": "m", "prompt": ["a", "b"], "stream": True})
            assert numbers(last(ours))[1:] == (10, False)

    asyncio.run(main())


def test_a_client_sees_the_usage_of_a_stream_only_when_it_asked() -> None:
    async def main() -> None:
        async with rig() as ours:
            engine = await ours.start_engine("i1", tokens=5)
            ours.publish()
            asked = await read(ours, "hello", stream_options={"include_usage": True})
            plain = await read(ours, "hello")
            assert (await ours.gateway_to(engine))["stream_options"] == {"include_usage": True}
            assert b'"usage"' in asked.data
            usage = next(p for p in asked.payloads if b'"usage"' in p)
            assert plain.data == asked.data.replace(b"data: %b\n\n" % usage, b"")
            assert numbers(last(ours)) == (prompt_tokens("hello"), 5, False)

    asyncio.run(main())


def test_an_answer_too_long_to_hold_back_is_counted_by_its_end() -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("i1", tokens=60_000)
            ours.publish()
            answer = await ours.chat("hello")
            assert len(answer.body) > 1024 * 1024
            assert numbers(last(ours)) == (prompt_tokens("hello"), 60_000, False)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["left", "crashed"])
def test_a_stream_that_ends_too_early_is_counted_by_what_was_delivered(how: str) -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("i1", tokens=50)
            ours.publish()
            if how == "crashed":
                reader = await read(ours, "hello [[crash_at=7]]")
            else:
                pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
                reader = begin(ours, pool, "hello [[hang_at=7]]")
                while reader.data.count(b"\ndata:") < 6:
                    reader.began.clear()
                    await reader.began.wait()
                assert reader.call is not None
                reader.call.cancel()
                await pool.close()
                await ours.settled()
            used = last(ours)
            assert used is not None
            assert (used.completion, used.is_estimated) == (7, True)

    asyncio.run(main())


def test_a_request_that_got_nothing_used_nothing() -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("i1", status=500)
            ours.publish()
            assert (await ours.chat("hello")).status == 500
            assert last(ours) is None

    asyncio.run(main())
