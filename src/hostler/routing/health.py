"""What requests and probes say about instances: who is out of rotation, and since when."""

from collections.abc import Callable, Iterable, Iterator
from math import inf
from time import monotonic

EJECT_MAX_S = 30.0
WITNESSES = 3  # different requests that must fail by 5xx before an instance is suspected (F08)
FALL, RISE = 2, 2  # probes in a row that move an instance out and back


class _Sign:
    """What is held against one instance."""

    __slots__ = ("ejected_at_s", "ejections", "fails", "goods", "is_down", "until_s", "witnesses")

    def __init__(self) -> None:
        self.ejections = 0
        self.ejected_at_s = 0.0
        self.until_s = 0.0
        self.witnesses: set[bytes] = set()
        self.fails = 0
        self.goods = 0
        self.is_down = False


class Health:
    """Passive signs and probe results by instance id. An instance without a sign is healthy."""

    def __init__(self, *, eject_s: float, clock: Callable[[], float] = monotonic) -> None:
        self._eject_s = eject_s
        self._clock = clock
        self._signs: dict[str, _Sign] = {}
        self._doubts: dict[str, bool] = {}  # True: it is stuck
        self.version = 0  # of what is said of anyone; time alone does not change it

    def __bool__(self) -> bool:
        """Is anything held against anyone?"""
        return bool(self._signs or self._doubts)

    def __len__(self) -> int:
        return len(self._signs) + len(self._doubts)

    def held(self) -> Iterator[str]:
        """Those against whom something is held."""
        yield from self._signs
        yield from self._doubts

    def now_s(self) -> float:
        return self._clock()

    def next_back_s(self) -> float:
        """When the next one is back by time alone."""
        now_s = self._clock()
        return min((s.until_s for s in self._signs.values() if s.until_s > now_s), default=inf)

    def forget(self, instance_id: str) -> None:
        """It is no more."""
        self.version += 1
        self._signs.pop(instance_id, None)
        self._doubts.pop(instance_id, None)

    def failed(self, instance_id: str) -> None:
        """A connection was refused or lost: out at once, twice as long each time in a row."""
        self.version += 1
        sign = self._sign(instance_id)
        sign.ejections += 1
        sign.ejected_at_s = now_s = self._clock()
        sign.until_s = now_s + min(EJECT_MAX_S, self._eject_s * 2 ** min(sign.ejections - 1, 16))

    def back_off(self, instance_id: str, seconds: float) -> None:
        """The engine says `not now`: others first for so long. Busy is no fault: nothing grows."""
        self.version += 1
        sign = self._sign(instance_id)
        sign.ejected_at_s = now_s = self._clock()
        sign.until_s = max(sign.until_s, now_s + min(EJECT_MAX_S, seconds or self._eject_s))

    def answered_5xx(self, instance_id: str, witness: bytes, peers: Iterable[str]) -> None:
        """The engine answered 5xx to the request that `witness` names.

        peers: the ready instances of the model. Never more than half of them are out by this.
        """
        sign = self._sign(instance_id)
        if len(sign.witnesses) < WITNESSES:
            sign.witnesses.add(witness)
        if len(sign.witnesses) < WITNESSES:
            return
        ids = list(peers)
        out = sum(1 for other in ids if other != instance_id and self.is_out(other))
        if 2 * (out + 1) <= len(ids):
            sign.witnesses.clear()
            self.failed(instance_id)

    def succeeded(self, instance_id: str) -> None:
        """The engine answered as it should: nothing is held against it but failed probes."""
        sign = self._signs.get(instance_id)
        if sign is not None and not sign.is_down:
            self.version += 1
            del self._signs[instance_id]

    def probed(self, instance_id: str, is_good: bool) -> None:
        """A probe answered or did not. FALL bad ones in a row are out, RISE good ones are back."""
        self.version += 1
        sign = self._signs.get(instance_id)
        if is_good:
            if sign is None:
                return
            sign.fails, sign.goods = 0, sign.goods + 1
            if sign.goods >= RISE or not (sign.is_down or sign.ejections or sign.witnesses):
                del self._signs[instance_id]
            return
        sign = self._sign(instance_id)
        sign.goods, sign.fails = 0, sign.fails + 1
        if sign.fails >= FALL:
            sign.is_down = True

    def doubt(self, instance_id: str, *, is_stuck: bool) -> None:
        """It takes requests and says nothing: out, and once a canary has failed, dead."""
        self.version += 1
        self._doubts[instance_id] = is_stuck

    def trust(self, instance_id: str) -> None:
        """It has said something."""
        self.version += 1
        self._doubts.pop(instance_id, None)

    def is_down(self, instance_id: str) -> bool:
        """Did probes find it dead, or a canary stuck?"""
        sign = self._signs.get(instance_id)
        return (sign is not None and sign.is_down) or self._doubts.get(instance_id, False)

    def is_out(self, instance_id: str) -> bool:
        """Should it get no requests now?"""
        sign = self._signs.get(instance_id)
        if sign is not None and (sign.is_down or sign.until_s > self._clock()):
            return True
        return instance_id in self._doubts

    def ejected_at_s(self, instance_id: str) -> float:
        sign = self._signs.get(instance_id)
        return sign.ejected_at_s if sign is not None else 0.0

    def troubled(self) -> frozenset[str]:
        """The instances that were ejected or found dead, whose return a probe should watch."""
        return frozenset(i for i, sign in self._signs.items() if sign.ejections or sign.is_down)

    # Private

    def _sign(self, instance_id: str) -> _Sign:
        sign = self._signs.get(instance_id)
        if sign is None:
            sign = self._signs[instance_id] = _Sign()
        return sign
