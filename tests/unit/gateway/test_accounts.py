"""Accounts: what a gateway counted reaches the store once, whatever happens on the way."""

import asyncio

from hostler.core.errors import ControllerUnavailable
from hostler.core.usage import HOUR_S, OTHER, UsageBatch, UsageQuestion, UsageRow
from hostler.gateway import accounts
from hostler.gateway.accounts import Accounts
from hostler.gateway.usage import Used
from hostler.storage.memory import MemoryStore


class Controller:
    """Keeps batches, unless it is away; `deaf`: it keeps them, but its answer is lost."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.is_away = self.is_deaf = False
        self.batches: list[UsageBatch] = []

    async def take(self, batch: UsageBatch) -> None:
        if self.is_away:
            raise ControllerUnavailable
        self.batches.append(batch)
        self.store.add_usage(batch)
        if self.is_deaf:
            raise ControllerUnavailable

    def rows(self) -> list[UsageRow]:
        return list(self.store.usage(UsageQuestion()))


class Wall:
    now_s = 10 * HOUR_S + 5.0

    def __call__(self) -> float:
        return self.now_s


def use(book: Accounts, times: int = 1, key: str = "k", model: str = "m") -> None:
    for _ in range(times):
        book.add(key, model, Used(10, 2, 3), failed=False)


def test_what_was_counted_is_sent_and_sent_once() -> None:
    async def main() -> None:
        there = Controller()
        book = Accounts(there.take, Wall())
        use(book, 3)
        book.add("k", "m", None, failed=True)
        book.add("k", "m", Used(0, 5, is_estimated=True), failed=True)
        assert await book.flush()
        assert await book.flush()
        assert there.rows() == [
            UsageRow(
                key_id="k",
                model="m",
                requests=5,
                failed=2,
                estimated=1,
                prompt_tokens=30,
                cached_tokens=9,
                completion_tokens=11,
            )
        ]
        assert len(there.batches) == 1

    asyncio.run(main())


def test_a_flush_ends_although_requests_go_on_ending_meanwhile() -> None:
    async def main() -> None:
        there = Controller()
        more = [7]

        async def take(batch: UsageBatch) -> None:
            await there.take(batch)
            if more[0]:
                more[0] -= 1
                use(book)

        book = Accounts(take, Wall())
        use(book)
        assert await book.flush()
        assert len(there.batches) == 1
        assert await book.flush()
        assert [sum(one.requests for one in batch.counts) for batch in there.batches] == [1, 1]
        await book.close()  # nobody flushes after it
        assert sum(row.requests for row in there.rows()) == 8

    asyncio.run(main())


def test_a_gateway_whose_counts_nobody_keeps_closes_although_the_hour_has_turned() -> None:
    async def main() -> None:
        wall = Wall()
        book = Accounts(None, wall)
        running = asyncio.create_task(book.run())
        use(book)
        wall.now_s += HOUR_S
        await asyncio.sleep(accounts.FLUSH_S * 2)  # it has turned the hour by then
        running.cancel()
        use(book)
        await asyncio.wait_for(book.close(), 1.0)

    asyncio.run(main())


def test_a_batch_whose_answer_was_lost_is_sent_again_and_counts_once() -> None:
    async def main() -> None:
        there = Controller()
        book = Accounts(there.take, Wall())
        use(book, 3)
        there.is_deaf = True
        assert not await book.flush()
        use(book)
        there.is_deaf = False
        assert await book.flush()
        assert [batch.seq for batch in there.batches] == [1, 1, 2]
        assert there.rows()[0].requests == 4

    asyncio.run(main())


def test_counts_wait_for_a_controller_that_is_away_under_their_own_hour() -> None:
    async def main() -> None:
        there, wall = Controller(), Wall()
        there.is_away = True
        book = Accounts(there.take, wall)
        for _ in range(3):
            use(book)
            assert not await book.flush()
            wall.now_s += HOUR_S
            book._turn_hour()
        there.is_away = False
        assert await book.flush()
        hours = [count.hour_s for batch in there.batches for count in batch.counts]
        assert sorted(hours) == [10 * HOUR_S, 11 * HOUR_S, 12 * HOUR_S]
        assert there.rows()[0].requests == 3

    asyncio.run(main())


def test_keys_and_models_beyond_the_bound_count_as_other(monkeypatch: object) -> None:
    async def main() -> None:
        there, wall = Controller(), Wall()
        book = Accounts(there.take, wall)
        for number in range(accounts.PAIRS + 50):
            use(book, key=f"k{number}")
        use(book, key="k0")
        assert len(book._rows) == accounts.PAIRS + 1
        assert await book.flush()
        rows = {row.key_id: row.requests for row in there.rows()}
        assert (rows["k0"], rows[OTHER]) == (2, 50)
        assert all(
            len(batch.counts) <= accounts.BATCH_ROWS + accounts.PAIRS + 1 for batch in there.batches
        )

    asyncio.run(main())


def test_a_gateway_that_stops_sends_the_rest_and_waits_for_nobody_long() -> None:
    async def main() -> None:
        there = Controller()
        book = Accounts(there.take, Wall())
        use(book)
        await book.close()
        assert there.rows()[0].requests == 1

        async def never(batch: UsageBatch) -> None:
            await asyncio.Event().wait()

        stuck = Accounts(never, Wall())
        use(stuck)
        async with asyncio.timeout(accounts.FAREWELL_S + 2):
            await stuck.close()

    asyncio.run(main())
