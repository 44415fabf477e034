"""Who is at the other end, over real sockets: mutual TLS, and files that change meanwhile."""

import asyncio
import datetime
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from hostler.app.config import HttpLimits
from hostler.core.errors import ConfigError
from hostler.wire.authority import Authority
from hostler.wire.csr import make_request
from hostler.wire.identity import (
    CA_FILE,
    CERT_FILE,
    CONTROLLER,
    KEY_FILE,
    ClientContexts,
    Identity,
    Peer,
    client_context,
    server_certificates,
)
from hostler.wire.server import Exchange, HttpServer

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
HOST, OTHER = Identity(Peer.HOST, "aaaa1111"), Identity(Peer.HOST, "bbbb2222")
GATEWAY = Identity(Peer.GATEWAY, "cccc3333")
RUNNERS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
Run = Callable[[Coroutine[Any, Any, None]], None]


def folder_of(authority: Authority, identity: Identity, place: Path, days: float = 30) -> Path:
    """A tls folder as a machine has it that joined."""
    place.mkdir(exist_ok=True)
    key, csr = make_request()
    (place / CA_FILE).write_text(authority.certificate)
    (place / KEY_FILE).write_text(key)
    (place / CERT_FILE).write_text(authority.sign(csr, identity, days).certificate)
    return place


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "controller", ["localhost", "127.0.0.1"])


@asynccontextmanager
async def serving(folder: Path, *, must: bool) -> AsyncIterator[tuple[HttpServer, int]]:
    def answer(exchange: Exchange) -> None:
        exchange.send(200, str(exchange.peer).encode())

    server = HttpServer(answer, limits=HttpLimits())
    sock = socket.create_server(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    await server.listen(sock, server_certificates(folder, clients_must_show=must))
    try:
        yield server, port
    finally:
        await server.close(0.0)
        await asyncio.sleep(0.02)


async def ask(port: int, context: ssl.SSLContext, name: str, times: int = 1) -> str:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=name
    )
    try:
        for _ in range(times):
            writer.write(GET)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            said = (await reader.readexactly(length)).decode()
        return said
    finally:
        writer.transport.abort()


@RUNNERS
def test_a_server_knows_who_asks_on_every_request_of_a_connection(
    run: Run, authority: Authority, tmp_path: Path
) -> None:
    async def main() -> None:
        async with serving(authority.folder, must=False) as (_, port):
            for identity in (HOST, GATEWAY, OTHER):
                folder = folder_of(authority, identity, tmp_path / identity.id)
                said = await ask(port, client_context(folder), CONTROLLER.name, times=3)
                assert said == str(identity)
            own = client_context(authority.folder)
            assert await ask(port, own, CONTROLLER.name) == "controller"

    run(main())


@RUNNERS
def test_who_shows_nothing_is_nobody_where_that_is_allowed_and_refused_elsewhere(
    run: Run, authority: Authority, tmp_path: Path
) -> None:
    plain = ssl.create_default_context(cafile=authority.folder / CA_FILE)
    relay = folder_of(authority, HOST, tmp_path / "relay")

    async def main() -> None:
        async with serving(authority.folder, must=False) as (_, port):
            assert await ask(port, plain, "localhost") == "None"
        async with serving(relay, must=True) as (_, port):
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                await ask(port, plain, HOST.name)
            gateway = folder_of(authority, GATEWAY, tmp_path / "gateway")
            assert await ask(port, client_context(gateway), HOST.name) == str(GATEWAY)

    run(main())


