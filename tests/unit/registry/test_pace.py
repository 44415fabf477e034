"""How often a fleet speaks, who is let in when all come at once, and how silence is judged."""

import asyncio
import math
from collections import Counter
from heapq import heapify, heappop, heappush
from random import Random, seed
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.app.config import HeartbeatConfig
from hostler.core.lifecycle import Instance, Signal
from hostler.core.model import WorkerType
from hostler.registry.expected import Expected
from hostler.registry.liveness import is_mass_loss, judge_heartbeat
from hostler.registry.pace import (
    FEW_S,
    HOSTS_TURNS,
    Arrivals,
    Turns,
    again_s,
    all_back_s,
    patience,
    spread_s,
)
from hostler.registry.record import Record
from hostler.registry.silences import Silences
from hostler.testing.clock import ManualClock
from hostler.testing.fleet import most_in_a_second

BEATS = HeartbeatConfig(most_per_s=100)


def record(number: int) -> Record:
    one = Instance(instance_id=f"i{number}", worker_key="m@llm", model_name="m")
    return Record(one, Expected(worker_type=WorkerType.LLM, engine="fake"))


@pytest.mark.parametrize("count", [10, 90, 1000])
def test_F37_however_many_beat_and_whatever_they_do_together_no_second_has_too_many(
    count: int,
) -> None:
    clock = ManualClock(0.0)
    turns, fleet = Turns(BEATS, clock), [record(n) for n in range(count)]
    due = [(0.0, n) for n in range(count)]  # all in the same moment, as after a restart
    seconds: Counter[int] = Counter()
    while due and due[0][0] < 45.0:
        at_s, number = min(due)
        due.remove((at_s, number))
        clock.advance(max(0.0, at_s - clock()))
        seconds[int(at_s)] += 1
        due.append((at_s + turns.next_beat_s(fleet[number]), number))
        if at_s > 40.0:
            break
    told_s = [one.interval_s for one in fleet]
    assert all(seconds[s] <= BEATS.most_per_s + 2 for s in range(2, 40)), seconds
    assert max(told_s) <= max(1.0, count / BEATS.most_per_s) * 1.1 + 0.2
    if count >= BEATS.most_per_s:
        assert all(seconds[s] >= 0.9 * BEATS.most_per_s for s in range(15, 39)), seconds


@pytest.mark.parametrize("late_s", [0.0, 0.3])
@pytest.mark.parametrize("starts_s", [0.0, 3.0])
@pytest.mark.parametrize("count", [20, 100, 300, 1000])
def test_F37_while_hosts_come_back_no_second_has_more_beats_than_may_be(
    count: int, starts_s: float, late_s: float
) -> None:
    """starts_s: those who come before wait for their controller. late_s: beats come up to so much later."""
    told, clock, random = HeartbeatConfig(), ManualClock(0.0), Random(7)
    seed(7)
    turns = Turns(told, clock, share=HOSTS_TURNS)
    fleet, away = [record(n) for n in range(count)], set(range(count))
    due = [(max(starts_s, again_s(0.5, spread_s(told, count))), n) for n in range(count)]
    heapify(due)
    came: list[float] = []
    while due[0][0] < 60.0:
        at_s, number = heappop(due)
        clock.advance(at_s - clock())
        turns.expect(count, len(away))
        away.discard(number)
        came.append(at_s)
        next_s = turns.next_beat_s(fleet[number]) + late_s * random.random()
        heappush(due, (at_s + next_s, number))
    assert most_in_a_second(came) <= told.most_per_s
    usual_s = max(told.interval_s, count / (HOSTS_TURNS * told.most_per_s))
    assert max(one.interval_s for one in fleet) < usual_s + 1.0, "and then it is as ever"


def test_F37_who_comes_back_first_leaves_room_for_those_who_are_away() -> None:
    clock = ManualClock(0.0)
    turns = Turns(HeartbeatConfig(), clock, share=0.5)
    turns.expect(1000, 999)
    assert turns.next_beat_s(record(0)) == pytest.approx(19.99)
    turns.expect(1000, 0)
    assert turns.next_beat_s(record(1)) == pytest.approx(20.0), (
        "not before the turn that was given last"
    )
    clock.advance(60.0)
    assert turns.next_beat_s(record(2)) == pytest.approx(10.0)


def test_few_hosts_are_told_to_beat_as_often_as_one() -> None:
    turns = Turns(HeartbeatConfig(), ManualClock(0.0), share=HOSTS_TURNS)
    turns.expect(20, 20)
    told_s = [turns.next_beat_s(record(n)) for n in range(20)]
    assert told_s[0] == 1.0
    assert told_s[-1] < 1.2


def test_F37_a_thousand_that_register_at_once_are_let_in_one_after_the_other() -> None:
    clock, random = ManualClock(0.0), Random(7)
    arrivals = Arrivals(BEATS, clock)
    due = sorted((random.random() * 0.5, n) for n in range(1000))
    let_in: list[float] = []
    asked = 0
    while due:
        at_s, number = due.pop(0)
        clock.advance(max(0.0, at_s - clock()))
        asked += 1
        if wait_s := arrivals.wait_s(f"i{number}"):
            due.append((clock() + wait_s + random.random() * 0.01, number))
            due.sort()
        else:
            let_in.append(clock())
    assert len(let_in) == 1000
    assert asked < 2100  # once, and once more
    for second in range(11):
        came = sum(second <= at_s < second + 1 for at_s in let_in)
        assert came <= 1.3 * BEATS.most_per_s + 2, (second, came)
    assert let_in[-1] < 11.0


