"""Several routers that lend slots of the same instances, through the board on which gateways count."""

import asyncio
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest

from hostler.core.errors import HostlerError, StartupError
from hostler.gateway.board import COLUMNS, Bells, Board
from hostler.gateway.neighbours import Neighbours
from hostler.routing.claim import Claim, Outcome
from hostler.routing.pool import Busy
from hostler.routing.router import Router
from tests.unit.routing.fleet import KeyAsk, instance, snapshot


class Hall:
    """A supervisor's board, and routers of several gateways on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.board = Board(folder / "board", is_new=True)
        self.bells = Bells(folder)
        self.stack = AsyncExitStack()
        self.views = [instance("a", concurrency=2), instance("b", concurrency=2)]

    async def open(self, *, queue_length: int = 128) -> tuple[Router, int]:
        column = self.board.lend()
        router = Router(queue_length=queue_length)
        router.update(snapshot(*self.views))
        board = Board(self.folder / "board")
        self.stack.callback(board.close)
        await self.stack.enter_async_context(
            Neighbours(board, self.folder, column, router).running()
        )
        self.ring()
        await asyncio.sleep(0.01)
        return router, column

    def ring(self) -> None:
        for column in self.board.lent():
            self.bells.ring(column)


@asynccontextmanager
async def hall() -> AsyncIterator[Hall]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    made = Hall(folder)
    try:
        yield made
        await made.stack.aclose()
    finally:
        made.bells.close()
        made.board.close()
        shutil.rmtree(folder)


def test_F54_two_gateways_lend_an_instances_slots_once() -> None:
    async def main() -> None:
        async with hall() as ours:
            (one, _), (two, _) = await ours.open(), await ours.open()
            claims = [one.claim("m") for _ in range(3)]
            claims.append(two.claim("m"))
            for router in (one, two):
                with pytest.raises(Busy):
                    router.claim("m")
            claims.pop(0).release(Outcome.OK)
            two.claim("m").release(Outcome.OK)
            for claim in claims:
                claim.release(Outcome.OK)

    asyncio.run(main())


def test_a_gateway_that_waits_is_woken_by_another_ones_release() -> None:
    async def main() -> None:
        async with hall() as ours:
            (one, _), (two, _) = await ours.open(), await ours.open()
            claims = [one.claim("m") for _ in range(4)]
            waits = []
            for _ in range(10):
                waiting = asyncio.ensure_future(two.wait_claim("m"))
                await asyncio.sleep(0.005)
                assert not waiting.done()
                began_s = time.monotonic()
                claims.pop().release(Outcome.OK)
                claim = await asyncio.wait_for(waiting, 2)
                waits.append(time.monotonic() - began_s)
                claim.release(Outcome.OK)
                claims.append(one.claim("m"))
            assert sorted(waits)[5] < 0.02
            for claim in claims:
                claim.release(Outcome.OK)

    asyncio.run(main())


def test_F53_no_gateway_takes_up_again_whatever_it_gives_back_while_another_waits() -> None:
    async def main() -> None:
        async with hall() as ours:
            routers = [(await ours.open())[0] for _ in range(2)]
            counts: Counter[int] = Counter()
            ends_s = time.monotonic() + 0.6

            async def client(number: int) -> None:
                while time.monotonic() < ends_s:
                    claim = await routers[number].wait_claim("m", KeyAsk(f"{number}"))
                    counts[number] += 1
                    await asyncio.sleep(0.005)
                    claim.release(Outcome.OK)

            async with asyncio.TaskGroup() as tasks:
                for number in [0] * 30 + [1] * 5:
                    tasks.create_task(client(number))
            assert 0.3 < counts[1] / counts.total() < 0.7, counts
            assert counts.total() > 100  # a slot is not left idle for long

    asyncio.run(main())


def test_what_a_dead_gateway_held_is_free_at_once_and_alone_nothing_is_shared() -> None:
    async def main() -> None:
        async with hall() as ours:
            (one, _), (two, column) = await ours.open(), await ours.open()
            for _ in range(4):
                two.claim("m")
            waiting = asyncio.ensure_future(one.wait_claim("m"))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            ours.board.take_back(column)  # the supervisor saw its end
            ours.ring()
            claim = await asyncio.wait_for(waiting, 2)
            assert one.peers is None
            claim.release(Outcome.OK)

    asyncio.run(main())


def test_a_gateway_that_is_woken_and_takes_nothing_delays_a_slot_by_moments_only() -> None:
    async def main() -> None:
        async with hall() as ours:
            router, column = await ours.open()
            stopped = ours.board.lend()  # of a process that is stopped: it waits, and hears nothing
            ours.board.write("waiting for m", stopped, 1)
            ours.ring()
            await asyncio.sleep(0.01)
            began_s = time.monotonic()
            claims = [await router.wait_claim("m") for _ in range(4)]
            assert time.monotonic() - began_s < 2.0
            assert column != stopped
            for claim in claims:
                claim.release(Outcome.OK)

    asyncio.run(main())


def test_F54_three_gateways_at_random_never_pass_the_slots_and_lose_nobody() -> None:
    async def main() -> None:
        for seed in range(6):
            async with hall() as ours:
                random_ = random.Random(seed)
                routers = [(await ours.open(queue_length=6))[0] for _ in range(3)]
                told: Counter[str] = Counter()

                async def client(
                    router: Router,
                    routers: list[Router],
                    random_: random.Random,
                    told: Counter[str],
                ) -> None:
                    exclude = frozenset(random_.sample("ab", random_.choice([0, 0, 1])))
                    try:
                        claim: Claim = await router.wait_claim(
                            "m", exclude=exclude, deadline_s=random_.choice([0.02, 5.0])
                        )
                    except HostlerError:
                        told["refused"] += 1
                        return
                    for one in ("a", "b"):
                        assert sum(r.load.get(one, 0) for r in routers) <= 2
                    await asyncio.sleep(random_.random() * 0.004)
                    claim.release(random_.choice([Outcome.OK, Outcome.CLIENT_GONE]))
                    told["served"] += 1

                async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
                    for _ in range(120):
                        tasks.create_task(client(random_.choice(routers), routers, random_, told))
                        await asyncio.sleep(random_.random() * 0.002)
                assert told.total() == 120
                assert told["served"] > 20
                assert not any(router.load for router in routers)

    asyncio.run(main())


def test_rows_are_used_again_when_all_are_taken_and_columns_are_bounded() -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    board, rows = Board(folder / "board", is_new=True, rows=100), 100
    other = Board(folder / "board")
    try:
        for number in range(rows):
            board.write(f"old {number}", 3, 1 if number % 2 else 0)
            assert other.read(f"old {number}", 3) == number % 2
        board.forget([f"old {number}" for number in range(rows)])
        board.write("new", 3, 7)
        assert board.read("new", 3) == 7
        assert board.total("old 1", [3]) == 1
        for number in range(
            1, rows, 2
        ):  # who had a row that is another's now looks for its own again
            assert other.read(f"old {number}", 3) == 1
        assert other.read("new", 3) == 7
        assert [board.lend() for _ in range(COLUMNS)] == list(range(COLUMNS))
        with pytest.raises(StartupError, match="leave"):
            board.lend()
    finally:
        other.close()
        board.close()
        shutil.rmtree(folder)


def test_F80_a_process_that_ends_takes_no_room_on_the_disk(tmp_path: Path) -> None:
    """A page that is written first when the disk is full ends who writes it."""
    path = tmp_path / "board"
    with closing(Board(path, is_new=True)) as board:
        column = board.lend()
        board.write("one", column, 3)
        before = path.stat().st_blocks
        board.take_back(column)
        assert board.read("one", column) == 0
        assert path.stat().st_blocks == before < 200
