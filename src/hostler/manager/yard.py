"""Yard: the machines of one pass of the plan, in an order in which many instances find theirs quickly.

It says what `placement.place` says, and decides nothing else. Pure but for what was placed in it.
"""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

import msgspec

from hostler.manager.placement import (
    Machine,
    Need,
    Unplaced,
    best,
    fullness,
    place,
    what_lacks,
)

_Line = list[tuple[int, int, str]]  # how full each is, and its id: the best one first


class Yard:
    """Machines as they were when it was made, and what has been placed since."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._by_id = {one.host_id: one for one in machines}
        self._lines: dict[tuple[object, ...], tuple[Need, _Line]] = {}  # by kind of need: one of it

    def machine(self, host_id: str) -> Machine | None:
        return self._by_id.get(host_id)

    def place(self, need: Need, known: Mapping[str, Machine]) -> Machine | Unplaced:
        """Return the machine for one instance. known: the machines that are another thing for this model
        than for others, as they are for it: something of it is there, or was, or failed.

        All others differ by how full they are alone, so one of them is looked at, and the controller's own.
        """
        able = [one for one in known.values() if _may_take(need, one)]
        here = self._by_id.get("")
        if here is not None and "" not in known and _may_take(need, here):
            able.append(here)
        for *_, host_id in self._line(need):
            if host_id not in known and not what_lacks(need, self._by_id[host_id]):
                able.append(self._by_id[host_id])
                break
        if able:
            return best(need, able)
        return place(need, [known.get(one.host_id, one) for one in self._by_id.values()])

    def note_placed(self, host_id: str, need_bytes: int) -> None:
        """An instance was placed there, which will take so much; 0: nobody knows."""
        one = self._by_id.get(host_id)
        if one is None:
            return
        now = msgspec.structs.replace(
            one, coming_bytes=one.coming_bytes + need_bytes, instances=one.instances + 1
        )
        self._by_id[host_id] = now
        for need, line in self._lines.values():
            at = bisect_left(line, before := fullness(need, one))
            if at < len(line) and line[at] == before:
                del line[at]
                insort(line, fullness(need, now))

    # Private

    def _line(self, need: Need) -> _Line:
        """The hosts that may take it, whatever memory they have: the least full one first."""
        is_known = need.memory_bytes is not None
        kind = (is_known, need.engine, need.host, tuple(sorted(need.labels.items())))
        if kind not in self._lines:
            any_size = msgspec.structs.replace(need, memory_bytes=None)
            hosts = (one for one in self._by_id.values() if one.host_id)
            able = (one for one in hosts if _may_take(any_size, one))
            self._lines[kind] = need, sorted(fullness(need, one) for one in able)
        return self._lines[kind][1]


# Private


def _may_take(need: Need, machine: Machine) -> bool:
    is_meant = need.host in ("", machine.host_id, machine.name)
    return is_meant and not what_lacks(need, machine)
