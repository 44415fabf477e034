"""The ledger oracle: what clients saw, what the gateway logged and what engines did must be one story.

Joined by request id. Each check returns breaches in words; `assert_invariants` raises with all of them. The
numbers are the invariants of the fault list: I01 one outcome each, I02 the client's view, I03 the bytes, I04
the model, I06 executions, I07 client faults, I11 nothing in flight, I16 no process left.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from hostler.app.process import tagged
from hostler.testing import fake_text
from hostler.testing.executions import End, Execution
from hostler.testing.load import Outcome, Seen

ATTEMPTS = 3
LOST_MAX = 2
EXECUTIONS_SHARE = 1.2  # Σ executions ÷ Σ requests, at most
INSTANCE_TAG = "HOSTLER_INSTANCE"
_SHOWN = 20


class AccessLine(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway's access log says of one request (`event: request`). Other fields are ignored.

    code: "" for an answer that went out whole, else the error's, `client_gone` included.
    """

    request_id: str
    status: int
    code: str = ""
    model: str = ""
    attempts: int = 1


def assert_invariants(
    seen: Sequence[Seen],
    executions: Sequence[Execution],
    access: Sequence[AccessLine] | None = None,
    *,
    models: Mapping[str, str] | None = None,
    tokens: int = fake_text.TOKENS,
    survivable: bool = False,
    share: float = EXECUTIONS_SHARE,
) -> None:
    """Check the whole run.

    access: None when there is no gateway between; I01 is left out then.
    models: asked name → the engine's own model, for aliases; others mean themselves.
    tokens: how many an engine says unasked.
    survivable: only losses happened that a healthy instance could cover, so I05 holds: no request
        without a forwarded byte may fail.
    share: the most executions a request, on average (I06).

    Raises:
        AssertionError: with every breach, the first of each kind in full.
    """
    breaches = [
        *check_answers(seen, models or {}, tokens),
        *check_ends(seen),
        *check_executions(seen, executions, share),
    ]
    if access is not None:
        breaches += check_access(seen, access)
    if survivable:
        breaches += check_survival(seen)
    if breaches:
        more = len(breaches) - _SHOWN
        tail = [f"... and {more} more"] if more > 0 else []
        raise AssertionError("\n".join([f"{len(breaches)} breaches:", *breaches[:_SHOWN], *tail]))


def check_answers(
    seen: Iterable[Seen], models: Mapping[str, str], tokens: int = fake_text.TOKENS
) -> list[str]:
    """I03, I04: every text is the right one, or, where the request failed, its beginning.

    And the answer names the model that was asked.
    """
    found: list[str] = []
    for one in seen:
        if "messages" not in one.body and "prompt" not in one.body:
            continue
        model = models.get(one.asked, one.asked)
        if one.named not in ("", model):
            found.append(f"I04 {one.request_id} (asked {one.asked!r}): says it is of {one.named!r}")
        right = fake_text.expected_texts(model, one.body, tokens)[0]
        if one.outcome is Outcome.OK:
            wrong = fake_text.difference(right, one.text)
        else:
            wrong = fake_text.difference(right[: len(one.text)], one.text)
        if wrong:
            rule = "I04" if "of model" in wrong else "I03"
            found.append(f"{rule} {one.request_id} (asked {one.asked!r}, {one.outcome}): {wrong}")
    return found


def check_ends(seen: Iterable[Seen]) -> list[str]:
    """I02: no silent end, no [DONE] after an error, no end in the middle."""
    bad = (Outcome.SILENT_END, Outcome.DONE_AFTER_ERROR, Outcome.RESET)
    return [
        f"I02 {one.request_id}: ended as {one.outcome} after {one.text.count(' ')} tokens "
        f"(status {one.status})"
        for one in seen
        if one.outcome in bad
    ]


def check_access(seen: Sequence[Seen], access: Iterable[AccessLine]) -> list[str]:
    """I01, I02: exactly one line a request, and it says what the client saw."""
    lines: dict[str, list[AccessLine]] = defaultdict(list)
    for line in access:
        lines[line.request_id].append(line)
    found: list[str] = []
    for one in seen:
        mine = lines.get(one.request_id, [])
        if len(mine) != 1:
            if mine or one.status:  # a request that was never answered may never have been read
                found.append(f"I01 {one.request_id}: {len(mine)} access lines, expected one")
            continue
        if not _agree(one, mine[0]):
            found.append(
                f"I02 {one.request_id}: the client saw {one.outcome} {one.status} {one.error_code!r}, "
                f"the log says {mine[0].status} {mine[0].code!r}"
            )
    return found


