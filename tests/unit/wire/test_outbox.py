"""What is written in one turn of the loop goes out at its end, in order, and never after a cut."""

import asyncio
from typing import cast

from hostler.wire.outbox import Outbox


class Kept:
    """A transport that keeps what it is given."""

    def __init__(self, told: list[tuple[str, bytes]], name: str) -> None:
        self._told, self._name = told, name
        self.is_cut = False

    def write(self, data: bytes) -> None:
        self._told.append((self._name, data))

    def is_closing(self) -> bool:
        return self.is_cut


def kept(told: list[tuple[str, bytes]], name: str) -> asyncio.Transport:
    return cast(asyncio.Transport, Kept(told, name))


def test_writes_wait_for_the_end_of_the_turn_and_keep_their_order() -> None:
    async def turns() -> None:
        told: list[tuple[str, bytes]] = []
        outbox, one, two = Outbox(asyncio.get_running_loop()), kept(told, "1"), kept(told, "2")
        outbox.write(one, b"a")
        outbox.write(two, b"b")
        outbox.write(one, b"c")
        assert told == []
        await asyncio.sleep(0)
        assert told == [("1", b"a"), ("2", b"b"), ("1", b"c")]
        outbox.write(two, b"d")
        await asyncio.sleep(0)
        assert told[3:] == [("2", b"d")]

    asyncio.run(turns())


def test_a_flush_writes_now_and_nothing_twice() -> None:
    async def turns() -> None:
        told: list[tuple[str, bytes]] = []
        outbox = Outbox(asyncio.get_running_loop())
        outbox.write(kept(told, "1"), b"last words")
        outbox.flush()
        assert told == [("1", b"last words")]
        await asyncio.sleep(0)
        assert len(told) == 1

    asyncio.run(turns())


def test_what_was_cut_meanwhile_gets_nothing_and_the_others_theirs() -> None:
    async def turns() -> None:
        told: list[tuple[str, bytes]] = []
        outbox, cut = Outbox(asyncio.get_running_loop()), Kept(told, "1")
        outbox.write(cast(asyncio.Transport, cut), b"a")
        outbox.write(kept(told, "2"), b"b")
        cut.is_cut = True
        await asyncio.sleep(0)
        assert told == [("2", b"b")]

    asyncio.run(turns())


def test_without_a_loop_a_write_is_done_at_once() -> None:
    told: list[tuple[str, bytes]] = []
    Outbox().write(kept(told, "1"), b"a")
    assert told == [("1", b"a")]
