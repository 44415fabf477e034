"""parse_json: strict JSON, and only what can be written again (F92)."""

from typing import Any, Final

import msgspec

from hostler.core.errors import InvalidJSON

DEPTH = 64

_decode: Final = msgspec.json.Decoder().decode
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_BRACES_TO_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
_LONG_NUMBER = b"0" * 19  # a 64-bit number has at most 20 digits; shorter ones always fit
_FLAT: Final = 3  # levels of what is flat
_MOST, _LEAST = 2**64 - 1, -(2**63)


def parse_json(body: bytes, depth: int = DEPTH) -> Any:
    """Return the value of a JSON text. Repeated keys: the last one counts.

    depth: how deep arrays and objects may be nested.

    Raises:
        InvalidJSON: not JSON in UTF-8; a byte order mark; NaN, Infinity or a number beyond 64 bits
            or a double; a lone surrogate; nested too deeply. Never anything else, and whatever is
            returned can be encoded again.
    """
    value = parse_json_to_encode(body, depth)
    if _LONG_NUMBER in body.translate(_DIGITS_TO_ZERO) and _has_large_integer(value):
        raise large_integer()
    return value


def parse_json_to_encode(body: bytes, depth: int) -> Any:
    """As `parse_json`, but an integer beyond 64 bits stands: to encode it raises OverflowError."""
    try:
        value = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InvalidJSON(_reason(error)) from None
    if depth >= _FLAT and _is_flat(value):
        return value
    if _opens_more(body, depth) and _is_deeper(body, depth):
        raise InvalidJSON(f"the body is nested more than {depth} deep")
    return value


def large_integer() -> InvalidJSON:
    """The error of a body with a number that no engine could be sent."""
    return InvalidJSON("the body holds an integer that does not fit into 64 bits")


# Private


def _is_flat(value: Any) -> bool:
    """Is it an object of plain members, or of lists of plain objects, as most requests are?"""
    if type(value) is not dict:
        return False
    for item in value.values():
        if type(item) is list:
            for one in item:
                if type(one) is list:
                    return False
                if type(one) is dict:
                    for inner in one.values():
                        if type(inner) is list or type(inner) is dict:
                            return False
        elif type(item) is dict:
            return False
    return True


def _opens_more(body: bytes, most: int) -> bool:
    """Does the text have more brackets and braces than so many? Most have a few, and are long."""
    left = most
    for opener in (b"[", b"{"):
        place = body.find(opener)
        while place >= 0:
            left -= 1
            if left < 0:
                return True
            place = body.find(opener, place + 1)
    return False


def _is_deeper(body: bytes, depth: int) -> bool:
    """Is the text nested deeper? Exact for JSON; for other texts either answer will do."""
    text = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure = text.translate(_BRACES_TO_BRACKETS, _NOT_STRUCTURE)
    outside = b"".join(structure.split(b'"')[::2])  # every other part lies outside a string
    for _ in range(depth):  # each pass removes the innermost level everywhere
        if not outside:
            return False
        outside = outside.replace(b"[]", b"")
    return bool(outside)


def _has_large_integer(value: Any) -> bool:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, int) and not _LEAST <= item <= _MOST:
            return True
    return False


def _reason(error: Exception) -> str:
    """What is wrong, without a piece of the body in it."""
    if isinstance(error, UnicodeDecodeError):
        return "the body is not UTF-8"
    if isinstance(error, RecursionError):
        return "the body is nested too deeply"
    return f"the body is not valid JSON: {error}"
