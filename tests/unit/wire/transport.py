"""A transport that keeps what is written to it, and a client that feeds one connection by hand."""

import asyncio
from collections.abc import Callable

from hostler.app.config import HttpLimits
from hostler.core.errors import HostlerError
from hostler.wire.connection import ServerConnection
from hostler.wire.server import Exchange, Head, HostPolicy, HttpServer


class KeepingTransport(asyncio.Transport):
    def __init__(self, address: str = "") -> None:
        super().__init__({"peername": (address, 1)} if address else None)
        self.written = b""
        self.is_closed = self.is_cut = self.is_half_closed = False
        self.is_reading_paused = False
        self.waiting = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_closed, "written after close"
        self.written += bytes(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_half_closed = True

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_cut = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_reading_paused = True

    def resume_reading(self) -> None:
        self.is_reading_paused = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.waiting


def answer_ok(exchange: Exchange) -> None:
    exchange.send(200, exchange.request.path.encode())


class Client:
    """One connection to a server without a socket."""

    def __init__(
        self,
        handler: Callable[[Exchange], None] = answer_ok,
        limits: HttpLimits | None = None,
        hosts: HostPolicy | None = None,
        on_head: Callable[[Head], HostlerError | None] | None = None,
        server: HttpServer | None = None,
        address: str = "",
    ) -> None:
        self.server = server or HttpServer(
            handler, limits=limits or HttpLimits(), allowed_hosts=hosts, on_head=on_head
        )
        self.transport = KeepingTransport(address)
        self.fed = b""
        self.connection = ServerConnection(self.server)
        self.connection.connection_made(self.transport)

    def feed(self, *pieces: bytes) -> "Client":
        for piece in pieces:
            if not self.has_ended and piece:
                self.fed += piece
                self.connection.data_received(piece)
        return self

    @property
    def has_ended(self) -> bool:
        return self.transport.is_closed or self.transport.is_half_closed

    def answers(self) -> list[tuple[int, dict[str, str], bytes]]:
        """Status, headers and body of each answer; they must follow each other without a gap."""
        found, rest = [], self.transport.written
        while rest:
            head, gap, rest = rest.partition(b"\r\n\r\n")
            assert gap, f"an unfinished answer: {head!r}"
            lines = head.decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:])
            length = int(headers.get("content-length", "0"))
            if b"HEAD " in self.fed and (not rest or rest.startswith(b"HTTP/1.1 ")):
                length = 0  # the answer to a HEAD that was refused
            assert len(rest) >= length
            found.append((int(lines[0].split(" ")[1]), headers, rest[:length]))
            rest = rest[length:]
        return found

    def statuses(self) -> list[int]:
        return [status for status, _, _ in self.answers()]
