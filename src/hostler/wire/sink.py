"""Sink: who gets an answer of an engine; Collector: one that wants it whole."""

import asyncio
from typing import TYPE_CHECKING, Protocol

import msgspec

from hostler.wire.http1 import Fields

if TYPE_CHECKING:
    from hostler.wire.direct import Way
    from hostler.wire.upstream import Call


class UpstreamLost(Exception):
    """The answer did not arrive, or not whole.

    refused: no connection came about, so the request was certainly not seen.
    sent_bytes: the server may have seen the request. got_bytes: a byte of the answer came.
    timed_out: a deadline of ours passed.
    """

    def __init__(
        self,
        message: str,
        *,
        refused: bool = False,
        sent_bytes: bool = False,
        got_bytes: bool = False,
        timed_out: bool = False,
    ) -> None:
        super().__init__(message)
        self.refused = refused
        self.sent_bytes = sent_bytes
        self.got_bytes = got_bytes
        self.timed_out = timed_out


class UpstreamStatus(Exception):
    """The server answered with an error status. `body` is what it said."""

    def __init__(self, status: int, body: bytes, headers: Fields) -> None:
        super().__init__(f"answered {status}")
        self.status = status
        self.body = body
        self.headers = headers


class Sink(Protocol):
    """Who gets an answer: on_head, on_data..., then on_end or on_lost; nothing after `cancel`.

    length: what content-length says, which is not among the headers.
    takes_chunks: whole chunks of SSE events may come by `on_chunks`, as they were framed. It says
        whether it took them; if not, the same bytes come by `on_data`, without their frames.
    """

    @property
    def takes_chunks(self) -> bool: ...

    def on_chunks(self, frames: bytes, count: int) -> bool: ...

    def way(self) -> "Way | None":
        """Where plain chunks may go directly from now on (direct.py); None: nowhere."""

    def on_passed(self, count: int) -> None:
        """So many chunks went there since this was told last; perhaps none, but something came."""

    def on_head(self, status: int, headers: Fields, length: int | None) -> None: ...

    def on_data(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_lost(self, error: UpstreamLost) -> None: ...


class PlainSink:
    """The part of a Sink that cares for no frames."""

    __slots__ = ()
    takes_chunks = False

    def on_chunks(self, frames: bytes, count: int) -> bool:
        return False

    def way(self) -> "Way | None":
        return None

    def on_passed(self, count: int) -> None:
        """Nothing goes any other way."""


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """The first header of this lower-case name."""
        return next((value for key, value in self.headers if key == name), None)


class Collector(PlainSink):
    """A sink that puts a whole answer into a future."""

    def __init__(self, loop: asyncio.AbstractEventLoop, most_bytes: int) -> None:
        self.answer: asyncio.Future[Response] = loop.create_future()
        self.call: Call | None = None
        self._most_bytes = most_bytes
        self._status = 0
        self._headers: Fields = []
        self._body = bytearray()

    def on_head(self, status: int, headers: Fields, length: int | None) -> None:
        told = [] if length is None else [(b"content-length", b"%d" % length)]
        self._status, self._headers = status, headers + told

    def on_data(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self._most_bytes and self.call is not None:
            self.call.cancel()
            self.on_lost(UpstreamLost("the answer is too long", sent_bytes=True, got_bytes=True))

    def on_end(self) -> None:
        if not self.answer.done():
            self.answer.set_result(
                Response(status=self._status, headers=self._headers, body=bytes(self._body))
            )

    def on_lost(self, error: UpstreamLost) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
