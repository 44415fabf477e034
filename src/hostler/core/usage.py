"""Usage: who used how much of which model, counted by gateways and kept by the controller."""

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from hostler.core.snapshot import REPORTED

HOUR_S, DAY_S = 3600, 86_400
OTHER = "other"  # stands for keys and models beyond those that are told apart


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """Requests and their tokens.

    failed: requests of these that did not end with a whole answer. estimated: requests whose tokens
    no engine told: what was delivered has been counted. cached_tokens: of the prompt's, those that
    an engine had read before.
    """

    requests: int = 0
    failed: int = 0
    estimated: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class UsageCount(Tokens, frozen=True, kw_only=True):
    """What one key used of one model in one hour. hour_s: its beginning, Unix time."""

    hour_s: int
    key_id: str
    model: str


class UsageBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counts on their way to the store, which takes each batch once.

    source: one gateway process. seq: of its batches, from 1; the next one comes when this one was taken.
    """

    protocol: int = REPORTED
    source: str
    seq: int
    counts: tuple[UsageCount, ...]


class UsageBy(StrEnum):
    """What a row of usage stands for. Left out: one key and one model."""

    HOUR = "hour"
    DAY = "day"
    KEY = "key"
    MODEL = "model"


class UsageRow(Tokens, frozen=True, kw_only=True):
    """Counts together. at_s, key_id, model: what they are of; None where rows are not told apart by it."""

    at_s: int | None = None
    key_id: str | None = None
    model: str | None = None


class UsageQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """since_s, until_s: Unix time, of whole hours: those that began in between. None: all."""

    since_s: float | None = None
    until_s: float | None = None
    key_id: str | None = None
    model: str | None = None
    by: UsageBy | None = None


def matches(question: UsageQuestion, count: UsageCount) -> bool:
    """Is this asked for?"""
    since_s, until_s = hours_between(question)
    return (
        since_s <= count.hour_s < until_s
        and question.key_id in (None, count.key_id)
        and question.model in (None, count.model)
    )


def hours_between(question: UsageQuestion) -> tuple[int, int]:
    """The first hour that is asked for, and the first one after."""
    since_s, until_s = question.since_s or 0.0, question.until_s
    last_s = _NEVER_S if until_s is None else until_s
    return int(since_s // HOUR_S) * HOUR_S, int(min(last_s, _NEVER_S))


def total_of(rows: Iterable[Tokens]) -> Tokens:
    """All of them together."""
    names = Tokens.__struct_fields__
    sums = dict.fromkeys(names, 0)
    for row in rows:
        for name in names:
            sums[name] += getattr(row, name)
    return Tokens(**sums)


# Private

_NEVER_S = 2**53
