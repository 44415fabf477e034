"""holds and leading_number: scans of a few bytes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.wire.scan import DIGITS_MAX, holds, leading_number
from tests.amounts import many

few = st.lists(st.sampled_from([b"a", b"b", b'"', b"ab"]), max_size=12).map(b"".join)


@settings(max_examples=many(200), deadline=None)
@given(data=few, mark=few.filter(bool))
def test_a_mark_is_held_when_it_occurs(data: bytes, mark: bytes) -> None:
    assert holds(data, mark) is (mark in data)


@settings(max_examples=many(200), deadline=None)
@given(before=few, number=st.integers(0, 10**DIGITS_MAX - 1), zeros=st.integers(0, 3), after=few)
def test_a_number_is_read_to_its_last_digit(
    before: bytes, number: int, zeros: int, after: bytes
) -> None:
    digits = (b"0" * zeros + str(number).encode())[-DIGITS_MAX:]
    data = before + digits + after
    assert leading_number(data, len(before)) == (int(digits), len(before) + len(digits))


def test_what_is_no_number_ends_where_it_begins() -> None:
    assert leading_number(b"x7", 0) == (0, 0)
    assert leading_number(b"7", 1) == (0, 1)
    assert leading_number(b"-7", 0) == (0, 0)
    assert leading_number("٣".encode(), 0) == (0, 0)


def test_more_digits_than_a_length_has_are_left_over() -> None:
    assert leading_number(b"9" * (DIGITS_MAX + 2), 0) == (10**DIGITS_MAX - 1, DIGITS_MAX)
