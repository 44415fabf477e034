"""RoutingRules: how requests find their way to a model and its instances. No processes are changed by them.

Policies themselves are routing's business; here is what an operator may say.
"""

import re
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Any, Literal

import msgspec

from hostler.core.errors import BadRequest
from hostler.core.rules import need, read_fields, unknown

WEIGHTED = "weighted"
# auto: prefix for language models, else least-in-flight.
POLICIES = (
    "auto",
    "round-robin",
    WEIGHTED,
    "least-in-flight",
    "least-tokens",
    "random-two",
    "session",
    "prefix",
)
SHARES_MAX = 100.0  # percent
FALLBACKS_MAX = 4  # models for one cause: each may cost an attempt more


PriorityWord = Literal["high", "normal", "low"]


class Priority(IntEnum):
    """Classes of a queue: a lower number goes first, always."""

    HIGH = 0
    NORMAL = 1
    LOW = 2

    @property
    def word(self) -> PriorityWord:
        return _WORDS[self]


class FallbackCause(StrEnum):
    """Why another model answers in the place of the one asked."""

    UNAVAILABLE = "unavailable"  # no instance can serve, or all attempts failed
    OVERLOADED = "overloaded"  # the queue is full, or the wait was too long
    CONTEXT_TOO_LONG = "context_too_long"  # the engine says that the prompt does not fit


class RoutingRules(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What an operator says of a model's requests.

    policy: one of POLICIES, or `package.module:Class` of their own (`RoutingPolicy`).
    weights: for `weighted`: one a URL, or one a replica; an instance without one has its slots.
    split: shares in percent of this model's requests that other models answer (canary).
    fallbacks: by cause, the models that are asked instead, in this order.
    queue_length, queue_wait_s: of this model; None: what `[gateway]` says.
    continue_streams: a stream whose worker died goes on at another instance, from what was already
        said (for engines that can continue a message).
    single_flight: requests with the same long new prefix wait for the first to have read it, where the
        engine shares what it reads.
    lend_prefix: llama.cpp: in such a flight a prefix that one slot has read is lent to the others.
    stall_s: a stream that says nothing for so long is in doubt; None: what `[gateway]` says.
    """

    policy: str = "auto"
    weights: tuple[int, ...] = ()
    split: Mapping[str, float] = {}
    fallbacks: Mapping[str, tuple[str, ...]] = {}  # a cause is one of FallbackCause
    queue_length: int | None = None
    queue_wait_s: float | None = None
    continue_streams: bool = False
    single_flight: bool = True
    lend_prefix: bool = True
    stall_s: float | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICIES and _CLASS.fullmatch(self.policy) is None:
            raise BadRequest(
                f"routing.policy: no policy is called {unknown(self.policy, POLICIES)} "
                "A class of your own is named package.module:Class",
                param="routing",
            )
        _need(all(weight >= 1 for weight in self.weights), "weights", "need 1 or more each")
        _need(
            not self.weights or self.policy == WEIGHTED,
            "weights",
            f"they count with policy {WEIGHTED!r} alone, not with {self.policy!r}; "
            "`--rule weights=null` takes them away",
        )
        shares = self.split.values()
        _need(
            all(0 < share <= SHARES_MAX for share in shares) and sum(shares) <= SHARES_MAX,
            "split",
            "need shares above 0 percent, together 100 at most",
        )
        strangers = self.fallbacks.keys() - set(FallbackCause)
        for stranger in strangers:
            _need(False, "fallbacks", f"no cause is called {unknown(stranger, FallbackCause)}")
        _need(
            all(len(models) <= FALLBACKS_MAX for models in self.fallbacks.values()),
            "fallbacks",
            f"need {FALLBACKS_MAX} models a cause at most",
        )
        _need(self.queue_length is None or self.queue_length >= 0, "queue_length", "need 0 or more")
        _need(self.queue_wait_s is None or self.queue_wait_s >= 0, "queue_wait_s", "need 0 or more")
        _need(self.stall_s is None or self.stall_s > 0, "stall_s", "need more than 0 seconds")

    @property
    def is_own(self) -> bool:
        """Is the policy a class of the operator's?"""
        return self.policy not in POLICIES

    @property
    def others(self) -> frozenset[str]:
        """Every other model that may answer."""
        return frozenset(self.split).union(*self.fallbacks.values())


def read_rules(given: Mapping[str, Any] | None, old: RoutingRules | None = None) -> RoutingRules:
    """Return the rules with what was given; the rest stays as in `old`. None for a field: its default.

    Raises:
        BadRequest: an unknown field, with the nearest known one; a value that cannot be.
    """
    return read_fields(given, old or RoutingRules(), "routing")


# Private

_WORDS: tuple[PriorityWord, ...] = ("high", "normal", "low")
_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _need(is_so: bool, name: str, told: str) -> None:
    need(is_so, "routing", name, told)
