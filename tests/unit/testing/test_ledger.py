"""The oracle must see each breach: a check that cannot fail proves nothing."""

from typing import Any

import pytest

from hostler.testing import fake_text
from hostler.testing.clock import ManualClock
from hostler.testing.executions import End, Execution
from hostler.testing.ledger import AccessLine, assert_invariants, check_idle, check_survival
from hostler.testing.load import Outcome, Seen, chat_body

BODY = chat_body("m", "hello", stream=True, max_tokens=4)
RIGHT = fake_text.expected_texts("m", BODY)[0]


def seen(**changes: Any) -> Seen:
    facts = {"request_id": "r", "body": BODY, "outcome": Outcome.OK, "status": 200, "text": RIGHT}
    return Seen(**{**facts, **changes})


def execution(number: int = 1, **changes: Any) -> Execution:
    facts: dict[str, Any] = {
        "number": number,
        "pid": 1,
        "instance_id": "i",
        "request_id": "r",
        "path": "/v1/chat/completions",
        "model": "m",
        "asked": "m",
        "digest": "",
        "body_keys": (),
        "stream": True,
        "started_at_s": 0.0,
        "tokens": 4,
        "end": End.DONE,
    }
    return Execution(**{**facts, **changes})


def access(code: str = "", status: int = 200) -> AccessLine:
    return AccessLine(request_id="r", status=status, code=code)


def test_a_true_story_passes() -> None:
    assert_invariants([seen()], [execution()], [access()], survivable=True)


def test_an_alias_is_answered_by_its_model() -> None:
    body = {**BODY, "model": "alias"}
    assert_invariants([seen(body=body)], [execution()], models={"alias": "m"})


@pytest.mark.parametrize(
    ("client", "engines", "lines", "rule"),
    [
        (seen(), [execution()], [], "I01 r: 0 access lines"),
        (seen(), [execution()], [access(), access()], "I01 r: 2 access lines"),
        (seen(), [execution()], [access("client_gone", 499)], "I02 r: the client saw ok"),
        (seen(outcome=Outcome.SILENT_END), [execution()], [access()], "I02 r: ended as silent"),
        (seen(outcome=Outcome.RESET), [execution()], [access()], "I02 r: ended as reset"),
        (seen(named="n"), [execution()], [access()], "I04 r (asked 'm'): says it is of 'n'"),
        (seen(text=RIGHT[:-1]), [execution()], [access()], "I03"),
        (seen(text=RIGHT * 2), [execution()], [access()], "I03"),
        (seen(), [], [access()], "I03 r: answered, but no engine"),
        (seen(text=RIGHT.replace("m‖", "n‖")), [execution()], [access()], "I04 r"),
        (seen(), [execution(n, tokens=0) for n in range(4)], [access()], "I06 r: 4 executions"),
        (
            seen(),
            [execution(n, end=End.KILLED, tokens=0) for n in range(3)],
            [access()],
            "I06 r: it was on 3 instances that died",
        ),
        (
            seen(),
            [execution(1, first_token_at_s=0.1), execution(2, started_at_s=0.2)],
            [access()],
            "I06 r: tried again after content",
        ),
        (seen(), [execution(1, tokens=0), execution(2)], [access()], "I06 2 executions of 1"),
        (
            seen(),
            [execution(1, status=400, tokens=0, end=End.REFUSED), execution(2)],
            [access()],
            "I07 r: retried",
        ),
    ],
)
def test_each_breach_is_named(
    client: Seen, engines: list[Execution], lines: list[AccessLine], rule: str
) -> None:
    with pytest.raises(AssertionError) as raised:
        assert_invariants([client], engines, lines)
    assert rule in str(raised.value)


def test_what_a_stopped_engine_does_for_nobody_is_no_second_try() -> None:
    others = [seen(request_id=f"x{n}") for n in range(9)]
    works = [execution(n, request_id=one.request_id) for n, one in enumerate(others, 3)]
    done = execution(1, started_at_s=1.0, first_token_at_s=1.1, ended_at_s=2.0)
    for began_s in (0.5, 3.0):  # it had read the request, or not
        facts = {"started_at_s": began_s, "first_token_at_s": 3.1, "tokens": 1, "ended_at_s": 3.2}
        late = execution(2, end=End.ABORTED, **facts)
        assert_invariants([seen(), *others], [done, late, *works])
    wrong = execution(2, started_at_s=1.5, tokens=1, end=End.ABORTED)
    with pytest.raises(AssertionError, match="tried again after content"):
        assert_invariants([seen(), *others], [done, wrong, *works])


def test_a_failed_request_must_still_begin_right() -> None:
    half = seen(outcome=Outcome.ERROR_EVENT, text=RIGHT[:10], error_code="worker_lost")
    assert_invariants([half], [execution(end=End.KILLED, tokens=1)], [access("worker_lost", 502)])
    with pytest.raises(AssertionError, match="I03"):
        assert_invariants([seen(outcome=Outcome.ERROR_EVENT, text="x" * 10)], [execution()])


def test_an_error_has_the_same_code_for_client_and_log() -> None:
    refused = seen(outcome=Outcome.HTTP_ERROR, status=503, error_code="overloaded", text="")
    assert_invariants([refused], [], [access("overloaded", 503)])
    with pytest.raises(AssertionError, match="I02"):
        assert_invariants([refused], [], [access("draining", 503)])


def test_survival_asks_only_about_requests_without_a_forwarded_byte() -> None:
    assert check_survival([seen(outcome=Outcome.ERROR_EVENT, text=RIGHT[:5])]) == []
    assert check_survival([seen(outcome=Outcome.HTTP_ERROR, text="", status=503)]) != []


def test_gauges_that_are_not_zero_are_named() -> None:
    assert check_idle({"in_flight": 0, "queued": 2}) == ["I11 queued is 2, not 0"]


def test_a_manual_clock_goes_only_forward() -> None:
    clock = ManualClock(5)
    assert clock.advance(2) == clock() == 7
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)
