"""The wall clock, which people and time servers set as they like."""

import logging

import pytest

from hostler.app.clock import WallClock


def test_F34_a_jump_back_is_obeyed_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    now_s = [10_000.0]
    clock = WallClock(lambda: now_s[0])
    with caplog.at_level(logging.WARNING):
        for now_s[0] in (10_000.0, 9_800.0, 13_600.0):
            assert clock() == now_s[0]
        assert caplog.messages == []
        for now_s[0] in (10_000.0, 10_001.0, 9_900.0):
            assert clock() == now_s[0]
    assert caplog.messages == ["clock.went_back"]