def test_a_certificate_of_another_authority_is_refused_by_both_sides(
    authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority.open(tmp_path / "stranger", ["localhost"])
    theirs = folder_of(stranger, HOST, tmp_path / "theirs")
    shutil.copy(theirs / CA_FILE, tmp_path / "ca-of-theirs.pem")

    async def main() -> None:
        async with serving(authority.folder, must=False) as (_, port):
            with pytest.raises(ssl.SSLCertVerificationError):  # we do not believe that server
                await ask(port, client_context(theirs), CONTROLLER.name)
            shutil.copy(authority.folder / CA_FILE, theirs / CA_FILE)
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                await ask(port, client_context(theirs), CONTROLLER.name)  # it does not believe us

    asyncio.run(main())


def test_a_server_is_taken_only_for_the_very_one_that_is_meant(
    authority: Authority, tmp_path: Path
) -> None:
    ours = client_context(folder_of(authority, GATEWAY, tmp_path / "gateway"))

    async def main() -> None:
        relay = folder_of(authority, HOST, tmp_path / "relay")
        async with serving(relay, must=True) as (_, port):
            assert await ask(port, ours, HOST.name) == str(GATEWAY)
            for other in (OTHER.name, CONTROLLER.name, "localhost", f"x.{HOST.name}"):
                with pytest.raises(ssl.SSLCertVerificationError, match="ostname mismatch"):
                    await ask(port, ours, other)
        as_gateway = folder_of(authority, GATEWAY, tmp_path / "serving-gateway")
        async with serving(as_gateway, must=True) as (_, port):
            with pytest.raises(ssl.SSLCertVerificationError):  # a gateway's is for clients alone
                await ask(port, ours, GATEWAY.name)

    asyncio.run(main())


def test_a_certificate_whose_time_is_over_or_has_not_come_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    old = folder_of(authority, HOST, tmp_path / "old", days=-0.01)

    async def main() -> None:
        async with serving(authority.folder, must=False) as (_, port):
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                await ask(port, client_context(old), CONTROLLER.name)
        ours = client_context(folder_of(authority, GATEWAY, tmp_path / "gateway"))
        async with serving(old, must=True) as (_, port):
            with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
                await ask(port, ours, HOST.name)

    asyncio.run(main())


def test_a_certificate_that_names_two_is_nobodys(tmp_path: Path) -> None:
    ca = trustme.CA()
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)

    def write(place: Path, *names: str) -> Path:
        place.mkdir()
        ca.cert_pem.write_to_path(str(place / CA_FILE))
        made = ca.issue_cert(*names, not_after=ends)
        made.cert_chain_pems[0].write_to_path(str(place / CERT_FILE))
        made.private_key_pem.write_to_path(str(place / KEY_FILE))
        return place

    server = write(tmp_path / "server", CONTROLLER.name)

    async def main() -> None:
        async with serving(server, must=True) as (_, port):
            for said, *names in (
                ("None", HOST.name, OTHER.name),
                ("None", "*.host.hostler.internal"),
                ("None", "someone.example.org"),
                (str(HOST), HOST.name, "someone.example.org", "10.0.0.1"),
            ):
                ours = client_context(write(tmp_path / names[-1], *names))
                assert await ask(port, ours, CONTROLLER.name) == said

    asyncio.run(main())


def test_a_session_taken_up_again_is_of_the_same_identity(
    authority: Authority, tmp_path: Path
) -> None:
    context = client_context(folder_of(authority, HOST, tmp_path / "host"))

    async def main() -> None:
        async with serving(authority.folder, must=False) as (_, port):

            def said_to(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
                with (
                    socket.create_connection(("127.0.0.1", port), timeout=5) as sock,
                    context.wrap_socket(
                        sock, server_hostname=CONTROLLER.name, session=session
                    ) as tls,
                ):
                    tls.sendall(GET)
                    data = b""
                    while not data.endswith(b"\r\n\r\n" + str(HOST).encode()):
                        data += tls.recv(4096)
                    return tls.session, bool(tls.session_reused)

            session, is_again = await asyncio.to_thread(said_to, None)
            assert not is_again
            _, is_again = await asyncio.to_thread(said_to, session)
            assert is_again

    asyncio.run(main())


def test_renewed_files_are_taken_by_both_sides_and_half_written_ones_change_nothing(
    authority: Authority, tmp_path: Path
) -> None:
    place = folder_of(authority, HOST, tmp_path / "host")
    contexts = ClientContexts(place)
    first = contexts.newest()
    assert contexts.newest() is first
    whole = (place / CERT_FILE).read_text()
    (place / CERT_FILE).write_text(whole[:50])
    assert contexts.newest() is first
    folder_of(authority, OTHER, place)
    second = contexts.newest()
    assert second is not first

    async def main() -> None:
        certificates = server_certificates(authority.folder, clients_must_show=False)
        async with serving(authority.folder, must=False) as (_, port):
            assert await ask(port, second, CONTROLLER.name) == str(OTHER)
        # another authority altogether: its clients are known from then on
        fresh = Authority.open(tmp_path / "fresh", ["localhost"])
        for name in (KEY_FILE, CERT_FILE, CA_FILE):
            shutil.copy(fresh.folder / name, authority.folder / name)
        assert certificates.refresh(at_once=True)
        newest = certificates._newest
        assert newest is not certificates.context
        assert newest.verify_mode is ssl.CERT_OPTIONAL

    asyncio.run(main())


@pytest.mark.parametrize("name", [CA_FILE, CERT_FILE, KEY_FILE])
def test_a_file_that_is_missing_or_no_pem_is_named(
    authority: Authority, tmp_path: Path, name: str
) -> None:
    place = folder_of(authority, HOST, tmp_path / "host")
    (place / name).write_text("nothing")
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        client_context(place)
    (place / name).unlink()
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        client_context(place)
