"""What to do when an attempt of a request fails: one pure function over words, nothing else."""

from enum import StrEnum

from hostler.core.errors import (
    HostlerError,
    ModelLoading,
    NoReadyInstance,
    UpstreamError,
    UpstreamTimeout,
    WorkerLost,
)

ERRORS_MAX = 2  # engines that answer 5xx to one request: then it is the request


class Failure(StrEnum):
    """How an attempt failed."""

    REFUSED = "refused"  # no connection: the engine never saw the request
    LOST = "lost"  # the connection ended after request bytes left and before the answer was whole
    WRONG_INSTANCE = "wrong_instance"  # somebody else answered
    CLIENT_ERROR = "client_error"  # the engine said 4xx
    ENGINE_ERROR = "engine_error"  # the engine said 5xx, and not only `not now`
    UNAVAILABLE = "unavailable"  # 503; 502 or 504 without a reason of the engine's own
    UNUSABLE = "unusable"  # a status or content type that makes no sense
    SILENT = "silent"  # the deadline passed
    GONE = "gone"  # the client left


class Action(StrEnum):
    """What happens next."""

    RETRY = "retry"  # on another instance
    FORWARD = "forward"  # the engine's own answer goes to the client
    FAIL = "fail"  # an error of ours goes to the client
    DROP = "drop"  # nobody is there to answer


def judge(
    failure: Failure,
    *,
    attempts: int,
    attempts_max: int,
    lost: int,
    lost_max: int,
    started: bool,
    errors: int = 1,
) -> Action:
    """Say what happens after an attempt failed.

    attempts: how many were made, this one included. lost: how many workers died with the request
    on board, this one included. started: an answer byte has gone to the client. errors: how many
    engines answered 5xx, this one included.

    The rules: a client that left gets nothing; an answer that has started is never continued by
    another instance (F02); a 4xx is the engine's decision and forwarded, a 5xx when a second
    engine says so too (F08); a request is on at most `lost_max` dying workers (F07); everything
    else is tried again while attempts last.
    """
    if failure is Failure.GONE:
        return Action.DROP
    if started or failure is Failure.SILENT:
        return Action.FAIL
    if failure is Failure.CLIENT_ERROR:
        return Action.FORWARD
    if failure is Failure.ENGINE_ERROR:
        again = errors < ERRORS_MAX and attempts < attempts_max
        return Action.RETRY if again else Action.FORWARD
    if failure is Failure.LOST and lost >= lost_max:
        return Action.FAIL
    return Action.RETRY if attempts < attempts_max else Action.FAIL


def final_error(failure: Failure) -> HostlerError:
    """Return what the client is told when a failure ends a request."""
    if failure is Failure.SILENT:
        return UpstreamTimeout()
    if failure is Failure.LOST:
        return WorkerLost()
    if failure is Failure.UNAVAILABLE:
        return NoReadyInstance("every engine asked says it cannot serve now", retry_after_s=2)
    if failure is Failure.WRONG_INSTANCE:
        return UpstreamError("another server answers at this instance's address")
    if failure is Failure.REFUSED:
        return UpstreamError("the worker does not accept connections")
    return UpstreamError()


def explain(error: HostlerError, after: Failure | None) -> HostlerError:
    """Return what the client is told when the router has nobody for another attempt.

    after: how the attempt before failed, if there was one.
    """
    nobody = isinstance(error, NoReadyInstance | ModelLoading)
    return final_error(after) if nobody and after is not None and after in _TELLING else error


# Private

# These failures are the news when nobody else can serve; after the others the router's words are.
_TELLING = frozenset({Failure.LOST, Failure.UNUSABLE, Failure.UNAVAILABLE})
