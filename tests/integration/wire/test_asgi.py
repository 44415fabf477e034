"""AsgiBridge: a Starlette application behind the guarded server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from hostler.app.config import HttpLimits
from hostler.core.snapshot import Endpoint
from hostler.wire.asgi import AsgiBridge
from hostler.wire.client import Pool, build_request, fetch
from tests.integration.wire.running import Record, serving, until


@asynccontextmanager
async def application(
    path: str, endpoint: Callable[[Request], Awaitable[Response]]
) -> AsyncIterator[Endpoint]:
    app = Starlette(routes=[Route(path, endpoint, methods=["GET", "POST"])])
    limits = HttpLimits(stream_buffer_bytes=65536)
    async with asyncio.TaskGroup() as tasks, serving(AsgiBridge(app, tasks), limits) as (_, end):
        yield end


def test_an_application_gets_the_request_and_gives_an_answer() -> None:
    async def show(request: Request) -> Response:
        body = await request.body()
        return JSONResponse(
            {
                "path": request.url.path,
                "query": request.query_params["q"],
                "host": request.headers["host"],
                "body": body.decode(),
                "name": request.path_params["name"],
            },
            status_code=202,
            headers={"x-mine": "yes"},
        )

    async def main() -> None:
        async with application("/api/{name}", show) as end:
            answer = await fetch(end, "POST", "/api/a%20b?q=1", body=b"hello", timeout_s=5)
            assert answer.status == 202
            assert answer.header(b"x-mine") == b"yes"
            assert answer.header(b"x-request-id")
            assert [name for name, _ in answer.headers].count(b"content-length") == 1
            assert b'"path":"/api/a b","query":"1"' in answer.body
            assert b'"body":"hello","name":"a b"' in answer.body
            assert (await fetch(end, "GET", "/nothing", timeout_s=5)).status == 404
            head = await fetch(end, "HEAD", "/api/x?q=1", timeout_s=5)
            assert (head.status, head.body) == (202, b"")
            assert int(head.header(b"content-length") or b"0") > 10

    uvloop.run(main())


def test_a_failing_application_is_a_500_and_no_more() -> None:
    async def fail(request: Request) -> Response:
        raise ZeroDivisionError

    async def main() -> None:
        async with application("/", fail) as end:
            for _ in range(3):
                assert (await fetch(end, "GET", "/", timeout_s=5)).status == 500

    uvloop.run(main())


def test_F93_the_guard_stands_before_the_application() -> None:
    called: list[str] = []

    async def note(request: Request) -> Response:
        called.append(request.url.path)
        return PlainTextResponse("")

    async def main() -> None:
        async with application("/{rest:path}", note) as end:
            for path in ("//admin", "/a%2fb", "/a/../admin", "http://x/admin"):
                assert (await fetch(end, "GET", path, timeout_s=5)).status == 400
            assert called == []

    uvloop.run(main())


def test_F48_a_streaming_application_waits_for_a_slow_reader_and_F49_ends_when_it_goes() -> None:
    sent: list[int] = []
    ended: list[int] = []

    async def endless(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            try:
                while True:
                    sent.append(1)
                    yield b"x" * 10_000
            finally:
                ended.append(1)

        return StreamingResponse(parts())

    async def main() -> None:
        async with application("/", endless) as end:
            pool = Pool(end, connect_timeout_s=1.0, idle_s=1.0)
            record = Record()
            call = pool.submit(build_request("GET", "/", "localhost", []), record)
            await until(lambda: len(record.body) > 100_000)
            call.pause()
            count = -1
            async with asyncio.timeout(10):
                while len(sent) != count:  # what the kernel's buffers take comes in steps
                    count = len(sent)
                    await asyncio.sleep(0.5)
            call.resume()
            await until(lambda: len(sent) > count)
            call.cancel()
            await until(lambda: ended == [1])
            await pool.close()

    uvloop.run(main())
