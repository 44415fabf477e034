"""Job: a judged inference request on its way to an engine."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

from hostler.core.request import Body, Route, choices_of, encode_body
from hostler.core.serving import Priority
from hostler.core.snapshot import KeyView, ModelView
from hostler.engines.assembly import with_progress
from hostler.engines.dialect import Dialect
from hostler.gateway.prompts import chat_head, prompt_head, prompt_tokens, session_of
from hostler.routing.prefix import HEAD_BYTES, hash_blocks


class Job:
    """What is asked, of which model, by whom: an Ask by its shape.

    Holds the parsed body: what was judged is what is sent.

    route_name: for metrics and logs. path: of the engine, if it is not the route's own.
    choices: how many choices a stream owes. key: who asks. fields: the headers it came with.
    asked: the model that the client named, also when another one answers. turn: why that one does.
    trace_lines: headers that tell the engine of the trace this belongs to.
    asks_usage: the engine of a stream is asked for its usage, also when the client did not.
    """

    __slots__ = (
        "_blocks",
        "_encoded",
        "_encoded_for",
        "_fingerprint",
        "_priority",
        "_prompt_tokens",
        "asked",
        "asks_usage",
        "body",
        "choices",
        "fields",
        "key",
        "model",
        "path",
        "request_id",
        "route",
        "route_name",
        "stream",
        "trace_lines",
        "turn",
    )

    def __init__(
        self,
        model: ModelView,
        route: Route,
        body: Body,
        *,
        key: KeyView,
        priority: Priority,
        request_id: str,
        fields: Mapping[bytes, bytes],
        path: str = "",
        asked: str = "",
    ) -> None:
        self.model = model
        self.asked = asked or model.name
        self.turn = ""
        self.route = route
        self.route_name = path or _NAMES[route]
        self.path = path
        self.body = body
        self.key = key
        self.fields = fields
        self._priority = priority
        self.request_id = request_id
        self.stream = body.get("stream") is True
        self.choices = choices_of(body) if self.stream else 1
        self.asks_usage = False
        self.trace_lines = b""
        self._encoded = b""
        self._encoded_for = ""
        self._fingerprint = b""
        self._blocks: tuple[int, ...] | None = None
        self._prompt_tokens = -1

    def hides_usage(self, dialect: Dialect) -> bool:
        """Is the engine asked for the usage of the stream, for which its client did not ask?"""
        if not (self.asks_usage and self.stream and dialect.tells_usage):
            return False
        return (self.body.get("stream_options") or _NO_OPTIONS).get("include_usage") is not True

    def encoded(self, upstream_model: str, dialect: Dialect) -> bytes:
        """The body for an engine that knows the model by this name ("": by ours)."""
        name = upstream_model or self.model.name
        if self._encoded_for != name:
            self.body["model"] = name
            body = self.body
            if dialect.reports_progress and not self.path:
                body = with_progress(self.route, body)
            if self.hides_usage(dialect):
                options = {**(body.get("stream_options") or _NO_OPTIONS), "include_usage": True}
                body = {**body, "stream_options": options}
            self._encoded = encode_body(body)
            self._encoded_for = name
        return self._encoded

    def go_on_from(self, body: Body) -> None:
        """Ask for the rest of what was begun. For the quarantine and its usage it stays the same request."""
        self._fingerprint, self._prompt_tokens = self.fingerprint, self.prompt_tokens
        self.body, self._encoded_for = body, ""

    def turned_to(self, model: ModelView) -> "Job":
        """Return the same request for another model, whose rules have judged it."""
        job = Job(
            model,
            self.route,
            self.body,
            key=self.key,
            priority=self._priority,
            request_id=self.request_id,
            fields=self.fields,
            path=self.path,
            asked=self.asked,
        )
        job._fingerprint, job._blocks = self._fingerprint, self._blocks
        job.asks_usage = self.asks_usage
        job.trace_lines = self.trace_lines
        return job

    @property
    def key_id(self) -> str:
        return self.key.key_id

    @property
    def session(self) -> bytes:
        return session_of(self.fields, self.body)

    @property
    def prompt_tokens(self) -> int:
        if self._prompt_tokens < 0:
            self._prompt_tokens = 0 if self.path else prompt_tokens(self.route, self.body)
        return self._prompt_tokens

    @property
    def blocks(self) -> tuple[int, ...]:
        if self._blocks is None:
            if self.path:
                head = b""
            elif self.route is _CHAT:
                head = chat_head(self.body, self._encoded, HEAD_BYTES)
            else:
                head = prompt_head(self.route, self.body, HEAD_BYTES)
            self._blocks = hash_blocks(head)
        return self._blocks

    @property
    def weight(self) -> float:
        return self.key.weight

    @property
    def priority(self) -> Priority:
        return self._priority

    @property
    def fingerprint(self) -> bytes:
        """Names this request of this key, for the quarantine; equal bodies have equal ones.

        A request that another model answers keeps its own, so that its losses there count too.
        """
        if not self._fingerprint:
            self.body["model"] = self.asked
            self._encoded_for = ""
            digest = blake2b(self.key_id.encode(), digest_size=16)
            digest.update(self.route_name.encode())
            digest.update(encode_body(self.body))
            self._fingerprint = digest.digest()
        return self._fingerprint


# Private

_NO_OPTIONS: Body = {}
_CHAT: Final = Route.CHAT  # as plain names: see wire/phase.py
_NAMES: Final = {route: route.value for route in Route}
