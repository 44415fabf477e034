"""Joining over real TLS: who gets in, who does not, and what is left behind when it breaks off."""

import asyncio
import os
import shutil
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx2
import msgspec
import pytest
import uvloop

from hostler.app.tokens import NewToken, StoredHost, new_token, parse_token
from hostler.core.errors import (
    BadRequest,
    ConfigError,
    ControllerUnavailable,
    HostlerError,
    StartupError,
)
from hostler.core.hosts import HostFacts, JoinRequest, RenewRequest, Role
from hostler.core.trust import IdentityRefused, JoinRefused, WrongController
from hostler.core.worker import OperatorEvent
from hostler.registry.attempts import ADDRESSES, EVERY_S, MOST, Attempts
from hostler.registry.control import ControlServer
from hostler.registry.joining import is_renewal_due, join, keep_renewed, renew
from hostler.registry.joins import Joins
from hostler.registry.members import Members
from hostler.storage.memory import MemoryStore
from hostler.storage.writer import Writer
from hostler.testing.clock import ManualClock
from hostler.wire.authority import Authority, Given
from hostler.wire.csr import make_request, request_for
from hostler.wire.identity import (
    CA_FILE,
    CERT_FILE,
    CONTROLLER,
    DAYS,
    KEY_FILE,
    Identity,
    Peer,
    client_context,
    server_certificates,
)
from hostler.wire.server import Exchange
from hostler.wire.tls import fingerprint_of
from tests.integration.wire.running import until
from tests.unit.wire.test_authority import given_files

FACTS = HostFacts(name="machine-b", engines=("llama.cpp",), cpus=8)
HERE = HostFacts(name="localhost")
FILES = (KEY_FILE, CA_FILE, CERT_FILE)  # as they are written
DAY_S = 86400.0


