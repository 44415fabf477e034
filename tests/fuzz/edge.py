"""Requests as bytes: heads, bodies and chunks, whole and spoiled, cut anywhere (F88, B25)."""

import re
from itertools import pairwise
from random import Random

from hostler.app.config import HttpLimits
from hostler.wire.http1 import ChunkedBody
from hostler.wire.server import Exchange, HttpServer
from tests.unit.wire.reference import Outcome, outcomes
from tests.unit.wire.test_smuggling import CHUNKED, GOOD, NEXT, SPLICES, VECTORS, post
from tests.unit.wire.transport import Client

EDGES = re.compile(rb"\r\n|(?<=\r\n)|[ :]")
METHODS = [
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"PATCH",
    b"get",
    b"PRI",
    b"TRACE",
    b"G T",
]
TARGETS = [
    b"/", b"/v1/models", b"/a?b=c", b"//a", b"/a//b", b"/../a", b"/%2e%2e", b"*", b"http://a/", b"/a%20b",
    b"/%00", b"",
    b"/a#b", b"/\xc3\xa9", b"/" + b"a" * 8000, b"/" + b"a" * 9000,
]  # fmt: skip
NAMES = [
    b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"X-Request-Id",
    b"Content-Encoding",
    b"Content-Type", b"Authorization", b"X", b"x y", b"", b"X\0", b"Content_Length", b"Trailer", b"TE",
    b"Upgrade",
]  # fmt: skip
VALUES = [
    b"localhost", b"3", b"0", b"03", b"+3", b"3, 3", b"chunked", b"Chunked ", b"gzip, chunked", b"identity",
    b"close",
    b"keep-alive", b"100-continue", b"gzip", b"", b"\x0b3", b"a\rb", b"a\0b", b"9" * 19, b"[::1]:80",
    b"a b", b"h2c",
]  # fmt: skip
SIZES = [
    b"0",
    b"3",
    b"003",
    b"a",
    b"A",
    b"3;x=y",
    b"0x3",
    b"-1",
    b"+3",
    b" 3",
    b"3 ",
    b"",
    b"100000000",
    b"ffffffff",
]
ENDS = [
    b"\r\n",
    b"\r\n",
    b"\r\n",
    b"\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b"",
    b"\r\n\r\n",
    b" \r\n",
    b"\r\n ",
]
TRIES = 9  # of ten parts one is spoiled


class Edge:
    """One server; each case is a connection of its own."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._server = HttpServer(self._handle, limits=HttpLimits())

    def check(self, rng: Random) -> bytes:
        """Make a case and check it. Returns its bytes, for a report.

        Raises:
            AssertionError: the server and the plain reading do not agree.
        """
        data = make(rng)
        places = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(0, 4)))
        if rng.random() < 0.02:
            places = list(range(1, min(len(data), 600)))
        self.check_bytes(data, places)
        return data

    def check_bytes(self, data: bytes, places: list[int]) -> None:
        """Feed these bytes, cut at these places."""
        expected = outcomes(data)
        self._paths.clear()
        client = Client(server=self._server)
        client.feed(*[data[a:b] for a, b in pairwise([0, *places, len(data)])])
        statuses = [status for status in client.statuses() if status != 100]
        told = (data, places, statuses, expected)
        whole = [one for one in expected if one in (Outcome.SERVED, Outcome.DECLINED)]
        if Outcome.DECLINED in whole:  # its body may not be here yet when it is judged
            cut = whole.index(Outcome.DECLINED)
            assert statuses[:cut] == [200] * cut, told
            assert statuses[cut] == 415, told
            return
        assert len(self._paths) == len(whole), told
        assert statuses[: len(whole)] == [200] * len(whole), told
        extra = statuses[len(whole) :]
        assert all(400 <= status < 500 for status in extra), told
        if Outcome.REFUSED in expected:
            assert len(extra) == 1, told
        else:
            # what can never become a request may be refused before all of it is here
            assert len(extra) <= (Outcome.UNFINISHED in expected), told
        if extra:
            assert client.has_ended, told
        client.connection.connection_lost(None)
        assert self._server.bodies_held == 0, told

    # Private

    def _handle(self, exchange: Exchange) -> None:
        self._paths.append(exchange.request.path)
        exchange.send(200, b"")


def make(rng: Random) -> bytes:
    """Make one connection's bytes."""
    kind = rng.random()
    if kind < 0.3:
        parts = [_made_head(rng) for _ in range(rng.randint(1, 3))]
    elif kind < 0.55:
        parts = [_made_chunks(rng) for _ in range(rng.randint(1, 2))] + [NEXT]
    elif kind < 0.65:
        parts = [VECTORS[rng.choice(_VECTOR_NAMES)], NEXT]
    else:
        parts = [rng.choice(GOOD) for _ in range(rng.randint(1, 3))]
    data = b"".join(parts)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        edges = [found.start() for found in EDGES.finditer(data)] if rng.random() < 0.7 else []
        at = rng.choice(edges) if edges else rng.randint(0, len(data))
        removed = rng.choice((0, 0, 0, 1, 2, 5))
        splice = rng.choice(SPLICES) if rng.random() < 0.8 else rng.randbytes(rng.randint(0, 3))
        data = data[:at] + splice + data[at + removed :]
    return data


