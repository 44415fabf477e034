"""What a client's connection waits for, and how long that may take."""

from enum import IntEnum
from typing import Final

from hostler.app.config import HttpLimits
from hostler.core.errors import RequestTimeout

LINGER_S = 1.0  # how long a refused client may go on sending before it is cut


class Phase(IntEnum):
    """What a connection waits for."""

    IDLE = 0  # a request's first byte
    HEAD = 1  # the rest of a head
    BODY = 2  # the rest of a body
    BUSY = 3  # the answer
    LINGER = 4  # the end: everything is said, what still comes is dropped


# The same as plain names: to compiled code a constant, where a member is a look-up each time.
IDLE: Final = Phase.IDLE
HEAD: Final = Phase.HEAD
BODY: Final = Phase.BODY
BUSY: Final = Phase.BUSY
LINGER: Final = Phase.LINGER


def judge_slow(
    phase: Phase, age_s: float, received: int, limits: HttpLimits
) -> RequestTimeout | None:
    """Say whether a head or a body comes too slowly (F90). received: bytes of the body so far."""
    if phase is HEAD:
        if age_s > limits.header_timeout_s:
            return RequestTimeout("the request's head did not arrive in time")
        return None
    is_dripping = age_s > limits.body_grace_s and received < limits.body_rate_bytes * age_s
    if is_dripping or age_s > limits.body_timeout_s:
        return RequestTimeout("the request's body did not arrive in time")
    return None
