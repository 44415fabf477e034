"""A fast OpenAI server for loads: asyncio protocol on uvloop, no framework. `python -m bench.mock --port P`.

A chat request with `stream` is answered in chunks, each written on its own. How many and how far apart
stands in its `max_tokens` and `seed` fields (pause in milliseconds), so no second channel is needed.
"""

import argparse
import asyncio
import json
from typing import cast

import httptools
import uvloop

MODEL = "mock"


def reply(body: object, status: bytes = b"200 OK") -> bytes:
    data = json.dumps(body, separators=(",", ":")).encode()
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(data),
        data,
    )


def frame(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


MODELS = reply({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1}]})
NOT_FOUND = reply({"error": {"message": "not here"}}, b"404 Not Found")
CHAT = reply(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "A groom of travellers' horses. " * 17},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 180, "completion_tokens": 120, "total_tokens": 300},
    }
)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_BEGIN = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1760000000,"model":"mock",'
    b'"choices":[{"index":0,"delta":'
)
ROLE = frame(_BEGIN + b'{"role":"assistant","content":""},"finish_reason":null}]}\n\n')
TOKEN = frame(_BEGIN + b'{"content":" ~token"},"logprobs":null,"finish_reason":null}]}\n\n')
LAST = (
    frame(_BEGIN + b'{},"finish_reason":"stop"}]}\n\n') + frame(b"data: [DONE]\n\n") + b"0\r\n\r\n"
)


class Mock(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.body = b""
        self.left = 0
        self.pause_s = 0.0
        self.next_s = 0.0
        self.is_paused = self.is_gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_gone = True

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:  # a router that tries HTTP/2 first
            self.transport.close()

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        if self.left:
            self.step()

    def on_message_begin(self) -> None:
        self.url = self.body = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self.url.endswith(b"/models"):
            self.transport.write(MODELS)
        elif self.url == b"/health":
            self.transport.write(reply({"status": "ok"}))
        elif not self.url.endswith(b"/chat/completions"):
            self.transport.write(NOT_FOUND)
        elif b'"stream":true' not in self.body.replace(b" ", b""):
            self.transport.write(CHAT)
        else:
            asked = json.loads(self.body)
            self.left, self.pause_s = asked["max_tokens"], asked.get("seed", 0) / 1000
            self.next_s = self.loop.time()
            self.transport.write(STREAM_HEAD + ROLE)
            self.again()

    def again(self) -> None:
        if self.pause_s:
            self.next_s += self.pause_s
            self.loop.call_at(self.next_s, self.step)
        else:
            self.loop.call_soon(self.step)

    def step(self) -> None:
        if self.is_gone or self.is_paused or not self.left:
            return
        self.left -= 1
        self.transport.write(TOKEN)
        if self.left:
            self.again()
        else:
            self.transport.write(LAST)


async def serve(port: int, path: str) -> None:
    loop = asyncio.get_running_loop()
    if path:
        server = await loop.create_unix_server(lambda: Mock(loop), path, backlog=4096)
    else:
        server = await loop.create_server(lambda: Mock(loop), "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, default=0)
    arguments.add_argument("--socket", default="")
    given = arguments.parse_args()
    uvloop.run(serve(given.port, given.socket))
