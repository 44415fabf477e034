"""What every test gets: an order that shows the quick failures first."""

import os

import pytest
from hypothesis import HealthCheck, settings

_ROOMS = ("unit", "conformance", "stateful", "integration", "chaos")
_ANY = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

# HOSTLER_HYPOTHESIS=soak: what `make soak ARGS=--stateful` runs.
settings.register_profile("ci", deadline=None, suppress_health_check=_ANY)
settings.register_profile("soak", deadline=None, suppress_health_check=_ANY, database=None)
PROFILE = os.environ.get("HOSTLER_HYPOTHESIS", "ci")
settings.load_profile(PROFILE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By rooms of the suite; everything marked `slow` after that. One run, one closing line.

    With several processes (xdist) a file's quick tests stay together, since they share servers, and
    so do its slow ones.
    """
    items.sort(key=_rank)
    for item in items:
        is_slow, _ = _rank(item)
        item.add_marker(pytest.mark.xdist_group(f"{item.path}{'-slow' if is_slow else ''}"))


# Private


def _rank(item: pytest.Item) -> tuple[bool, int]:
    folders = item.path.parts
    room = next((number for number, name in enumerate(_ROOMS) if name in folders), -1)
    return item.get_closest_marker("slow") is not None, room
