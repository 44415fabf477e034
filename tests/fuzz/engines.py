"""Answers of engines as bytes: framed and not, streams that owe something, cut anywhere (F59-F62, B27).

The path is the real one: `upstream.Connection` feeds an `Attempt`. Only the relay above is a recorder.
"""

import asyncio
import re
from collections.abc import Sequence
from random import Random
from typing import Any, cast

import msgspec

from hostler.app.auth import new_key
from hostler.core.request import Route
from hostler.core.serving import Priority
from hostler.core.snapshot import Endpoint
from hostler.gateway.attempt import Attempt
from hostler.gateway.job import Job
from hostler.gateway.lanes import Lane
from hostler.gateway.relay import Relay
from hostler.routing.claim import Claim, Outcome
from hostler.routing.verdict import Failure
from hostler.wire.client import Call, Pool
from hostler.wire.sse import parse_event
from hostler.wire.turn import Turn
from hostler.wire.upstream import Connection
from tests.unit.routing.fleet import instance, model
from tests.unit.wire.transport import KeepingTransport

KEY = new_key(["inference"]).view
HEAD = b"HTTP/1.1 200 OK\r\n"
TYPE = b"content-type: text/event-stream\r\n"
CHUNK = b'data: {"choices":[{"index":%d,"delta":{"content":"%b"},"finish_reason":%b}]}'
DONE = b"data: [DONE]"
QUOTED = b'\\"finish_reason\\":\\"stop\\"'
ENDS = [b"\n\n", b"\n\n", b"\n\n", b"\r\n\r\n", b"\r\r"]
END = re.compile(rb"\n\n|\r\n\r\n|\r\r")
WRITTEN = re.compile(rb"\r\n\r\n|\n\n\r\n")
EVENT_ENDS = (b"\n\n", b"\r\r", b"\n\r\n", b"\n\r", b"\r\r\n")
ODD = [
    b": comment", b"data: null", b"data: {}", b'data: {"error":{"message":"x"}}', b'data: {"error":null}',
    b"event: x",
    b"data: [DONE] x", b"data:[DONE]", b"data: " + b"[" * 3000 + b'"finish_reason":"x"', b"data: {",
    b"data: \xff\xfe",
    b'data: {"choices":[{"delta":{"content":"[DONE]"}}]}', b'data: {"choices":{"finish_reason":"stop"}}',
    b'data: {"choices":[null,1,{"finish_reason":"stop","index":"0"}]}', b"\xef\xbb\xbfdata: {}",
    b"id: 1\ndata: {}",
    b'data: {"n":' + b"9" * 6000 + b',"finish_reason":"x"}', b'data: {"error": "' + b"x" * 300 + b'"}',
    b'data: {"choices":[\ndata: {"index":0,"finish_reason":"stop"}]}',
]  # fmt: skip
OTHER_HEADS = [
    b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n", b"HTTP/1.1 204 No Content\r\n",
    b"HTTP/1.1 302 Found\r\nlocation: /\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n" + TYPE,
    b"HTTP/1.1 500 Oh\r\ncontent-type: application/json\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n",
    b"HTTP/1.0 200 OK\r\n" + TYPE,
    b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n" + TYPE,
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n",
    b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n" + TYPE, b"nonsense\r\n",
    b"HTTP/1.1 200 OK\r\nx-hostler-instance: other\r\n" + TYPE,
    b"HTTP/1.1 503 No\r\n", b"HTTP/1.1 429 No\r\nretry-after: x\r\n",
]  # fmt: skip


