"""Claim: a slot of an instance, lent to one request, and how that ended."""

from collections.abc import Callable
from enum import StrEnum

from hostler.core.snapshot import InstanceView


class Outcome(StrEnum):
    """How a claim ended. Only refused, lost and upstream_status tell of the instance."""

    OK = "ok"
    CLIENT_GONE = "client_gone"
    CLIENT_ERROR = "client_error"
    UPSTREAM_STATUS = "upstream_status"
    REFUSED = "refused"
    LOST = "lost"


class Claim:
    """One slot of one instance, lent until `release`.

    policy: the name of what chose it. why: what spoke for this instance, in a few words.
    tokens: of its prompt, when they are counted.
    """

    __slots__ = ("_take_back", "instance", "policy", "since_s", "tokens", "why")

    def __init__(
        self,
        instance: InstanceView,
        since_s: float,
        policy: str,
        why: str,
        tokens: int,
        take_back: "Callable[[Claim, Outcome, bytes], None]",
    ) -> None:
        self.instance = instance
        self.since_s = since_s
        self.policy = policy
        self.why = why
        self.tokens = tokens
        self._take_back: Callable[[Claim, Outcome, bytes], None] | None = take_back

    def release(self, outcome: Outcome, *, witness: bytes = b"") -> None:
        """Give the slot back. Exactly once: later calls do nothing.

        witness: names the request (see Quarantine), for outcome upstream_status.
        """
        take_back, self._take_back = self._take_back, None
        if take_back is not None:
            take_back(self, outcome, witness)
