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


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups after us
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By rooms of the suite; what is slow after the others, the longest first; a file's quick tests first.

    With several processes (xdist) a group is one process's, since its tests share servers: a file, where
    nothing else is said. A long one that starts last would run alone at the end, so it starts first.
    """
    slow_s: dict[str, float] = {}
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
        if (mark := item.get_closest_marker("slow")) is not None:
            slow_s[_group(item)] = max(slow_s.get(_group(item), 0.0), *mark.args, 0.0)

    def place(item: pytest.Item) -> tuple[bool, float, int, str, str, bool]:
        group, path = _group(item), str(item.path)
        return (group in slow_s, -slow_s.get(group, 0.0), _room(item), group, path, _is_slow(item))

    items.sort(key=place)


# Private


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


def _group(item: pytest.Item) -> str:
    mark = item.get_closest_marker("xdist_group")
    assert mark is not None
    return str(mark.args[0])


def _room(item: pytest.Item) -> int:
    folders = item.path.parts
    return next((number for number, name in enumerate(_ROOMS) if name in folders), -1)