class Chunks:
    """ChunkedBody alone: any cut gives what the bytes at once give."""

    def check(self, rng: Random) -> bytes:
        """Make a case and check it. Raises AssertionError."""
        data = _chunk_bytes(rng) + rng.choice((b"", NEXT, b"\r\n", b"x"))
        whole = _read_chunks([data])
        places = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(1, 6)))
        cut = _read_chunks([data[a:b] for a, b in pairwise([0, *places, len(data)])])
        assert cut == whole, (data, places, cut, whole)
        return data


# Private

_VECTOR_NAMES = sorted(VECTORS)


def _mostly(rng: Random, good: bytes, others: list[bytes]) -> bytes:
    return good if rng.randint(0, TRIES) else rng.choice(others)


def _made_head(rng: Random) -> bytes:
    line = b" ".join(
        (
            _mostly(rng, b"POST", METHODS),
            _mostly(rng, b"/v1/x", TARGETS),
            _mostly(rng, b"HTTP/1.1", [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b""]),
        )
    )
    fields = [_mostly(rng, b"Host: localhost", [b"Host: a, b", b"Host:", b"X: y"])]
    for _ in range(rng.randint(0, 4)):
        fields.append(
            rng.choice(NAMES)
            + _mostly(rng, b": ", [b":", b" : ", b"", b":\t"])
            + rng.choice(VALUES)
        )
    rng.shuffle(fields)
    end = _mostly(rng, b"\r\n", ENDS)
    body = rng.choice((b"", b"", b"abc", b"0\r\n\r\n", NEXT))
    return (
        line + end + b"".join(field + _mostly(rng, b"\r\n", ENDS) for field in fields) + end + body
    )


def _made_chunks(rng: Random) -> bytes:
    extra = _mostly(rng, b"", [b"Content-Length: 3\r\n", CHUNKED, b"Trailer: x\r\n"])
    return post(CHUNKED + extra, _chunk_bytes(rng))


def _chunk_bytes(rng: Random) -> bytes:
    parts: list[bytes] = []
    for _ in range(rng.randint(0, 4)):
        payload = rng.choice((b"abc", b"\r\n0\r\n\r\n", NEXT, rng.randbytes(rng.randint(1, 40))))
        size = _mostly(rng, b"%x" % len(payload), SIZES)
        parts += [size, _mostly(rng, b"\r\n", ENDS), payload, _mostly(rng, b"\r\n", ENDS)]
    parts += [_mostly(rng, b"0", SIZES), _mostly(rng, b"\r\n", ENDS), _mostly(rng, b"\r\n", ENDS)]
    return b"".join(parts)


def _read_chunks(pieces: list[bytes]) -> tuple[str, bytes, bytes]:
    """What becomes of a body: how it ends, what it holds, what follows it."""
    body, rest = ChunkedBody(100_000), None
    for number, piece in enumerate(pieces):
        try:
            rest = body.feed(piece) if piece else None
        except Exception as error:
            return type(error).__name__, b"", b""
        if rest is not None:
            return "whole", body.body(), rest + b"".join(pieces[number + 1 :])
    return "unfinished", body.body(), b""
