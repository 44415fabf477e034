"""The server on real sockets: order, back-pressure, deadlines, draining."""

import asyncio
import socket
import time
from typing import Any

import pytest
import uvloop

from hostler.app.config import HttpLimits
from hostler.core.snapshot import Endpoint
from hostler.wire.client import UpstreamLost, fetch
from hostler.wire.server import Exchange, HttpServer
from tests.integration.wire.running import listen, serving, socket_folder, until

GET = b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n"


def echo(exchange: Exchange) -> None:
    exchange.send(200, exchange.request.path.encode() + exchange.request.body)


async def answers(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    found = []
    async with asyncio.timeout(20):
        for _ in range(count):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            found.append(await reader.readexactly(length))
    return found


@pytest.mark.parametrize("at_once", [True, False], ids=["pipelined", "kept-alive"])
def test_two_thousand_requests_on_one_connection_are_answered_in_order(at_once: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        def handle(exchange: Exchange) -> None:
            if exchange.request.path.endswith("7"):  # some answers come later
                loop.call_soon(echo, exchange)
            else:
                echo(exchange)

        async with serving(handle) as (_, endpoint):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
            found: list[bytes] = []
            if at_once:
                writer.write(b"".join(GET % number for number in range(2000)))
                found = await answers(reader, 2000)
            else:
                for number in range(2000):
                    writer.write(GET % number)
                    found += await answers(reader, 1)
            assert found == [b"/%d" % number for number in range(2000)]
            writer.close()

    uvloop.run(main())


class StreamForEver:
    def __init__(self, exchange: Exchange) -> None:
        self.exchange, self.is_paused, self.count = exchange, False, 0
        exchange.on_pause = self.pause
        exchange.on_resume = self.resume
        exchange.start(200, [], None)
        self.step()

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        asyncio.get_running_loop().call_soon(self.step)

    def step(self) -> None:
        if not self.is_paused and not self.exchange.is_over:
            self.exchange.write(b"x" * 10_000)
            self.count += 10_000
            asyncio.get_running_loop().call_soon(self.step)


def test_F48_a_slow_reader_holds_back_the_writer_and_bounds_memory() -> None:
    async def main() -> None:
        limits = HttpLimits(stream_buffer_bytes=64 * 1024, socket_send_bytes=32 * 1024)
        loop = asyncio.get_running_loop()
        writers: list[StreamForEver] = []

        def handle(exchange: Exchange) -> None:
            writers.append(StreamForEver(exchange))

        async with serving(handle, limits) as (_, end):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            sock.setblocking(False)
            await loop.sock_connect(sock, (end.host, end.port))
            await loop.sock_sendall(sock, GET % 1)
            await until(lambda: bool(writers) and writers[0].is_paused)
            await asyncio.sleep(0.3)
            stuck_at = writers[0].count
            assert stuck_at < 1_000_000
            taken = 0
            while taken < 2 * stuck_at:  # reading on lets the writer go on
                async with asyncio.timeout(5):
                    taken += len(await loop.sock_recv(sock, 65536))
            assert writers[0].count > stuck_at
            sock.close()
            await until(lambda: writers[0].exchange.is_over)

    uvloop.run(main())


def test_F48_a_stalled_reader_is_cut() -> None:
    async def main() -> None:
        gone = asyncio.Event()

        def handle(exchange: Exchange) -> None:
            exchange.on_gone = gone.set
            exchange.start(200, [], None)
            exchange.write(b"x" * 5_000_000)

        async with serving(handle, HttpLimits(write_stall_s=0.2)) as (server, end):
            _, writer = await asyncio.open_connection(end.host, end.port, limit=1024)
            writer.write(GET % 1)
            async with asyncio.timeout(3):
                await gone.wait()
            await until(lambda: server.connection_count == 0)
            writer.close()

    uvloop.run(main())


def test_F49_fifty_stalled_readers_that_drop_do_not_stop_the_others() -> None:
    async def main() -> None:
        gone: list[int] = []

        def handle(exchange: Exchange) -> None:
            if exchange.request.path != "/1":
                exchange.send(200, b"")
                return
            exchange.on_gone = lambda: gone.append(1)
            exchange.start(200, [], None)
            exchange.write(b"x" * 3_000_000)

        async with serving(handle) as (_, end):
            socks = [socket.create_connection((end.host, end.port)) for _ in range(50)]
            for sock in socks:
                sock.sendall(GET % 1)
            await fetch(end, "GET", "/2", timeout_s=5)
            for sock in socks:
                sock.close()
            started = time.monotonic()
            await fetch(end, "GET", "/2", timeout_s=5)
            assert time.monotonic() - started < 1.5
            await until(lambda: len(gone) == 50)
            await asyncio.sleep(0.05)
            assert len(gone) == 50

    uvloop.run(main())


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"GET / HT", b"HTTP/1.1 408 "),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc", b"HTTP/1.1 408 "),
    ],
    ids=["nothing", "head", "body"],
)
def test_F90_a_client_that_stops_half_way_is_refused_and_closed(sent: bytes, answer: bytes) -> None:
    async def main() -> None:
        limits = HttpLimits(header_timeout_s=0.3, body_timeout_s=0.3)
        async with serving(echo, limits) as (server, end):
            reader, writer = await asyncio.open_connection(end.host, end.port)
            writer.write(sent)
            started = time.monotonic()
            async with asyncio.timeout(3):
                got = await reader.read()
            assert 0.25 < time.monotonic() - started < 3.0
            assert got.startswith(answer)
            assert bool(got) == bool(answer)
            writer.close()
            await until(lambda: server.connection_count == 0)

    uvloop.run(main())


