"""What every test gets: an order that shows the quick failures first."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# A shell that runs us in the background lets SIGINT be ignored, and every process that we start too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_ROOMS = ("unit", "conformance", "stateful", "integration", "chaos")
_ANY = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

# HOSTLER_HYPOTHESIS=soak: what `make soak ARGS=--stateful` runs.
settings.register_profile("ci", deadline=None, suppress_health_check=_ANY)
settings.register_profile("soak", deadline=None, suppress_health_check=_ANY, database=None)
PROFILE = os.environ.get("HOSTLER_HYPOTHESIS", "ci")
settings.load_profile(PROFILE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By rooms of the suite; files with something `slow` after the others, it last in them.

    With several processes (xdist) a file is one process's, since its tests share servers.
    """
    slow = {item.path for item in items if _is_slow(item)}
    items.sort(key=lambda item: (item.path in slow, _room(item), str(item.path), _is_slow(item)))


# Private


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


def _room(item: pytest.Item) -> int:
    folders = item.path.parts
    return next((number for number, name in enumerate(_ROOMS) if name in folders), -1)
