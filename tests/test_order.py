"""The order in which the suite's slow groups are started."""

from tests.conftest import in_turn


def test_the_longest_start_first_and_those_that_compute_not_side_by_side() -> None:
    slow_s = {"quick": 0.0, "b": 80.0, "a": 170.0, "w": 40.0, "x": 75.0, "y": 60.0, "z": 50.0}
    assert in_turn(slow_s, set()) == ["a", "b", "x", "y", "z", "w", "quick"]
    assert in_turn(slow_s, {"a", "b"}) == ["a", "x", "y", "b", "z", "w", "quick"]
    assert in_turn({"a": 9.0, "b": 8.0}, {"a", "b"}) == ["a", "b"]
