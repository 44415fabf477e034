"""The table of prefixes against a naive one, and whom it makes the policy choose."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.core.lifecycle import State
from hostler.core.snapshot import InstanceView
from hostler.routing.ask import Ask
from hostler.routing.claim import Outcome
from hostler.routing.prefix import (
    BLOCK_BYTES,
    HEAD_BYTES,
    PrefixAware,
    PrefixTable,
    hash_blocks,
)
from hostler.routing.router import Router
from tests.unit.routing.fleet import instance, model, snapshot


class Says(Ask):
    def __init__(self, prompt: str) -> None:
        self._blocks = hash_blocks(prompt.encode())

    @property
    def blocks(self) -> tuple[int, ...]:
        return self._blocks


def text(name: str, blocks: int = 8) -> str:
    return "".join(f"{name} {n:4} ".ljust(BLOCK_BYTES, ".") for n in range(blocks))


def fleet(*ids: str, concurrency: int = 4) -> list[InstanceView]:
    return [instance(i, replica=n, concurrency=concurrency) for n, i in enumerate(ids)]


def router(*ids: str, concurrency: int = 4) -> Router:
    made = Router()
    made.update(snapshot(*fleet(*ids, concurrency=concurrency), models=(model("m"),)))
    return made


def ask(ours: Router, prompt: str) -> tuple[str, str]:
    claim = ours.claim("m", Says(prompt))
    claim.release(Outcome.OK)
    return claim.instance.instance_id, claim.why


@given(st.binary(max_size=3 * BLOCK_BYTES), st.binary(max_size=3 * BLOCK_BYTES))
@settings(max_examples=50)
def test_prompts_have_equal_hashes_as_far_as_they_are_equal(one: bytes, two: bytes) -> None:
    start = b"s" * BLOCK_BYTES
    first, second = hash_blocks(start + one), hash_blocks(start + two)
    assert first[0] == second[0]
    assert len(first) == (len(start) + len(one)) // BLOCK_BYTES
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        end = place * BLOCK_BYTES
        assert (a == b) == (one[:end] == two[:end])


def test_only_the_beginning_of_a_prompt_is_looked_at() -> None:
    assert len(hash_blocks(b"x" * (10 * HEAD_BYTES))) == HEAD_BYTES // BLOCK_BYTES
    assert hash_blocks(b"short") == ()


# Prompts are paths in a small tree, so that many share beginnings.
PATHS = st.lists(st.integers(0, 2), min_size=1, max_size=5)
IDS = (0, 3, 70)  # places
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), PATHS, st.sampled_from(IDS)),
        st.tuples(st.just("forget"), st.just([0]), st.sampled_from(IDS)),
    ),
    max_size=40,
)


def chain(path: Sequence[int]) -> list[int]:
    return [hash(tuple(path[: n + 1])) for n in range(len(path))]


@given(STEPS, PATHS, st.sets(st.sampled_from(IDS)))
@settings(max_examples=200)
def test_the_table_finds_what_a_naive_one_finds(
    steps: list[tuple[str, list[int], int]], path: list[int], among: set[int]
) -> None:
    table, naive = PrefixTable(), dict[int, set[tuple[int, ...]]]()
    for kind, blocks, who in steps:
        if kind == "add":
            table.add(chain(blocks), who)
            naive.setdefault(who, set()).update(tuple(blocks[: n + 1]) for n in range(len(blocks)))
        else:
            table.forget(1 << who)
            naive.pop(who, None)
    depths = {
        who: max(
            (n for n in range(len(path) + 1) if tuple(path[:n]) in naive.get(who, ())), default=0
        )
        for who in among
    }
    best = max(depths.values(), default=0)
    count, bits = table.match(chain(path), sum(1 << who for who in among))
    assert count == best
    assert {who for who in IDS if bits >> who & 1} == {
        who for who, n in depths.items() if n == best and best
    }
    assert len(table) == len(set().union(*naive.values()))


@given(st.lists(st.tuples(PATHS, st.sampled_from(IDS)), max_size=40), st.integers(1, 6))
@settings(max_examples=100)
def test_the_table_is_bounded_and_forgets_what_follows_before_what_begins(
    steps: list[tuple[list[int], int]], bound: int
) -> None:
    table = PrefixTable(bound)
    for path, who in steps:
        table.add(chain(path), who)
        assert len(table) <= bound
    kept = set(table._holders)
    for path, _ in steps:
        blocks = chain(path)
        for before, after in pairwise(blocks):
            assert after not in kept or before in kept


def test_what_was_asked_longest_ago_is_forgotten_first() -> None:
    table = PrefixTable(4)
    table.add([1, 2], 0)
    table.add([3, 4], 1)
    table.add([1, 2], 0)
    table.add([5], 2)
    everyone = 0b111
    assert table.match([1, 2], everyone)[0] == 2
    assert table.match([3, 4], everyone)[0] == 1


def test_a_conversation_stays_where_it_began() -> None:
    ours = router("a", "b", "c")
    begun = {name: ask(ours, text(name))[0] for name in ("x", "y", "z")}
    assert sorted(begun.values()) == ["a", "b", "c"]
    for turn in range(1, 4):
        for name, home in begun.items():
            assert ask(ours, text(name, 8 + turn)) == (
                home,
                f"prefix {7 + turn} of {8 + turn} blocks",
            )


def test_a_small_common_beginning_draws_nobody_to_one_instance() -> None:
    ours = router("a", "b")
    common = text("system", 1)
    used = [ask(ours, common + text(f"user {n}", 9)) for n in range(6)]
    assert {who for who, _ in used} == {"a", "b"}
    assert {why for _, why in used} == {"new prefix, least in flight"}


def test_an_instance_that_is_too_busy_is_left_for_the_least_busy() -> None:
    ours = router("a", "b", concurrency=8)
    home, _ = ask(ours, text("x"))
    held = [ours.claim("m", Says(text("x"))) for _ in range(8)]
    used = [claim.instance.instance_id for claim in held]
    assert used[:5] == 5 * [home]
    assert len(set(used)) == 2
    assert any("its instance is busy" in claim.why for claim in held)
    assert all(load <= 8 for load in ours.load.values())


def test_a_thousand_slots_are_no_reason_to_send_everything_to_one() -> None:
    ours = router("a", "b", concurrency=1000)
    ask(ours, text("x"))
    for _ in range(200):
        ours.claim("m", Says(text("x")))
    assert abs(ours.load["a"] - ours.load["b"]) <= 33


def test_a_full_instance_is_left_and_the_other_learns() -> None:
    ours = router("a", "b", concurrency=1)
    home, _ = ask(ours, text("x"))
    with_slot = ours.claim("m", Says(text("x")))
    assert with_slot.instance.instance_id == home
    other, _ = ask(ours, text("x"))
    assert other != home
    with_slot.release(Outcome.OK)
    assert ask(ours, text("x"))[1] == "prefix 8 of 8 blocks"


def test_what_an_instance_read_is_forgotten_with_it_and_kept_while_it_is_in_doubt() -> None:
    policy = PrefixAware()
    made = Router(make_policy=lambda view: policy)
    view = model("m")
    made.update(snapshot(*fleet("a", "b"), models=(view,)))
    home, _ = ask(made, text("x"))
    other = "b" if home == "a" else "a"
    assert len(policy.table) == 8
    doubtful = [
        instance(i, state=State.SUSPECT if i == home else State.READY, concurrency=4)
        for i in ("a", "b")
    ]
    made.update(snapshot(*doubtful, models=(view,)))
    assert len(policy.table) == 8
    made.update(snapshot(*fleet("a", "b"), models=(view,)))
    assert ask(made, text("x")) == (home, "prefix 8 of 8 blocks")
    made.update(snapshot(*fleet(other), models=(view,)))
    assert len(policy.table) == 0


def test_nothing_is_hashed_for_a_single_instance() -> None:
    class Secretive(Ask):
        @property
        def blocks(self) -> tuple[int, ...]:
            raise AssertionError("nobody needs them")

    ours = router("a")
    ours.claim("m", Secretive()).release(Outcome.OK)
    ours = Router()
    ours.update(snapshot(*fleet("a", "b"), models=(model("m", policy="least-in-flight"),)))
    ours.claim("m", Secretive()).release(Outcome.OK)


def test_the_table_has_no_room_for_more_than_it_says_with_a_thousand_instances() -> None:
    table = PrefixTable(1000)
    for place in range(1000):
        table.add(range(place * 10, place * 10 + 20), place)
    assert len(table) == 1000
    table.forget((1 << 1000) - 1)
    assert len(table) == 0


def test_a_place_is_given_to_another_instance_only_when_nothing_is_remembered_of_it() -> None:
    policy = PrefixAware()
    made = Router(make_policy=lambda view: policy)
    view = model("m")
    made.update(snapshot(*fleet("a", "b"), models=(view,)))
    read: dict[str, set[int]] = {}
    most = 0
    for number in range(60):  # each new one has read nothing, whoever stood there before
        made.update(snapshot(*fleet(f"n{number}", "b"), models=(view,)))
        for prompt in range(12):
            home, why = ask(made, text(f"prompt {prompt}"))
            assert not why.startswith("prefix") or prompt in read[home]
            read.setdefault(home, set()).add(prompt)
        most = max(most, *(policy.places.place(one) for one in (f"n{number}", "b")))
    assert most < 10  # but they are given to others
