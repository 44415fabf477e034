"""TLS on real sockets: what is shown, what is refused, and certificates that change meanwhile."""

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from hostler.app.config import HttpLimits
from hostler.core.errors import ConfigError
from hostler.wire.server import Exchange, HttpServer
from hostler.wire.tls import Certificates, describe
from tests.integration.wire.running import until
from tests.integration.wire.test_server import StreamForEver

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
CA = trustme.CA()
RUNNERS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
Run = Callable[[Coroutine[Any, Any, None]], None]


def issue(folder: Path, *names: str, ca: trustme.CA = CA) -> tuple[str, str]:
    """Write a certificate for these names and its key; return both paths."""
    cert = ca.issue_cert(*(names or ("localhost", "127.0.0.1")))
    paths = folder / "cert.pem", folder / "key.pem"
    cert.private_key_pem.write_to_path(str(paths[1]))
    cert.cert_chain_pems[0].write_to_path(str(paths[0]))
    for pem in cert.cert_chain_pems[1:]:
        pem.write_to_path(str(paths[0]), append=True)
    return str(paths[0]), str(paths[1])


def trusting(ca: trustme.CA = CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


def answer(exchange: Exchange) -> None:
    exchange.send(200, b"hello")


@asynccontextmanager
async def serving(
    certificates: Certificates,
    handler: Callable[[Exchange], None] = answer,
    limits: HttpLimits | None = None,
) -> AsyncIterator[tuple[HttpServer, int]]:
    server = HttpServer(handler, limits=limits or HttpLimits())
    sock = socket.create_server(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    await server.listen(sock, certificates)
    try:
        yield server, port
    finally:
        await server.close(0.0)
        await asyncio.sleep(0.05)  # what was cut here is gone before the loop is


async def connect(
    port: int, context: ssl.SSLContext | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(
        "127.0.0.1", port, ssl=context or trusting(), server_hostname="localhost"
    )


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(GET)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 200 ")
    return await reader.readexactly(5)


@RUNNERS
def test_requests_are_answered_over_tls_and_only_http11_is_offered(
    run: Run, tmp_path: Path
) -> None:
    async def main() -> None:
        async with serving(Certificates(*issue(tmp_path))) as (server, port):
            context = trusting()
            context.set_alpn_protocols(["h2", "http/1.1"])
            reader, writer = await connect(port, context)
            tls = writer.get_extra_info("ssl_object")
            assert tls.selected_alpn_protocol() == "http/1.1"
            assert tls.version() in ("TLSv1.2", "TLSv1.3")
            for _ in range(3):
                assert await ask(reader, writer) == b"hello"
            assert server.connection_count == 1
            writer.transport.abort()
            await until(lambda: server.connection_count == 0)

    run(main())


@RUNNERS
def test_older_tls_and_plain_http_are_closed_without_an_answer(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(Certificates(*issue(tmp_path))) as (_, port):
            old = trusting()
            old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            old.set_ciphers("ALL:@SECLEVEL=0")
            old.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await connect(port, old)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(GET)
            got = await asyncio.wait_for(reader.read(), 5)
            assert b"HTTP" not in got  # a TLS alert at most
            writer.transport.abort()
            again = await connect(port)
            assert await ask(*again) == b"hello"
            again[1].transport.abort()

    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        run(main())


@RUNNERS
def test_a_handshake_that_never_ends_is_cut(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        limits = HttpLimits(header_timeout_s=0.3)
        async with serving(Certificates(*issue(tmp_path)), limits=limits) as (_, port):
            for sent in (b"", b"\x16\x03\x01\x02\x00\x01"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(sent)
                began_s = time.monotonic()
                assert await asyncio.wait_for(reader.read(), 5) == b""
                assert 0.2 < time.monotonic() - began_s < 3
                writer.transport.abort()

    run(main())


@RUNNERS
def test_a_new_certificate_is_shown_without_a_restart_and_open_connections_live_on(
    run: Run, tmp_path: Path
) -> None:
    async def main() -> None:
        certificates = Certificates(*issue(tmp_path))
        async with serving(certificates) as (_, port):
            old = await connect(port)
            first = old[1].get_extra_info("peercert")["serialNumber"]
            assert await ask(*old) == b"hello"
            issue(tmp_path)
            began_s = time.monotonic()
            serial = first
            while serial == first:
                assert time.monotonic() - began_s < 5
                new = await connect(port)
                serial = new[1].get_extra_info("peercert")["serialNumber"]
                assert await ask(*new) == b"hello"
                new[1].transport.abort()
            assert await ask(*old) == b"hello"
            old[1].transport.abort()

    run(main())


def test_files_that_cannot_be_used_change_nothing_and_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = issue(tmp_path)
    certificates = Certificates(cert, key)
    good = certificates._newest
    other = tmp_path / "other"
    other.mkdir()
    _, other_key = issue(other)

    def broken(path: str, data: bytes | None) -> None:
        kept = Path(path).read_bytes()
        Path(path).unlink()
        if data is not None:
            Path(path).write_bytes(data)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(4):
                assert not certificates.refresh()
        assert len(caplog.records) == 1, path
        assert certificates._newest is good
        Path(path).write_bytes(kept)
        assert any([certificates.refresh() for _ in range(3)])

    for path, data in (
        (cert, b"nonsense"),
        (cert, None),
        (cert, Path(cert).read_bytes()[:500]),
        (key, Path(other_key).read_bytes()),
        (key, b""),
    ):
        broken(path, data)
        good = certificates._newest


def test_a_file_that_is_still_being_written_is_not_taken(tmp_path: Path) -> None:
    cert, key = issue(tmp_path)
    certificates = Certificates(cert, key)
    whole = Path(cert).read_bytes()
    issue(tmp_path)
    assert not certificates.refresh()  # it has changed since the last look: wait
    Path(cert).write_bytes(whole + b"\n")
    assert not certificates.refresh()
    issue(tmp_path)
    assert certificates.refresh(at_once=True)


def test_what_is_no_certificate_stops_the_start_with_the_reason(tmp_path: Path) -> None:
    cert, key = issue(tmp_path)
    with pytest.raises(ConfigError, match=r"tls_cert .*missing\.pem: cannot be read"):
        Certificates(str(tmp_path / "missing.pem"), key)
    with pytest.raises(ConfigError, match="not a PEM certificate and its own"):
        Certificates(key, cert)
    locked = tmp_path / "locked.pem"
    locked.write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    with pytest.raises(ConfigError, match="not a PEM certificate and its own"):
        Certificates(cert, str(locked))


def test_a_certificate_says_its_names_and_its_end(tmp_path: Path) -> None:
    cert, key = issue(tmp_path, "ai.example.org", "*.example.org", "10.0.0.1")
    facts = describe(Path(cert), Path(key))
    assert facts.names == ("ai.example.org", "*.example.org", "10.0.0.1")
    assert facts.ends_at_s is not None
    assert facts.ends_at_s > time.time()


@RUNNERS
def test_F48_a_reader_that_stalls_over_tls_holds_the_writer_back_and_is_cut(
    run: Run, tmp_path: Path
) -> None:
    async def main() -> None:
        writers: list[StreamForEver] = []

        def handle(exchange: Exchange) -> None:
            writers.append(StreamForEver(exchange))

        limits = HttpLimits(write_stall_s=0.5)
        async with serving(Certificates(*issue(tmp_path)), handle, limits) as (server, port):
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=trusting(), server_hostname="localhost", limit=1024
            )
            writer.write(GET)
            await until(lambda: server.connection_count == 1)
            await until(lambda: server.connection_count == 0)
            assert writers[0].count < 10_000_000
            writer.transport.abort()

    run(main())


@RUNNERS
def test_F91_a_refusal_over_tls_reaches_a_client_that_is_still_sending(
    run: Run, tmp_path: Path
) -> None:
    async def main() -> None:
        limits = HttpLimits(body_bytes=1000)
        async with serving(Certificates(*issue(tmp_path)), limits=limits) as (server, port):
            reader, writer = await connect(port)
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n")
            for _ in range(40):
                writer.write(b"x" * 100_000)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert head.startswith(b"HTTP/1.1 413 ")
            await asyncio.wait_for(reader.read(), 10)
            writer.transport.abort()
            await until(lambda: server.connection_count == 0, 10)

    run(main())
