"""The pump sends on plain chunks as they are, and gives everything else back: no byte twice, none lost."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from hostler.wire.direct import READ_BYTES, Pump, make_pump, watch_of

HEAD = b'data: {"id":"c1","choices":[{"delta":{"content":"'
TAIL = b'"},"finish_reason":null}]}\n\n\r\n'
MARKS = (b"[DONE]", b'reason":"', b'"error"')
PUMPS = [Pump] if make_pump is Pump else [Pump, make_pump]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def said(text: bytes) -> bytes:
    return chunk((HEAD + text + TAIL)[:-2])


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as door:
        one = socket.create_connection(door.getsockname())
        return one, door.accept()[0]


class Sockets:
    """An engine's connection and a client's, with a pump between them."""

    def __init__(
        self,
        make: Callable[..., Any],
        room_bytes: int = 0,
        join: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair,
    ) -> None:
        self.engine, into = join()
        out, self.client = socket.socketpair()
        self._mine = (into, out)
        if room_bytes:
            out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room_bytes)
        for sock in (into, out, self.client):
            sock.setblocking(False)
        self.given: list[tuple[bytes, bytes]] = []
        self.pump = make(into.fileno(), out.fileno(), HEAD, TAIL, MARKS, self._given_back)

    def send(self, data: bytes) -> None:
        """One read of the pump."""
        self.engine.sendall(data)
        self.pump.pump()

    def got(self) -> bytes:
        parts = []
        with contextlib.suppress(BlockingIOError):
            while part := self.client.recv(1 << 20):
                parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        for sock in (self.engine, self.client, *self._mine):
            sock.close()

    def _given_back(self, unsent: bytes, rest: bytes) -> None:
        self._take(unsent, rest)

    def _take(self, unsent: bytes, rest: bytes) -> None:
        self.given.append((unsent, rest))


@pytest.fixture(params=PUMPS)
def pair(request: pytest.FixtureRequest) -> Iterator[Sockets]:
    made = Sockets(request.param)
    yield made
    made.close()


def test_plain_chunks_go_on_as_they_are(pair: Sockets) -> None:
    data = said(b"hello") + said(b"w") + chunk(b'data: {"other":"shape"}\n\n')
    pair.send(data)
    pair.send(said(b"again"))
    assert pair.got() == data + said(b"again")
    assert (pair.pump.chunks, pair.pump.heard, pair.given) == (4, True, [])


def test_nothing_to_read_is_no_news(pair: Sockets) -> None:
    pair.pump.pump()
    assert (pair.pump.heard, pair.given) == (False, [])


@pytest.mark.parametrize(
    "bad",
    [
        chunk(b"data: [DONE]\n\n"),
        chunk(b'data: {"choices":[{"finish_reason":"stop"}]}\n\n'),
        chunk(b'data: {"error":{}}\n\n'),
        chunk(b"data: half an event"),
        chunk(b"\n"),
        b"0\r\n\r\n",
        b"05\r\n",
        b"zz\r\n",
        b"5;ext=1\r\n",
        b"5\rx",
        b"\r\n",
        b"1234567\r\n",
        b"fffff\r\n",
    ],
)
def test_what_is_not_plain_is_given_back_with_all_before_it(pair: Sockets, bad: bytes) -> None:
    pair.send(said(b"one") + bad)
    assert pair.given == [(b"", said(b"one") + bad)]
    assert (pair.got(), pair.pump.chunks, pair.pump.heard) == (b"", 0, True)


@pytest.mark.parametrize("cut", range(1, len(said(b"two"))))
def test_a_chunk_in_two_reads_waits_for_its_end(pair: Sockets, cut: int) -> None:
    data = said(b"two")
    pair.send(said(b"one") + data[:cut])
    assert pair.got() == said(b"one")
    pair.send(data[cut:])
    assert (pair.got(), pair.pump.chunks, pair.given) == (data, 2, [])


def test_the_end_gives_back_the_beginning_of_a_chunk(pair: Sockets) -> None:
    pair.send(said(b"one") + b"12\r\nda")
    pair.engine.close()
    pair.pump.pump()
    assert (pair.got(), pair.given) == (said(b"one"), [(b"", b"12\r\nda")])


def test_a_chunk_longer_than_a_read_is_given_back(pair: Sockets) -> None:
    data = chunk(b"data: " + b"x" * (READ_BYTES - 100) + b"\n\n")
    sent = 0
    pair.engine.setblocking(False)
    while not pair.given:
        if sent < len(data):
            sent += pair.engine.send(data[sent : sent + 50_000])
        pair.pump.pump()
        if sent == len(data) and pair.got() == data:
            return  # it was within a read after all
    assert pair.given[0][0] == b""
    assert data.startswith(pair.given[0][1])


@pytest.mark.parametrize("make", PUMPS)
def test_a_client_that_reads_slowly_is_owed_the_rest(make: Callable[..., Any]) -> None:
    pair = Sockets(make, room_bytes=4096)
    try:
        data, sent = b"", b""
        while not pair.given:
            sent += said(b"x" * 500)
            pair.send(said(b"x" * 500))
        (unsent, rest), data = pair.given[0], pair.got()
        assert unsent
        assert data + unsent + rest == sent
    finally:
        pair.close()


@pytest.mark.parametrize("make", PUMPS)
def test_a_client_that_is_gone_is_no_error_here(make: Callable[..., Any]) -> None:
    pair = Sockets(make)
    try:
        pair.client.close()
        pair.send(said(b"one"))
        assert pair.given == [(said(b"one"), b"")]
    finally:
        pair.close()


PIECES = st.one_of(
    st.binary(max_size=80).map(said),
    st.sampled_from([b"", b"a", b"hello", b'say \\"hi\\"', b"\\n", b"\xc3\xa9"]).map(said),
    st.binary(max_size=40).map(lambda data: chunk(b"data: " + data + b"\n\n")),
    st.sampled_from(MARKS).map(lambda mark: chunk(b"data: " + mark + b"\n\n")),
    st.sampled_from([b"0\r\n\r\n", b"A\r\n", b"3\r\n\n\n\r\n", b"4\r\n\n\n\n\n\r\n", b"\r", b"f"]),
    st.binary(max_size=8),
)


@given(st.lists(PIECES, max_size=8).map(b"".join), st.lists(st.integers(1, 90), max_size=12))
def test_whatever_comes_nothing_is_lost_and_both_pumps_agree(data: bytes, cuts: list[int]) -> None:
    seen = []
    for make in PUMPS:
        pair = Sockets(make)
        try:
            at = 0
            for cut in (*cuts, len(data)):
                if at < len(data) and not pair.given:
                    pair.send(data[at : at + cut])
                    at = min(len(data), at + cut)
            pair.engine.close()
            if not pair.given:
                pair.pump.pump()
            ((unsent, rest),) = pair.given
            passed = pair.got()
            assert passed + unsent + rest == data[:at]
            assert not any(mark in passed for mark in MARKS)
            seen.append((passed, unsent, rest, pair.pump.chunks))
        finally:
            pair.close()
    assert seen.count(seen[0]) == len(seen)


class Watched:
    """Pairs whose pumps are watched by the running loop."""

    def __init__(
        self,
        count: int,
        join: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair,
    ) -> None:
        self.watch = watch_of(asyncio.get_running_loop())
        self.pairs = [Sockets(make_pump, 1 << 20, join) for _ in range(count)]
        for pair in self.pairs:
            self.watch.add(pair.pump)

    def end(self, *pairs: Sockets) -> None:
        for pair in pairs:
            self.watch.remove(pair.pump)
            self.pairs.remove(pair)
            pair.close()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110 - what is awaited has no event
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run])
def test_a_loop_pumps_whoever_has_news_and_says_who_has_ended(run: Callable[..., Any]) -> None:
    async def main() -> None:
        watched = Watched(200)
        for number in range(3):
            for pair in watched.pairs:
                pair.engine.sendall(said(b"%d" % number))
            await until(lambda due=number + 1: all(p.pump.chunks == due for p in watched.pairs))  # type: ignore[misc]
        for pair in watched.pairs[:100]:
            pair.engine.sendall(said(b"last") + b"7\r\n")
            pair.engine.close()
        await until(lambda: all(p.given for p in watched.pairs[:100]))
        for pair in watched.pairs[:100]:
            assert pair.given[0] == (b"", b"7\r\n")
            assert pair.got().count(b"\n\n\r\n") == 4
        assert not any(p.given for p in watched.pairs[100:])
        watched.end(*watched.pairs)

    run(main())


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run])
@pytest.mark.parametrize("join", [tcp_pair, socket.socketpair])
def test_F02_an_engine_that_resets_the_connection_behind_its_pieces_has_ended(
    run: Callable[..., Any], join: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    """libuv stops to poll a file with an error; all that waits there must be taken nevertheless."""

    async def main() -> None:
        watched = Watched(50, join)
        for pair in watched.pairs:
            pair._mine[0].sendall(b"unread")  # closing with it is a reset, of a Unix socket too
            pair.engine.sendall(said(b"one") + b"12\r\nda")
            pair.engine.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            pair.engine.close()
        await until(lambda: all(p.given for p in watched.pairs))
        for pair in watched.pairs:
            assert (pair.got(), pair.given[0]) == (said(b"one"), (b"", b"12\r\nda"))
        watched.end(*watched.pairs)

    run(main())


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run])
def test_a_stream_that_never_pauses_holds_up_nobody(run: Callable[..., Any]) -> None:
    async def main() -> None:
        watched = Watched(2)
        busy, quiet = watched.pairs
        busy.engine.setblocking(False)
        data = said(b"x" * 40) * 400  # more than a read, and than some reads
        sent = got = 0
        quiet.engine.sendall(said(b"one"))
        while quiet.pump.chunks == 0 or sent < 2_000_000:
            with contextlib.suppress(BlockingIOError):
                sent += busy.engine.send(data[sent % len(data) :])
            got += len(busy.got())
            await asyncio.sleep(0)
        assert not busy.given
        await until(lambda: busy.pump.chunks == sent // len(said(b"x" * 40)))
        watched.end(busy, quiet)

    run(main())


def test_who_ends_in_the_same_moment_as_another_is_asked_no_more() -> None:
    async def main() -> None:
        watched = Watched(10)
        ended: list[Sockets] = []

        def end_all(pair: Sockets) -> Callable[[bytes, bytes], None]:
            def take(unsent: bytes, rest: bytes) -> None:
                ended.append(pair)
                watched.end(*watched.pairs)

            return take

        for pair in watched.pairs:
            pair._take = end_all(pair)  # type: ignore[method-assign,assignment]
            pair.engine.sendall(b"0\r\n\r\n")
        await until(lambda: bool(ended))
        await asyncio.sleep(0.05)
        assert len(ended) == 1

    asyncio.run(main())


def test_files_given_to_the_pump_stay_open() -> None:
    pair = Sockets(make_pump)
    try:
        fds = set(os.listdir("/proc/self/fd"))
        pair.send(said(b"one"))
        assert set(os.listdir("/proc/self/fd")) == fds
    finally:
        pair.close()
