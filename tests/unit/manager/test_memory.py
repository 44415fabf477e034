"""Promises of memory: pure sums, and a table where the last room goes to one."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.app.config import LifeConfig
from hostler.core.errors import PlacementUnavailable
from hostler.core.fleet import WorkerSpec
from hostler.core.model import WorkerType
from hostler.manager.memory import Memory, Promise, missing_bytes, need_of, private_bytes

GIB = 1 << 30


def spec(
    instance_id: str, need_bytes: int, *, model_path: str = "", engine: str = "fake"
) -> WorkerSpec:
    return WorkerSpec(
        instance_id=instance_id,
        epoch=1,
        worker_type=WorkerType.LLM,
        params={"memory_bytes": need_bytes},
        engine_socket="/r/e",
        agent_socket="/r/a",
        registry_socket="/r/r",
        model_name=instance_id,
        model_path=model_path,
        engine=engine,
        secret="s",
    )


def table(free_bytes: int | None, **life: bool | int) -> Memory:
    return Memory(LifeConfig(**life), lambda _: None, lambda: free_bytes)  # type: ignore[arg-type]


sizes = st.integers(0, 64 * GIB)


@given(sizes, sizes, st.lists(st.tuples(sizes, sizes), max_size=6), sizes)
def test_F73_what_fits_never_adds_up_to_more_than_is_free(
    need: int, free: int, others: list[tuple[int, int]], reserve: int
) -> None:
    promises = {str(n): Promise(model="m", need_bytes=one) for n, (one, _) in enumerate(others)}
    taken = {str(n): now for n, (_, now) in enumerate(others)}
    still = sum(max(0, one - now) for one, now in others)
    assert (missing_bytes(need, free, promises, taken, reserve) <= 0) == (
        need + still + reserve <= free
    )


def test_F73_of_many_racing_starts_exactly_as_many_win_as_there_is_room_for() -> None:
    memory = table(10 * GIB, memory_reserve_bytes=GIB)
    won = []
    for number in range(50):
        try:
            memory.claim(spec(f"i{number}", 2 * GIB))
            won.append(f"i{number}")
        except PlacementUnavailable:
            pass
    assert won == ["i0", "i1", "i2", "i3"]
    memory.release("i2")
    memory.claim(spec("late", 2 * GIB))
    with pytest.raises(PlacementUnavailable):
        memory.claim(spec("too late", 2 * GIB))


def test_F73_a_refusal_says_what_is_needed_and_what_would_make_room() -> None:
    memory = table(4 * GIB)
    memory.claim(spec("big", 3 * GIB))
    with pytest.raises(PlacementUnavailable) as caught:
        memory.claim(spec("other", 2 * GIB))
    message = caught.value.message
    assert "'other' needs about 2,048 MiB" in message
    assert "4,096 MiB are free" in message
    assert "big (3,072 MiB)" in message
    assert "life.memory_check" in message
    assert caught.value.code == "placement_unavailable"
    assert caught.value.http_status == 503


def test_nobody_is_refused_when_nothing_is_known_or_it_is_switched_off() -> None:
    table(None).claim(spec("a", 900 * GIB))
    table(0).claim(spec("a", 0))
    table(GIB, memory_check=False).claim(spec("a", 900 * GIB))


def test_a_process_that_runs_is_never_refused_but_counts() -> None:
    memory = table(4 * GIB)
    memory.adopt(spec("old", 100 * GIB))
    with pytest.raises(PlacementUnavailable):
        memory.claim(spec("new", GIB))


def test_files_that_cannot_be_read_need_nothing_here(tmp_path: Path) -> None:
    broken = tmp_path / "m.gguf"
    broken.write_bytes(b"GGUF")
    assert need_of(spec("a", 5, model_path=str(broken), engine="llama.cpp")) == 0
    assert need_of(spec("a", 5)) == 5


def test_a_process_has_memory_of_its_own_and_one_that_is_gone_none() -> None:
    assert private_bytes(os.getpid()) > 5 << 20
    assert private_bytes(None) == 0
    assert private_bytes(2**22 + 1) == 0
