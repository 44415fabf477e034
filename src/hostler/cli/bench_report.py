"""What `hostler bench` has found, for people: a table, bars, and what a reader has to know beside them."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from hostler.cli.measured import Level, Spread
from hostler.cli.plot import bars, number
from hostler.cli.render import clean, out, print_table
from hostler.core.model import WorkerType


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole load test. warm_up: the first request, which no level counts. own_cpu: of one core."""

    model: str
    worker_type: WorkerType
    url: str
    at_s: float
    max_tokens: int | None = None
    items_per_request: int = 1
    warm_up_s: float = 0.0
    levels: tuple[Level, ...] = ()
    own_cpu: float = 0.0
    interrupted: bool = False


def print_report(report: Report, plot: Path | None) -> None:
    """Print all of it. plot: the file that the curves were written to."""
    columns, rows = table(report)
    print(clean(f"{report.model}: {about(report)}"))
    print_table(columns, rows, empty="nothing was measured")
    for line in bars(
        report.levels, report.worker_type, out().width if sys.stdout.isatty() else 100
    ):
        print(line)
    notes = list(remarks(report))
    if notes:
        print()
    for note in notes:
        print(clean(f"note: {note}"))
    if plot is not None and report.levels:
        sys.stderr.write(f"hostler: the curves are in {plot}\n")


def about(report: Report) -> str:
    """How it was asked, in one line."""
    read = [one.prompt_tokens for one in report.levels if one.prompt_tokens is not None]
    wrote = [one.completion_tokens for one in report.levels if one.completion_tokens is not None]
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(report.at_s))
    facts = [at, report.url]
    if report.worker_type is WorkerType.LLM:
        if read and wrote:
            facts.append(
                f"{sum(read) / len(read):.0f} tokens in, {sum(wrote) / len(wrote):.0f} out"
            )
    else:
        texts = "texts" if report.worker_type is WorkerType.TEXT2VEC else "documents"
        facts.append(f"{report.items_per_request} {texts} a request")
        if read:
            facts.append(f"{sum(read) / len(read):.0f} tokens a request")
    return " · ".join(facts)


def table(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The columns and rows for people."""
    if report.worker_type is WorkerType.LLM:
        return _CHAT_COLUMNS, [
            (
                *_counts(one),
                number(one.tokens_per_s),
                *_both(one.ttft),
                *_both(one.inter_token),
            )
            for one in report.levels
        ]
    items = "TEXTS/S" if report.worker_type is WorkerType.TEXT2VEC else "DOCUMENTS/S"
    columns = ("AT ONCE", "SENT", "ERRORS", "REQ/S", items, "TOKENS/S", "TOOK P50", "P99")
    return columns, [
        (*_counts(one), number(one.items_per_s), number(one.tokens_per_s), *_both(one.took))
        for one in report.levels
    ]


def remarks(report: Report) -> Iterator[str]:
    """What a reader has to know beside the numbers."""
    for one in report.levels:
        for code, count in one.errors.items():
            yield f"{one.concurrency} at once: {count} x {code}: {one.messages.get(code, '')}"
        if one.took is not None and one.took.p50_s > one.seconds:
            yield f"{one.concurrency} at once: a request takes longer than the level; give more --seconds"
    cached = sum(one.cached_tokens for one in report.levels)
    if cached:
        yield f"{cached:,} tokens of the prompts were remembered by the engine, not read"
    if untold := sum(one.untold for one in report.levels):
        yield f"{untold} answers came without a count of tokens; they count none"
    if report.own_cpu > _BUSY:
        yield (
            f"this command itself used {report.own_cpu:.0%} of a core: it may have been the limit; "
            "run several at once, or from other machines"
        )
    if report.interrupted:
        yield "interrupted: the last line is what was measured until then"


# Private

_BUSY = 0.85
_CHAT_COLUMNS = (
    "AT ONCE",
    "SENT",
    "ERRORS",
    "REQ/S",
    "TOKENS/S",
    "TTFT P50",
    "P99",
    "TOKEN P50",
    "P99",
)


def _counts(one: Level) -> tuple[str, ...]:
    return (
        str(one.concurrency),
        f"{one.requests:,}",
        f"{one.failed:,}",
        number(one.requests_per_s),
    )


def _both(spread: Spread | None) -> tuple[str, str]:
    if spread is None:
        return "-", "-"
    return number(spread.p50_s, "s"), number(spread.p99_s, "s")
