"""Which Ray an address means."""

import pytest

from hostler.manager.ray_calls import is_same


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:6379", True),
        ("localhost:6379", True),  # by any of its names
        ("127.0.0.1:6380", False),
        ("127.0.0.2:6379", False),
        ("no-such-host.invalid:6379", False),
        ("auto", True),  # the one that runs on this machine: who knows
        ("ray://127.0.0.1:10001", True),
    ],
)
def test_one_cluster_has_one_address(address: str, expected: bool) -> None:
    assert is_same(address, "127.0.0.1:6379") is expected
