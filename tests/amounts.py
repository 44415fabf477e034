"""How many examples a property is tried with."""

from tests.chaos.figures import IS_LONG
from tests.conftest import PROFILE

_LESS = 5


def many(count: int) -> int:
    """So many with `HOSTLER_LONG=1` and in a soak, else a fifth: each run makes other ones."""
    return count if IS_LONG or PROFILE == "soak" else count // _LESS
