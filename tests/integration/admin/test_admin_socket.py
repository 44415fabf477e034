"""The admin API on its Unix socket, behind the guarded server: literal bytes in, literal bytes out."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.app.config import HttpLimits
from hostler.wire.asgi import AsgiBridge
from hostler.wire.server import HttpServer
from tests.unit.admin.plane import Plane


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(dir="/tmp", prefix="ha-"))
    yield made
    shutil.rmtree(made)


@asynccontextmanager
async def serving(plane: Plane, folder: Path) -> AsyncIterator[Path]:
    path = folder / "admin.sock"
    async with asyncio.TaskGroup() as tasks:
        server = HttpServer(AsgiBridge(plane.app, tasks), limits=HttpLimits())
        await server.listen_unix(path)
        try:
            yield path
        finally:
            await server.close(0.2)


async def exchange(path: Path, data: bytes, *, until: bytes = b"") -> bytes:
    """Send bytes and return all that comes back until the server closes, or `until` is seen."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    answer = b""
    try:
        async with asyncio.timeout(5):
            writer.write(data)
            while part := await reader.read(65536):
                answer += part
                if until and until in answer:
                    break
    except ConnectionError:
        pass
    finally:
        writer.close()
    return answer


def request(
    method: str, target: str, *, key: str = "", headers: str = "", body: bytes = b""
) -> bytes:
    fields = f"Host: localhost\r\nConnection: close\r\n{headers}"
    if key:
        fields += f"Authorization: Bearer {key}\r\n"
    if body:
        fields += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{method} {target} HTTP/1.1\r\n{fields}\r\n".encode() + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def test_a_model_is_started_shown_and_stopped_over_the_socket(folder: Path) -> None:
    async def main() -> None:
        plane = Plane(folder)
        key = plane.admin.plain
        async with serving(plane, folder) as path:
            order = msgspec.json.encode({"model": "org/qwen"})
            started = await exchange(path, request("POST", "/api/v1/models", key=key, body=order))
            assert status(started) == 202
            assert started.lower().count(b"\r\nx-request-id:") == 1
            shown = await exchange(path, request("GET", "/api/v1/models/org/qwen", key=key))
            assert (status(shown), b'"ready":1' in shown) == (200, True)
            escaped = await exchange(path, request("GET", "/api/v1/models/org%2Fqwen", key=key))
            assert status(escaped) == 400  # one spelling of an address, no second one
            follow = msgspec.json.decode(started.partition(b"\r\n\r\n")[2])["events"]
            seen = await exchange(path, request("GET", follow, key=key), until=b"instance.ready")
            assert (status(seen), b"instance.ready" in seen) == (200, True)
            stopped = await exchange(path, request("DELETE", "/api/v1/models/org/qwen", key=key))
            assert status(stopped) == 202

    uvloop.run(main())


def test_a_refusal_is_an_error_object_with_its_headers(folder: Path) -> None:
    async def main() -> None:
        async with serving(Plane(folder), folder) as path:
            answer = await exchange(path, request("GET", "/api/v1/models"))
            head, _, body = answer.partition(b"\r\n\r\n")
            assert status(answer) == 401
            assert msgspec.json.decode(body)["error"]["code"] == "invalid_api_key"
            assert b"\r\nwww-authenticate: Bearer" in head
            assert b"\r\nx-should-retry: false" in head

    uvloop.run(main())


def test_events_are_streamed_and_resumed_over_the_socket(folder: Path) -> None:
    async def main() -> None:
        plane = Plane(folder, keep_alive_s=0.05)
        key = plane.admin.plain
        async with serving(plane, folder) as path:
            await plane.control.happen("one")
            await plane.control.happen("two")
            fields = "Accept: text/event-stream\r\nLast-Event-ID: 1\r\n"
            ask = request("GET", "/api/v1/events", key=key, headers=fields)
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(exchange(path, ask, until=b": keep-alive"))
                seen = await reading
            assert b"id: 2\nevent: two\n" in seen
            assert b"event: one" not in seen
            assert b"text/event-stream" in seen

    uvloop.run(main())


def test_a_stream_ends_at_once_when_its_client_goes(folder: Path) -> None:
    async def main() -> None:
        plane = Plane(folder, followers=2, keep_alive_s=60.0)
        key = plane.admin.plain
        await plane.ask("POST", "/api/v1/models", {"model": "a"})
        async with serving(plane, folder) as path:
            for _ in range(6):  # more than there are places, none of which is ever written to again
                for target, sign in (
                    ("/api/v1/events?follow=true", b"hostler events"),
                    ("/api/v1/models/a/logs?follow=true", b"200 OK"),
                ):
                    seen = await exchange(path, request("GET", target, key=key), until=sign)
                    assert status(seen) == 200
                await asyncio.sleep(0.1)

    uvloop.run(main())


