"""A whole answer put together from a stream: for engines that notice a lost client only while they stream.

llama.cpp looks at a client's socket when it has something to send. A request without a stream is
computed to its end although nobody waits, and so is a long prompt; asked for a stream with progress it
looks after each batch (figures: docs/design/gateway.md). Light: no engine is imported here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from hostler.core.errors import UpstreamError
from hostler.core.request import Body, Route, choices_of

ASSEMBLED_BYTES = 64 * 1024 * 1024  # of the events of one answer; a bound, not a budget
ASSEMBLED_ROUTES = frozenset({Route.CHAT, Route.COMPLETIONS})
PROGRESS = b'"prompt_progress":{'
_PROGRESS_FIELD = "return_progress"


def can_assemble(body: Body) -> bool:
    """Can a whole answer to this be put together from a stream?

    Not when the assistant's last words are parts, which the engine joins by rules of its own.
    """
    return not isinstance(_last_words(body), list)


def with_progress(route: Route, body: Body) -> Body:
    """Return the body for an engine that `reports_progress`: it notices when its client leaves."""
    if route not in ASSEMBLED_ROUTES:
        return body
    if body.get("stream") is True:
        return {**body, _PROGRESS_FIELD: True}
    if not can_assemble(body):
        return body
    options = {"include_usage": True}
    return {**body, "stream": True, _PROGRESS_FIELD: True, "stream_options": options}


def wants_progress(body: Body) -> bool:
    """Did the client itself ask for reports of progress?"""
    return body.get(_PROGRESS_FIELD) is True


def without_progress(events: bytes) -> bytes:
    """Return whole events without those that only report progress."""
    kept = [event for event in events.split(b"\n\n") if event and PROGRESS not in event]
    return b"".join([event + b"\n\n" for event in kept])


class Assembly:
    """One answer, as far as its stream has come. Its shape is what the engine answers unstreamed.

    error: the engine's error object, when that was the end. usages: what the engine told of each choice.
    """

    __slots__ = ("_choices", "_finished", "_head", "_is_chat", "_is_done", "_owed", "_prefix", "_size",
                 "_tail", "error", "usages")  # fmt: skip

    def __init__(self, route: Route, body: Body) -> None:
        self._is_chat = route is Route.CHAT
        self._owed = choices_of(body)
        words = _last_words(body) if self._is_chat else ""
        self._prefix = words if isinstance(words, str) else ""
        self._choices: dict[int, _Choice] = {}
        self._finished = -1  # the choice that ended last
        self._head: dict[str, Any] = {}
        self._tail: dict[str, Any] = {}
        self._size = 0
        self._is_done = False
        self.error: Mapping[str, Any] | None = None
        self.usages: list[Mapping[str, Any]] = []  # of each choice

    @property
    def is_complete(self) -> bool:
        """Has every choice ended, and the stream with them?"""
        ended = sum(1 for choice in self._choices.values() if choice.finish is not None)
        return self._is_done and ended >= self._owed and self.error is None

    @property
    def status(self) -> int:
        """The status of the answer, had it not been streamed."""
        code = self.error.get("code") if self.error is not None else 200
        return code if isinstance(code, int) and 200 <= code < 600 else 500

    def error_body(self) -> bytes:
        """The engine's error as an answer."""
        return msgspec.json.encode({"error": self.error})

    def take(self, events: bytes) -> None:
        """Take whole events.

        Raises:
            UpstreamError: what came is no chunk of an answer, or is too much.
        """
        self._size += len(events)
        if self._size > ASSEMBLED_BYTES:
            raise UpstreamError("the engine's answer is too long")
        for payload in _payloads(events):
            if payload == b"[DONE]":
                self._is_done = True
                continue
            if PROGRESS in payload:
                continue
            try:
                chunk = msgspec.json.decode(payload, type=dict[str, Any])
                self._take(chunk)
            except (
                msgspec.MsgspecError,
                ValueError,
                RecursionError,
                TypeError,
                AttributeError,
            ) as error:
                raise UpstreamError("the engine sent a chunk that makes no sense") from error

    def body(self) -> bytes:
        """The whole answer."""
        choices = [
            choice.chat(index, self._prefix) if self._is_chat else choice.text(index)
            for index, choice in sorted(self._choices.items())
        ]
        head = {**self._head, "object": "chat.completion" if self._is_chat else "text_completion"}
        return msgspec.json.encode({"choices": choices, **head, **self._tail})

    # Private

    def _take(self, chunk: dict[str, Any]) -> None:
        error = chunk.get("error")
        if isinstance(error, dict):
            self.error = error
            return
        for found in chunk.pop("choices", None) or ():
            index = int(found.get("index") or 0)
            choice = self._choices.get(index)
            if choice is None:
                choice = self._choices[index] = _Choice()
            choice.take(found)
            if found.get("finish_reason") is not None:
                self._finished = index
        usage = chunk.pop("usage", None)
        timings = chunk.pop("timings", None)
        if isinstance(usage, dict):
            self.usages.append(usage)
        # several choices: the engine's own whole answer has the figures of the first
        if usage is not None and ("usage" not in self._tail or self._finished == 0):
            self._tail["usage"] = usage
            if timings is not None:
                self._tail["timings"] = timings
        if not self._head:
            self._head = chunk


