"""Steady: clients that keep their connections, in a thread, and what went wrong for them.

A client obeys what it is told: after `connection: close` it connects anew. Everything else that ends a
connection under a request, or before an answer is whole, counts as an error.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from hostler.testing.clients import Clients
from hostler.testing.load import Target

PATIENCE_S = 30.0  # for one answer
LONG_STREAM = "[[tokens=100]] [[delay_ms=5]]"


class Steady(Clients):
    """So many clients of one model; every fourth asks for streams, some of which last half a second.

    statuses: how many answers of each. connections: how many were made. errors: the first words of each.
    """

    def __init__(
        self, target: Target, model: str = "echo", *, clients: int = 24, pause_s: float = 0.002
    ) -> None:
        super().__init__(clients)
        self.statuses: Counter[int] = Counter()
        self.by_client: Counter[int] = Counter()
        self.connections = 0
        self.errors: list[str] = []
        self._target, self._model = target, model
        self._pause_s = pause_s

    @property
    def answered(self) -> int:
        return self.statuses.total()

    async def client(self, number: int) -> None:
        line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        count = 0
        while not self.is_over:
            count += 1
            is_stream = number % 4 == 0
            text = f"{number}.{count}" + (LONG_STREAM if is_stream and count % 3 == 0 else "")
            try:
                if line is None:
                    line = await asyncio.open_connection(self._target.host, self._target.port)
                    self.connections += 1
                reader, writer = line
                writer.write(self._request(text, is_stream))
                async with asyncio.timeout(PATIENCE_S):
                    status, head, body = await _answer(reader)
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                self.errors.append(f"client {number}, request {count}: {error!r}")
                if line is not None:
                    line[1].close()
                line = None
                await asyncio.sleep(self._pause_s)
                continue
            self.statuses[status] += 1
            self.by_client[number] += 1
            if status != 200 or (is_stream and b"[DONE]" not in body):
                self.errors.append(f"client {number}, request {count}: {status} {body[-200:]!r}")
            if head.get("connection") == "close":
                writer.close()
                line = None
            await asyncio.sleep(self._pause_s)
        if line is not None:
            line[1].close()

    # Private

    def _request(self, text: str, is_stream: bool) -> bytes:
        messages = [{"role": "user", "content": text}]
        told: dict[str, Any] = {"model": self._model, "stream": is_stream, "messages": messages}
        body = json.dumps(told).encode()
        fields = {
            "host": "localhost",
            "content-type": "application/json",
            "content-length": str(len(body)),
            **self._target.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return b"POST /v1/chat/completions HTTP/1.1\r\n%b\r\n%b" % (lines.encode(), body)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, Mapping[str, str], bytes]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    head = {name.lower(): value.strip() for name, _, value in pairs}
    status = int(first.split()[1])
    if head.get("transfer-encoding") != "chunked":
        return status, head, await reader.readexactly(int(head["content-length"]))
    parts: list[bytes] = []
    while True:
        size = int(await reader.readline(), 16)
        part = await reader.readexactly(size + 2)
        if not size:
            return status, head, b"".join(parts)
        parts.append(part[:-2])
