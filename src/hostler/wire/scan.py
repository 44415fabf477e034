"""Scans of a few bytes that every request passes, as fast as Python lets us ask."""

from typing import Final

DIGITS_MAX: Final = 18  # of a length: fewer than a machine's number holds
HEX_MAX: Final = 6  # of the size of a chunk; longer ones are read the long way


def holds(data: bytes, mark: bytes) -> bool:
    """Whether `mark` occurs in `data`.

    `rpartition`, since it takes half the time: `find` reads its arguments by a format, `in` tries the
    mark as a number first, and both search forward, which sets up a table before it begins.
    """
    return len(data.rpartition(mark)[1]) > 0


def leading_number(data: bytes, start: int) -> tuple[int, int]:
    """Return the decimal number that begins at `start`, of at most DIGITS_MAX digits, and where it ends.

    Ends at `start` when there is none.
    """
    number, at = 0, start
    last = min(start + DIGITS_MAX, len(data))
    while at < last:
        byte = data[at]
        if not 0x30 <= byte <= 0x39:
            break
        number = number * 10 + byte - 0x30
        at += 1
    return number, at


def leading_hex(data: bytes, start: int) -> tuple[int, int]:
    """Return the hexadecimal number of at most HEX_MAX digits that begins at `start`, and where it ends.

    Ends at `start` when there is none. Number by number, which is what compiled code does best.
    """
    number, at = 0, start
    last = min(start + HEX_MAX, len(data))
    while at < last:
        byte = data[at]
        if 0x30 <= byte <= 0x39:
            number = number * 16 + byte - 0x30
        elif 0x61 <= byte | 0x20 <= 0x66:
            number = number * 16 + (byte | 0x20) - 0x57
        else:
            break
        at += 1
    return number, at
