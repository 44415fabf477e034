"""JSON as bytes: strict here means that every other reader agrees (F92)."""

import json
import math
from random import Random
from typing import Any

from hostler.core.errors import InvalidJSON
from hostler.core.request import encode_body
from hostler.wire.json import parse_json

SPLICES = [
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\u", b"\\ud800", b"\\udc00", b"\\u0000", b"NaN",
    b"Infinity", b"-", b"+1",
    b"1e999", b"-1e999", b"0x1", b"01", b"1.", b".5", b"1e", b"null", b"true", b"False", b"/*x*/", b"//",
    b"\xef\xbb\xbf", b"\xff",
    b"\x00", b"\n", b"\t", b" ", b"\xc0\x80", b"\xed\xa0\x80", b"9" * 400, b"1" + b"0" * 30, b"'",
    b"[" * 70, b'{"a":' * 70,
    b"18446744073709551615", b"18446744073709551616", b"-9223372036854775808", b"-9223372036854775809",
    b"1e5", b"0.1",
]  # fmt: skip


class Texts:
    """Texts that are nearly JSON."""

    def check(self, rng: Random) -> bytes:
        """Make a text and check how it is read. Raises AssertionError."""
        data = json.dumps(_value(rng, 4), ensure_ascii=rng.random() < 0.5).encode()
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            at = rng.randint(0, len(data))
            splice = rng.choice(SPLICES) if rng.random() < 0.9 else rng.randbytes(3)
            data = data[:at] + splice + data[at + rng.choice((0, 0, 1, 2)) :]
        check_text(data)
        return data


def check_text(data: bytes) -> None:
    """A text that is taken here reads the same elsewhere, before and after it is written again.

    Raises:
        AssertionError
    """
    try:
        value = parse_json(data)
    except InvalidJSON:
        return
    other = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    assert _same(value, other), data
    again = encode_body(value) if isinstance(value, dict) else None
    if again is not None:
        assert _same(json.loads(again.decode("utf-8"), parse_constant=_refuse), other), data


# Private


def _refuse(name: str) -> float:
    raise AssertionError(f"{name} was let through")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(_same(value, other[key]) for key, value in one.items())
        )
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool) or one is None or isinstance(one, str):
        return type(one) is type(other) and one == other
    return bool(math.isfinite(one) and one == other)


def _value(rng: Random, depth: int) -> Any:
    kind = rng.randrange(8 if depth else 6)
    match kind:
        case 0:
            return rng.choice((None, True, False))
        case 1:
            return rng.choice((0, -1, 2**63, 2**64 - 1, -(2**63), rng.randint(-(10**6), 10**6)))
        case 2:
            return rng.choice((0.5, -1e-7, 1.7e308, rng.random()))
        case 3 | 4 | 5:
            return rng.choice(
                ("", "model", "é", "\U0001f40e", '"', "\\", "\n", "a" * rng.randint(0, 40))
            )
        case 6:
            return [_value(rng, depth - 1) for _ in range(rng.randint(0, 3))]
        case _:
            return {
                rng.choice(("a", "b", "model", "é")): _value(rng, depth - 1)
                for _ in range(rng.randint(0, 3))
            }
