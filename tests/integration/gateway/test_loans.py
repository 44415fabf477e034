"""Loans: a prompt that one slot reads and others are lent; a fake engine, and an agent told what to do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from hostler.app.config import HttpLimits
from hostler.core.errors import BadRequest, EngineError, HostlerError
from hostler.core.model import PrefixReach
from hostler.core.timeline import FlightEnd
from hostler.engines.lending import LEND_PATH, READ_PATH, LendOrder, ReadOrder
from hostler.wire.server import Exchange, HttpServer
from tests.integration.gateway.rig import until
from tests.integration.gateway.test_flights import (
    WORDS,
    Party,
    ended,
    party,
    prompt,
    read_tokens,
    right,
)

SLOT = 3
LENT = PrefixReach.LENT


class Agent:
    """The lending half of an agent. Orders wait until `go` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.orders: list[tuple[str, bytes]] = []
        self.given_up = 0
        self.fails = ""  # the path of orders that cannot be carried out
        self.error: HostlerError = EngineError("no space")
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, exchange: Exchange) -> None:
        request = exchange.request
        self.orders.append((request.path, request.body))

        def gone() -> None:
            self.given_up += 1

        exchange.on_gone = gone
        task = asyncio.get_running_loop().create_task(self._answer(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, exchange: Exchange) -> None:
        await self.go.wait()
        path = exchange.request.path
        if path == self.fails:
            exchange.send_error(self.error)
        elif path == READ_PATH:
            exchange.send(200, b'{"slot": %d, "tokens": 600}' % SLOT)
        else:
            order = msgspec.json.decode(exchange.request.body, type=LendOrder)
            exchange.send(200, b'{"slots": %d}' % order.copies)


@asynccontextmanager
async def lending(**rules: Any) -> AsyncIterator[tuple[Party, Agent]]:
    async with party(concurrency=4, reach=LENT, **rules) as ours:
        agent = Agent()
        server = HttpServer(agent.handle, limits=HttpLimits(), name="agent")
        await server.listen_unix(ours.ours.folder / "a.agent")
        try:
            yield ours, agent
        finally:
            agent.go.set()
            await server.close(0.0)


def loans(ours: Party) -> dict[str, int]:
    return {result: n for (_, result), n in ours.ours.gateway.metrics.loans.items()}


def test_the_prompt_of_the_first_is_read_for_nobody_and_lent_to_those_that_follow() -> None:
    async def main() -> None:
        async with lending() as (ours, agent):
            texts = [prompt("p", f"question {n}") for n in range(3)]
            readers = [ours.ask(text) for text in texts]
            await until(lambda: len(agent.orders) == 1, 5)
            late = ours.ask(prompt("p", "late"))  # it comes while the prompt is read
            await ours.waiting(4)
            assert ours.ours.gateway.router.load == {"a": 4}
            agent.go.set()
            await ended(*readers, late)
            assert [reader.text for reader in readers] == [right(text) for text in texts]
            (read_path, read), (lend_path, lend) = agent.orders
            assert (read_path, lend_path) == (READ_PATH, LEND_PATH)
            order = msgspec.json.decode(read, type=ReadOrder)
            assert order.others == 0
            assert order.body["messages"][0]["content"] == texts[0]
            assert msgspec.json.decode(lend, type=LendOrder) == LendOrder(
                slot=SLOT, tokens=600, copies=3
            )
            assert ours.ends() == [FlightEnd.LENT] * 4
            leader = ours.story(readers[0])
            assert leader.flight is not None
            assert (leader.flight.led_by, leader.flight.followers) == (leader.request_id, 3)
            assert len(leader.tries) == 1
            assert b"x-attempts" not in readers[0].headers
            assert loans(ours)["lent"] == 1

    asyncio.run(main())


def test_one_request_alone_is_not_taken_back_and_off_means_off() -> None:
    async def main() -> None:
        async with lending() as (ours, agent):
            await ended(ours.ask(prompt("p")))
            assert not agent.orders
        async with lending(lend_prefix=False) as (ours, agent):
            readers = [ours.ask(prompt("p", str(n))) for n in range(3)]
            await ended(*readers)
            assert not agent.orders
            assert ours.ends() == []
            assert min(await read_tokens(ours.ours.engines["a"])) > WORDS

    asyncio.run(main())


def test_where_a_loan_fails_requests_run_as_before_and_none_is_tried_for_a_while() -> None:
    async def main() -> None:
        for path in (READ_PATH, LEND_PATH):
            async with lending() as (ours, agent):
                agent.fails = path
                agent.go.set()
                texts = [prompt("p", f"question {n}") for n in range(3)]
                readers = [ours.ask(text) for text in texts]
                await ended(*readers)
                assert [reader.text for reader in readers] == [right(text) for text in texts]
                assert ours.ends() == [FlightEnd.UNLENT] * 3
                assert loans(ours) == {"failed": 1}
                count = len(agent.orders)
                again = [ours.ask(prompt("q", str(n))) for n in range(2)]
                await ended(*again)
                assert len(agent.orders) == count

    asyncio.run(main())


def test_a_prompt_that_cannot_be_lent_says_nothing_of_others() -> None:
    async def main() -> None:
        async with lending() as (ours, agent):
            agent.fails, agent.error = READ_PATH, BadRequest("a picture")
            agent.go.set()
            for count, name in enumerate("pq", 1):
                readers = [ours.ask(prompt(name, str(n))) for n in range(2)]
                await ended(*readers)
                assert loans(ours) == {"refused": count}

    asyncio.run(main())


def test_without_an_agent_too() -> None:
    async def main() -> None:
        async with party(concurrency=4, reach=LENT) as ours:
            readers = [ours.ask(prompt("p", f"question {n}")) for n in range(3)]
            await ended(*readers)
            assert all(reader.is_clean for reader in readers)
            assert loans(ours) == {"failed": 1}

    asyncio.run(main())


def test_what_was_lent_in_vain_is_not_lent_again() -> None:
    async def main() -> None:
        async with lending() as (ours, agent):
            agent.go.set()
            readers = [ours.ask(prompt("p", str(n))) for n in range(2)]
            await ended(*readers)  # the fake engine says that it had nothing of them
            assert loans(ours) == {"lent": 1, "in_vain": 1}
            await ended(*[ours.ask(prompt("q", str(n))) for n in range(2)])
            assert len(agent.orders) == 2

    asyncio.run(main())


def test_clients_that_leave_while_a_prompt_is_read_leave_nothing_behind() -> None:
    async def main() -> None:
        async with lending() as (ours, agent):
            readers = [ours.ask(prompt("p", f"question {n}")) for n in range(3)]
            await until(lambda: len(agent.orders) == 1, 5)
            for number, left in ((0, 2), (2, 1)):  # the leader first
                call = readers[number].call
                assert call is not None
                call.cancel()
                await until(lambda left=left: ours.ours.gateway.router.load == {"a": left}, 5)  # type: ignore[misc]
            assert agent.given_up == 0
            agent.go.set()
            await ended(readers[1])
            assert readers[1].text == right(prompt("p", "question 1"))

            agent.go.clear()
            count = len(agent.orders)
            others = [ours.ask(prompt("q", str(n))) for n in range(2)]
            await until(lambda: len(agent.orders) == count + 1, 5)
            for reader in others:
                assert reader.call is not None
                reader.call.cancel()
            await until(lambda: agent.given_up == 1, 5)
            await ours.ours.settled()
            assert loans(ours) == {}

    asyncio.run(main())


def test_an_agent_that_hangs_holds_nobody_beyond_the_wait() -> None:
    async def main() -> None:
        async with lending(queue_wait_s=0.3) as (ours, agent):
            texts = [prompt("p", f"question {n}") for n in range(3)]
            readers = [ours.ask(text) for text in texts]
            await ended(*readers)
            assert [reader.text for reader in readers] == [right(text) for text in texts]
            assert set(ours.ends()) <= {FlightEnd.LATE, FlightEnd.UNLENT}
            await until(lambda: agent.given_up == 1, 5)

    asyncio.run(main())
