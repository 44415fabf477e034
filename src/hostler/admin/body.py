"""Bodies and queries in: bounded, plain JSON, strict types; every mistake names its field."""

import difflib
import re
from typing import Any, TypeVar, get_origin, get_type_hints

import msgspec
from starlette.requests import ClientDisconnect, Request

from hostler.core.errors import (
    BadRequest,
    InvalidJSON,
    RequestTooLarge,
    UnknownParameter,
    UnsupportedMediaType,
)

S = TypeVar("S", bound=msgspec.Struct)
Q = TypeVar("Q", bound=msgspec.Struct)

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
        raise _explained(str(error), kind) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidJSON(f"the body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidJSON("the body is nested too deeply") from error


def read_query(request: Request, kind: type[Q]) -> Q:
    """Return the query as this type. Every field may be given once."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in given:
            raise BadRequest(f"{name[:80]}: given twice in the address", param=name[:80])
        given[name] = value
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _explained(str(error), kind) from error


# Private

_WHERE = re.compile(r"\A(.*?)(?: - at `(?:key in )?\$\.?([^`]*)`)?\Z", re.S)
_UNKNOWN = re.compile(r"\AObject contains unknown field `(.*)`\Z", re.S)
_MISSING = re.compile(r"\AObject missing required field `(.*)`\Z", re.S)


def _explained(text: str, kind: type[msgspec.Struct]) -> BadRequest:
    """Say which field is wrong and how, from msgspec's text."""
    match = _WHERE.match(text)
    what, where = match.groups() if match else (text, None)
    if unknown := _UNKNOWN.match(what):
        return _unknown_field(unknown[1], _inside(kind, where))
    if missing := _MISSING.match(what):
        name = f"{where}.{missing[1]}" if where else missing[1]
        return BadRequest(f"{name}: missing", param=name)
    message = what[:1].lower() + what[1:]
    if where is None:
        return BadRequest(f"the body: {message}")
    return BadRequest(f"{where}: {message}", param=where)


def _unknown_field(name: str, kind: type[msgspec.Struct] | None) -> UnknownParameter:
    known = [field.encode_name for field in msgspec.structs.fields(kind)] if kind else []
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        hint = f"did you mean {near[0]!r}?"
    else:
        hint = f"known: {', '.join(known)}" if known else "none is known here"
    shown = name[:80]
    return UnknownParameter(f"unknown field {shown!r}; {hint}", param=shown)


def _inside(kind: type[msgspec.Struct], where: str | None) -> type[msgspec.Struct] | None:
    """Return the struct at this place of another, None when it is not a struct."""
    found: Any = kind
    for name in (where or "").split("."):
        if name:
            found = get_type_hints(found).get(name) if _is_struct(found) else None
    return found if _is_struct(found) else None


def _is_struct(kind: Any) -> bool:
    return get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, msgspec.Struct)
