"""How many examples a property is tried with."""

from tests.conftest import PROFILE

COMPILED = (
    "compiled"  # a profile of hypothesis: the compiled modules, whose sources pass all examples
)
_LESS = 5


def many(count: int) -> int:
    """So many; of the compiled modules a fifth: that they do what their sources do is tried by every test."""
    return count // _LESS if PROFILE == COMPILED else count
