"""The relay before a host's engines: who may ask, what goes through, and how each end is told."""

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trustme
import uvloop

from hostler.core.snapshot import Endpoint
from hostler.wire.client import Pool, UpstreamLost, build_request, fetch, stream
from hostler.wire.identity import Identity, Peer
from hostler.wire.server import Exchange
from tests.integration.wire.relaying import OTHER_HOST, town
from tests.integration.wire.running import Record, scripted, until

JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream")


def echo(exchange: Exchange) -> None:
    """Tell what was asked. It calls itself otherwise than the controller does."""
    request = exchange.request
    assert b"x-hostler-instance" not in request.fields
    told = f"{request.method} {request.path}?{request.query} ".encode() + request.body
    exchange.send(200, told, [JSON, (b"x-hostler-instance", b"own-name")])


def test_a_request_and_its_answer_pass_as_they_are() -> None:
    async def main() -> None:
        async with town(echo) as ours:
            endpoint = ours.endpoint()
            for body in (b"", b"x" * 300_000):
                answer = await fetch(
                    endpoint,
                    "POST",
                    "/v1/chat?a=b",
                    headers=[(b"x-hostler-instance", b"x"), JSON],
                    body=body,
                    timeout_s=5,
                    tls=ours.gateway,
                )
                assert answer.header(b"date") is None  # so that equal answers have equal heads
                assert answer.status == 200
                assert answer.body == b"POST /v1/chat?a=b " + body
                assert answer.header(b"x-hostler-instance") == b"x"
            assert ours.relay.in_flight == 0

    uvloop.run(main())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_later_connections_take_up_the_session_of_the_first(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    async def main() -> None:
        reused = []

        def note(exchange: Exchange) -> None:
            exchange.send(200, b"{}", [JSON])

        async with town(note) as ours:
            pool = Pool(ours.endpoint(), connect_timeout_s=2, idle_s=9, tls=ours.gateway)
            for _ in range(3):
                await fetch(pool.endpoint, "GET", "/health", timeout_s=5, pool=pool)
                await fetch(pool.endpoint, "GET", "/health", timeout_s=5, pool=pool)
                assert pool.connection_count == 1
                shown = next(iter(pool._connections)).transport.get_extra_info("ssl_object")
                reused.append(shown.session_reused)
                pool.drop_idle()
                await until(lambda: pool.connection_count == 0)
            await pool.close()
        assert reused == [False, True, True]

    run(main())


def test_F27_a_connection_to_another_host_is_refused_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with town(echo) as ours:
            endpoint = ours.endpoint(host_id="host7")
            pool = Pool(endpoint, connect_timeout_s=2, idle_s=9, tls=ours.gateway)
            for _ in range(3):
                with pytest.raises(UpstreamLost) as caught:
                    await fetch(endpoint, "POST", "/v1/chat", timeout_s=5, pool=pool)
                assert caught.value.refused
                assert not caught.value.sent_bytes
            assert ours.relay.in_flight == 0
            await pool.close()

    with caplog.at_level(logging.ERROR):
        uvloop.run(main())
    assert [one.getMessage() for one in caplog.records].count("host.not_the_one_meant") == 1


def test_F102_no_byte_of_a_request_reaches_an_address_that_proves_nothing() -> None:
    """Plain servers, TLS servers of others, and a host of another authority."""

    async def main() -> None:
        got: list[bytes] = []

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got.append(await reader.read(10_000))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

        stranger = trustme.CA()
        name = Identity(Peer.HOST, "host1").name
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        stranger.issue_cert(name).configure_cert(context)
        secret = b"a prompt that is nobody else's"
        async with town(echo) as ours, scripted(listen) as plain:
            over_tls = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
            for port in (plain.port, over_tls.sockets[0].getsockname()[1]):
                endpoint = Endpoint(host="127.0.0.1", port=port, host_id="host1", prefix="/i/x")
                with pytest.raises(UpstreamLost) as caught:
                    await fetch(
                        endpoint, "POST", "/v1/chat", body=secret, timeout_s=2, tls=ours.gateway
                    )
                assert caught.value.refused
            over_tls.close()
            await asyncio.sleep(0.1)
        assert not any(secret in one or b"/v1/chat" in one for one in got)
        assert any(one for one in got)  # the handshake's beginning, and nothing more

    uvloop.run(main())


def test_F39_a_host_is_never_looked_up_by_name() -> None:
    async def main() -> None:
        async with town(echo) as ours:
            endpoint = Endpoint(host="localhost", port=ours.port, host_id="host1", prefix="/i/x")
            with pytest.raises(UpstreamLost, match="never at a name"):
                await fetch(endpoint, "GET", "/health", timeout_s=2, tls=ours.gateway)
            with pytest.raises(UpstreamLost, match="no certificate"):
                await fetch(ours.endpoint(), "GET", "/health", timeout_s=2)

    uvloop.run(main())


def test_F99_only_gateways_and_the_controller_are_served() -> None:
    async def main() -> None:
        async with town(echo, echo, beat=lambda: b'{"seq":7}') as ours:

            async def ask(path: str, who: object, prefix: str = "/i/x") -> int:
                endpoint = Endpoint(
                    host="127.0.0.1", port=ours.port, host_id="host1", prefix=prefix
                )
                answer = await fetch(endpoint, "POST", path, timeout_s=2, tls=who)  # type: ignore[arg-type]
                return answer.status

            assert await ask("/v1/chat", ours.gateway) == 200
            assert await ask("/v1/chat", ours.controller) == 200
            assert await ask("/v1/chat", ours.other_host) == 403
            assert await ask("/host/beat", ours.controller, "") == 200
            assert await ask("/host/beat", ours.gateway, "") == 404
            for path in ("/status", "/beat", "/health", "/prefix/read", "/prefix/lend"):
                assert await ask(path, ours.gateway, "/a/x") == 200
            assert await ask("/stop", ours.gateway, "/a/x") == 404
            assert await ask("/v1/chat", ours.gateway, "/i/y") == 421
            assert await ask("", ours.gateway, "/i/x") == 404
            assert await ask("/anything", ours.gateway, "") == 404
            with pytest.raises(UpstreamLost):  # of another authority
                await ask("/v1/chat", ours.contexts(Identity(Peer.GATEWAY, "gate9"), trustme.CA()))
            with pytest.raises(OSError):  # noqa: PT011 - closed, reset or refused by TLS
                await without_certificate(ours.port)

    uvloop.run(main())


def test_F99_F104_logs_are_told_to_the_controller_alone() -> None:
    """And never by a path: what names no instance reaches nobody who reads files."""

    async def main() -> None:
        asked: list[tuple[str, str]] = []
        goes_on = threading.Event()

        def told(instance_id: str, query: str) -> bytes:
            asked.append((instance_id, query))
            if query == "wait":
                goes_on.wait(10)
            if query == "none":
                raise FileNotFoundError(2, "No such file")
            return b"{}"

        async with town(echo, echo, logs=told) as ours:

            async def ask(path: str, who: Any, method: str = "GET") -> int:
                endpoint = Endpoint(host="127.0.0.1", port=ours.port, host_id="host1")
                return (await fetch(endpoint, method, path, timeout_s=12, tls=who)).status

            assert await ask("/host/logs/x?tail=3", ours.controller) == 200
            assert await ask("/host/logs/x?none", ours.controller) == 503
            assert asked == [("x", "tail=3"), ("x", "none")]
            for who in (ours.gateway, ours.other_host):
                assert await ask("/host/logs/x?tail=3", who) == 403
            for wrong in ("", "../x", "x/../y", "%2e%2e", "x.log", "a" * 65):
                assert await ask(f"/host/logs/{wrong}", ours.controller) in (400, 404)
            assert await ask("/host/logs/x", ours.controller, "POST") == 404
            assert len(asked) == 2
            async with asyncio.TaskGroup() as tasks:
                two = [tasks.create_task(ask("/host/logs/x?wait", ours.controller)) for _ in "ab"]
                await until(lambda: len(asked) == 4)
                assert await ask("/host/logs/x", ours.controller) == 503  # it reads two now
                assert await ask("/i/x/v1/chat", ours.gateway) == 200
                goes_on.set()
            assert [one.result() for one in two] == [200, 200]
        async with town(echo) as ours:
            assert await ask("/host/logs/x", ours.controller) == 404

    uvloop.run(main())


async def without_certificate(port: int) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(build_request("GET", "/i/x/health", "localhost", []))
    if not await reader.read(100):
        raise ConnectionError("closed")


def test_F118_a_gateway_that_was_removed_is_cut_and_refused_and_nobody_else() -> None:
    async def main() -> None:
        held: list[Exchange] = []
        gone = asyncio.Event()

        def work(exchange: Exchange) -> None:
            if exchange.request.path == "/hold":
                exchange.on_gone = gone.set
                held.append(exchange)
            else:
                exchange.send(200, b"{}", [JSON])

        async with town(work) as ours:
            other = ours.contexts(Identity(Peer.GATEWAY, "gate2"))
            pools = [
                Pool(ours.endpoint(), connect_timeout_s=2, idle_s=9, tls=who)
                for who in (ours.gateway, other)
            ]
            for pool in pools:
                await fetch(pool.endpoint, "GET", "/fine", timeout_s=5, pool=pool)
            record = Record()
            pools[0].submit(build_request("POST", "/i/x/hold", "localhost", []), record, once=True)
            await until(lambda: bool(held))
            ours.relay.refuse(["gate1"])
            await asyncio.wait_for(gone.wait(), 2)
            await until(lambda: pools[0].connection_count == 0)
            assert pools[1].connection_count == 1
            for _ in range(2):
                answer = await fetch(pools[0].endpoint, "GET", "/fine", timeout_s=5, pool=pools[0])
                assert answer.status == 403
                assert b"identity_refused" in answer.body
                await until(lambda: pools[0].connection_count == 0)
            answer = await fetch(pools[1].endpoint, "GET", "/fine", timeout_s=5, pool=pools[1])
            assert answer.status == 200
            ours.relay.refuse([])
            answer = await fetch(pools[0].endpoint, "GET", "/fine", timeout_s=5, pool=pools[0])
            assert answer.status == 200
            for pool in pools:
                await pool.close()

    uvloop.run(main())


def test_F40_two_hosts_at_one_address_are_told_apart() -> None:
    """By what their certificates say, as behind a router that gives them one address."""

    async def main() -> None:
        async with town(echo) as one, town(echo, who=OTHER_HOST) as other:
            for ours, host_id in ((one, "host1"), (other, "host2")):
                answer = await fetch(
                    ours.endpoint(host_id=host_id), "POST", "/v1/chat", timeout_s=5, tls=one.gateway
                )
                assert answer.status == 200
            for ours, host_id in ((one, "host2"), (other, "host1")):
                with pytest.raises(UpstreamLost) as caught:
                    await fetch(
                        ours.endpoint(host_id=host_id),
                        "POST",
                        "/v1/chat",
                        timeout_s=5,
                        tls=one.gateway,
                    )
                assert caught.value.refused

    uvloop.run(main())


def test_a_fenced_relay_sends_everybody_elsewhere_and_finishes_what_it_has() -> None:
    async def main() -> None:
        held: list[Exchange] = []
        async with town(held.append) as ours:
            pool = Pool(ours.endpoint(), connect_timeout_s=2, idle_s=9, tls=ours.gateway)
            record = Record()
            pool.submit(build_request("POST", "/i/x/v1/chat", "localhost", []), record)
            await until(lambda: bool(held))
            ours.relay.is_fenced = True
            answer = await fetch(pool.endpoint, "POST", "/v1/chat", timeout_s=2, pool=pool)
            assert answer.status == 421
            echo(held[0])
            assert (await record.wait()).status == 200
            await pool.close()

    uvloop.run(main())


def test_an_engine_that_is_not_there_is_somebody_elses_request() -> None:
    async def main() -> None:
        async with town(None) as ours:
            answer = await fetch(ours.endpoint(), "POST", "/v1/chat", timeout_s=2, tls=ours.gateway)
            assert answer.status == 421

    uvloop.run(main())


def test_F01_an_engine_that_dies_with_a_request_is_said_to_be_lost_and_not_asked_again() -> None:
    async def main() -> None:
        seen = []

        def die(exchange: Exchange) -> None:
            seen.append(exchange.request.path)
            if exchange.request.path == "/fine":
                exchange.send(200, b"{}", [JSON])
            else:
                exchange.abort()

        async with town(die) as ours:
            pool = Pool(ours.endpoint(), connect_timeout_s=2, idle_s=9, tls=ours.gateway)
            await fetch(pool.endpoint, "POST", "/fine", timeout_s=2, pool=pool)
            answer = await fetch(pool.endpoint, "POST", "/die", timeout_s=2, pool=pool)
            assert (answer.status, answer.header(b"x-hostler-lost")) == (502, b"1")
            assert seen.count("/die") <= 2  # once more on a new connection, as without a relay
            await pool.close()

    uvloop.run(main())


def test_F02_a_stream_whose_engine_dies_ends_uncleanly() -> None:
    async def main() -> None:
        def half(exchange: Exchange) -> None:
            exchange.start(200, [EVENTS], None)
            exchange.write(b"data: one\n\n")
            asyncio.get_running_loop().call_later(0.05, exchange.abort)

        async with town(half) as ours:
            parts = stream(ours.endpoint(), "GET", "/s", timeout_s=2, idle_s=2, tls=ours.gateway)
            assert await anext(parts) == b"data: one\n\n"
            with pytest.raises(UpstreamLost):
                await anext(parts)

    uvloop.run(main())


@pytest.mark.parametrize("has_begun", [False, True])
def test_F59_the_engine_is_told_at_once_when_the_gateway_goes(has_begun: bool) -> None:
    async def main() -> None:
        begun, gone = asyncio.Event(), asyncio.Event()

        def work(exchange: Exchange) -> None:
            if has_begun:
                exchange.start(200, [EVENTS], None)
                exchange.write(b"data: one\n\n")
            exchange.on_gone = gone.set
            begun.set()

        async with town(work) as ours:
            pool = Pool(ours.endpoint(), connect_timeout_s=2, idle_s=9, tls=ours.gateway)
            call = pool.submit(build_request("POST", "/i/x/s", "localhost", []), Record())
            await asyncio.wait_for(begun.wait(), 2)
            call.cancel()
            await asyncio.wait_for(gone.wait(), 1)
            await until(lambda: ours.relay.in_flight == 0, 1)
            await pool.close()

    uvloop.run(main())


def test_F60_an_engine_is_read_no_faster_than_the_gateway_reads() -> None:
    async def main() -> None:
        paused, written = asyncio.Event(), 0

        def pour(exchange: Exchange) -> None:
            exchange.start(200, [EVENTS], None)
            exchange.on_pause = paused.set
            more(exchange)

        def more(exchange: Exchange) -> None:
            nonlocal written
            if not paused.is_set() and written < 64 << 20:
                exchange.write(b"data: " + b"x" * 60_000 + b"\n\n")
                written += 60_000
                asyncio.get_running_loop().call_later(0.0005, more, exchange)

        async with town(pour) as ours:
            pool = Pool(ours.endpoint(), connect_timeout_s=2, idle_s=9, tls=ours.gateway)
            record = Record()
            call = pool.submit(build_request("POST", "/i/x/s", "localhost", []), record)
            call.pause()
            await asyncio.wait_for(paused.wait(), 10)
            assert written < 8 << 20
            call.cancel()
            await pool.close()

    uvloop.run(main())


def test_chunks_of_events_pass_as_they_are_framed_and_others_too() -> None:
    async def main() -> None:
        parts = [b"data: %d\n\n" % n for n in range(50)] + [b"half of", b" an event\n\n"]

        def flow(exchange: Exchange) -> None:
            exchange.start(200, [EVENTS], None)
            for part in parts:
                exchange.write(part)
            exchange.end()

        async with town(flow) as ours:
            got = [
                part
                async for part in stream(
                    ours.endpoint(), "GET", "/s", timeout_s=2, idle_s=2, tls=ours.gateway
                )
            ]
            assert b"".join(got) == b"".join(parts)

    uvloop.run(main())


def test_a_relay_that_drains_finishes_what_it_has() -> None:
    async def main() -> None:
        held: list[Exchange] = []
        async with town(held.append) as ours:
            pool = Pool(ours.endpoint(), connect_timeout_s=2, idle_s=9, tls=ours.gateway)
            record = Record()
            pool.submit(build_request("POST", "/i/x/s", "localhost", []), record, once=True)
            await until(lambda: bool(held))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(ours.relay.drain(5.0))
                await asyncio.sleep(0.05)
                with pytest.raises(UpstreamLost):
                    await fetch(ours.endpoint(), "GET", "/s", timeout_s=2, tls=ours.gateway)
                echo(held[0])
            assert (await record.wait()).status == 200
            await pool.close()

    uvloop.run(main())


def test_F38_the_kernel_watches_connections_between_machines() -> None:
    async def main() -> None:
        seen: list[socket.socket] = []

        def note(exchange: Exchange) -> None:
            exchange.send(200, b"{}", [JSON])

        async with town(note) as ours:
            pool = Pool(ours.endpoint(), connect_timeout_s=2, idle_s=9, tls=ours.gateway)
            await fetch(pool.endpoint, "GET", "/health", timeout_s=5, pool=pool)
            ends = [next(iter(pool._connections)).transport, *connections_of(ours.relay)]
            assert len(ends) == 2
            for end in ends:
                sock = end.get_extra_info("socket")
                seen.append(sock)
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 3
            await pool.close()
        assert len(seen) == 2

    uvloop.run(main())


def connections_of(relay: Any) -> list[asyncio.Transport]:
    return [one.transport for one in relay._server.crowd]
