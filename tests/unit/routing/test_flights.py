"""The table of flights: who leads, who follows, and what an instance is believed to have read."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.core.model import PrefixReach
from hostler.core.snapshot import InstanceView
from hostler.routing.flights import (
    FOLLOWERS_MAX,
    HEAD_BLOCKS,
    NEW_BLOCKS,
    FlightTable,
    Passage,
    Role,
)
from tests.unit.routing.fleet import instance

SHARED = instance("s", prefix_reach=PrefixReach.SHARED)
LENT = instance("l", prefix_reach=PrefixReach.LENT)


def blocks(*parts: tuple[str, int]) -> tuple[int, ...]:
    """Hashes of a prompt made of so many blocks of each text; each stands for all before it, too."""
    found, total = [], 0
    for name, count in parts:
        for n in range(count):
            total = hash((total, name, n))
            found.append(total)
    return tuple(found)


COMMON = ("common", 8)
FIRST, SECOND, THIRD = (blocks(COMMON, (tail, 2)) for tail in ("first", "second", "third"))


class Ours:
    """One table; prompts are as long as their blocks."""

    def __init__(self, where: InstanceView = SHARED, blocks_max: int = 4096) -> None:
        self.table: FlightTable[str] = FlightTable(blocks_max)
        self.where = where

    def board(self, who: str, prompt: Sequence[int], size: int = 0) -> Passage[str]:
        return self.table.board(who, self.where, prompt, size or len(prompt))


def names(passages: Sequence[Passage[str]]) -> list[str]:
    return [one.who for one in passages]


def test_the_first_leads_and_those_that_begin_alike_follow_until_its_first_token() -> None:
    ours = Ours()
    leader = ours.board("one", FIRST)
    followers = [ours.board("two", SECOND), ours.board("three", THIRD)]
    assert leader.role is Role.LEADS
    assert [one.role for one in followers] == [Role.FOLLOWS, Role.FOLLOWS]
    assert ours.board("other", blocks(("another", 8))).role is Role.LEADS
    assert names(ours.table.landed(leader)) == ["two", "three"]
    assert ours.board("later", SECOND).role is Role.ALONE
    assert ours.board("longer", blocks(COMMON, ("tail", 9))).role is Role.LEADS


def test_what_is_short_or_shares_little_waits_for_nobody() -> None:
    ours = Ours()
    assert ours.board("short", blocks(("x", NEW_BLOCKS - 1))).role is Role.ALONE
    long = ours.board("long", blocks(("x", NEW_BLOCKS), ("long", 30)))
    assert long.role is Role.LEADS
    assert (
        ours.board("shares an eighth of it", blocks(("x", NEW_BLOCKS), ("y", 1))).role is Role.LEADS
    )
    assert ours.board("shares three blocks", blocks(("x", 3), ("z", 9))).role is Role.LEADS


def test_prompts_equal_as_far_as_we_look_are_taken_to_be_equal_beyond() -> None:
    ours = Ours()
    whole = blocks(("book", HEAD_BLOCKS))
    assert ours.board("one", whole, size=400).role is Role.LEADS
    assert ours.board("two", whole, size=402).role is Role.FOLLOWS
    assert ours.board("a short one", blocks(("book", 20)), size=20).role is Role.LEADS


def test_an_heir_leads_when_the_leader_leaves_and_the_last_one_closes_the_flight() -> None:
    ours = Ours()
    one, two, three = (ours.board(n, p) for n, p in zip("123", (FIRST, SECOND, THIRD), strict=True))
    assert ours.table.left(two) is None
    assert ours.table.left(one) is three
    assert three.role is Role.LEADS
    assert ours.board("4", FIRST).role is Role.FOLLOWS
    assert names(ours.table.landed(three)) == ["4"]
    again = Ours()
    lonely = again.board("1", FIRST)
    assert again.table.left(lonely) is None
    again.table.ended(lonely)
    assert again.board("2", FIRST).role is Role.LEADS


def test_a_flight_that_is_given_up_lets_everybody_go_and_nothing_was_read() -> None:
    ours = Ours()
    leader, _ = ours.board("1", FIRST), ours.board("2", SECOND)
    assert leader.flight is not None
    assert names(ours.table.given_up(leader.flight)) == ["1", "2"]
    assert leader.flight is None
    assert ours.board("3", FIRST).role is Role.LEADS


def test_who_cannot_wait_or_cannot_lead_does_not_and_a_flight_has_an_end() -> None:
    ours = Ours()
    table = ours.table
    assert table.board("whole", SHARED, FIRST, 10, can_lead=False).role is Role.ALONE
    ours.board("leader", FIRST)
    assert table.board("hurries", SHARED, SECOND, 10, may_follow=False).role is Role.LEADS
    roles = [ours.board(str(n), SECOND).role for n in range(FOLLOWERS_MAX + 1)]
    assert roles == [Role.FOLLOWS] * FOLLOWERS_MAX + [Role.LEADS]


def test_a_beginning_in_one_slot_is_of_use_to_one_request_at_a_time() -> None:
    ours = Ours(LENT)
    one = ours.board("one", FIRST)
    assert ours.table.landed(one) == []
    beside = ours.board("beside it", SECOND)
    assert beside.role is Role.LEADS
    ours.table.landed(beside)  # it has read it for itself: two slots have it now
    third = ours.board("a third", THIRD)
    assert third.role is Role.LEADS
    assert ours.table.left(third) is None
    for passage in (one, beside, third):
        ours.table.ended(passage)
    again = [ours.board(f"again {n}", FIRST) for n in range(2)]
    assert [one.role for one in again] == [Role.ALONE, Role.ALONE]


def test_what_was_lent_is_known_in_so_many_slots() -> None:
    ours = Ours(LENT)
    leader = ours.board("1", FIRST)
    followers = [ours.board("2", SECOND), ours.board("3", THIRD)]
    assert leader.flight is not None
    assert names(ours.table.lent(leader.flight, 2)) == ["1", "2", "3"]
    assert [one.known_blocks for one in followers] == [8, 8]
    assert ours.board("4", SECOND).role is Role.LEADS  # all three are busy
    ours.table.ended(followers[0])
    assert ours.board("5", blocks(COMMON, ("fifth", 2))).role is Role.FOLLOWS  # four are aboard
    ours.table.ended(leader)
    ours.table.ended(followers[1])
    assert ours.board("6", blocks(COMMON, ("sixth", 2))).role is Role.ALONE


def test_a_conversation_with_a_slot_of_its_own_waits_for_no_other_one() -> None:
    ours = Ours(LENT)
    ours.board("another's", blocks(COMMON, ("of another", 3)))
    own = blocks(COMMON, ("turns of mine", 9))
    first = ours.table.board("my first turn", LENT, own, len(own), may_follow=False)
    ours.table.landed(first)
    ours.table.ended(first)
    next_turn = blocks(COMMON, ("turns of mine", 9), ("my answer", 2))
    assert ours.board("my next turn", next_turn).role is Role.ALONE


def test_a_belief_that_an_engine_contradicts_is_given_up() -> None:
    ours = Ours(LENT)
    one = ours.board("one", FIRST)
    ours.table.landed(one)
    assert ours.table.ended(one, cached_share=0.0)  # it was new, so it is no surprise
    two = ours.board("two", FIRST)
    assert two.role is Role.ALONE
    ours.table.landed(two)
    assert not ours.table.ended(
        two, cached_share=0.1
    )  # it had to read it once more, and has it now
    three = ours.board("three", FIRST)
    assert three.role is Role.ALONE
    assert ours.table.ended(three, cached_share=0.9)


def test_instances_that_are_gone_and_blocks_beyond_the_bound_are_forgotten() -> None:
    ours = Ours(blocks_max=20)
    ours.table.landed(ours.board("1", FIRST))
    for n in range(4):
        ours.table.landed(ours.board(f"x{n}", blocks((f"x{n}", 8))))
    assert ours.board("2", FIRST).role is Role.LEADS
    ours.table.landed(ours.board("3", SECOND))
    ours.table.forget([ours.where.instance_id, "another"])
    assert ours.board("4", SECOND).role is Role.LEADS


_PROMPTS = [
    blocks(("a", 6), (tail, 3)) for tail in ("x", "y")
] + [blocks(("a", 6), ("b", 6), (tail, 2)) for tail in ("x", "y")] + [blocks(("c", 9))]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 11)), max_size=60), st.booleans())
@settings(max_examples=120)
def test_whatever_happens_nobody_follows_a_flight_that_is_over(
    moves: list[tuple[int, int]], is_lent: bool
) -> None:
    ours = Ours(LENT if is_lent else SHARED)
    there: list[Passage[str]] = []
    for number, (kind, pick) in enumerate(moves):
        one = there[pick % len(there)] if there else None
        if kind <= 2 or one is None:
            there.append(ours.board(str(number), _PROMPTS[pick % len(_PROMPTS)]))
        elif kind == 3 and one.role is not Role.FOLLOWS:
            ours.table.landed(one)
        elif kind == 4:
            ours.table.left(one)
            ours.table.ended(one)
            there.remove(one)
        elif kind == 5 and one.flight is not None:
            ours.table.given_up(one.flight)
        elif kind == 6 and one.flight is not None:
            ours.table.lent(one.flight, 2)
        for passage in there:
            flight = passage.flight
            assert (flight is None) == (passage.role is Role.ALONE)
            if flight is not None:
                assert flight.leader in there
                assert passage in flight.members
                assert (flight.leader is passage) == (passage.role is Role.LEADS)
    for passage in list(there):
        ours.table.left(passage)
        ours.table.ended(passage)
    place = ours.table._places.get(ours.where.instance_id)
    assert place is None or not place.open
    assert place is None or all(one.aboard == 0 for one in place.known.values())