class Recorder:
    """What an attempt tells its relay, and what it would write to the client."""

    def __init__(self, choices: int) -> None:
        body: dict[str, Any] = {"model": "m", "stream": True, "n": choices, "messages": []}
        self.job = Job(
            model("m"),
            Route.CHAT,
            body,
            key=KEY,
            priority=Priority.NORMAL,
            request_id="r",
            fields={},
        )
        self.is_started = False
        self.exchange = self
        self.said = None  # no stream here is continued elsewhere
        self.ticket = None  # nor does anybody wait for the end of its prompt
        self.written = b""
        self.ended: list[str] = []
        self.attempt: Attempt | None = None

    def write(self, data: bytes) -> None:
        assert self.is_started
        assert not self.ended, self.ended
        self.written += data

    def pass_on(self, frames: bytes) -> bool:
        """Take chunks as they are framed: read here by the plainest rule there is."""
        assert frames
        while frames:
            size, end, frames = frames.partition(b"\r\n")
            count = int(size, 16)
            assert end
            assert count > 0
            assert frames[count : count + 2] == b"\r\n"
            self.write(frames[:count])
            frames = frames[count + 2 :]
        return True

    def start(self, fields: object, length: int | None) -> None:
        assert not self.is_started
        self.is_started = True

    def _end(self, how: str) -> None:
        self.ended.append(how)
        if self.attempt is not None and not self.attempt.is_over:
            self.attempt.stop(Outcome.OK)

    def answered(self, status: int, *rest: object) -> None:
        assert not self.is_started
        self._end(f"answered {status}")

    def succeeded(self) -> None:
        self._end("succeeded")

    def ended_by_engine(self) -> None:
        self._end("ended by engine")

    def attempt_failed(self, failure: Failure) -> None:
        self._end(failure.value)


