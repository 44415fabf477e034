"""Run a fuzzer: every case has a number, so one that fails can be made again alone."""

import time
from collections.abc import Callable
from random import Random

Check = Callable[[Random], bytes]


class Broken(AssertionError):
    """A case that failed: its number is in the message too."""

    number = 0


def run(name: str, check: Check, first: int, cases: int) -> float:
    """Check the cases of these numbers; return the seconds it took.

    Raises:
        Broken
    """
    began_s = time.monotonic()
    for number in range(first, first + cases):
        try:
            check(Random(f"{name} {number}"))
        except Exception as error:  # any kind: none may come out of what is fuzzed
            told = f"{name}: case {number}: {type(error).__name__}: {str(error)[:4000]}"
            broken = Broken(told)
            broken.number = number
            raise broken from error
    return time.monotonic() - began_s
