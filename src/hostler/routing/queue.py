"""Who waits for a slot of a model, and who is next: strictly by class, then fair between keys (turns.py)."""

from collections.abc import Callable, Iterator, Set
from typing import Protocol

from hostler.core.errors import HostlerError
from hostler.core.serving import Priority
from hostler.routing.ask import Ask
from hostler.routing.claim import Bill, Claim
from hostler.routing.turns import Line, Turns

Done = Callable[[Claim | HostlerError], None]

_WEIGHT = 0.1  # of the newest answer in the moving average


class Queued(Protocol):
    """What a waiter needs of the place where it waits."""

    queue: "Queue"

    def too_late(self, ask: Ask) -> HostlerError: ...


class Waiter:
    """A request in the queue of a model. `done` is called once: with a claim or an error.

    line, round: the queue's own. line: None once it does not wait any more.
    """

    __slots__ = ("_place", "ask", "done", "exclude", "line", "priority", "round")

    def __init__(self, place: Queued, ask: Ask, exclude: Set[str], done: Done) -> None:
        self._place = place
        self.ask = ask
        self.exclude = exclude
        self.done = done
        self.priority = ask.priority
        self.line: Line | None = None
        self.round = 0

    def cancel(self) -> None:
        """Leave the queue without a call of `done`."""
        self._place.queue.remove(self)

    def expire(self) -> None:
        """Leave the queue because the wait was too long."""
        if self._place.queue.remove(self):
            self.done(self._place.too_late(self.ask))


class Queue:
    """The waiters of one model.

    answer_tokens: moving average of what an answer had, charged before the true number is known.
    """

    __slots__ = ("_classes", "_count", "_round", "answer_tokens")

    def __init__(self) -> None:
        self._classes = tuple(Turns() for _ in Priority)
        self._count = 0
        self._round = 0
        self.answer_tokens = 0.0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter.line is not None

    def __iter__(self) -> Iterator[Waiter]:
        """Those who wait now, class by class; the queue may change meanwhile."""
        return iter([waiter for turns in self._classes for waiter in turns])

    def add(self, waiter: Waiter) -> None:
        self._classes[waiter.priority].add(waiter)
        self._count += 1

    def remove(self, waiter: Waiter) -> bool:
        """Take one out, wherever it stands; False when it is not there."""
        if waiter.line is None:
            return False
        self._classes[waiter.priority].remove(waiter)
        self._count -= 1
        return True

    # Serving: begin_round, then next and either serve, pass_over or remove, until there is no next

    def begin_round(self) -> None:
        """Something may be free: those who were passed over have their turn again."""
        self._round += 1

    def next(self) -> Waiter | None:
        """Whose turn it is."""
        for turns in self._classes:
            if turns.count:
                waiter = turns.first(self._round)
                if waiter is not None:
                    return waiter
        return None

    def pass_over(self, waiter: Waiter) -> None:
        """Nothing that is free is for this one: those behind it go on."""
        self._classes[waiter.priority].pass_over(waiter, self._round)

    def serve(self, waiter: Waiter) -> Bill:
        """It gets a slot and leaves; returns what its key was charged for that."""
        turns = self._classes[waiter.priority]
        tokens = max(1.0, waiter.ask.prompt_tokens + self.answer_tokens)
        self._count -= 1
        return Bill(turns, turns.serve(waiter, tokens), tokens)

    def settle(self, claim: Claim) -> None:
        """A slot is back: charge what the request cost beyond what was charged, or give it back."""
        bill, spent = claim.bill, claim.answer_tokens
        if spent is not None:
            share = _WEIGHT if self.answer_tokens else 1.0
            self.answer_tokens += (spent - self.answer_tokens) * share
        ask = claim.ask
        cost = max(1.0, ask.prompt_tokens + (self.answer_tokens if spent is None else spent))
        if bill is None:
            self._classes[ask.priority].charge_key(ask.key_id, ask.weight, cost)
        elif spent is not None:
            bill.turns.charge(bill.line, cost - bill.tokens)

    def refund(self, claim: Claim) -> None:
        """A slot is back that was not used: it costs nothing."""
        if claim.bill is not None:
            claim.bill.turns.charge(claim.bill.line, -claim.bill.tokens)

    # For one who wants to wait

    def who_makes_room(self, ask: Ask) -> Waiter | None:
        """The waiter that leaves a full queue for one more of this key; None: this one may not stand here.

        Someone of a lower class, else of the key whose line is the longest for its weight, if that
        stays longer than the line of this key with one more in it.
        """
        mine = ask.priority
        for turns in self._classes[:mine:-1]:
            if (waiter := turns.newest_beyond(0.0)) is not None:
                return waiter
        turns = self._classes[mine]
        return turns.newest_beyond(turns.length_with(ask.key_id, ask.weight))

    def ahead(self, ask: Ask) -> float:
        """How many would go before one more of this key."""
        mine = ask.priority
        higher = sum(turns.count for turns in self._classes[:mine])
        return higher + self._classes[mine].ahead(ask.key_id, ask.weight)