# Private


class _Choice:
    """One choice of an answer."""

    __slots__ = ("_calls", "_logprobs", "_others", "_texts", "finish")

    def __init__(self) -> None:
        self.finish: Any = None
        self._texts: dict[str, list[str]] = {}
        self._others: dict[str, Any] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: dict[str, Any] = {}

    def take(self, found: Mapping[str, Any]) -> None:
        """Take one choice of a chunk."""
        delta = found.get("delta")
        for name, value in (delta if delta is not None else {"text": found.get("text")}).items():
            if value is None or name == "role":
                continue
            if name == "tool_calls":
                for call in value:
                    self._take_call(call)
            elif isinstance(value, str):
                self._texts.setdefault(name, []).append(value)
            else:
                self._others[name] = value
        for name, value in (found.get("logprobs") or {}).items():
            if isinstance(value, list):
                self._logprobs.setdefault(name, []).extend(value)
            else:
                self._logprobs[name] = value
        if found.get("finish_reason") is not None:
            self.finish = found["finish_reason"]

    def chat(self, index: int, prefix: str) -> dict[str, Any]:
        """This choice of a chat. prefix: the last words asked to go on from; the engine repeats them."""
        texts = {name: "".join(parts) for name, parts in self._texts.items()}
        content = prefix + texts.pop("content", "")
        message: dict[str, Any] = {"role": "assistant", "content": content, **texts, **self._others}
        if self._calls:
            message["tool_calls"] = [self._calls[number] for number in sorted(self._calls)]
        choice = {"finish_reason": self.finish, "index": index, "message": message}
        return {**choice, "logprobs": self._logprobs} if self._logprobs else choice

    def text(self, index: int) -> dict[str, Any]:
        """This choice of a completion."""
        text = "".join(self._texts.pop("text", ()))
        logprobs = self._logprobs or None
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": self.finish}

    # Private

    def _take_call(self, part: Mapping[str, Any]) -> None:
        """Take a part of a tool call: what is text in its function goes on, the rest is said once."""
        call = self._calls.setdefault(int(part.get("index") or 0), {})
        for name, value in part.items():
            if name == "function":
                function = call.setdefault("function", {})
                for key, text in value.items():
                    function[key] = function.get(key, "") + text if isinstance(text, str) else text
            elif name != "index" and value is not None:
                call[name] = value


def _last_words(body: Body) -> Any:
    """The content of a last message that the assistant is asked to go on from; "" when there is none."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        return ""
    return last.get("content") or ""


def _payloads(events: bytes) -> Iterator[bytes]:
    for line in events.splitlines():
        if line.startswith(b"data:"):
            yield line[5:].strip()