def check_executions(
    seen: Sequence[Seen], executions: Iterable[Execution], share: float = EXECUTIONS_SHARE
) -> list[str]:
    """I06, I07: how often engines worked on one request."""
    by_id: dict[str, list[Execution]] = defaultdict(list)
    for execution in executions:
        by_id[execution.request_id].append(execution)
    found: list[str] = []
    total = 0
    for one in seen:
        mine = by_id.get(one.request_id, [])
        total += len(mine)
        lost = sum(execution.end in (End.CRASHED, End.KILLED) for execution in mine)
        refusals = sum(400 <= execution.status < 500 for execution in mine)
        if len(mine) > ATTEMPTS:
            found.append(f"I06 {one.request_id}: {len(mine)} executions, at most {ATTEMPTS}")
        if lost > LOST_MAX:
            found.append(f"I06 {one.request_id}: it was on {lost} instances that died")
        if refusals > 1 or (refusals and mine[-1].status < 400):
            found.append(f"I07 {one.request_id}: retried after the engine refused it")
        if one.outcome is Outcome.OK and not mine:
            found.append(f"I03 {one.request_id}: answered, but no engine worked on it")
        if one.text and _began_again(mine):
            found.append(f"I06 {one.request_id}: tried again after content was forwarded")
    if seen and total > share * len(seen):
        found.append(f"I06 {total} executions of {len(seen)} requests: over {share:g} each")
    return found


def check_survival(seen: Iterable[Seen]) -> list[str]:
    """I05: what had no byte forwarded was answered by somebody else."""
    return [
        f"I05 {one.request_id}: {one.outcome} {one.status} {one.error_code} without a byte forwarded"
        for one in seen
        if one.outcome not in (Outcome.OK, Outcome.LEFT) and not one.text
    ]


def check_idle(gauges: Mapping[str, float]) -> list[str]:
    """I11: every gauge is back at 0."""
    return [f"I11 {name} is {value:g}, not 0" for name, value in gauges.items() if value]


def check_no_process(
    value: str | None = None, *, name: str = INSTANCE_TAG, within_s: float = 2.0
) -> list[str]:
    """I16: soon no process of this user carries the tag. Waits, blocking, up to within_s."""
    ends_at_s = time.monotonic() + within_s
    while left := tagged(name, value):
        if time.monotonic() >= ends_at_s:
            return [f"I16 process {pid} still carries {name}={tag}" for pid, tag in left.items()]
        time.sleep(0.01)
    return []


def wait_idle(gauges: Callable[[], Mapping[str, float]], *, within_s: float = 1.0) -> list[str]:
    """I11 with its second of grace. Waits, blocking."""
    ends_at_s = time.monotonic() + within_s
    while (breaches := check_idle(gauges())) and time.monotonic() < ends_at_s:
        time.sleep(0.02)
    return breaches


def tally(seen: Iterable[Seen]) -> dict[str, int]:
    """Return how many requests ended in each way, for a report."""
    return dict(Counter(one.outcome.value for one in seen))


# Private


def _began_again(mine: Sequence[Execution]) -> bool:
    """Whether a stream was begun after another of the same request had said something.

    Not by an engine that was stopped: it goes on reading for nobody, long after somebody else is done.
    """
    dones = [one.ended_at_s for one in mine if one.end is End.DONE and one.ended_at_s is not None]
    return any(
        one.first_token_at_s is not None
        and later.started_at_s > one.first_token_at_s
        and not (later.end is End.ABORTED and any(at_s <= later.started_at_s for at_s in dones))
        for one in mine
        for later in mine
    )


def _agree(one: Seen, line: AccessLine) -> bool:
    """Whether a line of the access log tells what the client saw."""
    match one.outcome:
        case Outcome.OK:
            return (line.status, line.code) == (200, "")
        case Outcome.ERROR_EVENT:
            return line.code != "" and line.code == one.error_code
        case Outcome.HTTP_ERROR:
            return line.status == one.status and line.code in ("", one.error_code)
        case Outcome.LEFT | Outcome.TIMEOUT:  # the answer may have been whole when they left
            return line.code in ("", "client_gone", "upstream_timeout")
        case _:
            return True  # a breach already
