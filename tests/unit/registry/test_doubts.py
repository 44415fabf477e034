"""A gateway's word makes the controller look, at one instance of a model at a time; nothing more."""

import pytest

from hostler.core.errors import StaleEpoch, UnknownInstance
from hostler.core.fleet import Doubt
from hostler.core.lifecycle import State
from hostler.registry.doubts import ASKED_EVERY_S, REPLACED_EVERY_S, ReportedDoubts
from hostler.testing.clock import ManualClock


def test_F05_doubts_are_looked_into_one_by_one_and_not_in_a_row() -> None:
    clock = ManualClock()
    doubts = ReportedDoubts(clock)

    def take(instance_id: str, model: str = "m") -> list[str]:
        doubt = Doubt(instance_id=instance_id, epoch=1)
        doubts.take(doubt, model, 1, State.READY)
        return doubts.drain()

    assert take("a") == ["a"]
    assert take("b") == []  # while the first is asked
    assert take("x", "other") == ["x"]
    doubts.judged("m", is_stuck=False)
    assert take("b") == []
    clock.advance(ASKED_EVERY_S)
    assert take("b") == ["b"]
    doubts.judged("m", is_stuck=True)
    clock.advance(REPLACED_EVERY_S - 1)
    assert take("c") == []
    clock.advance(1)
    assert take("c") == ["c"]


def test_F05_doubts_about_strangers_and_old_processes_are_refused() -> None:
    doubts = ReportedDoubts(ManualClock())
    doubt = Doubt(instance_id="a", epoch=1)
    with pytest.raises(UnknownInstance):
        doubts.take(doubt, None, 0, None)
    with pytest.raises(StaleEpoch):
        doubts.take(doubt, "m", 2, State.READY)
    doubts.take(doubt, "m", 1, State.DRAINING)
    assert doubts.drain() == []
