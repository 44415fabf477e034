"""Requests that begin with the same long new prompt, before engines that read it slowly and then share it."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from hostler.core.model import PrefixReach
from hostler.core.timeline import FlightEnd
from hostler.gateway.timeline import Timeline
from hostler.testing import fake_text
from hostler.wire.client import Pool, fetch
from tests.integration.gateway.rig import METRICS, FakeProcess, Rig, rig, until
from tests.integration.gateway.test_streams import Reader, begin
from tests.unit.routing.fleet import model

WORDS = 600  # of what they have in common
READ_MS = 1.0  # each


def prompt(name: str, tail: str = "", words: int = WORDS) -> str:
    return " ".join(f"{name}-{n}" for n in range(words)) + f" {tail}"


def right(text: str, tokens: int = 4) -> str:
    mark = fake_text.digest(fake_text.canonical([{"role": "user", "content": text}]))
    return fake_text.answer("m", mark, tokens)


class Party:
    """Several streams at once, before one rig."""

    def __init__(self, ours: Rig, pool: Pool) -> None:
        self.ours = ours
        self._pool = pool

    def ask(self, text: str, **fields: Any) -> Reader:
        return begin(self.ours, self._pool, text, **fields)

    async def waiting(self, count: int) -> None:
        """Wait until so many requests wait for another one."""
        await until(lambda: self.waiters() == count, 5)

    def waiters(self) -> int:
        flights = [one.timeline.flight for one in self.ours.gateway.relays.under_way]
        return sum(1 for one in flights if one and one.since_s is not None and one.end is None)

    def story(self, reader: Reader) -> Timeline:
        """What is remembered of a request that has ended."""
        name = reader.headers[b"x-request-id"].decode()
        return next(one for one in self.ours.gateway.relays.ring if one.request_id == name)

    def ends(self) -> list[FlightEnd | None]:
        """How the waits of those that ended did, in the order they ended."""
        flights = [one.flight for one in self.ours.gateway.relays.ring]
        return [one.end for one in flights if one is not None and one.since_s is not None]


@asynccontextmanager
async def party(
    *engines: str, concurrency: int = 8, reach: PrefixReach = PrefixReach.SHARED, **rules: Any
) -> AsyncIterator[Party]:
    async with rig() as ours:
        for name in engines or ("a",):
            await ours.start_engine(name, tokens=4, read_ms=READ_MS)
        ours.publish(concurrency=concurrency, models=[model("m", **rules)], prefix_reach=reach)
        pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
        try:
            yield Party(ours, pool)
        finally:
            await pool.close()


async def ended(*readers: Reader) -> None:
    for reader in readers:
        await asyncio.wait_for(reader.ended.wait(), 60)


async def read_tokens(engine: FakeProcess) -> list[int]:
    """How many tokens of each prompt the engine read, in the order they came."""
    return [one["read_tokens"] for one in (await engine.ledger())["executions"]]


def test_equal_long_beginnings_that_arrive_together_are_read_once() -> None:
    async def main() -> None:
        async with party() as ours:
            texts = [prompt("p", f"question {n}") for n in range(6)]
            readers = [ours.ask(text) for text in texts]
            await ours.waiting(5)
            assert ours.ours.gateway.router.load == {"a": 6}
            await ended(*readers)
            assert [reader.text for reader in readers] == [right(text) for text in texts]
            read = await read_tokens(ours.ours.engines["a"])
            assert read[0] > WORDS
            assert max(read[1:]) < 20
            leader, *others = (ours.story(reader) for reader in readers)
            assert leader.flight is not None
            assert (leader.flight.followers, leader.flight.since_s) == (5, None)
            for one in others:
                assert one.flight is not None
                assert one.flight.led_by == leader.request_id
                assert one.flight.end is FlightEnd.LANDED
                assert 0.1 < (one.flight.waited_s or 0) < 5
                assert one.first_byte_s is not None
                assert one.waited_s is None
            later = ours.ask(prompt("p", "later"))  # known by now: nobody waits
            await ended(later)
            assert ours.story(later).flight is None

    asyncio.run(main())


def test_short_and_different_and_known_prompts_and_other_routes_wait_for_nobody() -> None:
    async def main() -> None:
        async with party() as ours:
            texts = [prompt("p", words=100), prompt("p", words=100), prompt("q"), prompt("r")]
            readers = [ours.ask(text) for text in texts]
            vectors = {"model": "m", "input": prompt("q")}
            answers = [ours.ours.post("/v1/embeddings", vectors) for _ in range(2)]
            for answer in await asyncio.gather(*answers):
                assert answer.status == 200
            await ended(*readers)
            assert ours.ends() == []
            assert all(one.flight is None for one in ours.ours.gateway.relays.ring)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("reach", "rules"),
    [(PrefixReach.SHARED, {"single_flight": False}), (PrefixReach.SLOT, {})],
)
def test_nobody_waits_where_it_is_off_or_worth_nothing(
    reach: PrefixReach, rules: dict[str, Any]
) -> None:
    async def main() -> None:
        async with party(reach=reach, **rules) as ours:
            readers = [ours.ask(prompt("p", str(n))) for n in range(3)]
            await ended(*readers)
            assert ours.ends() == []
            assert min(await read_tokens(ours.ours.engines["a"])) > WORDS

    asyncio.run(main())


def test_when_the_leader_dies_another_one_leads_at_another_instance() -> None:
    async def main() -> None:
        async with party("a", "b") as ours:
            texts = [prompt("p", f"question {n}") for n in range(4)]
            readers = [ours.ask(texts[0])]
            await until(lambda: bool(ours.ours.gateway.router.load), 5)
            (where,) = ours.ours.gateway.router.load
            readers += [ours.ask(text) for text in texts[1:]]
            await ours.waiting(3)
            ours.ours.engines[where].kill()
            await ended(*readers)
            assert [reader.text for reader in readers] == [right(text) for text in texts]
            read = await read_tokens(ours.ours.engines["b" if where == "a" else "a"])
            assert sum(tokens > 20 for tokens in read) == 1
            first = ours.story(readers[0])
            assert [one.failure for one in first.tries] == ["lost", ""]
            assert all(len(ours.story(one).tries) == 1 for one in readers[1:])
            metrics = await fetch(
                ours.ours.endpoint,
                "GET",
                "/metrics",
                headers=[(b"authorization", b"Bearer " + METRICS.plain.encode())],
                timeout_s=5,
            )
            assert b'hostler_flight_waits_total{end="failed",model="m"} 3.0' in metrics.body

    asyncio.run(main())


def test_when_the_leaders_client_leaves_the_next_one_leads() -> None:
    async def main() -> None:
        async with party() as ours:
            texts = [prompt("p", f"question {n}") for n in range(4)]
            readers = [ours.ask(text) for text in texts]
            await ours.waiting(3)
            assert readers[0].call is not None
            readers[0].call.cancel()
            await ended(*readers[1:])
            assert [one.text for one in readers[1:]] == [right(text) for text in texts[1:]]
            assert ours.ends() == [FlightEnd.LED, FlightEnd.LANDED, FlightEnd.LANDED]
            read = await read_tokens(ours.ours.engines["a"])
            assert sum(tokens > 20 for tokens in read[1:]) == 1

    asyncio.run(main())


def test_a_follower_whose_client_leaves_costs_its_engine_nothing() -> None:
    async def main() -> None:
        async with party() as ours:
            readers = [ours.ask(prompt("p", str(n))) for n in range(3)]
            await ours.waiting(2)
            assert readers[1].call is not None
            readers[1].call.cancel()
            await ours.waiting(1)
            assert ours.ours.gateway.router.load == {"a": 2}
            await ended(readers[0], readers[2])
            assert len(await read_tokens(ours.ours.engines["a"])) == 2
            assert FlightEnd.GONE in ours.ends()

    asyncio.run(main())


def test_who_has_waited_long_enough_goes_by_itself() -> None:
    async def main() -> None:
        async with party(queue_wait_s=0.2) as ours:
            leader = ours.ask(prompt("p", "[[hang_at=0]]"))
            await until(lambda: bool(ours.ours.gateway.router.load), 5)
            texts = [prompt("p", f"question {n}") for n in range(2)]
            followers = [ours.ask(text) for text in texts]
            await ended(*followers)
            assert [one.text for one in followers] == [right(text) for text in texts]
            assert ours.ends() == [FlightEnd.LATE, FlightEnd.LATE]
            assert leader.call is not None
            leader.call.cancel()

    asyncio.run(main())


def test_a_leader_that_is_refused_hands_over() -> None:
    async def main() -> None:
        async with party() as ours:
            first = ours.ask(prompt("p", "[[status=400]]"))
            others = [ours.ask(prompt("p", str(n))) for n in range(2)]
            await ended(first, *others)
            assert all(one.is_clean and one.status == 200 for one in others)

    asyncio.run(main())


def test_F54_a_slot_that_a_follower_holds_is_given_to_who_wants_one() -> None:
    async def main() -> None:
        async with party(concurrency=3) as ours:
            texts = [prompt("p", f"question {n}") for n in range(3)]
            readers = [ours.ask(text) for text in texts]
            await ours.waiting(2)
            assert ours.ours.gateway.router.load == {"a": 3}
            short = ours.ask("hello")
            await asyncio.wait_for(short.ended.wait(), 0.5)  # the leader reads for 0.6 s
            assert short.text == right("hello")
            assert not readers[0].ended.is_set()
            await ended(*readers)
            assert [reader.text for reader in readers] == [right(text) for text in texts]
            read = await read_tokens(ours.ours.engines["a"])
            assert sum(tokens > 20 for tokens in read) == 1

    asyncio.run(main())


def test_F54_more_than_the_slots_and_the_queue_hold_all_get_their_answer() -> None:
    async def main() -> None:
        async with party("a", "b", concurrency=2, queue_length=12) as ours:
            texts = [prompt("p", f"question {n}") for n in range(16)]
            readers = [ours.ask(text) for text in texts]
            await ended(*readers)
            assert [reader.text for reader in readers] == [right(text) for text in texts]
            read = [
                tokens
                for engine in ours.ours.engines.values()
                for tokens in await read_tokens(engine)
            ]
            assert sum(tokens > 20 for tokens in read) <= 2

    asyncio.run(main())


def test_an_answer_without_a_stream_leads_nobody_and_can_follow() -> None:
    async def main() -> None:
        async with party() as ours:
            whole = {"model": "m", "messages": [{"role": "user", "content": prompt("p", "x")}]}
            async with asyncio.TaskGroup() as tasks:
                first = tasks.create_task(ours.ours.post("/v1/chat/completions", whole))
                await until(lambda: bool(ours.ours.gateway.router.load), 5)
                stream = ours.ask(prompt("p", "y"))
                await until(lambda: ours.ours.gateway.router.load == {"a": 2}, 5)
                second = tasks.create_task(ours.ours.post("/v1/chat/completions", whole))
                await ours.waiting(1)
            await ended(stream)
            assert first.result().status == second.result().status == 200
            assert ours.ends() == [FlightEnd.LANDED]
            assert msgspec.json.decode(second.result().body)["choices"]

    asyncio.run(main())


def test_F54_requests_that_leave_at_random_leave_no_slot_and_no_flight_behind() -> None:
    async def main() -> None:
        chance = random.Random(7)
        async with party("a", "b", "c", concurrency=3, queue_wait_s=1.0) as ours:
            gateway = ours.ours.gateway
            readers = []
            for number in range(90):
                text = prompt(chance.choice("pqr"), str(number), words=300)
                readers.append(ours.ask(text if number % 5 else "short"))
                await asyncio.sleep(chance.random() * 0.02)
                if chance.random() < 0.4:
                    call = chance.choice(readers).call
                    assert call is not None
                    call.cancel()
                if number == 60:
                    ours.ours.engines["b"].kill()
                    ours.ours.publish(concurrency=3, prefix_reach=PrefixReach.SHARED)
            await until(lambda: not gateway.relays.under_way, 15)
            await ours.ours.settled()
            places = gateway._flights._table._places.values()
            assert not any(place.open for place in places)
            assert all(one.aboard == 0 for place in places for one in place.known.values())
            assert not gateway._flights._holding
            statuses = {one.status for one in gateway.relays.ring}
            assert statuses <= {200, 499, 503}

    asyncio.run(main())
