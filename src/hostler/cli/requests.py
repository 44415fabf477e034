"""`hostler requests`: what the data plane does with each request, and did."""

import time
from collections.abc import Iterator
from datetime import datetime
from math import inf
from typing import Annotated
from urllib.parse import quote

import msgspec
from cyclopts import Parameter

from hostler.cli.client import Client
from hostler.cli.exits import Exit
from hostler.cli.moments import moment_of
from hostler.cli.render import clean, err, print_json, print_table
from hostler.cli.target import NO_OPTIONS, Common, find_target
from hostler.core.timeline import RequestList, RequestOutcome, RequestView


def list_requests(
    *,
    model: str | None = None,
    key_id: str | None = None,
    outcome: RequestOutcome | None = None,
    since: str | None = None,
    limit: int = 50,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative=())] = False,
    common: Common = NO_OPTIONS,
) -> int:
    """The newest requests, those under way first; never what they said.

    `list` may be left out. Example: `hostler requests list --outcome upstream_error --since 10m`

    Parameters
    ----------
    model: str
        Only of this model.
    key_id: str
        Only of this key.
    outcome: RequestOutcome
        Only those that ended so.
    since: str
        Only those that came after: `10m`, `2h`, a date in UTC, or Unix time.
    limit: int
        So many at most; of those that are remembered, when more are followed.
    follow: bool
        Show each request when it ends, until Ctrl-C.
    """
    given = {"model": model, "key": key_id, "outcome": outcome.value if outcome else None}
    query: dict[str, str | int] = {name: text for name, text in given.items() if text}
    if since:
        query["since"] = moment_of(since, time.time(), "--since")
    with Client(find_target(common)) as client:
        if follow:
            for one in _ended(client, query, limit):
                print(_json(one) if common.json else request_line(one), flush=True)
            return Exit.OK
        found = client.get(_PATH, RequestList, **query, limit=limit)
    if found.silent:
        err().print(f"hostler: {found.silent} gateway(s) did not answer", markup=False)
    if common.json:
        print_json(found.requests)
        return Exit.OK
    print_table(_COLUMNS, map(_cells, found.requests), empty="no such request is remembered")
    return Exit.OK


def show(request_id: str, /, *, common: Common = NO_OPTIONS) -> int:
    """What happened to one request, step by step.

    Example: `hostler requests show req_1f0c…`

    Parameters
    ----------
    request_id: str
        Its id: the header `x-request-id` of its answer, or from `hostler requests`.
    """
    with Client(find_target(common)) as client:
        one = client.get(f"{_PATH}/{quote(request_id, safe='')}", RequestView)
    if common.json:
        print_json(one)
        return Exit.OK
    print("\n".join(clean(line) for line in story(one)))
    return Exit.OK


def request_line(one: RequestView) -> str:
    """One request in one line."""
    return clean("  ".join(str(cell) for cell in _cells(one) if cell not in ("", None)))


def story(one: RequestView) -> Iterator[str]:
    """One request for people: what it was, and its steps with a bar each."""
    at = datetime.fromtimestamp(one.at_s).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    named = f" (asked as {one.asked})" if one.asked != one.model else ""
    yield f"{one.request_id}  {_result(one)}"
    route = f"{one.route}, streamed" if one.stream else one.route
    yield f"  {route}, model {one.model}{named}, key {one.key_id}, {at}"
    if one.completion_tokens is not None:
        yield f"  tokens: {_tokens(one)}"
    if one.flight is not None and one.flight.followers:
        yield f"  {one.flight.followers} other(s) waited for it to read what they begin with"
    yield ""
    steps = list(_steps(one))
    width = max(len(text) for text, _, _ in steps)
    whole_s = max(one.took_s, 1e-6)
    for text, from_s, to_s in steps:
        first = min(int(from_s / whole_s * _BAR), _BAR - 1)
        length = max(1, round((to_s - from_s) / whole_s * _BAR))
        bar = (" " * first + "█" * min(length, _BAR - first)).ljust(_BAR)
        yield f"  {_span(from_s):>9}  {bar}  {text:<{width}}  {_span(to_s - from_s)}"
    yield f"  {_span(one.took_s):>9}  {'':{_BAR}}  {_result(one)}"