class Engines:
    """Feeds answers to attempts. Must be used inside a running loop."""

    def __init__(self) -> None:
        self._pool = Pool(
            Endpoint(socket="/nowhere"), connect_timeout_s=1, idle_s=3600, turn=Turn()
        )
        self._lane = Lane(instance("a", "m"), self._pool)

    def check(self, rng: Random) -> bytes:
        """Make an answer and check what becomes of it. Raises AssertionError."""
        choices = rng.choice((1, 1, 1, 2, 3))
        body = _body(rng, choices)
        exact = rng.random() < 0.6
        data, is_cut = _framed(rng, body) if exact else _spoiled(rng, body)
        recorder = self._feed(rng, data, choices)
        [end] = recorder.ended
        told = (data, recorder.ended, recorder.written)
        if end == "succeeded":
            assert _is_complete(recorder.written, choices), told
        if recorder.written:
            assert not _says_done(recorder.written) or end == "succeeded", told
            assert recorder.written.endswith(
                (b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r\n", b"\n\r", b"\r\r\n")
            ), told
        if exact and not is_cut and _is_plain(body, choices):
            assert end == "succeeded", told
            assert recorder.written == body, told
        if exact and end != "succeeded":
            assert not _is_plain(body, choices) or is_cut, told
        return data

    # Private

    def _feed(self, rng: Random, data: bytes, choices: int) -> Recorder:
        recorder = Recorder(choices)
        claim = Claim(self._lane.instance, recorder.job, 0.0, "", "", 0, _nothing)
        attempt = recorder.attempt = Attempt(cast(Relay, recorder), claim, self._lane)
        connection = Connection(self._pool)
        transport = KeepingTransport()
        connection.connection_made(transport)
        call = Call(b"", attempt, once=True)
        attempt._call = call
        connection.send(call)
        steps = rng.choice((1, 2, 5, 40))
        places = sorted(rng.randint(0, len(data)) for _ in range(steps))
        if rng.random() < 0.4:  # as engines do: a write a chunk
            places = [found.end() for found in WRITTEN.finditer(data)]
        for start, end in zip([0, *places], [*places, len(data)], strict=True):
            if start < end and not transport.is_closed:
                connection.data_received(data[start:end])
        if not transport.is_closed:
            connection.eof_received()
        connection.connection_lost(None)
        if connection in self._pool._idle:
            self._pool.forget(connection)
        return recorder


async def with_engines(work: "Any") -> None:
    """Call `work` with Engines inside a loop."""
    engines = Engines()
    work(engines.check)
    await asyncio.sleep(0)


# Private


def _nothing(*told: object) -> None:
    return


def _body(rng: Random, choices: int) -> bytes:
    """A stream: mostly as it should be, sometimes with something odd, missing or doubled."""
    end = rng.choice(ENDS)
    events: list[bytes] = []
    for _ in range(rng.randint(0, 5)):
        text = rng.choice(
            (
                b"hi",
                b"x" * rng.randint(0, 300),
                b"[DONE]",
                b'\\"finish_reason\\":\\"stop\\"',
                "é".encode(),
            )
        )
        events.append(CHUNK % (rng.randrange(choices), text, b"null"))
        if rng.random() < 0.08:
            events.append(rng.choice(ODD))
    events += [CHUNK % (index, b"", b'"stop"') for index in range(choices) if rng.random() < 0.95]
    if rng.random() < 0.93:
        events.append(DONE)
    if rng.random() < 0.08:
        events.insert(rng.randint(0, len(events)), rng.choice([DONE, *ODD]))
    if rng.random() < 0.05:
        rng.shuffle(events)
    return b"".join(event + (end if rng.random() < 0.98 else rng.choice(ENDS)) for event in events)


def _framed(rng: Random, body: bytes) -> tuple[bytes, bool]:
    """The body in right framing, and whether its end is missing."""
    is_cut = rng.random() < 0.1
    kind = rng.random()
    if kind < 0.2:
        head = HEAD + TYPE + b"content-length: %d\r\n\r\n" % len(body)
        data = head + body
    elif kind < 0.3:
        data = HEAD + TYPE + b"connection: close\r\n\r\n" + body
        if is_cut and body:  # an end that only the stream itself can show to be missing
            return data[: -rng.randint(1, len(body))], True
        return data, False
    else:
        places = sorted(rng.randint(0, len(body)) for _ in range(rng.randint(0, 6)))
        if rng.random() < 0.6:  # as engines do: an event a chunk
            places = [found.end() for found in END.finditer(body)]
        pieces = [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)
        data = HEAD + TYPE + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    if is_cut:
        data = data[: rng.randint(0, len(data) - 1)]
    return data, is_cut


def _spoiled(rng: Random, body: bytes) -> tuple[bytes, bool]:
    data, _ = _framed(rng, body)
    if rng.random() < 0.3:
        rest = data.partition(b"\r\n\r\n")[2]
        framing = b"content-length: %d\r\n\r\n" % (len(rest) + rng.choice((0, 0, -1, 1)))
        data = rng.choice(OTHER_HEADS) + rng.choice((framing, b"\r\n")) + rest
    for _ in range(rng.randint(0, 3)):
        at = rng.randint(0, len(data))
        splice = rng.choice(
            (b"", b"\r\n", b"\n", b"\0", b"0\r\n\r\n", b"{", HEAD, rng.randbytes(4))
        )
        data = data[:at] + splice + data[at + rng.choice((0, 0, 1, 3, 20)) :]
    if rng.random() < 0.1:
        data += rng.choice((data, b"x", b"HTTP/1.1 200 OK\r\n\r\n"))
    return data, True


def _events(stream: bytes) -> list[bytes]:
    """The data of each event, read line by line."""
    text = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    found = [parse_event(event + b"\n\n") for event in text.split(b"\n\n") if event.strip(b"\n")]
    return [event.data for event in found if event is not None]


def _is_complete(stream: bytes, choices: int) -> bool:
    """Does a reader of this stream see every choice finish, then [DONE], and no error?"""
    finished: set[object] = set()
    data = _events(stream)
    if not data or not data[-1].lstrip().startswith(b"[DONE]"):
        return False
    for one in data[:-1]:
        if one.lstrip().startswith(b"[DONE]"):
            return False
        for chunk in _objects([one]):
            if chunk.get("error") is not None:
                return False
            listed = chunk.get("choices")
            for choice in listed if isinstance(listed, list) else ():
                if isinstance(choice, dict) and choice.get("finish_reason") is not None:
                    index = choice.get("index", 0)
                    finished.add(index if isinstance(index, int) else 0)
    return len(finished) >= choices


def _is_plain(body: bytes, choices: int) -> bool:
    """Is there nothing odd in it that may be judged either way?"""
    known = (b'{"choices":[{"index":', b"[DONE]")
    return (
        _is_complete(body, choices)
        and all(one.startswith(known) for one in _events(body))
        and not any(odd in body for odd in ODD)
    )


def _objects(data: Sequence[bytes]) -> list[dict[str, Any]]:
    found = []
    for one in data:
        try:
            value = msgspec.json.decode(one)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _says_done(stream: bytes) -> bool:
    """Would an SDK take this for a clean end?"""
    return any(data.lstrip().startswith(b"[DONE]") for data in _events(stream))
