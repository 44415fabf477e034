"""Load: many requests at once to one model, as its users make them, each with a deadline.

A closed loop: each of so many clients asks again when it has its answer. Not here: what the samples come
to (measured.py), what is shown (bench.py).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from hostler.cli.measured import Sample, Usage
from hostler.cli.target import Target
from hostler.core.errors import HostlerError
from hostler.core.model import WorkerType
from hostler.core.snapshot import Endpoint
from hostler.wire.client import PlainSink, Pool, UpstreamLost, build_request, host_header
from hostler.wire.http1 import Fields
from hostler.wire.sse import EventCutter, parse_event, split_events

_CONNECT_S = 5.0
_IDLE_S = 5.0  # a connection that rests longer is not used again
_PAUSE_S = 0.1  # after an error, times those in a row: a server that refuses is not stormed
_LONGEST_PAUSE_S = 1.0
PATHS = {
    WorkerType.LLM: "/v1/chat/completions",
    WorkerType.TEXT2VEC: "/v1/embeddings",
    WorkerType.RERANKER: "/v1/rerank",
}


class Work(Protocol):
    """What is asked: the body of a request by its number, and how many texts are in it."""

    kind: WorkerType
    items: int

    def body(self, number: int) -> dict[str, Any]: ...


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """When a level ends: what comes first. timeout_s: for each request."""

    seconds: float | None
    requests: int | None
    timeout_s: float


class Load:
    """Asks one model. Make one with `connected`."""

    def __init__(self, pool: Pool, work: Work, key: str | None, timeout_s: float) -> None:
        self._pool = pool
        self._work = work
        self._timeout_s = timeout_s
        self._path = pool.endpoint.prefix + PATHS[work.kind]
        self._host = host_header(pool.endpoint)
        shown = [(b"authorization", f"Bearer {key}".encode())] if key else []
        self._headers = [_JSON, *shown]
        self._asked = 0

    async def ask(self) -> Sample:
        """Make one request. Whatever goes wrong with it is in the sample."""
        body = msgspec.json.encode(self._work.body(self._asked))
        self._asked += 1
        answer = Answer(is_stream=self._work.kind is WorkerType.LLM)
        call = self._pool.submit(
            build_request("POST", self._path, self._host, self._headers, body), answer
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                await answer.done
        except TimeoutError:
            answer.fail("timeout", f"no whole answer within {self._timeout_s:g} s")
        finally:
            call.cancel()  # nothing, when it is over
        return answer.sample(self._work.items)

    async def level(
        self,
        concurrency: int,
        limits: Limits,
        stop: asyncio.Event,
        on_sample: Callable[[Sample], None],
    ) -> tuple[float, float]:
        """Ask from so many clients at once until a limit or `stop`; return when it began and ended.

        The end is when no more requests are begun; those under way are still waited for, unless `stop`
        is set: then they are given up, and no sample comes of them.
        """
        began_s = time.perf_counter()
        end_s = None if limits.seconds is None else began_s + limits.seconds
        left = limits.requests

        def may_begin() -> bool:
            nonlocal left
            if stop.is_set() or (end_s is not None and time.perf_counter() >= end_s):
                return False
            if left is not None:
                left -= 1
                return left >= 0
            return True

        async def client() -> None:
            in_a_row = 0
            while may_begin():
                sample = await self.ask()
                on_sample(sample)
                in_a_row = in_a_row + 1 if sample.error else 0
                if in_a_row:
                    await asyncio.sleep(min(_PAUSE_S * in_a_row, _LONGEST_PAUSE_S))

        async with asyncio.TaskGroup() as tasks:
            clients = [tasks.create_task(client(), name="load") for _ in range(concurrency)]
            stopping = tasks.create_task(_cancel_on(stop, clients), name="stop")
            await asyncio.wait(clients)
            stopping.cancel()
        now_s = time.perf_counter()
        return began_s, now_s if end_s is None else min(now_s, end_s)


class Answer(PlainSink):
    """The answer to one request, while it comes in: each piece is timed."""

    def __init__(self, *, is_stream: bool) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.began_s = time.perf_counter()
        self.first_s: float | None = None
        self.last_s: float | None = None
        self.usage = Usage()
        self.error = ""
        self.message = ""
        self.status = 0
        self._is_stream = is_stream
        self._cutter = EventCutter()
        self._is_whole = False
        self._body = bytearray()

    def on_head(self, status: int, headers: Fields, length: int | None) -> None:
        if status >= 400:
            self.status, self._is_stream = status, False

    def on_data(self, data: bytes) -> None:
        if self._is_stream:
            try:
                self._take_events(data)
            except HostlerError as error:
                self.fail("bad_answer", str(error))
                self._end()
        elif len(self._body) + len(data) > _MOST_BYTES:
            self.fail("bad_answer", "the answer is too long")
            self._end()
        else:
            self._body += data

    def on_end(self) -> None:
        if self.status:
            self.refuse(bytes(self._body))
        elif not self._is_stream:
            self.take(bytes(self._body))
        elif not self._is_whole:
            self.fail("stream_cut", "the stream ended before the answer did")
        self._end()

    def on_lost(self, error: UpstreamLost) -> None:
        self.fail("no_connection" if error.refused else "connection_lost", str(error))
        self._end()

    def take(self, data: bytes) -> None:
        """Read an answer or a piece of one."""
        try:
            told = msgspec.json.decode(data, type=_Told)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return self.fail("bad_answer", f"it is not an answer: {error}")
        if told.error is not None:
            self.fail(str(told.error.code or told.error.type or "error"), told.error.message)
        if told.usage is not None:
            self.usage = _usage(told.usage)
        if any(
            one.delta.content or one.delta.reasoning_content or one.delta.tool_calls
            for one in told.choices
        ):
            self.last_s = time.perf_counter()
            self.first_s = self.first_s or self.last_s

    def refuse(self, body: bytes) -> None:
        """Take what was said with an HTTP status of 400 or more."""
        self.take(body)
        if self.error in ("", "bad_answer"):
            self.fail(f"http_{self.status}", f"HTTP status {self.status}", again=True)

    def fail(self, code: str, message: str, *, again: bool = False) -> None:
        """Note what went wrong; the first of several counts."""
        if again or not self.error:
            self.error, self.message = code, message

    def sample(self, items: int) -> Sample:
        ended_s = time.perf_counter()
        if self.last_s is not None and not self.error:
            ended_s = self.last_s  # what comes behind the last token is no token
        return Sample(
            began_s=self.began_s,
            ended_s=ended_s,
            first_s=self.first_s,
            usage=self.usage,
            items=items,
            error=self.error,
            message=self.message,
            status=self.status,
        )

    # Private

    def _take_events(self, data: bytes) -> None:
        for event in split_events(self._cutter.feed(data)):
            if (parsed := parse_event(event)) is None:
                continue
            if parsed.data == b"[DONE]":
                self._is_whole = True
            else:
                self.take(parsed.data)

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


@asynccontextmanager
async def connected(target: Target, work: Work, timeout_s: float) -> AsyncIterator[Load]:
    """A load on one server, with as many connections as it needs; through no proxy."""
    parts = urlsplit(target.url)
    endpoint = Endpoint(
        socket=str(target.socket or ""),
        host=parts.hostname or "",
        port=parts.port or (443 if parts.scheme == "https" else 80),
        tls=parts.scheme == "https" and target.socket is None,
        prefix=parts.path if target.socket is None else "",
    )
    pool = Pool(endpoint, connect_timeout_s=_CONNECT_S, idle_s=_IDLE_S, ca=str(target.ca or ""))
    try:
        yield Load(pool, work, target.key, timeout_s)
    finally:
        await pool.close()


# Private

_JSON = (b"content-type", b"application/json")
_MOST_BYTES = 64 * 1024 * 1024  # of an answer that is no stream


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct, frozen=True):
    content: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()


class _Error(msgspec.Struct, frozen=True):
    message: str = ""
    code: str | int | None = None
    type: str | None = None


class _Told(msgspec.Struct, frozen=True):
    """A whole answer, a piece of a stream or an error: the fields that are measured."""

    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    error: _Error | None = None


def _usage(usage: _Usage) -> Usage:
    details = usage.prompt_tokens_details
    read = usage.prompt_tokens
    if read is None and usage.completion_tokens is None:
        read = usage.total_tokens
    return Usage(
        prompt_tokens=read,
        completion_tokens=usage.completion_tokens,
        cached_tokens=(details.cached_tokens or 0) if details is not None else 0,
    )


async def _cancel_on(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    await stop.wait()
    for task in tasks:
        task.cancel()
