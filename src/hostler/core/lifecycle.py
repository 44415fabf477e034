"""The life of one model instance: its states, the signals that move it, and nothing else.

No I/O and no clock here: every function takes what it needs and returns what is now true.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from hostler.core.errors import InvalidTransition


class State(StrEnum):
    PENDING = "pending"  # accepted, not placed yet
    FETCHING = "fetching"  # its files are on their way
    STARTING = "starting"  # process launched, engine loading
    READY = "ready"  # takes requests
    SUSPECT = "suspect"  # silent or failing its probe: no new requests
    DRAINING = "draining"  # finishes what it has
    FAILED = "failed"  # gone against our will; a new process may replace it
    STOPPED = "stopped"  # gone as asked; final


class Signal(StrEnum):
    # Orders: ours to give, so an unexpected one is a bug.
    FETCH = "fetch"
    LAUNCH = "launch"
    DRAIN = "drain"
    # Reports: they cross our orders on the wire, so an unexpected one is old news.
    LOADED = "loaded"
    LATE = "late"
    SEEN = "seen"
    LOST = "lost"
    EXITED = "exited"
    DRAINED = "drained"


ORDERS = frozenset({Signal.FETCH, Signal.LAUNCH, Signal.DRAIN})

TRANSITIONS: Mapping[tuple[State, Signal], State] = {
    (State.PENDING, Signal.FETCH): State.FETCHING,
    (State.PENDING, Signal.LAUNCH): State.STARTING,
    (State.PENDING, Signal.EXITED): State.FAILED,
    (State.PENDING, Signal.DRAIN): State.STOPPED,
    (State.FETCHING, Signal.LAUNCH): State.STARTING,
    (State.FETCHING, Signal.EXITED): State.FAILED,
    (State.FETCHING, Signal.DRAIN): State.STOPPED,
    (State.STARTING, Signal.LOADED): State.READY,
    (State.STARTING, Signal.LOST): State.FAILED,
    (State.STARTING, Signal.EXITED): State.FAILED,
    (State.STARTING, Signal.DRAIN): State.DRAINING,
    (State.READY, Signal.LATE): State.SUSPECT,
    (State.READY, Signal.LOST): State.FAILED,
    (State.READY, Signal.EXITED): State.FAILED,
    (State.READY, Signal.DRAIN): State.DRAINING,
    (State.SUSPECT, Signal.SEEN): State.READY,
    (State.SUSPECT, Signal.LOST): State.FAILED,
    (State.SUSPECT, Signal.EXITED): State.FAILED,
    (State.SUSPECT, Signal.DRAIN): State.DRAINING,
    (State.DRAINING, Signal.DRAINED): State.STOPPED,
    (State.DRAINING, Signal.LOST): State.STOPPED,
    (State.DRAINING, Signal.EXITED): State.STOPPED,
    (State.FAILED, Signal.DRAIN): State.STOPPED,
}

ALIVE = frozenset({State.STARTING, State.READY, State.SUSPECT, State.DRAINING})  # has a process


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One copy of a deployment, as the registry knows it.

    instance_id: random, of one process; a new process of the same replica has another one.
    replica: 0-based place among the copies of its model.
    epoch: +1 for each process started for (model, replica), also across controller restarts.
    generation: of the deployment that this process was started from.
    since_s: monotonic seconds of the registry's clock at the last move.
    """

    instance_id: str
    worker_key: str
    model_name: str
    replica: int = 0
    state: State = State.PENDING
    epoch: int = 1
    generation: int = 1
    since_s: float = 0.0
    reason: str = ""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A signal that reached the registry."""

    instance_id: str
    epoch: int
    signal: Signal
    at_s: float
    reason: str = ""


def advance(instance: Instance, event: Event) -> Instance:
    """Return the instance as it stands after the event; nothing else ever changes a state.

    Old news changes nothing: an event of an older epoch (a process we have replaced), or a
    report that this state does not expect (it crossed one of our orders).

    Raises:
        InvalidTransition: an order that this state does not expect.
    """
    if event.epoch < instance.epoch:
        return instance
    state = TRANSITIONS.get((instance.state, event.signal))
    if state is None:
        if event.signal not in ORDERS:
            return instance
        raise InvalidTransition(
            f"{instance.worker_key} is {instance.state}: it cannot take {event.signal!r}",
            worker_key=instance.worker_key,
            state=instance.state,
            signal=event.signal,
        )
    return msgspec.structs.replace(instance, state=state, since_s=event.at_s, reason=event.reason)
