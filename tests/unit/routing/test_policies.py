"""Each policy picks whom it promises, and a slot that is taken is respected."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.core.errors import BadRequest, HostlerError
from hostler.core.model import WorkerType
from hostler.core.serving import POLICIES, RoutingRules
from hostler.core.snapshot import InstanceView
from hostler.routing.ask import ANYBODY, Ask
from hostler.routing.claim import Claim, Outcome
from hostler.routing.making import make_policy
from hostler.routing.policies import Loads, RandomTwo, Weighted
from hostler.routing.router import Router
from tests.unit.routing.fleet import instance, model, snapshot


class Prompt(Ask):
    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    @property
    def prompt_tokens(self) -> int:
        return self._tokens


def router(*instances: InstanceView, **rules: Any) -> Router:
    made = Router()
    made.update(snapshot(*instances, models=(model("m", **rules),)))
    return made


def three(concurrency: int = 8) -> tuple[InstanceView, ...]:
    return tuple(
        instance(i, replica=n, concurrency=concurrency) for n, i in enumerate(("a", "b", "c"))
    )


def served(ours: Router, count: int) -> str:
    """Who serves so many requests that come one after the other."""
    found = ""
    for _ in range(count):
        claim = ours.claim("m")
        found += claim.instance.instance_id
        claim.release(Outcome.OK)
    return found


@pytest.mark.parametrize("policy", POLICIES)
def test_every_named_policy_serves_and_says_its_name_and_why(policy: str) -> None:
    ours = router(*three(1), policy=policy)
    claims = [ours.claim("m") for _ in range(3)]
    assert {claim.instance.instance_id for claim in claims} == {"a", "b", "c"}
    assert {claim.policy for claim in claims} == {"prefix" if policy == "auto" else policy}
    assert all(claim.why for claim in claims)
    with pytest.raises(HostlerError):
        ours.claim("m")
    for claim in claims:
        claim.release(Outcome.OK)
    assert not ours.load
    ours.update(snapshot(*three(1)[:2], models=(model("m", policy=policy),)))
    assert set(served(ours, 8)) <= {"a", "b"}


def test_auto_is_prefix_for_chat_and_least_in_flight_for_the_rest() -> None:
    assert router(*three()).claim("m").policy == "prefix"
    other = Router()
    embedding = model("m", worker_type=WorkerType.TEXT2VEC)
    other.update(snapshot(*three(), models=(embedding,)))
    assert other.claim("m").policy == "least-in-flight"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_client_is_told_the_same_policy_when_one_instance_is_left(policy: str) -> None:
    assert router(*three(), policy=policy).claim("m").policy == (
        router(instance("a"), policy=policy).claim("m").policy
    )


def test_round_robin_goes_on_where_it_was_when_instances_come_and_go() -> None:
    ours = router(*three(), policy="round-robin")
    assert served(ours, 5) == "abcab"
    ours.update(snapshot(*three(), instance("d"), models=(model("m", policy="round-robin"),)))
    assert served(ours, 5) == "cdabc"


def test_round_robin_passes_over_the_full_and_comes_back() -> None:
    ours = router(*three(1), policy="round-robin")
    held = ours.claim("m")
    assert served(ours, 4) == "bcbc"
    held.release(Outcome.OK)
    assert served(ours, 3) == "abc"


def test_a_question_takes_nobody_s_turn() -> None:
    for policy in ("round-robin", "weighted"):
        ours = router(*three(), policy=policy)
        for _ in range(5):
            assert ours.select("m").instance_id == "a"
        assert served(ours, 3) == "abc"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 4))
def test_weights_are_kept_exactly_in_every_cycle(weights: list[int], cycles: int) -> None:
    instances = [instance(f"i{n}", replica=n) for n in range(len(weights))]
    policy = Weighted(weights)
    policy.update(instances)
    for _ in range(cycles):
        counted: Counter[int] = Counter()
        for _ in range(sum(weights)):
            chosen = policy.choose(instances, Loads(), ANYBODY)
            policy.taken(chosen, ANYBODY)
            counted[chosen.replica] += 1
        assert [counted[n] for n in range(len(weights))] == weights


def test_weights_are_spread_and_not_served_in_lumps() -> None:
    ours = router(*three(), policy="weighted", weights=(5, 1, 1))
    assert served(ours, 14) == "aaabcaaaaabcaa"
    assert ours.claim("m").why == "weight 5"


def test_without_weights_an_instance_weighs_as_much_as_it_has_slots() -> None:
    ours = router(instance("a", concurrency=3), instance("b", concurrency=1), policy="weighted")
    assert Counter(served(ours, 40)) == {"a": 30, "b": 10}


def test_an_instance_that_was_full_for_long_does_not_catch_up() -> None:
    instances = (instance("a", replica=0, concurrency=1), instance("b", replica=1, concurrency=99))
    ours = router(*instances, policy="weighted", weights=(1, 1))
    held = ours.claim("m")
    while held.instance.instance_id != "a":
        held = ours.claim("m")
    assert served(ours, 50) == 50 * "b"
    held.release(Outcome.OK)
    assert 10 <= Counter(served(ours, 20))["a"] <= 11


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=4),
    st.lists(st.integers(0, 5), max_size=60),
)
def test_weights_and_slots_hold_together(places: list[tuple[int, int]], moves: list[int]) -> None:
    """Whatever is held meanwhile: no slot too many, and everyone free gets its turn at last."""
    instances = [
        instance(f"i{n}", replica=n, concurrency=slots) for n, (_, slots) in enumerate(places)
    ]
    weights = tuple(weight for weight, _ in places)
    ours = router(*instances, policy="weighted", weights=weights)
    held: list[Claim] = []
    for move in moves:
        if move and len(held) < sum(slots for _, slots in places):
            held.append(ours.claim("m"))
            chosen = held[-1].instance
            assert ours.load[chosen.instance_id] <= chosen.concurrency
        elif held:
            held.pop(move % len(held)).release(Outcome.OK)
    while held:
        held.pop().release(Outcome.OK)
    after = set()
    for _ in range(2 * sum(weights)):  # a whole cycle, after one that an instance was late in
        claim = ours.claim("m")
        after.add(claim.instance.instance_id)
        claim.release(Outcome.OK)
    assert after == {i.instance_id for i in instances}


def test_least_in_flight_looks_at_the_share_of_slots_when_they_differ() -> None:
    ours = router(
        instance("big", concurrency=8), instance("small", concurrency=2), policy="least-in-flight"
    )
    claims = [ours.claim("m").instance.instance_id for _ in range(10)]
    assert Counter(claims[:5]) == {"big": 4, "small": 1}
    assert Counter(claims) == {"big": 8, "small": 2}


def test_least_tokens_counts_what_is_to_be_read_and_forgets_it_afterwards() -> None:
    ours = router(*three(), policy="least-tokens")
    long = ours.claim("m", Prompt(10_000))
    busy = long.instance.instance_id
    others = [ours.claim("m", Prompt(10)) for _ in range(8)]
    assert busy not in {claim.instance.instance_id for claim in others}
    long.release(Outcome.OK)
    assert ours.claim("m", Prompt(10)).instance.instance_id == busy


def test_of_two_by_chance_the_less_busy_one_is_taken() -> None:
    instances = [instance(f"i{n}", concurrency=1000) for n in range(10)]
    loads, policy = Loads(), RandomTwo(seed=7)
    for _ in range(2000):
        chosen = policy.choose(instances, loads, ANYBODY).instance_id
        loads.in_flight[chosen] = loads.in_flight.get(chosen, 0) + 1
    assert max(loads.in_flight.values()) - min(loads.in_flight.values()) <= 6


def test_a_change_of_other_rules_leaves_a_policy_what_it_learned() -> None:
    ours = router(*three(), policy="round-robin")
    assert served(ours, 1) == "a"
    ours.update(snapshot(*three(), models=(model("m", policy="round-robin", queue_length=1),)))
    assert served(ours, 1) == "b"
    ours.update(snapshot(*three(), models=(model("m", policy="weighted", weights=(1, 1, 9)),)))
    assert Counter(served(ours, 11)) == {"a": 1, "b": 1, "c": 9}


@pytest.mark.parametrize(
    ("policy", "weights"), [("auto", (1, 2)), ("round-robin", (1,)), ("mine:Mine", (1,))]
)
def test_weights_that_would_be_ignored_are_refused(policy: str, weights: Sequence[int]) -> None:
    with pytest.raises(BadRequest, match="they count with policy 'weighted' alone"):
        RoutingRules(policy=policy, weights=tuple(weights))


def test_what_makes_a_policy_knows_every_name() -> None:
    for name in POLICIES:
        assert not make_policy(model("m", policy=name)).problem
