"""Continuation: a stream whose worker died goes on at another, from what was already said.

Only where an operator asked for it (`routing.continue_streams`). The client sees one stream: one id,
one role, one usage; a comment says where it went on. What was said is kept here, and nowhere else.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.core.request import Body, Route
from hostler.engines.dialect import Continuing, Dialect
from hostler.gateway.job import Job
from hostler.gateway.usage import Used
from hostler.wire.sse import data_event, split_events

SAID_BYTES = 1024 * 1024  # of an answer that can go on
MARK = b": continued by another instance\n\n"

# What changes how text is made, or what it must be: half of it cannot be given as a beginning.
_NEVER = frozenset(
    {"tools", "functions", "response_format", "grammar", "json_schema", "structured_outputs",
     "guided_json", "guided_regex", "guided_choice", "guided_grammar", "regex", "ebnf", "echo",
     "suffix", "logprobs", "best_of", "use_beam_search", "n_probs", "min_tokens"}
)  # fmt: skip
_LIMITS = ("max_completion_tokens", "max_tokens", "n_predict")


def can_continue(job: Job) -> bool:
    """Is this a stream that could go on, should its worker die?"""
    if not job.stream or job.choices != 1 or job.path:
        return False
    body = job.body
    if any(body.get(name) not in (None, False) for name in _NEVER):
        return False
    if job.route is Route.COMPLETIONS:
        return isinstance(body.get("prompt"), str)
    messages = body.get("messages")
    last = messages[-1] if job.route is Route.CHAT and isinstance(messages, list) else None
    if not isinstance(last, dict):
        return False
    return last.get("role") != "assistant" or isinstance(last.get("content"), str)


class Continuation:
    """What one stream has said."""

    __slots__ = ("_asked", "_base", "_has_role", "_is_over", "_said", "_size", "_tokens", "_turn_tokens",
                 "is_continued")  # fmt: skip

    def __init__(self, asked: Body) -> None:
        self._asked = asked
        self._said: list[str] = []
        self._size = 0
        self._tokens = 0  # in _said, as chunks tell them
        self._turn_tokens = 0  # of them, how many before this attempt
        self._base: Mapping[str, Any] = {}  # what names the stream: id, created, model ...
        self._has_role = False
        self._is_over = False  # its end was said, or something that cannot go on
        self.is_continued = False

    def go_on(self, job: Job, dialect: Dialect) -> bool:
        """Let the job ask for the rest, where an engine of this dialect can go on from here."""
        limit = self._limit()
        if self._is_over or not self._said or dialect.continuing is Continuing.NO:
            return False
        if not job.model.routing.continue_streams:  # another model's, by now
            return False
        if limit is not None and limit <= self._tokens:
            return False
        self.is_continued = True
        job.go_on_from(self._body(job.route, dialect))
        return True

    def see(self, events: bytes) -> bytes:
        """Take whole events of an engine; return them as the client's stream has them."""
        return b"".join([self._see_one(event) for event in split_events(events)])

    def begin(self) -> None:
        """The attempt that goes on begins: what was said until now is none of it."""
        self._turn_tokens = self._tokens

    @property
    def tokens_before(self) -> int:
        """Said by the engines before the last one; each was a piece."""
        return self._turn_tokens

    def used(self, last: Used) -> Used:
        """The tokens of the whole stream. last: those of its last engine, or as they were counted here."""
        before = self._turn_tokens
        prompt = last.prompt if last.is_estimated else max(0, last.prompt - before)
        completion = last.completion + before
        return Used(prompt, completion, last.cached, is_estimated=last.is_estimated)

    # Private

    def _see_one(self, event: bytes) -> bytes:
        if not event.startswith(b"data:") or event[5:].strip() == b"[DONE]":
            return event
        try:
            chunk = msgspec.json.decode(event[5:])
            is_news = self._note(chunk)
        except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError, TypeError, KeyError):
            self._is_over = True
            return event
        if not self.is_continued:
            if not self._base:
                names = ("id", "created", "model", "system_fingerprint")
                self._base = {name: chunk[name] for name in names if name in chunk}
            return event
        return data_event(msgspec.json.encode({**chunk, **self._base})) if is_news else b""

    def _note(self, chunk: dict[str, Any]) -> bool:
        """Note what a chunk says; return whether it is anything. Its role and usage are put right."""
        usage = chunk.get("usage")
        if usage and self.is_continued:
            self._correct(usage)
        is_news = bool(usage) or "error" in chunk
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if self.is_continued and self._has_role:
                delta.pop("role", None)
            self._has_role = self._has_role or "role" in delta
            text = choice["text"] if "text" in choice else delta.get("content")
            if text:
                self._said.append(text)
                self._size += len(text)
                self._tokens += 1
                is_news = True
            odd = [v for k, v in delta.items() if k not in ("role", "content") and v]
            if choice.get("finish_reason") is not None or odd or self._size > SAID_BYTES:
                self._is_over = is_news = True
        return is_news

    def _correct(self, usage: dict[str, Any]) -> None:
        """The tokens that were said before are no prompt of the client's."""
        before = self._turn_tokens
        usage["prompt_tokens"] = max(0, usage.get("prompt_tokens", 0) - before)
        usage["completion_tokens"] = usage.get("completion_tokens", 0) + before

    def _body(self, route: Route, dialect: Dialect) -> Body:
        """What is asked of the next engine."""
        body, said = dict(self._asked), "".join(self._said)
        if route is Route.COMPLETIONS:
            body["prompt"] = body["prompt"] + said
        else:
            messages = list(body["messages"])
            if messages[-1].get("role") == "assistant":
                said = messages.pop()["content"] + said
            body["messages"] = [*messages, {"role": "assistant", "content": said}]
            if dialect.continuing is Continuing.FLAGS:
                body["continue_final_message"], body["add_generation_prompt"] = True, False
        for name in _LIMITS:
            if type(body.get(name)) is int and body[name] > 0:
                body[name] -= self._tokens
        return body

    def _limit(self) -> int | None:
        limits = [self._asked.get(name) for name in _LIMITS]
        return min([n for n in limits if type(n) is int and n > 0], default=None)
