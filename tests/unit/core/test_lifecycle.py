"""The life of an instance: every state with every signal, and the properties of the table."""

import itertools

import pytest

from hostler.core.errors import InvalidTransition
from hostler.core.lifecycle import (
    ALIVE,
    ORDERS,
    TRANSITIONS,
    Event,
    Instance,
    Signal,
    State,
    advance,
)


def instance(state: State, epoch: int = 3) -> Instance:
    return Instance(
        instance_id="a1", worker_key="qwen@llm", model_name="qwen", state=state, epoch=epoch
    )


def event(signal: Signal, epoch: int = 3) -> Event:
    return Event(instance_id="a1", epoch=epoch, signal=signal, at_s=10.0)


@pytest.mark.parametrize(("state", "signal"), list(itertools.product(State, Signal)))
def test_every_pair_moves_as_the_table_says(state: State, signal: Signal) -> None:
    before = instance(state)
    expected = TRANSITIONS.get((state, signal))
    if expected is not None:
        assert advance(before, event(signal)).state is expected
    elif signal in ORDERS:
        with pytest.raises(InvalidTransition, match=f"is {state}"):
            advance(before, event(signal))
    else:
        assert advance(before, event(signal)) is before


def test_an_event_of_an_older_epoch_changes_nothing() -> None:
    ready = instance(State.READY, epoch=4)
    assert advance(ready, event(Signal.EXITED, epoch=3)) is ready


def test_stopped_is_final() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] is State.STOPPED]


def test_every_state_can_be_asked_to_stop_unless_it_is_on_its_way() -> None:
    stoppable = set(State) - {State.STOPPED, State.DRAINING}
    assert {s for s in State if (s, Signal.DRAIN) in TRANSITIONS} == stoppable


def test_every_living_process_can_be_lost_without_a_trap() -> None:
    for state in ALIVE:
        assert (state, Signal.EXITED) in TRANSITIONS
        assert (state, Signal.LOST) in TRANSITIONS


def test_a_late_heartbeat_revives_nobody() -> None:
    for state in (State.DRAINING, State.STOPPED, State.FAILED):
        gone = instance(state)
        for signal in (Signal.SEEN, Signal.LOADED):
            assert advance(gone, event(signal)) is gone
