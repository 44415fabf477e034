"""Exchange: an answer ends once, whatever its handler does."""

import pytest

from hostler.core.errors import Overloaded
from hostler.wire.server import Exchange
from tests.unit.wire.transport import Client

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
GET10 = b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n"


def held(data: bytes = GET) -> tuple[Client, Exchange]:
    found: list[Exchange] = []
    client = Client(found.append).feed(data)
    return client, found[0]


def test_a_second_end_does_nothing() -> None:
    client, exchange = held()
    exchange.send(200, b"a")
    exchange.send(200, b"b")
    exchange.send_error(Overloaded())
    exchange.start(200, [], None)
    exchange.write(b"c")
    exchange.end()
    exchange.abort()
    assert [body for _, _, body in client.answers()] == [b"a"]
    assert not client.has_ended


def test_a_stream_is_framed_in_chunks_and_the_connection_goes_on() -> None:
    client, exchange = held()
    exchange.start(200, [(b"a", b"b")], None)
    exchange.write(b"hello")
    exchange.write(b"")
    exchange.end()
    assert client.transport.written.endswith(b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    assert not client.has_ended


def test_an_error_after_the_start_is_an_abort_without_a_last_chunk() -> None:
    client, exchange = held()
    exchange.start(200, [], None)
    exchange.write(b"hello")
    exchange.send_error(Overloaded())
    assert client.transport.written.endswith(b"5\r\nhello\r\n")
    assert client.transport.is_closed
    assert not client.transport.is_cut


def test_a_body_shorter_than_declared_is_an_abort() -> None:
    client, exchange = held()
    exchange.start(200, [], 10)
    exchange.write(b"hello")
    exchange.end()
    assert client.transport.is_closed


def test_a_body_longer_than_declared_is_refused_and_never_sent() -> None:
    client, exchange = held()
    exchange.start(200, [], 3)
    with pytest.raises(RuntimeError):
        exchange.write(b"hello")
    assert client.transport.written.endswith(b"\r\n\r\n")
    assert client.transport.is_closed


def test_head_and_no_content_have_no_body() -> None:
    client, exchange = held(b"HEAD" + GET[3:])
    exchange.send(200, b"hello")
    assert b"content-length: 5\r\n" in client.transport.written
    assert client.transport.written.endswith(b"\r\n\r\n")
    client, exchange = held(b"HEAD" + GET[3:])
    exchange.start(200, [], None)
    exchange.write(b"hello")
    exchange.end()
    assert client.transport.written.endswith(b"\r\n\r\n")
    client, exchange = held()
    exchange.send(204, b"")
    assert b"content-length" not in client.transport.written
    assert not client.has_ended


def test_an_old_client_gets_its_connection_closed_and_no_chunks() -> None:
    client, exchange = held(GET10)
    exchange.start(200, [], None)
    exchange.write(b"hello")
    exchange.end()
    assert client.transport.written.endswith(b"connection: close\r\n\r\nhello")
    assert client.transport.is_closed
    client, exchange = held(GET10[:-2] + b"Connection: Keep-Alive\r\n\r\n")
    exchange.send(200, b"hello")
    assert b"connection: keep-alive\r\n" in client.transport.written
    assert not client.has_ended


def test_the_client_may_ask_for_the_end() -> None:
    client, exchange = held(GET[:-2] + b"Connection: close\r\n\r\n")
    exchange.send(200, b"")
    assert b"connection: close\r\n" in client.transport.written
    assert client.has_ended


def test_a_failing_handler_is_a_500_and_the_connection_goes_on() -> None:
    def handle(exchange: Exchange) -> None:
        if exchange.request.path == "/":
            raise ZeroDivisionError
        exchange.send(200, b"")

    client = Client(handle).feed(GET, GET.replace(b"/ ", b"/a "))
    assert client.statuses() == [500, 200]


def test_F49_a_lost_client_is_told_once_and_writes_are_void() -> None:
    client, exchange = held()
    gone: list[int] = []
    exchange.on_gone = lambda: gone.append(1)
    exchange.start(200, [], None)
    client.connection.eof_received()
    client.connection.connection_lost(None)
    exchange.write(b"x")
    exchange.end()
    assert gone == [1]
    assert exchange.is_over
    assert client.server.connection_count == 0


def test_a_failing_callback_is_contained() -> None:
    client, exchange = held()

    def fail() -> None:
        raise ZeroDivisionError

    exchange.on_gone = exchange.on_pause = exchange.on_resume = fail
    client.connection.pause_writing()
    client.connection.resume_writing()
    client.connection.connection_lost(None)
    assert exchange.is_over


def test_requests_in_advance_wait_in_a_bounded_buffer() -> None:
    client, exchange = held()
    client.feed(GET * 3000)
    assert client.transport.is_reading_paused
    assert client.statuses() == []
    client.server.handler = lambda other: other.send(200, b"")
    exchange.send(200, b"")
    assert not client.transport.is_reading_paused
    assert client.statuses() == [200] * 3001
