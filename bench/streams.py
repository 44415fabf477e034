"""Many streams at once from one endpoint; prints one JSON line. `python -m bench.streams --help`.

Every slot asks again as soon as its stream has ended, until the time is over. A stream counts only when
its status is 200, its end is clean and every chunk came (each carries one `~`).
"""

import argparse
import asyncio
import json
import time
from typing import cast

import httptools
import uvloop


class Client(asyncio.Protocol):
    """One keep-alive connection; one stream after the other."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.status = self.chunks = 0
        self.is_alive = True
        self.ended: asyncio.Future[None] | None = None

    def ask(self, request: bytes) -> asyncio.Future[None]:
        self.parser = httptools.HttpResponseParser(self)
        self.status = self.chunks = 0
        self.ended = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.chunks += body.count(b"~")

    def on_message_complete(self) -> None:
        self.is_alive = self.parser.should_keep_alive()
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_alive = False
        if self.ended is not None and not self.ended.done():
            self.ended.set_exception(error or ConnectionError("closed early"))


def request_bytes(given: argparse.Namespace) -> bytes:
    prompt = "Summarise the quarterly report for the operations team, with the risks. " * 11
    messages = [{"role": "user", "content": prompt}]
    body = {"model": given.model, "messages": messages, "max_tokens": given.chunks, "stream": True}
    data = json.dumps({**body, "temperature": 0.2, "seed": given.pause_ms}).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", f"host: 127.0.0.1:{given.port}"]
    lines += ["content-type: application/json", f"content-length: {len(data)}"]
    lines += [f"authorization: Bearer {given.key}"] if given.key else []
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


class Load:
    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.request = request_bytes(given)
        self.chunks = self.streams = self.errors = 0
        self.first_error = ""
        self.began_s = time.monotonic()

    async def slot(self, number: int) -> None:
        given = self.given
        loop = asyncio.get_running_loop()
        await asyncio.sleep(given.ramp * number / given.slots)
        client: Client | None = None
        while time.monotonic() - self.began_s < given.seconds:
            try:
                if client is None or not client.is_alive:
                    _, client = await loop.create_connection(Client, "127.0.0.1", given.port)
                await client.ask(self.request)
                if (client.status, client.chunks) != (200, given.chunks):
                    raise ConnectionError(f"status {client.status}, {client.chunks} chunks")
                self.streams += 1
                self.chunks += client.chunks
            except OSError as error:
                self.errors += 1
                self.first_error = self.first_error or f"{type(error).__name__}: {error}"
                client = None
                await asyncio.sleep(0.1)
        if client is not None:
            client.transport.abort()

    async def run(self) -> dict[str, object]:
        async with asyncio.timeout(self.given.seconds + 60), asyncio.TaskGroup() as tasks:
            for number in range(self.given.slots):
                tasks.create_task(self.slot(number))
        took_s = time.monotonic() - self.began_s
        return {
            "streams": self.streams,
            "chunks": self.chunks,
            "errors": self.errors,
            "first_error": self.first_error,
            "seconds": round(took_s, 3),
        }


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--key", default="")
    arguments.add_argument("--model", default="mock")
    arguments.add_argument("--slots", type=int, default=100)
    arguments.add_argument("--chunks", type=int, default=200)
    arguments.add_argument("--pause-ms", type=int, default=0)
    arguments.add_argument("--seconds", type=float, default=3.0)
    arguments.add_argument("--ramp", type=float, default=0.0)
    print(json.dumps(uvloop.run(Load(arguments.parse_args()).run())))
