"""What one turn of the loop reads is worked on at its end, in order; then what that writes goes out."""

import asyncio
from typing import cast

import pytest

from hostler.app.config import HttpLimits
from hostler.core.snapshot import Endpoint
from hostler.wire.connection import PIPELINE_BYTES, ServerConnection
from hostler.wire.exchange import Exchange
from hostler.wire.pool import Pool
from hostler.wire.server import HttpServer
from hostler.wire.turn import HELD_BYTES, Turn
from hostler.wire.upstream import Connection
from tests.unit.wire.transport import KeepingTransport, answer_ok


class Kept:
    """A transport that keeps what it is given."""

    def __init__(self, told: list[tuple[str, bytes]], name: str) -> None:
        self._told, self._name = told, name
        self.is_cut = False

    def write(self, data: bytes) -> None:
        self._told.append((self._name, data))

    def is_closing(self) -> bool:
        return self.is_cut


class Broken(Kept):
    """A transport that takes nothing more, and says so."""

    def write(self, data: bytes) -> None:
        raise RuntimeError("cannot write after its end")

    def abort(self) -> None:
        self.is_cut = True


def kept(told: list[tuple[str, bytes]], name: str) -> asyncio.Transport:
    return cast(asyncio.Transport, Kept(told, name))


def test_writes_wait_for_the_end_of_the_turn_and_keep_their_order() -> None:
    async def turns() -> None:
        told: list[tuple[str, bytes]] = []
        turn, one, two = Turn(asyncio.get_running_loop()), kept(told, "1"), kept(told, "2")
        turn.write(one, b"a")
        turn.write(two, b"b")
        turn.write(one, b"c")
        assert told == []
        await asyncio.sleep(0)
        assert told == [("1", b"a"), ("2", b"b"), ("1", b"c")]
        turn.write(two, b"d")
        await asyncio.sleep(0)
        assert told[3:] == [("2", b"d")]

    asyncio.run(turns())


def test_a_flush_writes_now_and_nothing_twice() -> None:
    async def turns() -> None:
        told: list[tuple[str, bytes]] = []
        turn = Turn(asyncio.get_running_loop())
        turn.write(kept(told, "1"), b"last words")
        turn.flush()
        assert told == [("1", b"last words")]
        await asyncio.sleep(0)
        assert len(told) == 1

    asyncio.run(turns())


def test_what_was_cut_meanwhile_gets_nothing_and_the_others_theirs() -> None:
    async def turns() -> None:
        told: list[tuple[str, bytes]] = []
        turn, cut = Turn(asyncio.get_running_loop()), Kept(told, "1")
        turn.write(cast(asyncio.Transport, cut), b"a")
        turn.write(kept(told, "2"), b"b")
        cut.is_cut = True
        await asyncio.sleep(0)
        assert told == [("2", b"b")]

    asyncio.run(turns())


def test_a_write_that_fails_is_its_connections_alone() -> None:
    async def turns() -> None:
        told: list[tuple[str, bytes]] = []
        turn, broken = Turn(asyncio.get_running_loop()), Broken(told, "1")
        turn.write(cast(asyncio.Transport, broken), b"a")
        turn.write(kept(told, "2"), b"b")
        await asyncio.sleep(0)
        assert (told, broken.is_cut) == ([("2", b"b")], True)

    asyncio.run(turns())


def test_without_a_loop_a_write_is_done_at_once() -> None:
    told: list[tuple[str, bytes]] = []
    Turn().write(kept(told, "1"), b"a")
    assert told == [("1", b"a")]


ASKED = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"


class Clients:
    """Connections of one server whose turns are those of the running loop."""

    def __init__(self, limits: HttpLimits | None = None) -> None:
        self.asked: list[int] = []
        self.server = HttpServer(self._handle, limits=limits or HttpLimits())
        self.server.turn.join(asyncio.get_running_loop())

    def client(self) -> tuple[ServerConnection, KeepingTransport]:
        connection, transport = ServerConnection(self.server), KeepingTransport()
        connection.connection_made(transport)
        return connection, transport

    def _handle(self, exchange: Exchange) -> None:
        self.asked.append(len(exchange.request.body))
        exchange.send(200, b"")


def test_requests_of_one_turn_are_answered_at_its_end_in_their_order() -> None:
    async def turns() -> None:
        made = Clients()
        (one, to_one), (two, to_two) = made.client(), made.client()
        one.data_received(ASKED % 2)
        two.data_received(ASKED % 1 + b"x")
        one.data_received(b"xx" + ASKED % 0)
        assert made.asked == []
        await asyncio.sleep(0)
        assert made.asked == [1, 2, 0]
        assert to_one.written.count(b"200 OK") == 2
        assert to_two.written.count(b"200 OK") == 1

    asyncio.run(turns())


def test_what_came_before_a_close_is_read_before_it() -> None:
    async def turns() -> None:
        made = Clients()
        one, _ = made.client()
        one.data_received(ASKED % 0)
        one.eof_received()
        assert made.asked == [0]
        one.connection_lost(None)
        await asyncio.sleep(0)
        assert made.asked == [0]

    asyncio.run(turns())


def test_who_has_asked_in_this_turn_is_not_idle() -> None:
    """F66: a full house takes the place of an idle one, not of one whose request is here."""

    async def turns() -> None:
        made = Clients(HttpLimits(connections=1))
        one, to_one = made.client()
        one.data_received(ASKED % 5)
        made.client()
        assert not to_one.is_closed
        one.data_received(b"hello")
        await asyncio.sleep(0)
        assert made.asked == [5]

    asyncio.run(turns())


def test_much_that_was_read_is_not_held_until_the_end() -> None:
    async def turns() -> None:
        made = Clients()
        one, _ = made.client()
        one.data_received(ASKED % HELD_BYTES + bytes(HELD_BYTES))
        assert made.asked == [HELD_BYTES]

    asyncio.run(turns())


def test_a_connection_that_fails_takes_nobody_along(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(KeepingTransport):
        def pause_reading(self) -> None:
            raise ValueError("a mistake of ours")

    async def turns() -> None:
        made = Clients()
        made.server.handler = lambda exchange: None
        broken, cut = ServerConnection(made.server), Broken()
        broken.connection_made(cut)
        two, to_two = made.client()
        broken.data_received(ASKED % 0)
        await asyncio.sleep(0)
        made.server.handler = answer_ok
        broken.data_received(bytes(PIPELINE_BYTES + 1))
        two.data_received(ASKED % 0)
        await asyncio.sleep(0)
        assert cut.is_closed
        assert to_two.written.startswith(b"HTTP/1.1 200")

    asyncio.run(turns())
    assert "http.connection_failed" in caplog.text


def test_bytes_nobody_asked_for_cut_an_engines_connection_before_it_is_used_again() -> None:
    async def turns() -> None:
        turn = Turn(asyncio.get_running_loop())
        pool = Pool(Endpoint(socket="/nowhere"), connect_timeout_s=1, idle_s=9, turn=turn)
        idle, transport = Connection(pool), KeepingTransport()
        idle.connection_made(transport)
        pool.give_back(idle)
        idle.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        assert transport.is_cut
        await pool.close()

    asyncio.run(turns())
