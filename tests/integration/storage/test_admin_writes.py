"""SIGKILL of a controller while orders are acknowledged: what was answered is there afterwards."""

import random

import pytest

from hostler.testing.durability import run_kills

KILLS = 10  # `make soak ARGS=--durability` takes 100 and more


@pytest.mark.slow
def test_F81_no_acknowledged_order_is_lost_when_the_controller_is_killed() -> None:
    seed = random.randrange(10**9)
    found = run_kills(KILLS, seed)
    assert found.lost == (), f"seed {seed}: {len(found.lost)} of {found.acknowledged}"
    assert found.strangers == (), f"seed {seed}: something nobody ordered"
    assert found.corrupt == (), f"seed {seed}"
    assert found.kills == KILLS
    assert found.acknowledged >= KILLS
