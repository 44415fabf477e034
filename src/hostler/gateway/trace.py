"""Trace: the W3C trace context of a request, passed on to its engine. Not here: spans (spans.py).

Source: W3C Trace Context, level 2. A header that is not well formed counts as none.
"""

import re
import secrets
from collections.abc import Mapping

STATE_BYTES = 512  # of a tracestate that is passed on


class Trace:
    """Where a request stands in a trace. span_id: of its span here; parent_id: b"" when it begins here."""

    __slots__ = ("flags", "parent_id", "span_id", "state", "trace_id")

    def __init__(
        self, trace_id: bytes, parent_id: bytes, span_id: bytes, flags: bytes, state: bytes
    ) -> None:
        self.trace_id = trace_id
        self.parent_id = parent_id
        self.span_id = span_id
        self.flags = flags
        self.state = state

    @property
    def is_sampled(self) -> bool:
        return bool(int(self.flags, 16) & 1)

    def lines(self) -> bytes:
        """The header lines for the engine."""
        parent = self.span_id or self.parent_id
        state = b"tracestate: %b\r\n" % self.state if self.state else b""
        return b"traceparent: 00-%b-%b-%b\r\n%b" % (self.trace_id, parent, self.flags, state)


def read_trace(fields: Mapping[bytes, bytes]) -> Trace | None:
    """Return the trace that a request belongs to; None when it names none."""
    given = fields.get(b"traceparent")
    found = _PARENT.fullmatch(given) if given is not None else None
    if found is None:
        return None
    state = fields.get(b"tracestate", b"")
    if len(state) > STATE_BYTES or not _STATE.fullmatch(state):
        state = b""
    return Trace(found[1], found[2], b"", found[3], state)


def span_of(fields: Mapping[bytes, bytes]) -> Trace:
    """Return the place of a new span: below the one that the client names, or at the root."""
    trace = read_trace(fields)
    span_id = secrets.token_hex(8).encode()
    if trace is None:
        return Trace(secrets.token_hex(16).encode(), b"", span_id, b"01", b"")
    trace.span_id = span_id
    return trace


# Private

_PARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
)
_STATE = re.compile(rb"[\x20-\x7e]*")
