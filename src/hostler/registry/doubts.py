"""ReportedDoubts: what gateways say of engines that take requests and say nothing. A hint, not a verdict."""

from collections.abc import Callable
from math import inf

from hostler.core.errors import StaleEpoch, UnknownInstance
from hostler.core.fleet import Doubt
from hostler.core.lifecycle import State

ASKED_EVERY_S = 1.0  # between two looks at instances of one model
REPLACED_EVERY_S = 60.0  # after an instance of it was given up

_ASKED = frozenset({State.READY, State.SUSPECT})


class ReportedDoubts:
    """At most one instance of a model at a time, and not one after the other (a gateway may be wrong)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: list[str] = []
        self._next_s: dict[str, float] = {}  # by model; inf while one of its instances is asked

    def take(self, doubt: Doubt, model_name: str | None, epoch: int, state: State | None) -> None:
        """A gateway doubts an instance, of which this is known here.

        Raises:
            UnknownInstance: no instance of ours. StaleEpoch: another process has its place.
        """
        if model_name is None:
            raise UnknownInstance(f"instance {doubt.instance_id!r} is not known to this controller")
        if doubt.epoch != epoch:
            raise StaleEpoch(
                f"instance {doubt.instance_id!r}: epoch {epoch} runs, not {doubt.epoch}"
            )
        if state in _ASKED and self._clock() >= self._next_s.get(model_name, 0.0):
            self._next_s[model_name] = inf
            self._waiting.append(doubt.instance_id)

    def judged(self, model_name: str, *, is_stuck: bool) -> None:
        """An instance of this model has been asked."""
        pause_s = REPLACED_EVERY_S if is_stuck else ASKED_EVERY_S
        self._next_s[model_name] = self._clock() + pause_s

    def drain(self) -> list[str]:
        """The instances to look into, each once."""
        waiting, self._waiting = self._waiting, []
        return waiting
