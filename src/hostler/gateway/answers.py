"""What of an engine's answer goes to a client: its headers, and its errors in one shape."""

from collections.abc import Iterable
from typing import Any

import msgspec

from hostler.core.errors import HostlerError, UpstreamError, envelope
from hostler.engines.dialect import code_of
from hostler.wire.exchange import error_headers
from hostler.wire.http1 import field_lines
from hostler.wire.relay import LOST_FIELD

Fields = list[tuple[bytes, bytes]]

JSON_FIELD = (b"content-type", b"application/json")
NO_RETRY = (b"x-should-retry", b"false")

# Header lines, ready to be sent.
JSON_LINES = field_lines([JSON_FIELD])
REFUSED_LINES = field_lines([JSON_FIELD, NO_RETRY])
STREAM_LINES = field_lines(
    [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    ]
)


class AnswerHead:
    """The header fields of an engine's answer that mean something here."""

    __slots__ = (
        "content_type",
        "encoding",
        "instance",
        "is_events",
        "is_json",
        "is_lost",
        "is_plain",
        "retry_after",
    )

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        fields = dict(headers)
        self.content_type = kind = fields.get(b"content-type", b"").lower()
        self.encoding = fields.get(b"content-encoding", b"").lower()
        self.is_json = kind.startswith(b"application/json")
        self.is_events = kind.startswith(b"text/event-stream")
        self.is_plain = self.encoding in (b"", b"identity")
        self.is_lost = LOST_FIELD in fields
        self.instance = fields.get(b"x-hostler-instance", b"")
        self.retry_after = fields.get(b"retry-after", b"")


def engine_error(body: bytes) -> dict[str, Any] | None:
    """Return the inside of an OpenAI error object, or None when the body is not one."""
    try:
        data = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    error = data.get("error") if isinstance(data, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return error
    return None


def shape_error(status: int, body: bytes) -> tuple[int, bytes]:
    """Return an engine's error in the shape of ours: status and body.

    An error object of the engine keeps its message and gets the missing members; anything else
    becomes a plain one that shows nothing of the body (it may hold paths or addresses).
    """
    error = engine_error(body)
    if error is None:
        if status < 500:
            return status, _object("the engine refused the request", None, "upstream_refused")
        return 502, envelope(UpstreamError())
    code = code_of(error) or "upstream_error"
    if isinstance(error.get("type"), str) and error.get("code") == code and "param" in error:
        return status, body
    param = error.get("param")
    return status, _object(
        error["message"], param if isinstance(param, str) else None, code, status
    )


def own_error(error: HostlerError) -> tuple[int, bytes, Fields]:
    """Return status, body and headers of an error of ours."""
    headers = list(error_headers(error))
    if error.http_status in (502, 504):
        headers.append(NO_RETRY)
    return error.http_status, envelope(error), headers


# Private


def _object(message: str, param: str | None, code: str, status: int = 400) -> bytes:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return msgspec.json.encode(
        {"error": {"message": message, "type": kind, "param": param, "code": code}}
    )
