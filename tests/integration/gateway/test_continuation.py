"""Streams that go on at another instance: the client's text is whole, byte by byte."""

import asyncio
from typing import Any

import msgspec
import pytest

from hostler.core.request import Route
from hostler.core.serving import RoutingRules
from hostler.gateway.continuation import MARK
from hostler.gateway.prompts import prompt_tokens
from hostler.testing import fake_text
from hostler.wire.client import Call, Pool, build_request
from tests.integration.gateway.rig import USER, Rig, rig, until
from tests.integration.gateway.test_streams import Reader, begin, sdk
from tests.unit.routing.fleet import model

ON = msgspec.structs.replace(model("m"), routing=RoutingRules(continue_streams=True))


def expected(prompt: str, tokens: int) -> str:
    messages = [{"role": "user", "content": prompt}]
    return fake_text.answer("m", fake_text.digest(fake_text.canonical(messages)), tokens)


def chunks(reader: Reader) -> list[dict[str, Any]]:
    return [msgspec.json.decode(p) for p in reader.payloads if p != b"[DONE]"]


async def kill_its_engine(ours: Rig, reader: Reader, tokens: int) -> None:
    while reader.data.count(b"data:") < tokens:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    ours.engines[reader.headers[b"x-hostler-instance"].decode()].kill()


def test_a_stream_goes_on_at_another_instance_and_says_every_token_once() -> None:
    async def main() -> None:
        async with rig() as ours:
            for name in "abc":
                await ours.start_engine(name, delay_ms=25)
            ours.publish(models=[ON])
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            reader = begin(ours, pool, "[[tokens=20]]", stream_options={"include_usage": True})
            await kill_its_engine(ours, reader, 6)
            await asyncio.wait_for(reader.ended.wait(), 10)
            assert reader.is_clean
            assert reader.payloads[-1] == b"[DONE]"
            assert reader.text == expected("[[tokens=20]]", 20)
            assert reader.data.count(b": continued") == 1
            found = chunks(reader)
            assert len({(c["id"], c["created"], c["model"]) for c in found}) == 1
            roles = [c for c in found if c["choices"] and "role" in c["choices"][0]["delta"]]
            assert len(roles) == 1
            asked = {"model": "m", "messages": [{"role": "user", "content": "[[tokens=20]]"}]}
            read = fake_text.prompt_tokens(asked)
            assert found[-1]["usage"] == {
                "prompt_tokens": read,
                "completion_tokens": 20,
                "total_tokens": read + 20,
            }
            (last,) = list(ours.gateway.relays.ring)[-1:]
            assert [one.failure for one in last.tries] == ["lost", ""]
            assert last.tries[-1].why.startswith("goes on there")
            assert last.events == 20
            await pool.close()

    asyncio.run(main())


@pytest.mark.parametrize("next_one", ["nobody", "speaks", "is-silent"])
def test_what_was_said_is_counted_once_wherever_a_stream_that_goes_on_ends(next_one: str) -> None:
    async def main() -> None:
        async with rig() as ours:
            for name in "ab"[: 1 if next_one == "nobody" else 2]:
                await ours.start_engine(name, delay_ms=25)
            ours.publish(models=[ON])
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            reader = begin(ours, pool, "[[tokens=40]] to be counted")
            await until(lambda: reader.data.count(b"data:") >= 3, 5)
            if next_one == "is-silent":
                for engine in ours.engines.values():  # for requests that come from now on
                    await engine.script(first_delay_ms=9000)
            await kill_its_engine(ours, reader, 6)
            if next_one == "nobody":
                await asyncio.wait_for(reader.ended.wait(), 10)
                assert not reader.is_clean
            else:  # its client leaves
                enough = 15 if next_one == "speaks" else 0
                await until(
                    lambda: reader.data.count(b"data:") >= enough and MARK in reader.data, 5
                )
                assert reader.call is not None
                reader.call.cancel()
            await ours.settled()
            (last,) = list(ours.gateway.relays.ring)[-1:]
            said = len(reader.text.split())
            asked = {"messages": [{"role": "user", "content": "[[tokens=40]] to be counted"}]}
            assert last.used is not None
            assert last.used.is_estimated
            assert said <= last.used.completion <= said + 2  # two may be on their way
            assert last.events == last.used.completion
            assert last.used.prompt == prompt_tokens(Route.CHAT, asked)
            await pool.close()

    asyncio.run(main())


def test_completions_limits_and_begun_messages_go_on_too() -> None:
    async def main() -> None:
        async with rig() as ours:
            for name in "abcde":
                await ours.start_engine(name, delay_ms=25)
            ours.publish(models=[ON])
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            limited = begin(ours, pool, "limited", max_tokens=12)
            await kill_its_engine(ours, limited, 5)
            await asyncio.wait_for(limited.ended.wait(), 10)
            assert limited.text == expected("limited", 12)
            assert b'"finish_reason":"length"' in limited.data

            user = {"role": "user", "content": "begun"}
            start = {"role": "assistant", "content": expected("begun", 3)}
            begun = begin(ours, pool, "", messages=[user, start])
            await kill_its_engine(ours, begun, 5)
            await asyncio.wait_for(begun.ended.wait(), 10)
            assert start["content"] + begun.text == expected("begun", 16)

            text = Reader()
            text.call = completion(ours, pool, text, "Once upon ")
            await kill_its_engine(ours, text, 5)
            await asyncio.wait_for(text.ended.wait(), 10)
            assert text.is_clean
            said = "".join(c["choices"][0]["text"] for c in chunks(text))
            assert said == fake_text.answer("m", fake_text.digest("Once upon "))
            await pool.close()

    asyncio.run(main())


def completion(ours: Rig, pool: Pool, reader: Reader, prompt: str) -> Call:
    body = {"model": "m", "prompt": prompt, "stream": True}
    fields = [
        (b"authorization", b"Bearer " + USER.plain.encode()),
        (b"content-type", b"application/json"),
    ]
    request = build_request(
        "POST", "/v1/completions", "localhost", fields, msgspec.json.encode(body)
    )
    return pool.submit(request, reader)


@pytest.mark.parametrize("fields", [{"n": 2}, {"response_format": {"type": "json_object"}}, {}])
def test_F02_what_cannot_go_on_and_what_was_not_asked_to_ends_with_an_error(
    fields: dict[str, Any],
) -> None:
    async def main() -> None:
        async with rig() as ours:
            for name in "ab":
                await ours.start_engine(name, delay_ms=25)
            ours.publish(models=[ON if fields else model("m")])
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            reader = begin(ours, pool, "x", **fields)
            await kill_its_engine(ours, reader, 4)
            await asyncio.wait_for(reader.ended.wait(), 10)
            assert not reader.is_clean
            assert b"worker_lost" in reader.payloads[-1]
            await pool.close()

    asyncio.run(main())


def test_the_sdk_sees_one_stream_and_a_request_is_on_two_dying_workers_at_most() -> None:
    async def main() -> None:
        async with rig() as ours:
            for name in "abc":
                await ours.start_engine(name)
            ours.publish(models=[ON])
            async with sdk(ours) as client:
                stream = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "hi"}], stream=True
                )
                text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
                assert text == expected("hi", 16)
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            reader = begin(ours, pool, "[[crash_at=3]]")
            await asyncio.wait_for(reader.ended.wait(), 10)
            assert b"worker_lost" in reader.payloads[-1]
            await pool.close()

            def alive() -> int:
                return sum(e.process.poll() is None for e in ours.engines.values())

            await until(lambda: alive() <= 1, 5)
            await asyncio.sleep(0.1)
            assert alive() == 1

    asyncio.run(main())