def test_who_is_waited_for_are_the_hosts_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, slept_s = ManualClock(100.0), [0.0]

    async def sleep(seconds: float) -> None:
        slept_s.append(seconds)
        clock.advance(seconds)

    monkeypatch.setattr("asyncio.sleep", sleep)
    arrivals = Arrivals(BEATS, clock)
    asyncio.run(arrivals.all_came())
    assert clock() == 100.0
    arrivals.hosts_come(all_back_s(spread_s(HeartbeatConfig(), 1000)))
    asyncio.run(arrivals.all_came())
    assert clock() == pytest.approx(124.0)


def test_a_few_that_register_at_once_wait_for_nothing() -> None:
    arrivals = Arrivals(HeartbeatConfig(), ManualClock())
    assert [arrivals.wait_s(f"i{number}") for number in range(10)] == [0.0] * 10


def test_silence_is_judged_by_the_interval_that_was_told() -> None:
    usual = HeartbeatConfig()
    assert patience(usual, 1.0) is usual
    slow = patience(usual, 20.0)
    assert judge_heartbeat(49.0, slow) is Signal.SEEN
    assert judge_heartbeat(51.0, slow) is Signal.LATE
    assert judge_heartbeat(101.0, slow) is Signal.LOST


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["beat", "sick beat", "vouch", "time", "pause", "leave"]),
        st.integers(0, 5),
        st.sampled_from([0.25, 1.0, 2.0, 30.0]),
    ),
    max_size=60,
)


class Naive:
    """Looks at everybody each time."""

    def __init__(self, fleet: dict[str, Record]) -> None:
        self.fleet = fleet
        self.was_mass, self.since_mass_s = False, math.inf

    def judge(self, now_s: float, passed_s: float) -> dict[str, Signal]:
        """passed_s: since the last look, but for what nobody listened."""
        found: dict[str, Signal] = {}
        silences: dict[str, Any] = {i: now_s - (r.well_at_s or 0) for i, r in self.fleet.items()}
        told = {i for i, r in self.fleet.items() if (r.heard_at_s or 0) > (r.well_at_s or 0)}
        mass = is_mass_loss([0.0 if i in told else s for i, s in silences.items()], BEATS)
        self.since_mass_s += passed_s
        if self.was_mass and not mass:
            self.since_mass_s = 0.0
        self.was_mass = mass
        for i, seconds in silences.items():
            if i not in told and not mass:
                seconds = min(seconds, BEATS.suspect_after_s + self.since_mass_s)
            signal = judge_heartbeat(seconds, BEATS, in_mass=mass and i not in told)
            if signal is not Signal.SEEN:
                found[i] = signal
        return found


@given(STEPS)
@settings(max_examples=150, deadline=None)
def test_who_is_silent_is_found_as_by_a_look_at_everybody(
    steps: list[tuple[str, int, float]],
) -> None:
    clock = ManualClock()
    posted: dict[str, Signal] = {}

    def post(instance_id: str, signal: Signal, why: str) -> None:
        if signal is not Signal.SEEN:
            posted[instance_id] = signal

    silences, fleet = Silences(BEATS, clock, post), {f"i{n}": record(n) for n in range(6)}
    naive, looked_at_s = Naive(fleet), clock()
    for one in fleet.values():
        one.heard_at_s = one.well_at_s = clock()
        silences.watch(one)
    for what, number, seconds in steps:
        one, name = fleet.get(f"i{number}", record(9)), f"i{number}"
        paused_s = 0.0
        match what:
            case "beat":
                one.heard_at_s = one.well_at_s = clock()
            case "sick beat":
                one.heard_at_s = clock()
            case "vouch":
                one.well_at_s = clock()
            case "time":
                clock.advance(seconds)
            case "pause":
                clock.advance(seconds)
                paused_s = seconds
            case "leave":
                fleet.pop(name, None)
                silences.forget(name)
        posted.clear()
        silences.judge(paused_s)
        assert posted == naive.judge(clock(), clock() - looked_at_s - paused_s)
        looked_at_s = clock()
        late = {r.instance.instance_id for r in silences.late()}
        assert late == {
            i
            for i, r in fleet.items()
            if clock() - max(r.heard_at_s or 0, r.well_at_s or 0) >= 0.6 * BEATS.suspect_after_s
        }
        for gone, signal in list(posted.items()):
            if signal is Signal.LOST:
                fleet.pop(gone, None)
                silences.forget(gone)


def test_few_hosts_come_back_at_once() -> None:
    over_s = spread_s(HeartbeatConfig(), 20)
    assert over_s <= FEW_S
    assert all(0.25 <= again_s(0.5, over_s) <= 1.0 for _ in range(100))
    assert all(0.25 <= again_s(0.5, 0.0) <= 0.5 for _ in range(100))


def test_a_thousand_hosts_come_back_over_twenty_seconds_once_their_controller_may_have_started() -> (
    None
):
    over_s = spread_s(HeartbeatConfig(), 1000)
    times = [again_s(0.5, over_s) for _ in range(1000)]
    assert over_s == 20.0
    assert 2.0 < min(times) < max(times) <= 22.5
    assert most_in_a_second(times) < 90
