"""Turns: who waits in one class of a model's queue, and whose turn is next.

Start-time fair queueing (Goyal, Vin, Cheng 1996) over the tokens that requests cost, as the virtual token
counter counts them (Sheng et al. 2024). Every key has a line, first come first served. A line's tag is what
its key was given so far, in tokens over its weight; the line with the least is next. A key that comes back
starts where the others are now: nobody saves turns up by being away.
"""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hostler.routing.queue import Waiter

LINES_MAX = 1024  # of keys that do not wait now and are remembered
_SLACK = 64  # entries of a heap beyond two a line before it is made anew


class Line:
    """The waiters of one key, and what it was given."""

    __slots__ = ("tag", "waiters", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.tag = 0.0
        self.waiters: dict[Waiter, None] = {}  # in the order they came

    @property
    def length(self) -> float:
        """How many wait, over the weight."""
        return len(self.waiters) / self.weight


Entry = tuple[float, int, Line]


class Turns:
    """The waiters of one class.

    count: how many wait. Adding, removing and serving take O(log keys); a heap's entry that is out of
    date is dropped when it comes up.
    """

    __slots__ = ("_lines", "_longest", "_next", "_now", "_order", "_passed", "_weight", "count")

    def __init__(self) -> None:
        self.count = 0
        self._weight = 0.0  # of all lines with waiters
        self._now = 0.0  # the tag of the line that was served last
        self._lines: dict[str, Line] = {}
        self._next: list[Entry] = []  # (tag, order, line): the least is next
        self._longest: list[Entry] = []  # (-length or more, order, line)
        self._order = count()
        self._passed: dict[Waiter, None] = {}  # had their turn, and nothing fitted

    def __iter__(self) -> "Iterator[Waiter]":
        yield from self._passed
        for line in sorted(self._lines.values(), key=lambda line: line.tag):
            yield from line.waiters

    def add(self, waiter: "Waiter") -> None:
        ask = waiter.ask
        line = self._line(ask.key_id, ask.weight)
        if not line.waiters:
            line.weight = ask.weight
            line.tag = max(line.tag, self._now)
            self._weight += line.weight
            self._push_next(line)
        line.waiters[waiter] = None
        waiter.line = line
        self.count += 1
        self._push_longest(line)

    def remove(self, waiter: "Waiter") -> None:
        """Take one out that is in."""
        if waiter in self._passed:
            del self._passed[waiter]
        else:
            self._leave_line(waiter)
        waiter.line = None
        self.count -= 1

    def first(self, number: int) -> "Waiter | None":
        """Whose turn it is in this round: first those who were passed over before and not in it."""
        for waiter in self._passed:
            if waiter.round != number:
                return waiter
            break  # the others were asked in this round too
        heap = self._next
        while heap:
            tag, _, line = heap[0]
            if line.waiters and line.tag == tag:
                return next(iter(line.waiters))
            heappop(heap)
        return None

    def pass_over(self, waiter: "Waiter", number: int) -> None:
        """What is free is nothing for this one: it stays, and does not hold up those behind it."""
        waiter.round = number
        if self._passed.pop(waiter, self) is self:
            self._leave_line(waiter)
        self._passed[waiter] = None

    def serve(self, waiter: "Waiter", tokens: float) -> Line:
        """It gets a slot, for so many tokens as far as is known. Returns the line that paid."""
        line = waiter.line
        assert line is not None
        if waiter not in self._passed:
            self._now = max(self._now, line.tag)
        self.remove(waiter)
        self.charge(line, tokens)
        return line

    def charge(self, line: Line, tokens: float) -> None:
        """Count so many tokens more, or less, for a line."""
        if tokens:
            line.tag += tokens / line.weight
            if line.waiters:
                self._push_next(line)

    def charge_key(self, key_id: str, weight: float, tokens: float) -> None:
        """Count tokens that a key was given without a wait, while others waited."""
        line = self._line(key_id, weight)
        line.tag = max(line.tag, self._now)
        self.charge(line, tokens)

    def ahead(self, key_id: str, weight: float) -> float:
        """How many of this class would go before one more of this key."""
        line = self._lines.get(key_id)
        own = len(line.waiters) if line is not None else 0
        others = self._weight - (weight if own else 0.0)
        return min(self.count, len(self._passed) + own + (own + 1) * max(0.0, others) / weight)

    def newest_beyond(self, length: float) -> "Waiter | None":
        """The newest waiter of the longest line, if that is longer than `length` (over its weight)."""
        heap = self._longest
        while heap:
            told, order, line = heap[0]
            if line.waiters and -told == line.length:
                return next(reversed(line.waiters)) if line.length > length else None
            heappop(heap)
            if line.waiters:  # it was longer before
                heappush(heap, (-line.length, order, line))
        return None

    def length_with(self, key_id: str, weight: float) -> float:
        """How long the line of this key would be with one more in it."""
        line = self._lines.get(key_id)
        return ((len(line.waiters) if line is not None else 0) + 1) / weight

    # Private

    def _line(self, key_id: str, weight: float) -> Line:
        line = self._lines.get(key_id)
        if line is None:
            if len(self._lines) >= LINES_MAX:
                self._forget()
            line = self._lines[key_id] = Line(weight)
        return line

    def _forget(self) -> None:
        """Forget keys that do not wait: first those that are owed no patience, else all."""
        kept = {k: one for k, one in self._lines.items() if one.waiters or one.tag > self._now}
        if len(kept) > LINES_MAX // 2:
            kept = {key: one for key, one in kept.items() if one.waiters}
        self._lines = kept

    def _leave_line(self, waiter: "Waiter") -> None:
        line = waiter.line
        assert line is not None
        del line.waiters[waiter]
        if not line.waiters:
            self._weight -= line.weight

    def _push_next(self, line: Line) -> None:
        if len(self._next) > 2 * len(self._lines) + _SLACK:
            self._next = [
                (tag, n, one) for tag, n, one in self._next if one.waiters and one.tag == tag
            ]
            heapify(self._next)
        heappush(self._next, (line.tag, next(self._order), line))

    def _push_longest(self, line: Line) -> None:
        if len(self._longest) > 2 * len(self._lines) + _SLACK:
            waiting = [one for one in self._lines.values() if one.waiters]
            self._longest = [(-one.length, next(self._order), one) for one in waiting]
            heapify(self._longest)
        else:
            heappush(self._longest, (-line.length, next(self._order), line))
