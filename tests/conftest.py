"""What every test gets: an order that shows the quick failures first."""

import os
import re
import signal
from itertools import islice
from pathlib import Path
from typing import Any

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
    """By rooms of the suite; what is slow after the others (`in_turn`); a group's quick tests first."""
    slow_s: dict[str, float] = {}
    busy: set[str] = set()
    for item in items:
        if (mark := item.get_closest_marker("slow")) is not None:
            group = group_of(item.nodeid)
            slow_s[group] = max(slow_s.get(group, 0.0), *mark.args, 0.0)
            busy |= {group} if mark.kwargs.get("busy") else set()
    turns = {group: turn for turn, group in enumerate(in_turn(slow_s, busy))}

    def place(item: pytest.Item) -> tuple[int, int, str, str, bool]:
        group, path = group_of(item.nodeid), str(item.path)
        return (turns.get(group, -1), _room(item), group, path, _is_slow(item))

    items.sort(key=place)


def in_turn(slow_s: dict[str, float], busy: set[str]) -> list[str]:
    """Slow groups as they are started: the longest first, or it would run alone at the end.

    But between two of those that keep the processors busy come two that wait: side by side they would only
    take each other's time, and that of what has deadlines.
    """
    longest = sorted(slow_s, key=lambda group: -slow_s[group])
    computing = [group for group in longest if group in busy]
    waiting = iter([group for group in longest if group not in busy])
    order: list[str] = []
    for group in computing:
        order += [group, *islice(waiting, 2)]
    return [*order, *waiting]


def group_of(nodeid: str) -> str:
    """What runs in one process, since it shares servers: a file, or what a rig of conformance is for."""
    file, _, test = nodeid.partition("::")
    rig = _RIG.search(test) if "/conformance/" in file else None
    kind = "real" if "real_models" in file else "fakes"
    return f"{Path(file).parent} {kind} {rig[1]}" if rig else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Make groups of ours of `--dist loadfile`. (xdist's own, `loadgroup`, makes none with pytest 9.)"""
    from xdist.scheduler import LoadFileScheduling

    if config.getvalue("dist") != "loadfile":
        return None
    scheduler: Any = LoadFileScheduling(config, log)
    scheduler._split_scope = group_of
    return scheduler


# Private

_RIG = re.compile(r"\[(local|remote|hosts|ray)\b")


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


def _room(item: pytest.Item) -> int:
    folders = item.path.parts
    return next((number for number, name in enumerate(_ROOMS) if name in folders), -1)