class Controller:
    """A control port as `hostler up --tls` has it, with a store that forgets."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time, **how: Given) -> None:
        self.folder = folder
        self.store = MemoryStore()
        self.clock = clock
        self.events: list[OperatorEvent] = []
        self.heard: list[tuple[str, str]] = []
        self.authority = Authority.open(folder, ["localhost", "127.0.0.1"], clock=clock, **how)
        self.writer = Writer("test")
        self.members = Members(self.store, self.writer, clock)
        self.joins = Joins(self.members, self.authority, tell=self.events.append)
        self.server = ControlServer(self.members, self.joins, farewell_s=0.1)
        self.server.plug(Peer.HOST, self.serve)
        self.port = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Controller"]:
        sock = socket.create_server(("127.0.0.1", self.port))
        self.port = sock.getsockname()[1]
        certificates = server_certificates(self.folder, clients_must_show=False)
        async with self.writer.running(), self.server.running(sock, certificates):
            yield self

    def serve(self, exchange: Exchange, identity: Identity) -> bool:
        if exchange.request.path == "/host/orders":
            exchange.start(200, (), None)
            exchange.write(b"{}\n")
            return True
        if exchange.request.path != "/host/beat":
            return False
        self.heard.append((str(identity), exchange.client))
        exchange.send(200, b"{}")
        return True

    def token(self, role: Role = Role.HOST, **how: object) -> str:
        made: NewToken = new_token(role, self.authority.fingerprint, clock=self.clock, **how)  # type: ignore[arg-type]
        self.store.save_token(made.stored)
        return made.plain

    def state(self) -> tuple[object, ...]:
        return self.store.hosts(), self.store.tokens(), dict(self.members.known)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    uvloop.run(main())


async def come(
    controller: Controller, token: str, folder: Path, role: Role = Role.HOST, **how: object
) -> str:
    url = str(how.pop("url", controller.url))
    address, port = str(how.pop("address", "")), 8102
    answer = await join(url, token, role, FACTS, address, port, folder)
    return answer.host_id


async def ask(
    controller: Controller, context: ssl.SSLContext, path: str = "/host/beat", body: bytes = b"{}"
) -> httpx2.Response:
    async with httpx2.AsyncClient(verify=context, trust_env=False, timeout=5) as client:
        extensions = {"sni_hostname": CONTROLLER.name}
        return await client.post(controller.url + path, content=body, extensions=extensions)


def code_of(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_machine_joins_and_is_known_by_its_certificate_from_then_on(tmp_path: Path) -> None:
    controller, folder = Controller(tmp_path / "tls"), tmp_path / "host"

    async def main() -> None:
        async with controller.running():
            joined: list[StoredHost] = []
            controller.members.joined.append(joined.append)
            host_id = await come(controller, controller.token(), folder)
            (kept,) = controller.store.hosts()
            assert joined == [kept] == list(controller.members.known.values())
            assert (kept.host_id, kept.role, kept.name) == (host_id, Role.HOST, "machine-b")
            assert (kept.address, kept.port, kept.facts) == ("127.0.0.1", 8102, FACTS)
            assert [one.uses_left for one in controller.store.tokens()] == [0]
            answer = await ask(controller, client_context(folder))
            assert answer.status_code == 200
            assert controller.heard == [(f"host {host_id}", "127.0.0.1")]
            assert [one.kind for one in controller.events] == ["host.joined"]

    run(main)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
    assert fingerprint_of((folder / CA_FILE).read_text()) == controller.authority.fingerprint


def test_F31_a_token_that_is_no_good_gets_one_answer_and_changes_nothing(tmp_path: Path) -> None:
    clock = ManualClock(time.time())
    controller = Controller(tmp_path / "tls", clock)
    good, used = controller.token(), controller.token(uses=0)
    revoked, other = controller.token(), controller.token(Role.GATEWAY)
    expired = controller.token(lasts_s=10.0)
    controller.store.revoke_token(parse_token(revoked).token_id)
    clock.advance(11.0)
    parts = parse_token(good)
    forged = str(msgspec.structs.replace(parts, secret=parts.secret[::-1]))
    unknown = str(msgspec.structs.replace(parts, token_id="0000000000"))
    stranger = Authority.open(tmp_path / "stranger", ["localhost"])
    theirs = str(msgspec.structs.replace(parts, fingerprint=stranger.fingerprint))
    cases = [
        ("its secret is wrong", forged),
        ("no such token", unknown),
        ("used up", used),
        ("was revoked", revoked),
        ("has expired", expired),
        ("is for a gateway, not for a host", other),
        ("it is of another authority", theirs),
        ("it is no token", "hstj_nothing"),
    ]
    trusting = ssl.create_default_context(cafile=tmp_path / "tls" / CA_FILE)

    async def main() -> None:
        async with controller.running():
            before = controller.state()
            answers = set()
            for why, token in cases:
                controller.joins._told_at_s = float("-inf")
                request = JoinRequest(
                    token=token, role=Role.HOST, csr=make_request()[1], facts=FACTS
                )
                answer = await ask(controller, trusting, "/join", msgspec.json.encode(request))
                assert code_of(answer) == (401, "join_refused")
                answers.add(answer.text)
                assert why in controller.events[-1].message
                assert token not in str(controller.events[-1])
            assert len(answers) == 1
            assert controller.state() == before
            assert await come(controller, good, tmp_path / "host")

    run(main)


def test_F31_nobody_without_a_certificate_or_with_a_wrong_one_is_heard(tmp_path: Path) -> None:
    controller = Controller(tmp_path / "tls")
    stranger = Authority.open(tmp_path / "stranger", ["localhost"])

    def write(identity: Identity, authority: Authority = controller.authority) -> ssl.SSLContext:
        folder = tmp_path / f"{identity.id}-{authority.folder.name}"
        folder.mkdir()
        key, csr = make_request()
        (folder / KEY_FILE).write_text(key)
        (folder / CERT_FILE).write_text(authority.sign(csr, identity).certificate)
        (folder / CA_FILE).write_text(controller.authority.certificate)
        return client_context(folder)

    async def main() -> None:
        async with controller.running():
            host_id = await come(controller, controller.token(), tmp_path / "host")
            before = controller.state()
            plain = ssl.create_default_context(cafile=tmp_path / "tls" / CA_FILE)
            for path in ("/host/beat", "/host/renew", "/watch", "/", "/api/v1/models"):
                assert code_of(await ask(controller, plain, path)) == (401, "identity_required")
            never = write(Identity(Peer.HOST, "0123456789ab"))
            as_gateway = write(Identity(Peer.GATEWAY, host_id))
            for context in (never, as_gateway, client_context(tmp_path / "tls")):
                for path in ("/host/beat", "/host/renew"):
                    answer = await ask(controller, context, path)
                    assert code_of(answer) == (403, "identity_refused")
            forged = write(Identity(Peer.HOST, host_id), stranger)
            with pytest.raises(httpx2.TransportError):
                await ask(controller, forged)
            assert controller.heard == []
            assert controller.state() == before

    run(main)


def test_F31_what_was_sent_once_lets_nobody_else_in(tmp_path: Path) -> None:
    controller = Controller(tmp_path / "tls")
    trusting = ssl.create_default_context(cafile=tmp_path / "tls" / CA_FILE)

    async def main() -> None:
        async with controller.running():
            token, (key, csr) = controller.token(), make_request()
            body = msgspec.json.encode(
                JoinRequest(token=token, role=Role.HOST, csr=csr, facts=FACTS)
            )
            first = await ask(controller, trusting, "/join", body)
            after = controller.state()
            again = await ask(controller, trusting, "/join", body)  # the answer was lost, it may be
            assert again.json()["host_id"] == first.json()["host_id"]
            assert controller.state() == after
            assert [one.kind for one in controller.events] == ["host.joined"]
            other = JoinRequest(token=token, role=Role.HOST, csr=make_request()[1], facts=FACTS)
            answer = await ask(controller, trusting, "/join", msgspec.json.encode(other))
            assert code_of(answer) == (401, "join_refused")
            assert await controller.members.remove(first.json()["host_id"]) is not None
            answer = await ask(controller, trusting, "/join", body)
            assert code_of(answer) == (401, "join_refused")
            assert controller.store.hosts()[0].is_removed
            assert not controller.members.known
            assert key

    run(main)


def test_a_machine_that_was_removed_is_refused_at_once_on_the_connection_it_has(
    tmp_path: Path,
) -> None:
    controller, folder = Controller(tmp_path / "tls"), tmp_path / "host"

    async def main() -> None:
        async with controller.running():
            host_id = await come(controller, controller.token(), folder)
            extensions = {"sni_hostname": CONTROLLER.name}
            async with httpx2.AsyncClient(verify=client_context(folder), trust_env=False) as client:
                url = controller.url + "/host/beat"
                assert (await client.post(url, extensions=extensions)).status_code == 200
                gone: list[StoredHost] = []
                controller.members.removed.append(gone.append)
                assert await controller.members.remove(host_id) is not None
                assert [one.host_id for one in gone] == [host_id]
                answer = await client.post(url, extensions=extensions)
                assert code_of(answer) == (403, "identity_refused")
            with pytest.raises(IdentityRefused, match="was removed there; join again"):
                await renew(controller.url, folder)
            assert await controller.members.remove(host_id) is None

    run(main)


def test_what_a_removed_machine_still_hears_is_cut_and_others_hear_on(tmp_path: Path) -> None:
    controller = Controller(tmp_path / "tls")

    async def main() -> None:
        async with controller.running():
            host_id = await come(controller, controller.token(), tmp_path / "host")
            await come(controller, controller.token(), tmp_path / "other")
            streams = []
            for name in ("host", "other"):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1",
                    controller.port,
                    ssl=client_context(tmp_path / name),
                    server_hostname=CONTROLLER.name,
                )
                writer.write(b"GET /host/orders HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await reader.readuntil(b"{}\n\r\n")
                streams.append((reader, writer))
            await controller.members.remove(host_id)
            async with asyncio.timeout(5):
                with suppress(ConnectionError):
                    assert await streams[0][0].read() == b""
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(streams[1][0].read(1), 0.2)
            for _, writer in streams:
                writer.transport.abort()

    run(main)


def test_no_byte_of_the_secret_leaves_before_the_controller_has_proven_itself(
    tmp_path: Path,
) -> None:
    controller = Controller(tmp_path / "tls")
    stranger = Authority.open(tmp_path / "stranger", ["localhost", "127.0.0.1"])
    heard: list[bytes] = []

    async def main() -> None:
        async with controller.running():
            token = controller.token()
            for shown in (stranger.certificate, controller.authority.certificate, "nothing"):

                async def listen(
                    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: str = shown
                ) -> None:
                    heard.append(await reader.read(65536))
                    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + said.encode())
                    await writer.drain()
                    writer.close()

                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(stranger.folder / CERT_FILE, stranger.folder / KEY_FILE)
                server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
                port = server.sockets[0].getsockname()[1]
                url = f"https://127.0.0.1:{port}"
                coming = come(controller, token, tmp_path / "host", url=url)
                await fails(coming, WrongController, f"127.0.0.1:{port}")
                server.close()
            assert heard
            secret = parse_token(token).secret.encode()
            assert not any(secret in data or b"hstj_" in data for data in heard)
            assert not controller.store.hosts()

    run(main)


async def fails(work: Awaitable[object], kind: type[HostlerError], text: str) -> None:
    with pytest.raises(kind) as told:
        await work
    assert text in told.value.message


def test_what_keeps_a_machine_from_joining_is_named(tmp_path: Path) -> None:
    controller, folder = Controller(tmp_path / "tls"), tmp_path / "host"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        unused = closed.getsockname()[1]

    async def main() -> None:
        async with controller.running():
            token = controller.token()
            for url in ("http://a:1", "a:1", "https://", "https://a:1/v1", "https://a:99999"):
                await fails(
                    come(controller, token, folder, url=url), ConfigError, "need https://HOST:PORT"
                )
            nobody = f"https://127.0.0.1:{unused}"
            await fails(
                come(controller, token, folder, url=nobody),
                ControllerUnavailable,
                "nobody answers",
            )
            await fails(come(controller, token[:-1], folder), BadRequest, "not a join token")
            await fails(
                come(controller, token, folder, address="name.example.org"),
                BadRequest,
                "address: need an IP address",
            )
            await fails(
                come(controller, token, folder, address="0.0.0.0"),
                BadRequest,
                "nobody can be reached at 0.0.0.0",
            )
            await fails(
                come(controller, token, folder, Role.WORKER), JoinRefused, "is for another role"
            )
            coming = join(controller.url, token, Role.HOST, HERE, "", 0, folder)
            await fails(coming, BadRequest, "means the controller's own machine")
            (tmp_path / "file").write_text("")
            await fails(
                come(controller, token, tmp_path / "file"), StartupError, "cannot be written"
            )
            assert not controller.store.hosts()

    run(main)


@pytest.mark.parametrize("days_off", [-40, 40])
def test_a_clock_that_is_wrong_is_named(tmp_path: Path, days_off: float) -> None:
    controller = Controller(tmp_path / "tls", lambda: time.time() + days_off * DAY_S)

    async def main() -> None:
        async with controller.running():
            token = controller.token(lasts_s=100 * DAY_S)
            await fails(
                come(controller, token, tmp_path / "host"), ConfigError, "This machine's clock says"
            )

    run(main)


@pytest.mark.parametrize("kept", range(4))
def test_a_machine_that_dies_between_two_files_joins_as_the_same_host(
    tmp_path: Path, kept: int
) -> None:
    controller, folder = Controller(tmp_path / "tls"), tmp_path / "host"

    async def main() -> None:
        async with controller.running():
            token = controller.token()
            first = await come(controller, token, folder)
            for name in FILES[kept:]:
                (folder / name).unlink()
            if kept:
                assert await come(controller, token, folder) == first
                assert len(controller.store.hosts()) == 1
                assert (await ask(controller, client_context(folder))).status_code == 200
            else:  # without its key it is another machine, and the token was for one
                await fails(come(controller, token, folder), JoinRefused, "is used up")

    run(main)


def test_a_certificate_is_renewed_in_time_for_the_same_key(tmp_path: Path) -> None:
    controller, folder = Controller(tmp_path / "tls"), tmp_path / "host"

    async def main() -> None:
        async with controller.running():
            host_id = await come(controller, controller.token(), folder)
            before = {name: (folder / name).read_bytes() for name in FILES}
            now_s = time.time()
            assert not is_renewal_due(folder, now_s + DAYS * DAY_S * 0.6)
            assert is_renewal_due(folder, now_s + DAYS * DAY_S * 0.7)
            answer = await renew(controller.url, folder)
            assert answer.host_id == host_id
            after = {name: (folder / name).read_bytes() for name in FILES}
            assert after[CERT_FILE] != before[CERT_FILE]
            assert {**after, CERT_FILE: b""} == {**before, CERT_FILE: b""}
            assert (await ask(controller, client_context(folder))).status_code == 200
            assert not is_renewal_due(tmp_path / "nothing", now_s)
            keeping = asyncio.ensure_future(
                keep_renewed(
                    lambda: controller.url, folder, clock=lambda: now_s + DAYS * DAY_S * 0.7
                )
            )
            await until(lambda: (folder / CERT_FILE).read_bytes() != after[CERT_FILE])
            keeping.cancel()

    run(main)


def test_a_machine_that_was_away_for_too_long_joins_again_as_the_host_it_was(
    tmp_path: Path,
) -> None:
    controller, folder = Controller(tmp_path / "tls"), tmp_path / "host"

    async def main() -> None:
        async with controller.running():
            host_id = await come(controller, controller.token(), folder)
            csr = request_for((folder / KEY_FILE).read_text())
            identity = Identity(Peer.HOST, host_id)
            old = controller.authority.sign(csr, identity, days=-0.01).certificate
            (folder / CERT_FILE).write_text(old)
            await fails(renew(controller.url, folder), IdentityRefused, "has expired; join again")
            assert await come(controller, controller.token(), folder) == host_id
            assert len(controller.store.hosts()) == 1
            assert (await ask(controller, client_context(folder))).status_code == 200

    run(main)


def test_a_host_renews_for_itself_alone_whatever_it_asks(tmp_path: Path) -> None:
    controller = Controller(tmp_path / "tls")

    async def main() -> None:
        async with controller.running():
            one = await come(controller, controller.token(), tmp_path / "one")
            other = await come(controller, controller.token(), tmp_path / "two")
            key = (tmp_path / "two" / KEY_FILE).read_text()
            body = msgspec.json.encode(RenewRequest(csr=request_for(key)))
            answer = await ask(controller, client_context(tmp_path / "one"), "/host/renew", body)
            assert answer.json()["host_id"] == one != other
            bad_ones = (
                b"",
                b"{",
                b'{"protocol": 2, "csr": "x"}',
                b'{"protocol": 2, "csr": "", "x": 1}',
            )
            for bad in bad_ones:
                answer = await ask(controller, client_context(tmp_path / "one"), "/host/renew", bad)
                assert answer.status_code == 400

    run(main)


def test_a_machine_with_a_given_certificate_joins_by_it(tmp_path: Path) -> None:
    given = given_files(tmp_path / "given", CONTROLLER.name)
    ours = Authority.open(tmp_path / "signing", [], given=Given(ca=given.ca, ca_key=given.ca_key))
    without_key = Given(ca=given.ca, cert=given.cert, key=given.key)
    controller = Controller(tmp_path / "tls", given=without_key)
    folder = tmp_path / "host"
    folder.mkdir()
    key, csr = make_request()
    (folder / KEY_FILE).write_text(key)
    (folder / CERT_FILE).write_text(ours.sign(csr, Identity(Peer.HOST, "rack12")).certificate)
    shutil.copy(given.ca, folder / CA_FILE)

    async def main() -> None:
        async with controller.running():
            token = controller.token(uses=2)
            await fails(
                come(controller, token, tmp_path / "other"),
                ConfigError,
                "missing: ca.pem, cert.pem, key.pem",
            )
            assert await come(controller, token, folder) == "rack12"
            assert (await ask(controller, client_context(folder))).status_code == 200
            assert (folder / KEY_FILE).read_text() == key
            (kept,) = controller.store.hosts()
            assert (kept.host_id, kept.role) == ("rack12", Role.HOST)
            await fails(renew(controller.url, folder), BadRequest, "makes no certificates")
            trusting = ssl.create_default_context(cafile=given.ca)
            asked = JoinRequest(token=token, role=Role.HOST, csr=make_request()[1], facts=FACTS)
            answer = await ask(controller, trusting, "/join", msgspec.json.encode(asked))
            assert code_of(answer) == (400, "invalid_value")
            assert len(controller.store.hosts()) == 1

    run(main)


def test_who_fails_too_often_waits_and_others_do_not(tmp_path: Path) -> None:
    controller = Controller(tmp_path / "tls")
    trusting = ssl.create_default_context(cafile=tmp_path / "tls" / CA_FILE)

    async def main() -> None:
        async with controller.running():
            for _ in range(MOST):
                answer = await ask(controller, trusting, "/join", os.urandom(50))
                assert answer.status_code == 400
            answer = await ask(controller, trusting, "/join", b"{}")
            assert code_of(answer) == (429, "rate_limit_exceeded")
            assert 1 <= int(answer.headers["retry-after"]) <= EVERY_S + 1
            assert (await ask(controller, trusting, "/join", b"x" * 70_000)).status_code == 429

    run(main)
    clock = ManualClock()
    attempts = Attempts(clock)
    for _ in range(MOST):
        attempts.check("10.0.0.1")
        attempts.failed("10.0.0.1")
        attempts.failed("2001:db8::1")
    with pytest.raises(HostlerError, match="too many failed tries"):
        attempts.check("10.0.0.1")
    with pytest.raises(HostlerError, match="too many failed tries"):
        attempts.check("2001:db8::2")  # of the same network
    attempts.check("10.0.0.2")
    clock.advance(EVERY_S + 1)
    attempts.check("10.0.0.1")
    for n in range(ADDRESSES + 50):
        attempts.failed(f"10.1.{n // 256}.{n % 256}")
    assert len(attempts._full_at_s) == ADDRESSES


def test_many_machines_join_at_once_with_one_token_and_each_is_its_own(tmp_path: Path) -> None:
    controller = Controller(tmp_path / "tls")

    async def main() -> None:
        async with controller.running():
            token = controller.token(uses=6)
            tries = [come(controller, token, tmp_path / f"host{n}") for n in range(8)]
            found = await asyncio.gather(*tries, return_exceptions=True)
            ids = {one for one in found if isinstance(one, str)}
            assert len(ids) == len(controller.store.hosts()) == 6
            assert sum(isinstance(one, JoinRefused) for one in found) == 2

    run(main)
