"""Bodies in: bounded, plain JSON, strict types; every mistake names its field."""

from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from hostler.core.errors import (
    BadRequest,
    InvalidJSON,
    RequestTooLarge,
    UnsupportedMediaType,
)
from hostler.wire.structs import explained

S = TypeVar("S", bound=msgspec.Struct)

BODY_BYTES = 1024 * 1024  # an order to a model is a few lines; 1 MiB leaves room for parameters


async def read_body(request: Request, kind: type[S]) -> S:
    """Return the request's body as this type.

    Raises:
        UnsupportedMediaType: not `application/json`, or compressed.
        RequestTooLarge, InvalidJSON, UnknownParameter; BadRequest with the field in `param`.
    """
    media = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if media != "application/json":
        raise UnsupportedMediaType(
            f"the body must have content-type application/json, not {media[:80] or 'none'}"
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType
    data = bytearray()
    try:
        async for part in request.stream():
            data += part
            if len(data) > BODY_BYTES:
                raise RequestTooLarge(f"the body is over {BODY_BYTES} bytes")
    except ClientDisconnect as error:
        raise BadRequest("the client left before its request was complete") from error
    return decode(bytes(data), kind)


def decode(data: bytes, kind: type[S]) -> S:
    """Return these JSON bytes as this type; see `read_body` for what it raises."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise explained(str(error), kind) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidJSON(f"the body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidJSON("the body is nested too deeply") from error
