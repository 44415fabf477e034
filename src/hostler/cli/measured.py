"""What a load test has measured: samples of single requests, and what they come to at one concurrency.

Pure: no clock, no socket. All times are seconds; those of a sample are of one monotonic clock.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import ceil

import msgspec

from hostler.core.model import WorkerType


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one answer, as its server tells them. None: it does not tell."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int = 0


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One request. first_s: when its first piece came, of a stream. items: texts or documents of it.

    error: "" of a whole answer, else the code; message: what was said of it; status: of HTTP, 400 or more.
    """

    began_s: float
    ended_s: float
    first_s: float | None = None
    usage: Usage = Usage()
    items: int = 0
    error: str = ""
    message: str = ""
    status: int = 0


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Half of the requests were quicker than p50, all but one of a hundred quicker than p99."""

    p50_s: float
    p99_s: float


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured at one concurrency.

    requests: that were answered or failed; errors: how many of them failed, by code. seconds: under load.
    tokens_per_s: written ones of a chat model, read ones of another; None: no answer told any.
    items_per_s: texts or documents. untold: whole answers whose server told no tokens.
    inter_token: the mean of each stream, from its first piece to its last, by the tokens the server told.
    """

    concurrency: int
    seconds: float
    requests: int
    errors: Mapping[str, int] = {}
    messages: Mapping[str, str] = {}
    requests_per_s: float = 0.0
    tokens_per_s: float | None = None
    items_per_s: float | None = None
    prompt_tokens: float | None = None  # mean of an answer
    completion_tokens: float | None = None
    cached_tokens: int = 0
    untold: int = 0
    ttft: Spread | None = None
    inter_token: Spread | None = None
    took: Spread | None = None

    @property
    def failed(self) -> int:
        return sum(self.errors.values())


def measure(
    samples: Sequence[Sample], concurrency: int, began_s: float, ended_s: float, kind: WorkerType
) -> Level:
    """Sum up the requests that were made between two moments.

    A request that went on after the end counts by its share before it, and so do its tokens: those
    that are under way when the load ends are neither lost, nor is the time added in which they run out.
    """
    seconds = max(ended_s - began_s, 1e-9)
    good = [one for one in samples if not one.error]
    bad = [one for one in samples if one.error]
    is_chat = kind is WorkerType.LLM
    shares = [_share(one.began_s, one.ended_s, ended_s) for one in good]
    written = [one.usage.completion_tokens for one in good]
    read = [one.usage.prompt_tokens for one in good]
    told = written if is_chat else read
    tokens = _dot(told, shares)
    return Level(
        concurrency=concurrency,
        seconds=seconds,
        requests=len(samples),
        errors=dict(Counter(one.error for one in bad).most_common()),
        messages={one.error: one.message for one in reversed(bad)},
        requests_per_s=sum(shares) / seconds,
        tokens_per_s=None if tokens is None else tokens / seconds,
        items_per_s=None if is_chat else (_dot([one.items for one in good], shares) or 0) / seconds,
        prompt_tokens=_mean(read),
        completion_tokens=_mean(written),
        cached_tokens=sum(one.usage.cached_tokens for one in good),
        untold=sum(value is None for value in told),
        ttft=spread(one.first_s - one.began_s for one in good if one.first_s is not None),
        inter_token=spread(_inter_token(good)),
        took=spread(one.ended_s - one.began_s for one in good),
    )


def spread(values: Iterable[float]) -> Spread | None:
    """The two percentiles; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Spread(p50_s=percentile(ordered, 0.5), p99_s=percentile(ordered, 0.99))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that this share of them does not exceed (nearest rank): one that was measured."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


# Private


def _share(from_s: float, to_s: float, end_s: float) -> float:
    """How much of a span lies before a moment, 0 to 1."""
    if to_s <= end_s:
        return 1.0
    return max(0.0, (end_s - from_s) / (to_s - from_s))


def _dot(values: Sequence[int | None], shares: Sequence[float]) -> float | None:
    known = [
        value * share for value, share in zip(values, shares, strict=True) if value is not None
    ]
    return sum(known) if known else None


def _mean(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _inter_token(good: Iterable[Sample]) -> Iterable[float]:
    for one in good:
        count = one.usage.completion_tokens
        if one.first_s is not None and count is not None and count > 1:
            yield (one.ended_s - one.first_s) / (count - 1)
