"""Requests that killed workers, remembered for a while so that they kill no more (F07)."""

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

ENTRIES_MAX = 4096


class Quarantine:
    """Fingerprints of requests that were on board when a worker died.

    A fingerprint names a request: the key's id and a hash of the body. One worker that dies with
    many equal requests on board counts once for them; a success clears the fingerprint, because a
    query of death has none. The table is bounded: the oldest entry makes room.
    """

    def __init__(
        self, *, lost_max: int, hold_s: float, clock: Callable[[], float] = monotonic
    ) -> None:
        self._lost_max = lost_max
        self._hold_s = hold_s
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[frozenset[str], float]] = OrderedDict()

    def __bool__(self) -> bool:
        """Is anything remembered? While not, nobody has to hash a body."""
        return bool(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def note_loss(self, fingerprint: bytes, instance_id: str) -> None:
        """A worker died with this request on board."""
        lost, until = self._entries.pop(fingerprint, (frozenset[str](), 0.0))
        if until < self._clock():
            lost = frozenset()
        if len(lost) < self._lost_max:
            lost = lost | {instance_id}
        while len(self._entries) >= ENTRIES_MAX:
            self._entries.popitem(last=False)
        self._entries[fingerprint] = (lost, self._clock() + self._hold_s)

    def note_success(self, fingerprint: bytes) -> None:
        self._entries.pop(fingerprint, None)

    def refused_for_s(self, fingerprint: bytes) -> float:
        """Seconds until this request is let in again; 0.0 when it is let in now."""
        entry = self._entries.get(fingerprint)
        if entry is None:
            return 0.0
        lost, until = entry
        left_s = until - self._clock()
        if left_s <= 0:
            del self._entries[fingerprint]
            return 0.0
        return left_s if len(lost) >= self._lost_max else 0.0
