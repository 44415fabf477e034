"""What an engine may do to the bytes of an answer, literal by literal, and what clients see (F62)."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count

import msgspec
import pytest

from hostler.core.snapshot import Endpoint
from tests.integration.gateway.rig import Rig, error_of, rig, text_of
from tests.integration.gateway.test_streams import read, whole_text
from tests.unit.routing.fleet import instance, model

NUMBERS = count()
OK = b"HTTP/1.1 200 OK\r\n"
JSON = b"content-type: application/json\r\n"
EVENTS = b"content-type: text/event-stream\r\n"
BODY = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"mine"},"finish_reason":"stop"}]}'
FIRST = b'data: {"choices":[{"index":0,"delta":{"content":"mine"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
LENGTH = b"content-length: %d\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
GOOD = OK + JSON + LENGTH % len(BODY) + BODY


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


GOOD_STREAM = OK + EVENTS + CHUNKED + chunk(FIRST) + chunk(LAST) + b"0\r\n\r\n"


class Literal:
    """An engine that answers every request with these bytes. reset: then the connection is reset."""

    def __init__(self, answer: bytes, *, reset: bool = False, close: bool = True) -> None:
        self.answer, self.reset, self.close = answer, reset, close
        self.requests = 0
        self.writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if head.startswith(b"get "):  # a probe
                    writer.write(OK + LENGTH % 0)
                    continue
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                self.requests += 1
                first = self.answer.find(FIRST) + len(FIRST) + 2  # an event comes alone
                for part in (self.answer[:first], self.answer[first:]):
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0.03 if FIRST in part else 0)
                if self.reset:
                    await asyncio.sleep(0.05)  # the bytes arrive before the reset does
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if self.close:
                    return
        except (OSError, asyncio.IncompleteReadError):  # the gateway has closed it
            pass
        finally:
            writer.close()
            self.writers.discard(writer)


@asynccontextmanager
async def beside(ours: Rig, engine: Literal, sound: Sequence[str] = ()) -> AsyncIterator[None]:
    """Publish the engine, under a new name each time, and these sound ones."""
    name = f"odd{next(NUMBERS)}"
    path = str(ours.folder / f"{name}.sock")
    server = await asyncio.start_unix_server(engine.serve, path)
    instances = [instance(name, "m", endpoint=Endpoint(socket=path))]
    instances += [instance(i, "m", endpoint=ours.engines[i].endpoint) for i in sound]
    ours.source.publish([model("m")], instances)
    try:
        yield
    finally:
        for listener in server.sockets:  # a server that is closed leaves whoever it just accepted
            asyncio.get_running_loop().remove_reader(listener.fileno())
        for _ in range(10):  # so each of them has a writer first
            await asyncio.sleep(0)
        server.close()
        for writer in tuple(engine.writers):  # kept alive by the gateway
            writer.transport.abort()
        await asyncio.sleep(0)


BROKEN: dict[str, Callable[[], Literal]] = {
    "nothing": lambda: Literal(b""),
    "reset-at-once": lambda: Literal(b"", reset=True),
    "reset-in-the-status-line": lambda: Literal(b"HTTP/1.1 20", reset=True),
    "reset-in-the-head": lambda: Literal(OK + b"content-ty", reset=True),
    "reset-after-the-head": lambda: Literal(OK + JSON + LENGTH % len(BODY), reset=True),
    "reset-in-the-body": lambda: Literal(OK + JSON + LENGTH % len(BODY) + BODY[:20], reset=True),
    "reset-in-a-chunk": lambda: Literal(OK + JSON + CHUNKED + chunk(BODY)[:30], reset=True),
    "reset-between-chunks": lambda: Literal(OK + JSON + CHUNKED + chunk(BODY), reset=True),
    "closed-in-the-body": lambda: Literal(OK + JSON + LENGTH % len(BODY) + BODY[:20]),
    "length-too-long": lambda: Literal(OK + JSON + LENGTH % (len(BODY) + 1) + BODY),
    "length-too-short": lambda: Literal(OK + JSON + LENGTH % (len(BODY) - 1) + BODY),
    "length-is-no-number": lambda: Literal(OK + JSON + b"content-length: abc\r\n\r\n" + BODY),
    "length-negative": lambda: Literal(OK + JSON + b"content-length: -5\r\n\r\n" + BODY),
    "two-lengths": lambda: Literal(
        OK + JSON + b"content-length: 5\r\n" + LENGTH % len(BODY) + BODY
    ),
    "length-and-chunks": lambda: Literal(
        OK + JSON + b"content-length: 5\r\n" + CHUNKED + chunk(BODY) + b"0\r\n\r\n"
    ),
    "chunk-size-is-no-number": lambda: Literal(OK + JSON + CHUNKED + b"zz\r\n" + BODY),
    "chunk-longer-than-it-says": lambda: Literal(
        OK + JSON + CHUNKED + b"5\r\n" + BODY + b"\r\n0\r\n\r\n"
    ),
    "garbage": lambda: Literal(b"\x16\x03\x01\x02\x00garbage\r\n\r\n"),
    "another-protocol": lambda: Literal(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "html-with-200": lambda: Literal(
        OK + b"content-type: text/html\r\n" + LENGTH % 15 + b"<html>hi</html>"
    ),
    "html-that-says-json": lambda: Literal(OK + JSON + LENGTH % 15 + b"<html>hi</html>"),
    "no-content-type": lambda: Literal(OK + LENGTH % len(BODY) + BODY),
    "gzip-unasked": lambda: Literal(
        OK + JSON + b"content-encoding: gzip\r\n" + LENGTH % len(BODY) + BODY
    ),
    "error-object-with-200": lambda: Literal(OK + JSON + LENGTH % 23 + b'{"error":{"message":1}}'),
    "no-content": lambda: Literal(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "not-modified": lambda: Literal(b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    "redirect": lambda: Literal(
        b"HTTP/1.1 307 T\r\nlocation: http://127.0.0.1:1/\r\n" + LENGTH % 0
    ),
    "created": lambda: Literal(b"HTTP/1.1 201 Created\r\n" + JSON + LENGTH % len(BODY) + BODY),
    "switching-protocols": lambda: Literal(
        b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n" + GOOD
    ),
    "interim-for-ever": lambda: Literal(b"HTTP/1.1 102 Processing\r\n\r\n" * 3),
    "huge-field": lambda: Literal(OK + b"x: " + b"y" * 100_000 + b"\r\n" + JSON + b"\r\n"),
    "endless-fields": lambda: Literal(OK + b"x: y\r\n" * 30_000),
    "another-instance": lambda: Literal(
        OK + b"x-hostler-instance: other\r\n" + JSON + LENGTH % len(BODY) + BODY
    ),
    "empty-with-200": lambda: Literal(OK + JSON + LENGTH % 0),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_F62_an_answer_that_is_none_costs_nothing_where_another_instance_can_answer(
    stream: bool,
) -> None:
    async def ask(ours: Rig, name: str, prompt: str) -> None:
        if stream:
            reader = await read(ours, prompt)
            assert (reader.status, reader.is_clean) == (200, True), name
            assert reader.text == whole_text(prompt), name
            return
        answer = await ours.chat(prompt)
        assert answer.status == 200, (name, answer.body)
        assert text_of(answer) == whole_text(prompt), name

    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("sound")
            for name, make in BROKEN.items():
                engine = make()
                async with beside(ours, engine, ["sound"]):
                    for number in range(4):  # whichever is asked first
                        if not engine.requests:
                            await ask(ours, name, f"{name} {number}")
                    assert engine.requests, name

    asyncio.run(main())


def test_F62_where_nobody_else_can_answer_the_error_is_ours_and_shows_nothing() -> None:
    async def main() -> None:
        async with rig() as ours:
            for name, make in BROKEN.items():
                async with beside(ours, make()):
                    answer = await ours.chat(name)
                    code = error_of(answer)["code"]
                    if name == "another-instance":
                        assert (answer.status, code) == (503, "no_healthy_worker")
                        continue
                    assert (answer.status, code) in (
                        (502, "upstream_error"),
                        (502, "worker_lost"),
                    ), (name, answer.body)
                    for part in (b"html", b"garbage", b".sock", b"SSH"):
                        assert part not in answer.body, name

    asyncio.run(main())


STREAMS = {
    "reset-in-a-chunk": Literal(
        OK + EVENTS + CHUNKED + chunk(FIRST) + chunk(LAST)[:40], reset=True
    ),
    "reset-between-chunks": Literal(OK + EVENTS + CHUNKED + chunk(FIRST), reset=True),
    "closed-between-chunks": Literal(OK + EVENTS + CHUNKED + chunk(FIRST)),
    "half-an-event": Literal(OK + EVENTS + CHUNKED + chunk(FIRST + LAST[:20]) + b"0\r\n\r\n"),
    "garbage-for-a-chunk": Literal(OK + EVENTS + CHUNKED + chunk(FIRST) + b"zz\r\nx\r\n"),
    "too-long-for-its-size": Literal(OK + EVENTS + CHUNKED + chunk(FIRST) + b"3\r\n" + LAST),
    "no-done": Literal(OK + EVENTS + CHUNKED + chunk(FIRST) + b"0\r\n\r\n"),
    "done-too-early": Literal(
        OK + EVENTS + CHUNKED + chunk(FIRST) + chunk(b"data: [DONE]\n\n" + FIRST) + b"0\r\n\r\n"
    ),
    "length-too-long": Literal(OK + EVENTS + LENGTH % (len(FIRST) + 9) + FIRST),
    "no-framing-no-end": Literal(OK + EVENTS + b"\r\n" + FIRST),
    "a-second-answer-inside": Literal(OK + EVENTS + CHUNKED + chunk(FIRST) + GOOD),
}


def test_F02_F61_a_stream_that_breaks_after_its_first_event_ends_with_an_error() -> None:
    async def main() -> None:
        async with rig() as ours:
            for name, engine in STREAMS.items():
                async with beside(ours, engine):
                    reader = await read(ours, name)
                    assert (reader.status, reader.is_clean) == (200, False), name
                    first, last = reader.payloads
                    assert first == FIRST[6:].strip(), name
                    code = msgspec.json.decode(last)["error"]["code"]
                    assert code in ("worker_lost", "upstream_error"), name
                    assert b"[DONE]" not in reader.data, name

    asyncio.run(main())


def test_an_answer_after_interim_ones_and_in_every_framing_is_whole() -> None:
    async def main() -> None:
        async with rig() as ours:
            for answer in (
                b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD,
                b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 P\r\n\r\n" + GOOD,
                OK + JSON + CHUNKED + chunk(BODY[:9]) + chunk(BODY[9:]) + b"0\r\nx: y\r\n\r\n",
                OK + JSON + CHUNKED + b"%x;a=b\r\n" % len(BODY) + BODY + b"\r\n000\r\n\r\n",
                OK + JSON + b"\r\n" + BODY,
                b"HTTP/1.0 200 OK\r\n" + JSON + b"\r\n" + BODY,
                GOOD.replace(b"content-length", b"CONTENT-LENGTH").replace(b": 9", b":\t9"),
            ):
                async with beside(ours, Literal(answer)):
                    told = await ours.chat("x")
                    assert (told.status, text_of(told)) == (200, "mine"), (answer, told.body)

    asyncio.run(main())


def test_a_second_answer_to_one_request_reaches_nobody() -> None:
    async def main() -> None:
        async with rig() as ours:
            other = GOOD.replace(b"mine", b"evil")
            for second in (other, b"x", GOOD_STREAM):
                engine = Literal(GOOD + second, close=False)
                async with beside(ours, engine):
                    for _ in range(5):
                        assert text_of(await ours.chat("x")) == "mine"
                    assert engine.requests == 5

    asyncio.run(main())
