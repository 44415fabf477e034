"""The pool, fetch and stream against servers that behave well, badly and not at all."""

import asyncio
import socket

import pytest
import uvloop

from hostler.core.snapshot import Endpoint
from hostler.wire import door
from hostler.wire.client import (
    Pool,
    Proof,
    UpstreamLost,
    UpstreamStatus,
    build_request,
    fetch,
    stream,
)
from hostler.wire.server import Exchange
from tests.integration.wire.running import Record, read_request, scripted, serving, until

REQUEST = build_request("POST", "/v1/x", "localhost", [], b"{}")
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


def pool_of(
    endpoint: Endpoint, cap: int = 0, idle_s: float = 4.0, prove: Proof | None = None
) -> Pool:
    return Pool(
        endpoint, connect_timeout_s=1.0, idle_s=idle_s, requests_per_connection=cap, prove=prove
    )


async def ask(pool: Pool, request: bytes = REQUEST) -> Record:
    record = Record()
    pool.submit(request, record)
    return await record.wait()


class Script:
    """A server that answers each request with the next of `answers`; None closes without a word."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.requests = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while self.answers:
            head = await read_request(reader)
            if b"content-length: 2\r\n" in head:
                await reader.readexactly(2)
            self.requests += 1
            answer = self.answers.pop(0)
            if answer is None:
                return
            writer.write(answer.removesuffix(b"<close>"))
            await writer.drain()
            if answer.endswith(b"<close>"):
                return


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (OK, 200, b"hi"),
        (CHUNKED + b"2\r\nhi\r\n3\r\n yo\r\n0\r\n\r\n", 200, b"hi yo"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end<close>", 200, b"until the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nold<close>", 200, b"old"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", 304, b""),
        (b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\nHTTP/1.1 103 Hints\r\n\r\n" + OK, 200, b"hi"),
        (b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", 500, b""),
    ],
)
def test_answers_of_every_framing_are_read(answer: bytes, status: int, body: bytes) -> None:
    async def main() -> None:
        async with scripted(Script(answer)) as endpoint:
            pool = pool_of(endpoint)
            record = await ask(pool)
            assert (record.status, record.body, record.events[-1]) == (status, body, "end")
            assert b"x" not in dict(record.headers)
            await pool.close()

    uvloop.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi<close>",
        CHUNKED + b"2\r\nhi\r\n<close>",
        CHUNKED + b"zz\r\nhi\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000,
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n<close>",
        b"SSH-2.0-OpenSSH\r\n",
    ],
)
def test_an_answer_with_broken_framing_is_lost(answer: bytes) -> None:
    async def main() -> None:
        script = Script(answer)
        async with scripted(script) as endpoint:
            pool = pool_of(endpoint)
            record = await ask(pool)
            assert record.events[-1] == "lost"
            assert record.error is not None
            assert (record.error.sent_bytes, record.error.got_bytes) == (True, True)
            assert script.requests == 1
            await until(lambda: pool.connection_count == 0)
            await pool.close()

    uvloop.run(main())


def test_two_thousand_requests_use_one_connection_and_its_cap_is_kept() -> None:
    async def main() -> None:
        def handle(exchange: Exchange) -> None:
            exchange.send(200, exchange.request.body)

        async with serving(handle) as (server, endpoint):
            pool = pool_of(endpoint)
            for _ in range(2000):
                record = await ask(pool)
                assert record.body == b"{}"
            assert pool.connection_count == server.connection_count == 1
            capped = pool_of(endpoint, cap=10)
            for _ in range(25):
                await ask(capped)
            await until(lambda: capped.connection_count == 1)
            await pool.close()
            await capped.close()
            await until(lambda: server.connection_count == 0)

    uvloop.run(main())


def test_a_used_connection_that_died_is_replaced_once_and_a_fresh_one_is_not() -> None:
    async def main() -> None:
        script = Script(OK, None, OK)
        async with scripted(script) as endpoint:
            pool = pool_of(endpoint)
            assert (await ask(pool)).events[-1] == "end"
            assert (await ask(pool)).body == b"hi"  # the server closed; asked again, unseen
            assert (script.connections, script.requests) == (2, 3)
            await pool.close()
        script = Script(None, OK)
        async with scripted(script) as endpoint:
            pool = pool_of(endpoint)
            record = await ask(pool)
            assert record.events == ["lost"]
            assert record.error is not None
            assert (record.error.refused, record.error.sent_bytes) == (False, True)
            assert script.requests == 1
            await pool.close()

    uvloop.run(main())


def test_a_request_that_crosses_the_end_of_an_idle_connection_is_sent_again() -> None:
    """A server's own limit, of seconds, may end any idle connection just when a request is on its way."""

    async def main() -> None:
        requests = 0

        async def closes_unread(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal requests
            await read_request(reader)
            await reader.readexactly(2)
            requests += 1
            writer.write(OK)
            assert isinstance(writer.transport, asyncio.Transport)
            writer.transport.pause_reading()
            await asyncio.sleep(0.05)  # the next one comes meanwhile; its bytes make this a reset

        async with scripted(closes_unread) as endpoint:
            pool = pool_of(endpoint)
            for number in range(1, 6):
                record = await ask(pool)
                assert (record.body, record.events[-1], requests) == (b"hi", "end", number)
            assert pool.connection_count == 1
            await pool.close()

    uvloop.run(main())


def test_a_connection_made_for_who_left_counts_as_used_when_it_dies_later() -> None:
    async def main() -> None:
        script = Script(None, OK)
        async with scripted(script) as endpoint:
            pool = pool_of(endpoint)
            pool.submit(REQUEST, Record()).cancel()  # before it is connected
            await until(lambda: pool.connection_count == 1 and pool.busy_count == 0)
            assert (await ask(pool)).body == b"hi"  # the server closed; asked again, unseen
            assert (script.connections, script.requests) == (2, 2)
            await pool.close()

    uvloop.run(main())


def test_an_order_is_never_sent_twice_whatever_the_connection_does() -> None:
    async def main() -> None:
        script = Script(OK, None, OK)
        async with scripted(script) as endpoint:
            pool = pool_of(endpoint)
            assert (await ask(pool)).events[-1] == "end"
            record = Record()
            pool.submit(REQUEST, record, once=True)
            assert (await record.wait()).events == ["lost"]
            assert record.error is not None
            assert (record.error.refused, record.error.sent_bytes) == (False, True)
            assert script.requests == 2
            await pool.close()

    uvloop.run(main())


def test_F07_a_request_that_was_sent_is_never_called_refused() -> None:
    async def main() -> None:
        endpoints: list[asyncio.Server] = []

        async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            await reader.readexactly(2)
            writer.write(OK)
            await read_request(reader)
            endpoints[0].close()
            writer.close()

        server = await asyncio.start_server(die, "127.0.0.1", 0)
        endpoints.append(server)
        pool = pool_of(Endpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1]))
        assert (await ask(pool)).events[-1] == "end"
        record = await ask(pool)
        assert record.error is not None
        assert (record.error.refused, record.error.sent_bytes) == (False, True)
        await pool.close()

    uvloop.run(main())


