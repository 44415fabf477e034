"""Claim: a slot of an instance, lent to one request, and how that ended."""

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from hostler.core.snapshot import InstanceView
from hostler.routing.ask import Ask
from hostler.routing.turns import Line, Turns

if TYPE_CHECKING:
    from hostler.routing.pool import ModelPool


class Outcome(StrEnum):
    """How a claim ended. Only busy, refused, lost and upstream_status tell of the instance."""

    OK = "ok"
    CLIENT_GONE = "client_gone"
    CLIENT_ERROR = "client_error"
    BUSY = "busy"  # `not now`, says the engine: no fault
    UPSTREAM_STATUS = "upstream_status"
    REFUSED = "refused"
    LOST = "lost"
    UNUSED = "unused"  # its holder has asked nothing of the instance


class Bill(NamedTuple):
    """What a key was charged in a queue, before it was known what the request costs."""

    turns: Turns
    line: Line
    tokens: float


class Claim:
    """One slot of one instance, lent until `release`.

    policy: the name of what chose it. why: what spoke for this instance, in a few words.
    tokens: of its prompt, when they are counted.
    answer_tokens: set by its holder before the release, if known: fairness between keys counts them.
    back_off_s: set by its holder before a release with `busy`: so long the engine wants to be left alone.
    bill: of a claim that came out of a queue. pool: the router's own, where the slot belongs.
    """

    __slots__ = (
        "_take_back",
        "answer_tokens",
        "ask",
        "back_off_s",
        "bill",
        "instance",
        "policy",
        "pool",
        "since_s",
        "tokens",
        "why",
    )

    def __init__(
        self,
        instance: InstanceView,
        ask: Ask,
        since_s: float,
        policy: str,
        why: str,
        tokens: int,
        take_back: "Callable[[Claim, Outcome, bytes], None]",
    ) -> None:
        self.instance = instance
        self.ask = ask
        self.since_s = since_s
        self.policy = policy
        self.why = why
        self.tokens = tokens
        self.answer_tokens: int | None = None
        self.back_off_s = 0.0
        self.bill: Bill | None = None
        self.pool: ModelPool | None = None
        self._take_back: Callable[[Claim, Outcome, bytes], None] | None = take_back

    def release(self, outcome: Outcome, *, witness: bytes = b"") -> None:
        """Give the slot back. Exactly once: later calls do nothing.

        witness: names the request (see Quarantine), for outcome upstream_status.
        """
        take_back, self._take_back = self._take_back, None
        if take_back is not None:
            take_back(self, outcome, witness)
