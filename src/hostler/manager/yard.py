"""Yard: the machines of one pass of the plan, in an order in which many instances find theirs quickly.

It says what `placement.place` says, and decides nothing else. Pure but for what was placed in it.
"""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

import msgspec

from hostler.manager.placement import Machine, Need, Unplaced, place, rank, what_lacks

_Line = list[tuple[int, str]]  # the memory that is left, negated, and the id: the best one first


class Yard:
    """Machines as they were when it was made, and what has been placed since."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._by_id = {one.host_id: one for one in machines}
        self._lines: dict[tuple[object, ...], _Line] = {}

    def machine(self, host_id: str) -> Machine | None:
        return self._by_id.get(host_id)

    def place(self, need: Need, known: Mapping[str, Machine]) -> Machine | Unplaced:
        """Return the machine for one instance. known: the machines that are another thing for this model
        than for others, as they are for it: something of it is there, or was, or failed.

        All others differ by the memory left alone, so one of them is looked at, and the controller's own.
        """
        able = [one for one in known.values() if _is_meant(need, one) and not what_lacks(need, one)]
        here = self._by_id.get("")
        if (
            here is not None
            and "" not in known
            and _is_meant(need, here)
            and not what_lacks(need, here)
        ):
            able.append(here)
        for _, host_id in self._line(need):
            if host_id not in known and not what_lacks(need, self._by_id[host_id]):
                able.append(self._by_id[host_id])
                break
        if able:
            return min(able, key=rank)
        return place(need, [known.get(one.host_id, one) for one in self._by_id.values()])

    def note_placed(self, host_id: str, need_bytes: int) -> None:
        """An instance that was placed there will take so much."""
        one = self._by_id.get(host_id)
        if one is None:
            return
        now = msgspec.structs.replace(one, coming_bytes=one.coming_bytes + need_bytes)
        self._by_id[host_id] = now
        for line in self._lines.values():
            at = bisect_left(line, _entry(one))
            if at < len(line) and line[at] == _entry(one):
                del line[at]
                insort(line, _entry(now))

    # Private

    def _line(self, need: Need) -> _Line:
        """The hosts that may take it, whatever memory they have: the one with the most left first."""
        kind = (need.engine, need.host, tuple(sorted(need.labels.items())))
        line = self._lines.get(kind)
        if line is None:
            any_size = msgspec.structs.replace(need, memory_bytes=None)
            hosts = (one for one in self._by_id.values() if one.host_id)
            meant = (one for one in hosts if _is_meant(need, one))
            line = sorted(_entry(one) for one in meant if not what_lacks(any_size, one))
            self._lines[kind] = line
        return line


# Private


def _is_meant(need: Need, machine: Machine) -> bool:
    return need.host in ("", machine.host_id, machine.name)


def _entry(machine: Machine) -> tuple[int, str]:
    left = machine.left_bytes
    return (-(left if left is not None else 0), machine.host_id)
