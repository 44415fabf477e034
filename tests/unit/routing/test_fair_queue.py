"""The queue of a model: fair between keys by weight, strict between classes, bounded."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.core.errors import HostlerError, Overloaded, RateLimitExceeded
from hostler.core.serving import Priority
from hostler.routing.ask import Ask
from hostler.routing.claim import Claim, Outcome
from hostler.routing.queue import Waiter
from hostler.routing.router import Router
from hostler.routing.turns import LINES_MAX
from tests.unit.routing.fleet import KeyAsk, instance, model, snapshot


class Hall:
    """A router of one model, and who got slots in which order."""

    def __init__(self, *, slots: int = 1, queue_length: int = 128) -> None:
        self.now_s = 0.0
        self.router = Router(clock=lambda: self.now_s, queue_length=queue_length)
        self.router.update(snapshot(instance("a", concurrency=slots), models=(model("m"),)))
        self.order: list[str] = []
        self.claims: list[Claim] = []
        self.errors: list[tuple[str, HostlerError]] = []

    def wait(self, ask: Ask, *, exclude: frozenset[str] = frozenset()) -> Waiter:
        def done(result: Claim | HostlerError) -> None:
            if isinstance(result, Claim):
                self.order.append(ask.key_id)
                self.claims.append(result)
            else:
                self.errors.append((ask.key_id, result))

        return self.router.enqueue("m", ask, exclude=exclude, done=done)

    def turn(self, answer_tokens: int | None = None, took_s: float = 1.0) -> None:
        """The oldest claim ends, and the next one waiting has its slot."""
        claim = self.claims.pop(0)
        claim.answer_tokens = answer_tokens
        self.now_s += took_s
        claim.release(Outcome.OK)


def keys(*names: str, **fields: object) -> list[KeyAsk]:
    return [KeyAsk(name, **fields) for name in names]  # type: ignore[arg-type]


def served(hall: Hall, asks: Sequence[Ask], turns: int) -> Counter[str]:
    """Keep every ask waiting again and again; say how often each key had a turn."""
    for ask in asks:
        hall.wait(ask)
    for _ in range(turns):
        before = len(hall.order)
        hall.turn()
        for name in hall.order[before:]:
            hall.wait(next(ask for ask in asks if ask.key_id == name))
    return Counter(hall.order)


def test_F53_a_key_with_ten_requests_waiting_gets_no_more_than_a_key_with_two() -> None:
    hall = Hall()
    counts = served(hall, keys(*["a"] * 10, *["b"] * 2), 100)
    assert abs(counts["a"] - counts["b"]) <= 2, counts


def test_F53_a_key_of_weight_three_gets_three_times_as_much() -> None:
    hall = Hall()
    asks = [*keys("a", "a", "a"), *keys("b", "b", "b", weight=3.0)]
    counts = served(hall, asks, 400)
    assert counts["b"] == pytest.approx(300, abs=4), counts


def test_F53_long_requests_cost_their_tokens_not_a_turn_each() -> None:
    hall = Hall()
    asks = [*keys("a", "a", prompt_tokens=900), *keys("b", "b", prompt_tokens=100)]
    counts = served(hall, asks, 200)
    assert counts["b"] == pytest.approx(180, abs=4), counts


def test_F53_what_an_answer_cost_is_charged_when_its_slot_comes_back() -> None:
    hall = Hall()
    for ask in keys("a", "a", "a", "b", "b", "b", "b", "b", "b", "b"):
        hall.wait(ask)
    while hall.claims:
        hall.turn(answer_tokens=300 if hall.order[-1] == "a" else 100)
    # the first of each teaches what an answer costs; a is behind by 200 after each of its own
    assert hall.order[:8].count("b") >= 5, hall.order


def test_a_key_that_was_away_does_not_save_turns_up() -> None:
    hall = Hall()
    served(hall, keys("a", "a"), 50)
    before = len(hall.order)
    for ask in keys(*["b"] * 20):
        hall.wait(ask)
    for _ in range(10):
        hall.turn()
        hall.wait(KeyAsk("a"))
    assert Counter(hall.order[before:])["b"] <= 6


def test_inside_a_key_the_first_to_come_is_the_first_to_go() -> None:
    hall = Hall()
    went: list[int] = []
    for number in range(6):

        def done(result: Claim | HostlerError, number: int = number) -> None:
            assert isinstance(result, Claim)
            went.append(number)
            hall.claims.append(result)

        hall.router.enqueue("m", KeyAsk("a", prompt_tokens=number), done=done)
    while hall.claims:
        hall.turn()
    assert went == list(range(6))


def test_a_higher_class_goes_first_and_a_lower_one_is_not_forgotten() -> None:
    hall = Hall()
    hall.wait(KeyAsk("first"))
    for name, priority in (("l", Priority.LOW), ("n", Priority.NORMAL), ("h", Priority.HIGH)):
        hall.wait(KeyAsk(name, priority=priority))
        hall.wait(KeyAsk(name, priority=priority))
    while hall.claims:
        hall.turn()
    assert hall.order == ["first", "h", "h", "n", "n", "l", "l"]


def test_one_that_cannot_use_what_is_free_does_not_hold_up_the_others() -> None:
    hall = Hall()
    hall.router.update(
        snapshot(instance("a", concurrency=1), instance("b", concurrency=1), models=(model("m"),))
    )
    for _ in range(2):
        hall.wait(KeyAsk("first"))
    on = {claim.instance.instance_id: claim for claim in hall.claims}
    hall.wait(KeyAsk("picky"), exclude=frozenset("a"))
    hall.wait(KeyAsk("easy"))
    on["a"].release(Outcome.OK)
    assert hall.order[2:] == ["easy"]
    newcomer = KeyAsk("picky")
    hall.wait(newcomer)
    on["b"].release(Outcome.OK)  # the one that was passed over has its turn as soon as it can
    assert hall.order[2:] == ["easy", "picky"]
    assert hall.router.waiting("m") == 1


def test_a_free_slot_is_not_idle_because_someone_waits_who_cannot_have_it() -> None:
    hall = Hall(queue_length=1)
    hall.router.update(
        snapshot(instance("a", concurrency=1), instance("b", concurrency=1), models=(model("m"),))
    )
    for _ in range(2):
        hall.wait(KeyAsk("first"))
    on = {claim.instance.instance_id: claim for claim in hall.claims}
    hall.wait(KeyAsk("picky"), exclude=frozenset("a"))
    on["a"].release(Outcome.OK)
    hall.wait(KeyAsk("newcomer"))  # although the queue is full
    assert hall.order[2:] == ["newcomer"]
    with pytest.raises(Overloaded):
        hall.wait(KeyAsk("picky"), exclude=frozenset("a"))


def test_F53_one_key_cannot_fill_the_queue_for_the_others() -> None:
    hall = Hall(queue_length=4)
    for ask in keys(*["a"] * 5):
        hall.wait(ask)
    with pytest.raises(Overloaded):
        hall.wait(KeyAsk("a"))
    for _ in range(2):
        hall.wait(KeyAsk("b"))
    with pytest.raises(Overloaded):
        hall.wait(KeyAsk("b"))  # both have half of it
    assert [name for name, _ in hall.errors] == ["a", "a"]
    error = hall.errors[0][1]
    assert isinstance(error, RateLimitExceeded)
    assert (error.http_status, error.retry_after_s) == (429, 1)
    assert hall.router.waiting("m") == 4


def test_a_higher_class_finds_a_place_in_a_queue_full_of_a_lower_one() -> None:
    hall = Hall(queue_length=2)
    for ask in keys("a", "a", "b", priority=Priority.LOW):
        hall.wait(ask)
    hall.wait(KeyAsk("c", priority=Priority.HIGH))
    assert len(hall.errors) == 1
    with pytest.raises(Overloaded):
        hall.wait(KeyAsk("d", priority=Priority.LOW))


def test_retry_after_is_when_the_key_itself_would_have_its_turn() -> None:
    hall = Hall(queue_length=40)
    hall.wait(KeyAsk("a"))
    hall.turn(took_s=2.0)  # a turn takes two seconds
    for ask in keys(*["a"] * 33):
        hall.wait(ask)
    pool = hall.router.known.named["m"]
    assert pool.retry_after_s(KeyAsk("a")) == 60  # 33 turns of 2 s, and 60 at most
    assert pool.retry_after_s(KeyAsk("b")) == 4  # one of a, then b
    assert pool.retry_after_s(KeyAsk("b", weight=0.25)) == 10
    assert pool.retry_after_s(KeyAsk("c", priority=Priority.HIGH)) == 2
    assert pool.retry_after_s(KeyAsk("c", priority=Priority.LOW)) == 60


def test_a_key_s_place_is_free_of_cost_and_its_table_is_bounded() -> None:
    hall = Hall(queue_length=4)
    hall.wait(KeyAsk("first"))
    for number in range(3 * LINES_MAX):
        hall.wait(KeyAsk(f"k{number}")).cancel()
    turns = hall.router.known.named["m"].queue._classes[Priority.NORMAL]
    assert hall.router.waiting("m") == 0
    assert max(len(turns._lines), len(turns._next), len(turns._longest)) <= 3 * LINES_MAX


def test_requests_that_needed_no_queue_count_as_soon_as_somebody_waits() -> None:
    hall = Hall(slots=4)
    for _ in range(4):
        hall.claims.append(hall.router.claim("m", KeyAsk("a", prompt_tokens=1000)))
    for ask in keys("b", "b", "b", "b", "a", "a", prompt_tokens=1000):
        hall.wait(ask)
    for _ in range(4):
        hall.turn()
    assert hall.order[1:].count("b") >= 2, hall.order


@given(
    weights=st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 5.0])] * 2),
    costs=st.lists(st.tuples(st.booleans(), st.integers(1, 1000)), min_size=4, max_size=60),
    slots=st.integers(1, 4),
)
def test_F53_B19_two_backlogged_keys_never_differ_by_more_than_two_largest_requests(
    weights: tuple[float, float], costs: list[tuple[bool, int]], slots: int
) -> None:
    hall = Hall(slots=slots, queue_length=1000)
    names = ("a", "b")
    waiting: Counter[str] = Counter()
    given_: dict[str, float] = dict.fromkeys(names, 0.0)
    for _ in range(slots):
        hall.wait(KeyAsk("other"))

    def wait(index: int, cost: int) -> None:
        ask = KeyAsk(names[index], weight=weights[index], prompt_tokens=cost)
        waiting[names[index]] += 1
        hall.wait(ask)

    for is_b, cost in costs:
        wait(int(is_b), cost)
    largest = max(cost for _, cost in costs)
    while all(waiting[name] for name in names):  # as long as both are backlogged
        seen = len(hall.order)
        hall.turn()
        for claim in hall.claims[-(len(hall.order) - seen) :]:
            name = claim.ask.key_id
            waiting[name] -= 1
            given_[name] += claim.ask.prompt_tokens / claim.ask.weight
        gap = abs(given_["a"] - given_["b"])
        assert gap <= 2 * largest / min(weights)


def test_a_slot_that_was_not_used_costs_its_key_nothing() -> None:
    orders = []
    for is_used in (True, False):
        hall = Hall()
        for ask in [*keys("a", prompt_tokens=500), *keys("b", "b", "a", prompt_tokens=500)]:
            hall.wait(ask)
        hall.turn()  # the first a had the slot without a wait; b's turn has come
        hall.claims.pop(0).release(Outcome.OK if is_used else Outcome.UNUSED)
        orders.append(hall.order)
    assert orders == [["a", "b", "a"], ["a", "b", "b"]]


def test_who_gave_a_slot_back_finds_a_place_in_a_full_queue() -> None:
    hall = Hall(queue_length=1)
    (one,) = keys("one")
    hall.wait(one)
    hall.wait(one)
    with pytest.raises(Overloaded):
        hall.wait(one)
    done: list[object] = []
    waiter = hall.router.enqueue("m", one, done=done.append, is_owed=True)
    hall.turn()
    hall.turn()
    assert len(done) == 1
    assert waiter.line is None