GOOD = "GET /api/v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
TRICKS = {
    "no host": "GET /api/v1/models HTTP/1.1\r\nConnection: close\r\n\r\n",
    "two hosts": GOOD.replace("Host: localhost", "Host: localhost\r\nHost: localhost"),
    "host with a path": GOOD.replace("localhost", "localhost/v1/models?x="),
    "host with a fragment": GOOD.replace("localhost", "localhost#"),
    "host with credentials": GOOD.replace("localhost", "admin@localhost"),
    "absolute form": GOOD.replace("GET /api", "GET http://localhost/api"),
    "absolute form of another": GOOD.replace("GET /api", "GET http://x/v1/models?/api"),
    "two slashes": GOOD.replace("GET /api", "GET //api"),
    "two slashes inside": GOOD.replace("/v1/", "//v1//"),
    "dots": GOOD.replace("/api/v1/models", "/health/../api/v1/models"),
    "escaped dots": GOOD.replace("/api/v1/models", "/health/%2e%2e/api/v1/models"),
    "escaped slash": GOOD.replace("/api/v1/models", "/api%2fv1%2fmodels"),
    "escaped letters": GOOD.replace("/models", "/%6dodels"),
    "semicolon": GOOD.replace("/models", "/models;/health"),
    "fragment": GOOD.replace("/models", "/models#/health"),
    "query": GOOD.replace("/models", "/models?/health"),
    "null": GOOD.replace("/models", "/models%00"),
    "backslash": GOOD.replace("/api", "\\api"),
    "asterisk": GOOD.replace("/api/v1/models", "*"),
    "method override": GOOD.replace("Conn", "X-HTTP-Method-Override: GET\r\nConn"),
    "rewritten": GOOD.replace("Conn", "X-Original-URL: /health\r\nX-Rewrite-URL: /health\r\nConn"),
    "folded key": GOOD.replace("Conn", "Authorization: Bearer\r\n x\r\nConn"),
    "second request": GOOD.replace(
        "Conn", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\nConn"
    )
    + "0\r\n\r\n"
    + GOOD,
    "http 1.0": GOOD.replace("HTTP/1.1", "HTTP/1.0"),
}


def test_F93_no_trick_with_host_or_target_runs_a_handler_without_a_key(folder: Path) -> None:
    async def main() -> None:
        plane = Plane(folder)
        async with serving(plane, folder) as path:
            for name, data in TRICKS.items():
                for method in ("GET", "POST", "DELETE"):
                    sent = data.replace("GET ", f"{method} ", 1).encode()
                    answer = await exchange(path, sent)
                    assert 400 <= status(answer) < 500, name
                    assert answer.count(b"HTTP/1.1 ") == 1, name
                    assert plane.control.handled == [], name

    uvloop.run(main())


TARGETS = st.lists(
    st.sampled_from(
        ["/", "//", "api", "v1", "models", "..", ".", "%2e%2e", "%2f", "health", "?", "#", ";", "@"]
    ),
    max_size=8,
).map(lambda parts: "/" + "".join(parts))
HOSTS = st.sampled_from(
    [
        "localhost",
        "localhost:80",
        "localhost/api/v1/models",
        "a@b",
        "",
        "[::1]",
        "a, b",
        "%2f",
        "x#y",
    ]
)


@given(st.lists(st.tuples(TARGETS, HOSTS), min_size=150, max_size=150))
@settings(max_examples=8, deadline=None)
def test_F93_no_target_or_host_runs_a_handler_without_a_key(asked: list[tuple[str, str]]) -> None:
    async def main(folder: Path) -> None:
        plane = Plane(folder)
        async with serving(plane, folder) as path:
            for target, host in asked:
                data = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
                answer = await exchange(path, data.encode())
                assert 400 <= status(answer) < 500 or b"<title>Hostler</title>" in answer
        assert plane.control.handled == []

    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="ha-"))
    try:
        uvloop.run(main(folder))
    finally:
        shutil.rmtree(folder)


def test_F88_framing_that_is_not_clear_is_refused_once_even_with_a_key(folder: Path) -> None:
    async def main() -> None:
        plane = Plane(folder)
        key = f"Authorization: Bearer {plane.admin.plain}\r\n"
        second = f"DELETE /api/v1/models/qwen HTTP/1.1\r\nHost: localhost\r\n{key}\r\n"
        await plane.ask("POST", "/api/v1/models", {"model": "qwen"})
        plane.control.handled.clear()
        async with serving(plane, folder) as path:
            for fields in (
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                "Content-Length: 5\r\nContent-Length: 6\r\n",
                "Content-Length: +5\r\n",
                "Transfer-Encoding: chunked, identity\r\n",
                "Transfer-Encoding : chunked\r\n",
            ):
                head = f"POST /api/v1/models HTTP/1.1\r\nHost: localhost\r\n{key}{fields}\r\n"
                answer = await exchange(path, head.encode() + b"0\r\n\r\n" + second.encode())
                assert status(answer) == 400
                assert answer.count(b"HTTP/1.1 ") == 1
        assert plane.control.handled == []
        assert plane.control.deployments()[0].wanted_instances == 1

    uvloop.run(main())