def test_F90_five_hundred_dripping_clients_do_not_delay_the_others() -> None:
    async def main() -> None:
        limits = HttpLimits(header_timeout_s=0.5)
        async with serving(echo, limits) as (server, end):
            socks = [socket.create_connection((end.host, end.port)) for _ in range(500)]
            slowest_s = 0.0
            for round_ in range(10):
                for sock in socks:
                    sock.send(b"GET / HTTP/1.1"[round_ : round_ + 1])
                started = time.monotonic()
                assert (await fetch(end, "GET", "/2", timeout_s=5)).status == 200
                slowest_s = max(slowest_s, time.monotonic() - started)
                await asyncio.sleep(0.02)
            assert slowest_s < 0.5
            await until(lambda: server.connection_count == 0)
            assert b" 408 " in socks[0].recv(99)
            for sock in socks:
                sock.close()

    uvloop.run(main())


def test_F91_a_refusal_reaches_a_client_that_is_still_sending() -> None:
    async def main() -> None:
        async with serving(echo, HttpLimits(body_bytes=1000)) as (_, end):
            reader, writer = await asyncio.open_connection(end.host, end.port)
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n")
            for _ in range(40):
                writer.write(b"x" * 100_000)
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 413 ")
            writer.close()

    uvloop.run(main())


def test_draining_closes_idle_connections_and_lets_busy_ones_finish() -> None:
    async def main() -> None:
        held: list[Exchange] = []
        server = HttpServer(held.append, limits=HttpLimits())
        port = await listen(server)
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET % 1)
        await until(lambda: len(held) == 1 and server.connection_count == 2)
        async with asyncio.TaskGroup() as tasks:
            closing = tasks.create_task(server.close(5.0))
            assert await idle_reader.read() == b""
            with pytest.raises(OSError, match="refused"):
                await asyncio.open_connection("127.0.0.1", port)
            assert not closing.done()
            held[0].send(200, b"late")
            answer = await reader.read()
            assert b"connection: close\r\n" in answer
            assert answer.endswith(b"late")
        idle_writer.close()
        writer.close()

    uvloop.run(main())


def test_F83_a_connection_that_was_just_made_may_ask_while_the_server_closes() -> None:
    async def main() -> None:
        server = HttpServer(echo, limits=HttpLimits())
        port = await listen(server)
        kept_reader, kept = await asyncio.open_connection("127.0.0.1", port)
        kept.write(GET % 1)
        await kept_reader.readuntil(b"\r\n\r\n")
        mute_reader, mute = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: server.connection_count == 3)
        async with asyncio.timeout(4), asyncio.TaskGroup() as tasks:
            tasks.create_task(server.close(30.0))
            await kept_reader.read()  # closed at once: it has had its answer
            writer.write(GET % 2)
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close\r\n" in answer
            assert await mute_reader.read() == b""  # who says nothing does not hold it up
        for one in (kept, mute, writer):
            one.close()

    uvloop.run(main())


def test_draining_ends_at_its_deadline() -> None:
    async def main() -> None:
        gone: list[int] = []
        held: list[Exchange] = []

        def handle(exchange: Exchange) -> None:
            exchange.on_gone = lambda: gone.append(1)
            held.append(exchange)

        server = HttpServer(handle, limits=HttpLimits())
        port = await listen(server)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET % 1)
        await until(lambda: len(held) == 1)
        started = time.monotonic()
        await server.close(0.3)
        assert 0.25 < time.monotonic() - started < 3.0
        assert gone == [1]
        writer.close()

    uvloop.run(main())


def test_a_unix_socket_serves_and_replaces_a_stale_one() -> None:
    async def main() -> None:
        async with socket_folder() as folder:
            path = folder / "a.sock"
            stale = socket.socket(socket.AF_UNIX)
            stale.bind(str(path))
            stale.close()
            server = HttpServer(echo, limits=HttpLimits())
            await server.listen_unix(path)
            assert path.stat().st_mode & 0o777 == 0o600
            endpoint = Endpoint(socket=str(path))
            body = b"x" * 1_000_000
            answer = await fetch(endpoint, "POST", "/a", body=body, timeout_s=5)
            assert answer.body == b"/a" + body
            await server.close(1.0)
            assert not path.exists()
            with pytest.raises(UpstreamLost) as caught:
                await fetch(endpoint, "GET", "/a", timeout_s=1)
            assert caught.value.refused

    uvloop.run(main())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("protocol", [0, socket.IPPROTO_TCP], ids=["unnumbered", "numbered"])
def test_an_answer_never_waits_for_an_acknowledgement(run: Any, protocol: int) -> None:
    """After a handshake a TLS server writes tickets, then its answer: Nagle would hold that back 40 ms."""
    seen: list[int] = []
    server: HttpServer

    def handle(exchange: Exchange) -> None:
        for connection in server.crowd:
            accepted = connection.transport.get_extra_info("socket")
            seen.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        echo(exchange)

    async def main() -> None:
        nonlocal server
        server = HttpServer(handle, limits=HttpLimits())
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        endpoint = Endpoint(host="127.0.0.1", port=sock.getsockname()[1])
        await server.listen(sock)
        try:
            await fetch(endpoint, "GET", "/", timeout_s=5.0)
        finally:
            await server.close(0.0)

    run(main())
    assert seen
    assert all(seen)
