"""From a query, or from what msgspec says of a body, to a struct or a mistake that names its field."""

import re
from difflib import get_close_matches
from typing import Any, TypeVar, get_origin, get_type_hints
from urllib.parse import parse_qsl

import msgspec

from hostler.core.errors import BadRequest, UnknownParameter

S = TypeVar("S", bound=msgspec.Struct)

QUERY_FIELDS = 20  # no address of ours takes so many


def read_query(text: str, kind: type[S]) -> S:
    """Return the part of an address after `?` as this type. Every field may be given once.

    Raises:
        UnknownParameter; BadRequest with the field in `param`.
    """
    given: dict[str, str] = {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=QUERY_FIELDS)
    except ValueError as error:
        raise BadRequest(f"the address after `?`: more than {QUERY_FIELDS} fields") from error
    for name, value in pairs:
        if name in given:
            raise BadRequest(f"{name[:80]}: given twice in the address", param=name[:80])
        given[name] = value
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise explained(str(error), kind) from error


def explained(text: str, kind: type[msgspec.Struct]) -> BadRequest:
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


# Private

_WHERE = re.compile(r"\A(.*?)(?: - at `(?:key in )?\$\.?([^`]*)`)?\Z", re.S)
_UNKNOWN = re.compile(r"\AObject contains unknown field `(.*)`\Z", re.S)
_MISSING = re.compile(r"\AObject missing required field `(.*)`\Z", re.S)


def _unknown_field(name: str, kind: type[msgspec.Struct] | None) -> UnknownParameter:
    known = [field.encode_name for field in msgspec.structs.fields(kind)] if kind else []
    near = get_close_matches(name, known, n=1, cutoff=0.5)
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
