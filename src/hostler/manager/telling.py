"""What operators hear of an instance between two states: how long it loads, what it still serves."""

from collections.abc import Callable

from hostler.core.lifecycle import Instance
from hostler.core.worker import OperatorEvent
from hostler.manager.files import Tell
from hostler.manager.launching import resident_bytes

_LOADING_EVERY_S = 2.0
PASSING = frozenset({"fetch.progress", "start.progress", "drain.progress"})  # no line in the log


class Telling:
    """Turns the looks at one process into events, a few a minute."""

    def __init__(self, instance: Instance, tell: Tell, clock: Callable[[], float]) -> None:
        self._instance = instance
        self._tell = tell
        self._clock = clock
        self._began_s = self._told_at_s = clock()

    def loading(self, pid: int, deadline_s: float) -> None:
        """It loads: for how long, of how many seconds at most, and how much memory it holds now."""
        now_s = self._clock()
        if now_s - self._told_at_s < _LOADING_EVERY_S:
            return
        self._told_at_s = now_s
        took_s = now_s - self._began_s
        self._say(
            "start.progress",
            f"loading for {took_s:.0f} s of {deadline_s:.0f} s at most",
            took_s=round(took_s, 1),
            deadline_s=round(deadline_s, 1),
            memory_bytes=resident_bytes(pid),
        )

    def draining(self, in_flight: int, deadline_s: float) -> None:
        """It finishes what it has: how many requests, for how many more seconds at most."""
        left_s = max(0.0, deadline_s - (self._clock() - self._began_s))
        self._say(
            "drain.progress",
            f"{in_flight} in flight, {left_s:.0f} s left",
            in_flight=in_flight,
            left_s=round(left_s, 1),
        )

    # Private

    def _say(self, kind: str, message: str, **fields: object) -> None:
        self._tell(
            OperatorEvent(
                kind=kind,
                model=self._instance.model_name,
                instance_id=self._instance.instance_id,
                message=message,
                fields=fields,
            )
        )