def test_bytes_nobody_asked_for_cost_the_connection() -> None:
    async def main() -> None:
        script = Script(OK + OK, OK)
        async with scripted(script) as endpoint:
            pool = pool_of(endpoint)
            assert (await ask(pool)).body == b"hi"
            assert (await ask(pool)).body == b"hi"
            assert script.connections == 2
            await pool.close()

    uvloop.run(main())


def test_an_idle_connection_is_closed_in_time() -> None:
    async def main() -> None:
        async with serving(lambda exchange: exchange.send(200, b"")) as (server, endpoint):
            pool = pool_of(endpoint, idle_s=0.1)
            await ask(pool)
            assert pool.connection_count == 1
            await until(lambda: pool.connection_count == 0 and server.connection_count == 0)
            await pool.close()

    uvloop.run(main())


def test_F67_without_files_to_spare_no_connection_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "most_files", lambda: 10)

    async def main() -> None:
        async with serving(lambda exchange: exchange.send(200, b"")) as (server, endpoint):
            pool = pool_of(endpoint)
            for _ in range(3):
                assert (await ask(pool)).events[-1] == "end"
                await until(lambda: pool.connection_count == 0 and server.connection_count == 0)
            await pool.close()

    uvloop.run(main())


def test_nothing_listening_is_refused() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        pool = pool_of(Endpoint(host="127.0.0.1", port=port))
        record = await ask(pool)
        assert record.error is not None
        assert (record.error.refused, record.error.sent_bytes) == (True, False)
        await pool.close()

    uvloop.run(main())


def test_a_call_whose_pool_is_closed_at_once_is_told_so() -> None:
    async def main() -> None:
        pool, record = pool_of(Endpoint(host="127.0.0.1", port=1)), Record()
        pool.submit(REQUEST, record)
        await pool.close()
        assert (await record.wait()).error is not None

    uvloop.run(main())


def test_a_call_is_told_whatever_goes_wrong_with_its_connection() -> None:
    class Broken(Exception):
        pass

    def check(status: int, body: bytes) -> bool:
        raise Broken

    async def main() -> None:
        async with serving(lambda exchange: exchange.send(200, b"")) as (_, endpoint):
            pool = pool_of(endpoint, prove=Proof(request=REQUEST, check=check))
            record = await ask(pool)
            assert record.error is not None
            assert (record.error.refused, str(record.error)) == (True, "Broken: ")
            await until(lambda: pool.busy_count == 0)
            await pool.close()

    uvloop.run(main())


