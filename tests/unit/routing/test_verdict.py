"""The retry rule, pair by pair, and the memory of requests that kill."""

import pytest

from hostler.routing.quarantine import ENTRIES_MAX, Quarantine
from hostler.routing.verdict import Action, Failure, final_error, judge

RETRIED = {Failure.REFUSED, Failure.WRONG_INSTANCE, Failure.UNAVAILABLE, Failure.UNUSABLE}


def expected(failure: Failure, attempts: int, lost: int, started: bool, errors: int) -> Action:
    if failure is Failure.GONE:
        return Action.DROP
    if started:
        return Action.FAIL
    if failure is Failure.CLIENT_ERROR:
        return Action.FORWARD
    if failure is Failure.ENGINE_ERROR:
        return Action.RETRY if errors < 2 and attempts < 3 else Action.FORWARD
    if failure is Failure.LOST:
        return Action.RETRY if lost < 2 and attempts < 3 else Action.FAIL
    if failure in RETRIED:
        return Action.RETRY if attempts < 3 else Action.FAIL
    return Action.FAIL


@pytest.mark.parametrize("failure", list(Failure))
@pytest.mark.parametrize("attempts", [1, 2, 3])
@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("errors", [1, 2])
def test_F07_F08_every_failure_has_one_answer(
    failure: Failure, attempts: int, lost: int, started: bool, errors: int
) -> None:
    action = judge(
        failure,
        attempts=attempts,
        attempts_max=3,
        lost=lost,
        lost_max=2,
        started=started,
        errors=errors,
    )
    assert action is expected(failure, attempts, lost, started, errors)


def test_every_failure_that_ends_a_request_has_an_error() -> None:
    dead = (RETRIED | {Failure.LOST}) - {Failure.UNAVAILABLE}
    assert {final_error(failure).http_status for failure in dead} == {502}
    assert final_error(Failure.UNAVAILABLE).http_status == 503
    assert final_error(Failure.SILENT).http_status == 504
    assert final_error(Failure.LOST).code == "worker_lost"


class TestQuarantine:
    def setup_method(self) -> None:
        self.now_s = 0.0
        self.table = Quarantine(lost_max=2, hold_s=60.0, clock=lambda: self.now_s)

    def test_F07_a_request_that_killed_two_workers_is_refused_for_a_while(self) -> None:
        assert not self.table
        self.table.note_loss(b"q", "a")
        assert self.table.refused_for_s(b"q") == 0
        self.table.note_loss(b"q", "b")
        assert self.table.refused_for_s(b"q") == 60
        assert self.table.refused_for_s(b"other") == 0
        self.now_s = 60.0
        assert self.table.refused_for_s(b"q") == 0
        assert not self.table

    def test_F07_many_equal_requests_on_one_dead_worker_count_once(self) -> None:
        for _ in range(20):
            self.table.note_loss(b"q", "a")
        assert self.table.refused_for_s(b"q") == 0

    def test_F07_a_success_proves_innocence(self) -> None:
        self.table.note_loss(b"q", "a")
        self.table.note_success(b"q")
        self.table.note_loss(b"q", "b")
        assert self.table.refused_for_s(b"q") == 0

    def test_the_table_is_bounded_and_forgets_the_oldest(self) -> None:
        for n in range(ENTRIES_MAX + 10):
            self.table.note_loss(b"%d" % n, "a")
        assert len(self.table) == ENTRIES_MAX
