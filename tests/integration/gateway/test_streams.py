"""How streams end, seen by the official SDK and byte by byte."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import openai
import pytest

from hostler.core.errors import Draining
from hostler.testing import fake_text
from hostler.wire.client import Call, PlainSink, Pool, UpstreamLost, build_request
from tests.integration.gateway.rig import USER, Rig, rig, until

MARK = b"data: "


class Reader(PlainSink):
    """A client that sees bytes, and whether the end was clean."""

    def __init__(self) -> None:
        self.data = b""
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.is_clean = False
        self.ended = asyncio.Event()
        self.began = asyncio.Event()
        self.call: Call | None = None

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]], length: int | None) -> None:
        self.status, self.headers = status, dict(headers)

    def on_data(self, data: bytes) -> None:
        self.data += data
        self.began.set()

    def on_end(self) -> None:
        self.is_clean = True
        self.ended.set()

    def on_lost(self, error: UpstreamLost) -> None:
        self.ended.set()

    @property
    def payloads(self) -> list[bytes]:
        assert self.data.endswith(b"\n\n")
        return [e[len(MARK) :] for e in self.data.split(b"\n\n") if e.startswith(MARK)]

    @property
    def text(self) -> str:
        chunks = [msgspec.json.decode(p) for p in self.payloads if p != b"[DONE]"]
        deltas = [c["choices"][0]["delta"] for c in chunks if c.get("choices")]
        return "".join(delta.get("content") or "" for delta in deltas)


def begin(
    ours: Rig,
    pool: Pool,
    prompt: str,
    headers: Sequence[tuple[bytes, bytes]] = (),
    *,
    key: str = USER.plain,
    **fields: Any,
) -> Reader:
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], "stream": True}
    reader = Reader()
    request = build_request(
        "POST",
        "/v1/chat/completions",
        "localhost",
        [
            (b"authorization", b"Bearer " + key.encode()),
            (b"content-type", b"application/json"),
            *headers,
        ],
        msgspec.json.encode(body | fields),
    )
    reader.call = pool.submit(request, reader)
    return reader


async def read(ours: Rig, prompt: str, **fields: Any) -> Reader:
    pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
    reader = begin(ours, pool, prompt, **fields)
    await asyncio.wait_for(reader.ended.wait(), 20)
    await pool.close()
    return reader


def whole_text(prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    return fake_text.answer("m", fake_text.digest(fake_text.canonical(messages)))


def sdk(ours: Rig) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=ours.base_url, api_key=USER.plain, max_retries=0)


async def read_with_sdk(client: openai.AsyncOpenAI, prompt: str) -> str:
    stream = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": prompt}], stream=True
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_a_whole_stream_is_passed_on_and_never_buffered_by_proxies() -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("a")
            ours.publish()
            reader = await read(ours, "hi", n=2)
            assert reader.is_clean
            assert reader.payloads[-1] == b"[DONE]"
            assert reader.headers[b"x-accel-buffering"] == b"no"
            assert reader.headers[b"cache-control"] == b"no-store"
            assert reader.headers[b"content-type"].startswith(b"text/event-stream")
            assert reader.headers[b"x-hostler-instance"] == b"a"
            assert (await read(ours, "hi")).text == whole_text("hi")
            async with sdk(ours) as client:
                assert await read_with_sdk(client, "hi") == whole_text("hi")

    asyncio.run(main())


@pytest.mark.parametrize("ending", ["no_done", "no_finish", "cut", "reset"])
def test_F02_F61_a_stream_that_does_not_end_as_it_should_is_an_error_for_everyone(
    ending: str,
) -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("a")
            ours.publish()
            prompt = f"[[ending={ending}]]"
            reader = await read(ours, prompt)
            assert not reader.is_clean
            assert b"[DONE]" not in reader.data
            error = msgspec.json.decode(reader.payloads[-1])["error"]
            assert error["code"] == "worker_lost"
            texts = [p for p in reader.payloads[:-1] if b'"error"' not in p]
            assert len(texts) >= fake_text.TOKENS  # nothing of what was said is lost
            ours.publish()
            async with sdk(ours) as client:
                with pytest.raises(openai.APIError, match="worker died"):
                    await read_with_sdk(client, prompt)

    asyncio.run(main())


def test_F60_half_an_event_never_reaches_a_client() -> None:
    async def main() -> None:
        async with rig() as ours:
            for name in "ab":
                await ours.start_engine(name)
            ours.publish()
            for prompt in ("[[half_at=1]] x", "[[half_at=5]] y"):
                reader = await read(ours, prompt)
                assert reader.status == 200
                assert not reader.is_clean
                assert b"[DONE]" not in reader.data
                error = msgspec.json.decode(reader.payloads[-1])["error"]
                assert error["code"] == "worker_lost"
                for payload in reader.payloads:
                    msgspec.json.decode(payload)

    asyncio.run(main())


def test_F02_streams_on_a_killed_worker_end_with_an_error_and_the_others_go_on() -> None:
    async def main() -> None:
        async with rig() as ours:
            for name in "ab":
                await ours.start_engine(name, delay_ms=150)  # none ends before all have begun
            ours.publish(concurrency=50)
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            readers = [begin(ours, pool, f"{n}") for n in range(40)]
            for reader in readers:
                await asyncio.wait_for(reader.began.wait(), 10)
            ours.engines["a"].kill()
            killed_at_s = time.monotonic()
            on_a = [r for r in readers if r.headers[b"x-hostler-instance"] == b"a"]
            assert 10 <= len(on_a) <= 30
            for reader in on_a:
                await asyncio.wait_for(reader.ended.wait(), 5)
            assert time.monotonic() - killed_at_s < 2.0
            for reader in readers:
                await asyncio.wait_for(reader.ended.wait(), 10)
            for number, reader in enumerate(readers):
                if reader.is_clean:
                    assert reader.text == whole_text(f"{number}")
                    assert reader.payloads[-1] == b"[DONE]"
                else:
                    assert b"worker_lost" in reader.payloads[-1]
                    assert whole_text(f"{number}").startswith(reader.text)
            assert sum(not r.is_clean for r in readers) == len(on_a)
            await pool.close()

    asyncio.run(main())


def test_F45_F49_F09_clients_that_leave_free_their_slots_and_harm_nobody() -> None:
    async def main() -> None:
        async with rig() as ours:
            engine = await ours.start_engine("a", delay_ms=50)
            ours.publish(concurrency=400)
            pool = Pool(ours.endpoint, connect_timeout_s=2, idle_s=1)
            readers = [begin(ours, pool, f"{n}") for n in range(200)]
            for reader in readers:
                await asyncio.wait_for(reader.began.wait(), 10)
            left_at_s = time.monotonic()
            for reader in readers:
                assert reader.call is not None
                reader.call.cancel()
            answer = await ours.chat("[[delay_ms=0]]")
            assert answer.status == 200
            assert time.monotonic() - left_at_s < 3.0
            await ours.settled()
            while True:
                records = (await engine.ledger())["executions"]
                if not [r for r in records if r["end"] == "running"]:
                    break
                assert time.monotonic() - left_at_s < 5.0
                await asyncio.sleep(0.02)
            assert not ours.gateway.router.health
            assert not ours.gateway.metrics.retries
            assert (
                sum(n for (_, _, s), n in ours.gateway.metrics.requests.items() if s == 499) == 200
            )
            await pool.close()

    asyncio.run(main())


def test_a_client_that_leaves_when_all_is_said_was_answered() -> None:
    """Many stop reading at [DONE]: that is no failure of anybody, and no slot is held for the rest."""

    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("a", ending="open")
            ours.publish()
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            reader = begin(ours, pool, "[[tokens=3]] hi")
            await until(lambda: reader.data.endswith(b"[DONE]\n\n"), 5)
            assert ours.gateway.router.load == {"a": 1}
            assert reader.call is not None
            reader.call.cancel()
            await until(lambda: not ours.gateway.router.load, 3)
            assert [one.status for one in ours.gateway.relays.ring] == [200]
            await pool.close()

    asyncio.run(main())


def test_F46_F54_a_client_that_leaves_the_queue_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("a", first_delay_ms=2000)
            ours.publish(concurrency=1)
            pool = Pool(ours.endpoint, connect_timeout_s=2, idle_s=1)
            readers = [begin(ours, pool, f"{n}") for n in range(10)]
            await until(lambda: ours.gateway.router.waiting("m") == 9, 5)
            for reader in readers[1:]:
                assert reader.call is not None
                reader.call.cancel()
            await until(lambda: ours.gateway.router.waiting("m") == 0, 5)
            await asyncio.wait_for(readers[0].ended.wait(), 10)
            await pool.close()

    asyncio.run(main())


def test_F48_a_slow_reader_slows_its_engine_down() -> None:
    async def main() -> None:
        async with rig() as ours:
            engine = await ours.start_engine("a")
            ours.publish()
            pool = Pool(ours.endpoint, connect_timeout_s=2, idle_s=1)
            reader = begin(ours, pool, "[[tokens=60000]]")
            await asyncio.wait_for(reader.began.wait(), 10)
            assert reader.call is not None
            reader.call.pause()
            await asyncio.sleep(1.0)
            first = (await engine.ledger())["executions"][-1]["tokens"]
            await asyncio.sleep(0.5)
            assert (await engine.ledger())["executions"][-1]["tokens"] == first < 60000
            reader.call.resume()
            await asyncio.wait_for(reader.ended.wait(), 60)
            assert reader.is_clean
            assert reader.data.count(b"data: ") > 60000
            await pool.close()

    asyncio.run(main())


def test_F56_what_still_runs_at_the_end_of_a_drain_is_told_so() -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("a", delay_ms=50)
            ours.publish()
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            reader = begin(ours, pool, "[[tokens=1000]]")
            await asyncio.wait_for(reader.began.wait(), 10)
            ours.gateway.relays.end_all(Draining())
            await asyncio.wait_for(reader.ended.wait(), 2)
            assert msgspec.json.decode(reader.payloads[-1])["error"]["code"] == "draining"
            assert not reader.is_clean
            await pool.close()

    asyncio.run(main())