def test_a_closed_pool_opens_no_connection_not_even_for_who_lost_a_used_one() -> None:
    async def main() -> None:
        script = Script(OK, b"", OK)  # to the second one it says nothing
        async with scripted(script) as endpoint:
            pool = pool_of(endpoint)
            assert (await ask(pool)).events[-1] == "end"
            record = Record()
            pool.submit(REQUEST, record)
            await until(lambda: script.requests == 2)
            await pool.close()
            error = (await record.wait()).error
            assert error is not None
            assert (error.refused, error.sent_bytes) == (False, True)
            await asyncio.sleep(0.05)
            assert (script.connections, pool.connection_count, pool.busy_count) == (1, 0, 0)
            late = (await ask(pool)).error
            assert late is not None
            assert (late.refused, late.sent_bytes) == (True, False)
            assert (script.connections, pool.connection_count, pool.busy_count) == (1, 0, 0)

    uvloop.run(main())


def test_F45_a_cancelled_call_reaches_the_server_at_once_and_its_sink_no_more() -> None:
    async def main() -> None:
        gone: list[int] = []

        def handle(exchange: Exchange) -> None:
            exchange.on_gone = lambda: gone.append(1)
            exchange.start(200, [], None)
            exchange.write(b"first")

        async with serving(handle) as (server, endpoint):
            pool = pool_of(endpoint)
            for _ in range(100):
                record = Record()
                call = pool.submit(REQUEST, record)
                await until(lambda seen=record: seen.body == b"first")  # type: ignore[misc]
                call.cancel()
                call.cancel()
                call.resume()
                events = list(record.events)
                await asyncio.sleep(0)
                assert record.events == events == ["head", "data"]
            early = Record()
            pool.submit(REQUEST, early).cancel()  # before it is connected
            await until(lambda: len(gone) == 100, 1.0)
            assert early.events == []
            await pool.close()
            await until(lambda: server.connection_count == 0)

    uvloop.run(main())


def test_F48_a_paused_call_stops_the_server_and_resumes_whole() -> None:
    async def main() -> None:
        paused: list[int] = []

        def stall(exchange: Exchange) -> None:
            exchange.on_pause = lambda: paused.append(1)
            exchange.start(200, [], 8_000_000)
            exchange.write(b"x" * 8_000_000)
            exchange.on_resume = exchange.end

        async with serving(stall) as (_, endpoint):
            pool = pool_of(endpoint)
            record = Record()
            call = pool.submit(REQUEST, record)
            call.pause()
            await asyncio.sleep(0.3)
            assert paused == [1]
            assert len(record.body) <= 1_000_000
            call.resume()
            await record.wait()
            assert (len(record.body), record.events[-1]) == (8_000_000, "end")
            await pool.close()

    uvloop.run(main())


def test_F27_a_connection_is_used_only_after_its_proof() -> None:
    async def main() -> None:
        paths: list[str] = []

        def handle(exchange: Exchange) -> None:
            paths.append(exchange.request.path)
            exchange.send(200, b"me")

        proof = Proof(
            request=build_request("GET", "/proof", "localhost", []), check=lambda s, b: b == b"me"
        )
        other = Proof(request=proof.request, check=lambda s, b: b == b"you")
        async with serving(handle) as (_, endpoint):
            pool = pool_of(endpoint, prove=proof)
            await ask(pool)
            await ask(pool)
            assert paths == ["/proof", "/v1/x", "/v1/x"]
            await pool.close()
            pool = pool_of(endpoint, prove=other)
            record = await ask(pool)
            assert record.error is not None
            assert (record.error.refused, record.error.sent_bytes) == (True, False)
            assert paths[3:] == ["/proof"]
            await pool.close()

    uvloop.run(main())


def test_fetch_and_stream_end_at_their_deadlines_and_raise_what_happened() -> None:
    async def main() -> None:
        def handle(exchange: Exchange) -> None:
            if exchange.request.path == "/no":
                exchange.send(418, b"teapot")
            elif exchange.request.path == "/some":
                exchange.start(200, [], None)
                exchange.write(b"a")
            elif exchange.request.path == "/all":
                exchange.start(200, [], None)
                for _ in range(100):
                    exchange.write(b"x" * 10_000)
                exchange.end()

        async with serving(handle) as (server, end):
            with pytest.raises(UpstreamLost) as lost:
                await fetch(end, "GET", "/never", timeout_s=0.2)
            assert lost.value.timed_out
            assert (await fetch(end, "GET", "/no", timeout_s=1)).body == b"teapot"
            with pytest.raises(UpstreamStatus) as refused:
                async for _ in stream(end, "GET", "/no", timeout_s=1, idle_s=1):
                    pass
            assert (refused.value.status, refused.value.body) == (418, b"teapot")
            parts = stream(end, "GET", "/some", timeout_s=1, idle_s=0.2)
            assert await anext(parts) == b"a"
            with pytest.raises(UpstreamLost) as lost:
                await anext(parts)
            assert (lost.value.timed_out, lost.value.got_bytes) == (True, True)
            total = 0
            async for part in stream(end, "GET", "/all", timeout_s=1, idle_s=1):
                total += len(part)
                await asyncio.sleep(0)
            assert total == 1_000_000
            await until(lambda: server.connection_count == 0)

    uvloop.run(main())
