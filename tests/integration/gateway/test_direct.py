"""Streams whose plain pieces go directly from socket to socket: all there, in order, counted, ended."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import uvloop

from hostler.gateway.relay import Relay
from hostler.testing import fake_text
from hostler.wire import direct, door
from hostler.wire.client import Pool, fetch
from hostler.wire.upstream import Connection
from tests.integration.gateway.rig import ADMIN, Rig, rig, until
from tests.integration.gateway.test_streams import Reader, begin

SLOW = "[[tokens=400]] [[delay_ms=10]]"
RUNNERS = {"uvloop": uvloop.run, "asyncio": asyncio.run}


def only(ours: Rig) -> Relay:
    (relay,) = ours.gateway.relays.under_way
    return relay


def line_of(ours: Rig) -> Connection | None:
    """The engine's connection of the one request."""
    for relay in ours.gateway.relays.under_way:
        if relay.attempt is not None and (call := relay.attempt._call) is not None:
            return call.connection
    return None


def is_direct(ours: Rig) -> bool:
    line = line_of(ours)
    return line is not None and line.direct is not None


def files() -> int:
    return len(os.listdir("/proc/self/fd"))


@asynccontextmanager
async def streaming(prompt: str) -> AsyncIterator[tuple[Rig, Pool, Reader]]:
    """A stream that goes directly. No file is left when it is over."""
    async with rig() as ours:
        await ours.start_engine("a")
        ours.publish()
        pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
        first = begin(ours, pool, "[[tokens=20]] [[delay_ms=5]]")  # what is made once, is then
        await asyncio.wait_for(first.ended.wait(), 20)
        before = files()
        reader = begin(ours, pool, prompt)
        await until(lambda: is_direct(ours), 5)
        assert files() >= before + 2
        yield ours, pool, reader
        await pool.close()
        await ours.settled()
        await until(lambda: files() <= before, 5)


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_stream_is_the_same_as_by_the_usual_way(runner: str) -> None:
    prompt = "[[tokens=60]] [[delay_ms=5]]"

    async def main() -> None:
        async with streaming(prompt) as (ours, _, reader):
            await asyncio.wait_for(reader.ended.wait(), 20)
            assert reader.is_clean
            assert reader.payloads[-1] == b"[DONE]"
            messages = [{"role": "user", "content": prompt}]
            seed = fake_text.digest(fake_text.canonical(messages))
            assert reader.text == fake_text.answer("m", seed, 60)
            await ours.settled()
            timeline = list(ours.gateway.relays.ring)[-1]
            assert (timeline.status, timeline.events) == (200, 60)
            assert timeline.used is not None
            assert timeline.used.completion == 60

    RUNNERS[runner](main())


def test_its_pieces_are_told_while_it_goes() -> None:
    async def main() -> None:
        async with streaming(SLOW) as (ours, _, reader):
            seen = []
            for _ in range(3):
                await asyncio.sleep(0.2)
                headers = [(b"authorization", b"Bearer " + ADMIN.plain.encode())]
                told = await fetch(
                    ours.endpoint, "GET", "/api/v1/requests", headers=headers, timeout_s=5
                )
                newest = msgspec.json.decode(told.body)["requests"][0]
                assert newest["outcome"] is None, newest
                seen.append(newest["events"])
            assert seen[0] < seen[1] < seen[2]
            assert is_direct(ours)
            assert reader.call is not None
            reader.call.cancel()

    uvloop.run(main())


def test_F45_a_client_that_leaves_frees_the_engine_at_once() -> None:
    async def main() -> None:
        async with streaming(SLOW) as (ours, _, reader):
            assert reader.call is not None
            reader.call.cancel()
            await ours.settled()
            began_s = time.monotonic()
            while (await ours.engines["a"].ledger())["counts"]["in_flight"]:
                assert time.monotonic() < began_s + 1.0
                await asyncio.sleep(0.02)

    uvloop.run(main())


def test_F02_an_engine_that_dies_is_an_error_event() -> None:
    async def main() -> None:
        async with streaming(SLOW) as (ours, _, reader):
            ours.engines["a"].kill()
            await asyncio.wait_for(reader.ended.wait(), 5)
            assert not reader.is_clean
            last = msgspec.json.decode(reader.payloads[-1])
            assert last["error"]["code"] == "worker_lost"

    uvloop.run(main())


def test_B20_F48_a_client_that_reads_slowly_is_paced_with_little_memory_and_gets_all() -> None:
    prompt = "[[tokens=60000]]"

    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("a")
            ours.publish()
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            reader = begin(ours, pool, prompt)
            await until(lambda: is_direct(ours), 5)
            assert reader.call is not None
            reader.call.pause()
            await asyncio.sleep(1.0)
            relay = only(ours)
            assert not is_direct(ours)
            assert relay.attempt is not None
            assert relay.attempt.is_paused
            client = relay.exchange.way()
            assert client is not None
            assert client.get_write_buffer_size() <= direct.READ_BYTES
            stopped = len(reader.data)
            await asyncio.sleep(0.3)
            assert len(reader.data) == stopped
            reader.call.resume()
            await asyncio.wait_for(reader.ended.wait(), 60)
            assert reader.is_clean
            assert len(reader.payloads) > 60_000
            await pool.close()

    uvloop.run(main())


def test_F67_without_files_to_spare_a_stream_goes_the_usual_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door, "most_files", lambda: 10)

    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("a")
            ours.publish()
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            reader = begin(ours, pool, "[[tokens=60]] [[delay_ms=5]]")
            while not reader.ended.is_set():
                assert not is_direct(ours)
                await asyncio.sleep(0.02)
            assert reader.is_clean
            await pool.close()

    asyncio.run(main())


def test_F42_an_engine_that_hangs_in_it_is_found() -> None:
    async def main() -> None:
        async with streaming(SLOW) as (ours, _, reader):
            relay = only(ours)
            assert relay.attempt is not None
            ours.gateway.relays.note_silence("a", True)
            await asyncio.sleep(0.1)
            assert not reader.ended.is_set()  # pieces came since
            await asyncio.sleep(0.1)
            ours.gateway.relays.note_silence("a", True)
            assert not reader.ended.is_set()
            ours.gateway.relays.note_silence("a", True)  # nothing came between the two
            await asyncio.wait_for(reader.ended.wait(), 5)
            assert not reader.is_clean

    uvloop.run(main())
