"""What gateways tell one another through their controller: only what changed, and nothing for ever."""

import pytest

from hostler.core.loads import ENTRIES_MOST, EXPIRE_S, LoadAnswer, LoadReport
from hostler.registry import loads
from hostler.registry.loads import LoadSum
from hostler.testing.clock import ManualClock


class Told:
    """A gateway process: what it reports, and what it knows of others by the answers alone."""

    def __init__(self, sum_: LoadSum, machine: str, source: str) -> None:
        self.sum, self.machine, self.source = sum_, machine, source
        self.seq, self.seen, self.is_first = 0, 0, True
        self.others: dict[str, int] = {}

    def say(self, **counts: int) -> LoadAnswer:
        self.seq += 1
        answer = self.sum.take(
            self.machine,
            LoadReport(
                source=self.source,
                seq=self.seq,
                is_first=self.is_first,
                seen=self.seen,
                counts=counts,
            ),
        )
        if answer.is_lost:
            self.is_first, self.seen = True, 0
            return answer
        self.is_first, self.seen = False, answer.version
        self.others = {} if answer.is_whole else self.others
        self.others = {i: n for i, n in {**self.others, **answer.counts}.items() if n}
        return answer


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def whole(clock: ManualClock) -> LoadSum:
    return LoadSum(clock)


def test_each_machine_hears_what_the_others_have_and_not_what_it_has(whole: LoadSum) -> None:
    a, b = Told(whole, "a", "a1"), Told(whole, "b", "b1")
    a.say(x=3, y=1)
    assert b.say(x=2).machines == 2
    assert b.others == {"x": 3, "y": 1}
    a.say()
    assert a.others == {"x": 2}
    a.say(x=0)
    b.say()
    assert b.others == {"y": 1}


def test_gateways_of_one_machine_are_no_others_to_each_other(whole: LoadSum) -> None:
    here, there, far = Told(whole, "", "h1"), Told(whole, "", "h2"), Told(whole, "far", "f")
    here.say(x=1)
    assert there.say(x=2).machines == 1
    assert there.others == {}
    far.say()
    assert far.others == {"x": 3}


def test_only_what_changed_is_told_again(whole: LoadSum) -> None:
    a, b = Told(whole, "a", "a1"), Told(whole, "b", "b1")
    a.say(x=3, y=1)
    b.say()
    assert b.say(z=1, y=4).counts == {}  # its own word is no news to it
    a.say(x=4)
    assert b.say().counts == {"x": 4}
    assert b.say().counts == {}


def test_a_report_that_was_missed_is_asked_for_whole(whole: LoadSum) -> None:
    a, b = Told(whole, "a", "a1"), Told(whole, "b", "b1")
    a.say(x=3)
    b.say()
    a.seq += 1  # lost on its way
    assert a.say(x=1).is_lost
    b.say()
    assert b.others == {}  # nobody knows
    a.say(x=1, y=2)
    b.say()
    assert b.others == {"x": 1, "y": 2}


def test_another_controller_hears_everything_and_tells_everything(clock: ManualClock) -> None:
    one, two = LoadSum(clock), LoadSum(clock)
    a, b = Told(one, "a", "a1"), Told(one, "b", "b1")
    a.say(x=3)
    b.say(x=1)
    a.sum = b.sum = two
    assert a.say(y=1).is_lost
    a.say(x=3, y=1)
    assert b.say().is_lost
    assert b.say(x=1).is_whole
    assert b.others == {"x": 3, "y": 1}


def test_what_a_silent_gateway_told_counts_no_more(whole: LoadSum, clock: ManualClock) -> None:
    a, b = Told(whole, "a", "a1"), Told(whole, "b", "b1")
    a.say(x=3)
    b.say()
    clock.advance(EXPIRE_S - 1)
    assert b.say().machines == 2
    clock.advance(1.5)
    assert b.say().machines == 1
    assert b.others == {}
    assert a.say().is_lost


def test_one_that_ends_says_so(whole: LoadSum) -> None:
    a, b = Told(whole, "a", "a1"), Told(whole, "b", "b1")
    a.say(x=3)
    b.say()
    whole.take("a", LoadReport(source="a1", seq=0, is_last=True))
    assert b.say().machines == 1
    assert b.others == {}


def test_a_message_is_bounded_and_the_rest_follows(whole: LoadSum) -> None:
    a, b = Told(whole, "a", "a1"), Told(whole, "b", "b1")
    names = [f"i{n}" for n in range(2 * ENTRIES_MOST + 10)]
    a.say(**dict.fromkeys(names, 1))
    assert len(b.say().counts) == ENTRIES_MOST
    a.say(i0=7)  # meanwhile
    assert len(b.say().counts) == ENTRIES_MOST
    b.say()
    b.say()
    assert b.others == {**dict.fromkeys(names, 1), "i0": 7}


def test_who_was_away_while_it_was_forgotten_hears_all(
    whole: LoadSum, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "KEPT_MOST", 10)
    a, b = Told(whole, "a", "a1"), Told(whole, "b", "b1")
    a.say(i0=5, i1=1)
    b.say()
    a.say(i0=0)
    for number in range(20):
        a.say(**{f"n{number}": 1})
        a.say(**{f"n{number}": 0})
    assert len(whole._counts) < 15
    assert b.say().is_whole
    assert b.others == {"i1": 1}


def test_F23_hosts_that_are_silent_are_asked_for_and_vouched_for(clock: ManualClock) -> None:
    vouched: list[str] = []
    whole = LoadSum(clock, lambda: ["h"], vouched.append)
    assert Told(whole, "a", "a1").say().silent == ("h",)
    whole.take("a", LoadReport(source="a1", seq=2, heard=("h",)))
    assert vouched == ["h"]
