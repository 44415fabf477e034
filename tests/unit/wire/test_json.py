"""F92: strict JSON."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.core.errors import InvalidJSON
from hostler.wire.json import parse_json
from tests.amounts import many

REFUSED = [
    b"",
    b"NaN",
    b"[Infinity]",
    b"-Infinity",
    b"1e999",
    b"-1e999",
    b'"\\ud800"',
    b'"\\ude00"',
    b'{"\\ud83d":1}',
    b'"\xed\xa0\x80"',
    b'"\xff"',
    b"\xef\xbb\xbf{}",
    '{"a":1}'.encode("utf-16"),
    '{"a":1}'.encode("utf-16-le"),
    b"\x00",
    b'"\x00"',
    b"01",
    b"[1,]",
    b"{'a':1}",
    b'{"a":1} x',
    b"[" * 65 + b"]" * 65,
    b"[" * 1_000_000,
    b'{"a":' * 100_000,
    b"9" * 10_000,
    b"9" * 4_000,
    b"18446744073709551616",
    b"[-9223372036854775809]",
    b'{"a":{"b":[99999999999999999999999]}}',
    b"1" * 400 + b".5",
]


@pytest.mark.parametrize("body", REFUSED, ids=lambda body: repr(body[:24]))
def test_F92_what_is_not_strict_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJSON):
        parse_json(body)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b' {"a": [1, 2.5, null, true]} ', {"a": [1, 2.5, None, True]}),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b'"\\u0000"', "\x00"),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b"18446744073709551615", 2**64 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b'"9999999999999999999999999"', "9999999999999999999999999"),
        (b"[" * 64 + b"]" * 64, None),
        (b'["' + b"[" * 200 + b'"]', ["[" * 200]),
        (b'["' + b'\\"[' * 200 + b'\\n"]', ['"[' * 200 + "\n"]),
        (b'["' + b"\\\\" * 3 + b'", "' + b"{" * 99 + b'"]', ["\\\\\\", "{" * 99]),
        (b"[" + b"[]," * 500 + b"[]]", [[]] * 501),
    ],
    ids=lambda part: repr(part)[:24],
)
def test_F92_what_is_strict_json_is_read(body: bytes, value: Any) -> None:
    read = parse_json(body)
    if value is not None:
        assert read == value


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"]) | st.sampled_from('[]{}"\\')),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text('ab[{\\"'), inner, max_size=4)
    ),
    max_leaves=40,
)


@settings(max_examples=many(400), deadline=None)
@given(value=values, limit=st.integers(1, 6), ascii_only=st.booleans())
def test_F92_depth_is_counted_exactly_and_values_survive(
    value: Any, limit: int, ascii_only: bool
) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    if depth_of(value) > limit:
        with pytest.raises(InvalidJSON):
            parse_json(body, limit)
    else:
        assert parse_json(body, limit) == value


pieces = st.lists(
    st.sampled_from([b"{", b"}", b"[", b"]", b'"', b"\\", b"\\u", b"d8", b"00", b":", b",", b"1"])
    | st.sampled_from([b"e9", b"9" * 20, b"-", b".", b"null", b"NaN", b"\xff", b"\x00", b" ", b"a"])
    | st.binary(max_size=3),
    max_size=30,
).map(b"".join)


@settings(max_examples=many(3000), deadline=None)
@given(body=pieces)
def test_F92_any_bytes_are_refused_or_can_be_encoded_again(body: bytes) -> None:
    try:
        value = parse_json(body)
    except InvalidJSON:
        return
    assert parse_json(msgspec.json.encode(value)) == value