# Private

_PATH = "/api/v1/requests"
_BAR = 40
_FOLLOWED = 1000  # that may come, or go on, between two looks
_POLL_S = 0.5
_COLUMNS = ("CAME", "REQUEST", "MODEL", "ROUTE", "KEY", "OUTCOME", "TRIES", "WAITED", "FIRST BYTE", "TOOK",
            "TOKENS")  # fmt: skip


def _cells(one: RequestView) -> tuple[object, ...]:
    return (
        datetime.fromtimestamp(one.at_s).strftime("%H:%M:%S"),
        one.request_id,
        one.model,
        one.route,
        one.key_id,
        _result(one),
        len(one.tries),
        _span(one.waited_s),
        _span(one.first_byte_s),
        _span(one.took_s),
        _tokens(one),
    )


def _result(one: RequestView) -> str:
    if one.outcome is None:
        if one.first_byte_s is not None:
            return "answering"
        return "asking" if any(t.ended_s is None for t in one.tries) else "waiting"
    if one.outcome is RequestOutcome.OK:
        return "ok"
    told = one.code if one.code and one.code != one.outcome.value else str(one.status)
    return f"{one.outcome.value} ({told})"


def _tokens(one: RequestView) -> str:
    if one.completion_tokens is None:
        return "-"
    cached = f" ({one.cached_tokens} cached)" if one.cached_tokens else ""
    return f"{'~' if one.estimated else ''}{one.prompt_tokens}{cached} + {one.completion_tokens}"


def _steps(one: RequestView) -> Iterator[tuple[str, float, float]]:
    """Each step: what, from when, to when."""
    if one.queued_s is not None:
        yield "waited for a slot", one.queued_s, one.queued_s + (one.waited_s or 0.0)
    flight = one.flight
    if flight is not None and flight.at_s is not None:
        ended = f" ({flight.end.value})" if flight.end is not None else ""
        text = f"waited for {flight.led_by} to read the same{ended}"
        if flight.led_by == one.request_id:
            text = f"had its prompt read for all of them{ended}"
        yield text, flight.at_s, flight.at_s + (flight.waited_s or 0.0)
    for number, attempt in enumerate(one.tries, 1):
        ended_s = one.took_s if attempt.ended_s is None else attempt.ended_s
        why = f" ({attempt.why})" if attempt.why else ""
        failed = f": {attempt.failure}" if attempt.failure else ""
        is_last, first_s = number == len(one.tries), one.first_byte_s
        latest_s = inf if is_last else ended_s  # others may go on with what this one began
        if first_s is not None and attempt.at_s <= first_s < latest_s:
            yield f"try {number} on {attempt.instance_id}{why}", attempt.at_s, first_s
            pieces = f"{one.events} pieces" if is_last and one.events else "its answer"
            yield f"{pieces} from {attempt.instance_id}{failed}", first_s, ended_s
        else:
            yield f"try {number} on {attempt.instance_id}{why}{failed}", attempt.at_s, ended_s
    if one.queued_s is None and flight is None and not one.tries:
        yield "no instance was asked", 0.0, one.took_s


def _span(seconds: float | None) -> str:
    """Seconds as exact as people want them here."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"


def _ended(client: Client, query: dict[str, str | int], limit: int) -> Iterator[RequestView]:
    """Yield each request once, when it has ended; first the newest that are remembered.

    A look asks for what came since the oldest one that was still under way at the look before.
    """
    seen: set[str] = set()
    asked = {**query, "limit": limit}
    while True:
        found = client.get(_PATH, RequestList, **asked).requests
        ended = [one for one in found if one.outcome is not None]
        for one in sorted(ended, key=lambda one: one.at_s + one.took_s):
            if one.request_id not in seen:
                yield one
        seen = {one.request_id for one in ended}
        if found:
            newest_s = max(one.at_s for one in found)
            oldest_s = min((one.at_s for one in found if one.outcome is None), default=newest_s)
            asked["since"] = max(int(query.get("since", 0)), int(oldest_s) - 1)
        asked["limit"] = _FOLLOWED
        time.sleep(_POLL_S)


def _json(one: RequestView) -> str:
    return msgspec.json.encode(one).decode()
