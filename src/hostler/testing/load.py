"""Load: clients that ask, wait for the answer, write down what they saw, and ask again.

Closed loop on raw connections: what a client sees here are the gateway's bytes, not a library's view.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import httptools
import msgspec


class Outcome(StrEnum):
    """How a request ended for its client."""

    OK = "ok"  # 200, whole; a stream with finish_reason and [DONE]
    ERROR_EVENT = "error_event"  # 200, then an error inside the stream
    HTTP_ERROR = "http_error"  # a status of 400 or more
    SILENT_END = "silent_end"  # a stream that ends well framed, but is not whole
    DONE_AFTER_ERROR = "done_after_error"
    RESET = "reset"  # the connection ended in the middle, or could not be made
    TIMEOUT = "timeout"  # the client's own patience ended
    LEFT = "left"  # the client went away on purpose


class Seen(msgspec.Struct, kw_only=True):
    """One request, as its client saw it. seconds: from the first byte sent to the end."""

    request_id: str
    body: Mapping[str, Any]
    outcome: Outcome
    status: int = 0
    text: str = ""  # of the first choice
    named: str = ""  # the model that the answer says it is of
    finish_reason: str = ""
    error_code: str = ""
    seconds: float = 0.0
    first_byte_s: float | None = None
    headers: Mapping[str, str] = {}

    @property
    def asked(self) -> str:
        return str(self.body.get("model", ""))


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where to ask: a Unix socket, or host and port."""

    socket: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    headers: Mapping[str, str] = {}


async def ask(
    target: Target,
    body: Mapping[str, Any],
    *,
    request_id: str,
    path: str = "/v1/chat/completions",
    timeout_s: float = 30.0,
    leave_after_bytes: int | None = None,
) -> Seen:
    """Send one request on a connection of its own; never raises for what the server does.

    leave_after_bytes: close the connection once so many bytes of the answer have come.
    """
    answer = _Answer()
    began_s = time.monotonic()
    seen = Seen(request_id=request_id, body=body, outcome=Outcome.RESET)
    try:
        async with asyncio.timeout(timeout_s):
            await _exchange(target, body, path, request_id, answer, leave_after_bytes, began_s)
        seen.outcome = answer.judge(bool(body.get("stream")))
    except TimeoutError:
        seen.outcome = Outcome.TIMEOUT
    except _LeftError:
        seen.outcome = Outcome.LEFT
    except (OSError, httptools.HttpParserError):
        seen.outcome = Outcome.RESET
    seen.seconds = time.monotonic() - began_s
    seen.status, seen.text, seen.headers = answer.status, answer.text, answer.headers
    seen.finish_reason, seen.error_code = answer.finish_reason, answer.error_code
    seen.named = answer.named
    seen.first_byte_s = answer.first_byte_s
    return seen


async def run_load(
    target: Target,
    *,
    models: Sequence[str],
    clients: int = 20,
    requests: int = 200,
    streams: float = 0.5,
    seed: int = 1,
    max_tokens: int = 16,
    timeout_s: float = 40.0,
    pause_s: float = 0.0,
    prefix: str = "load",
) -> list[Seen]:
    """Let so many clients ask until `requests` have been sent; return what they saw.

    streams: the share of streamed requests. Each prompt is unique, so a foreign answer shows.
    request ids are `<prefix>-<seed>-<number>`.
    """
    choice = random.Random(seed)
    plan = [(choice.choice(models), choice.random() < streams) for _ in range(requests)]
    numbers = iter(range(requests))
    seen: list[Seen] = []

    async def client() -> None:
        for number in numbers:
            model, stream = plan[number]
            request_id = f"{prefix}-{seed}-{number}"
            body = chat_body(model, f"{request_id} of {model}", stream, max_tokens)
            seen.append(await ask(target, body, request_id=request_id, timeout_s=timeout_s))
            if pause_s:
                await asyncio.sleep(pause_s)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(client())
    return seen


def chat_body(model: str, prompt: str, stream: bool, max_tokens: int = 16) -> dict[str, Any]:
    """Return a chat request."""
    messages = [{"role": "user", "content": prompt}]
    body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": max_tokens}
    return {**body, "stream": True} if stream else body


# Private


class _LeftError(Exception):
    """We closed the connection on purpose."""


class _Answer:
    """What httptools tells of an answer."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.whole = False
        self.body = b""
        self.text = ""
        self.named = ""
        self.finish_reason = ""
        self.error_code = ""
        self.first_byte_s: float | None = None
        self._pieces: list[bytes] = []
        self.parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        self.whole = True
        self.body = b"".join(self._pieces)

    def judge(self, stream: bool) -> Outcome:
        """Read the body, and say how the request ended."""
        self.body = b"".join(self._pieces)
        if stream and self.status == 200:
            verdict = self._read_events()
            return verdict if self.whole or verdict is not Outcome.SILENT_END else Outcome.RESET
        if not self.whole:
            return Outcome.RESET
        try:
            data = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return Outcome.HTTP_ERROR if self.status >= 400 else Outcome.SILENT_END
        if self.status >= 400:
            self._read_error(data)
            return Outcome.HTTP_ERROR
        self._read_choices(data)
        return Outcome.OK

    def _read_events(self) -> Outcome:
        failed = done = False
        for event in self.body.split(b"\n\n"):
            data = b"\n".join(
                line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")
            )
            if data == b"[DONE]":
                done = True
            elif data:
                try:
                    parsed = msgspec.json.decode(data)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue  # half an event: what follows decides
                failed = self._read_error(parsed) or failed
                self._read_choices(parsed)
        if failed:
            return Outcome.DONE_AFTER_ERROR if done else Outcome.ERROR_EVENT
        return Outcome.OK if done and self.finish_reason else Outcome.SILENT_END

    def _read_error(self, data: Any) -> bool:
        error = data.get("error") if isinstance(data, dict) else None
        if isinstance(error, dict):
            self.error_code = str(error.get("code", ""))
        return error is not None

    def _read_choices(self, data: Any) -> None:
        choices = data.get("choices") if isinstance(data, dict) else None
        if choices is not None:
            self.named = str(data.get("model", ""))
        for choice in choices or ():
            if choice.get("index") == 0:
                said = choice.get("message") or choice.get("delta") or choice
                self.text += said.get("content") or said.get("text") or ""
                self.finish_reason = choice.get("finish_reason") or self.finish_reason


async def _exchange(
    target: Target,
    body: Mapping[str, Any],
    path: str,
    request_id: str,
    answer: _Answer,
    leave_after_bytes: int | None,
    began_s: float,
) -> None:
    if target.socket:
        reader, writer = await asyncio.open_unix_connection(target.socket)
    else:
        reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        data = msgspec.json.encode(body)
        host = "localhost" if target.socket else f"{target.host}:{target.port}"
        lines = [f"POST {path} HTTP/1.1", f"host: {host}", f"x-request-id: {request_id}"]
        lines += ["content-type: application/json", f"content-length: {len(data)}"]
        lines += ["connection: close", *(f"{k}: {v}" for k, v in target.headers.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        received = 0
        while not answer.whole:
            piece = await reader.read(64 * 1024)
            if not piece:
                return
            if answer.first_byte_s is None:
                answer.first_byte_s = time.monotonic() - began_s
            received += len(piece)
            answer.parser.feed_data(piece)
            if leave_after_bytes is not None and received >= leave_after_bytes:
                raise _LeftError
    finally:
        writer.close()
