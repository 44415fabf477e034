"""The writing thread: order, patience, and what a refused write leaves behind."""

import asyncio
import threading
import time

import pytest

from hostler.core.errors import InsufficientStorage, StorageBusy
from hostler.storage.writer import Writer


def test_writes_are_done_in_the_order_given_in_one_thread() -> None:
    done: list[tuple[int, str]] = []

    async def main() -> None:
        writer = Writer("w")
        async with writer.running(), asyncio.TaskGroup() as tasks:
            for number in range(50):
                tasks.create_task(
                    writer.do(lambda n: done.append((n, threading.current_thread().name)), number)
                )

    asyncio.run(main())
    assert [number for number, _ in done] == list(range(50))
    assert {name for _, name in done} == {"w_0"}


def test_F79_a_lock_that_opens_in_time_costs_only_time() -> None:
    tries = 0

    def write() -> str:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise StorageBusy("locked")
        return "written"

    async def main() -> None:
        writer = Writer("w")
        async with writer.running():
            assert await writer.do(write) == "written"

    asyncio.run(main())
    assert tries == 4


def test_F79_every_waiting_write_is_refused_in_time_and_left_undone() -> None:
    async def main() -> None:
        writer = Writer("w", patience_s=0.5)
        done: list[int] = []

        def locked() -> None:
            time.sleep(0.4)  # until the others have waited too long as well
            raise StorageBusy("locked")

        began_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(refused(writer, locked))
            others = [tasks.create_task(refused(writer, lambda: done.append(1))) for _ in range(20)]
        assert time.monotonic() - began_s < 5.0  # all together, not one after the other
        assert first.result()
        assert all(one.result() for one in others)
        assert done == []

    async def refused(writer: Writer, work: object) -> bool:
        try:
            await writer.do(work)  # type: ignore[arg-type]
        except StorageBusy:
            return True
        return False

    asyncio.run(main())


def test_too_many_waiting_writes_are_refused_at_once() -> None:
    async def main() -> None:
        writer = Writer("w", most_waiting=2)
        gate = threading.Event()
        told: list[BaseException | None] = []
        async with writer.running():
            for _ in range(3):
                writer.post(told.append, gate.wait, 5.0)
            assert [type(one) for one in told] == [StorageBusy]
            with pytest.raises(StorageBusy, match="2 writes wait"):
                await writer.do(gate.set)
            gate.set()
        await asyncio.sleep(0)
        assert told[1:] == [None, None]

    asyncio.run(main())


def test_another_fault_is_told_at_once_and_the_next_write_goes_on() -> None:
    async def main() -> None:
        writer = Writer("w")

        def full() -> None:
            raise InsufficientStorage("full")

        async with writer.running():
            with pytest.raises(InsufficientStorage):
                await writer.do(full)
            assert await writer.do(lambda: 7) == 7

    asyncio.run(main())


def test_what_was_posted_is_done_before_the_end() -> None:
    done: list[int] = []

    async def main() -> None:
        writer = Writer("w")
        async with writer.running():
            for number in range(100):
                writer.post(lambda error: None, done.append, number)

    asyncio.run(main())
    assert done == list(range(100))
