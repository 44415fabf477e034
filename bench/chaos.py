"""`make soak ARGS=--chaos`: every fault of the chaos suite in its long form, several seeds, more clients."""

import http.client
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

from tests.chaos.arena import Arena, Story
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.pressure import target_of

from bench.figures import Part
from bench.rows import run_rows

RAW, SDK = 20, 12  # clients
LLAMA = (("llama", "tests/chaos/test_llama_under_load.py", "four rounds of each fault"),)
_LOOK_EVERY_S = 0.05

Tell = Callable[[str], None]


def run_chaos(part: Part, seeds: int, seed: int, tell: Tell) -> None:
    """Play every fault once a seed, in an order drawn from it; add the figures of all."""
    stories: list[Story] = []
    failed: Counter[str] = Counter()
    health_ms: list[float] = []
    for number in range(seed, seed + seeds):
        with Arena(number, raw=RAW, sdk=SDK, is_long=True) as arena:
            order = list(FAULTS)
            Random(number).shuffle(order)
            with _asked(arena, health_ms):
                for fault in order:
                    _play(arena, fault, stories, failed, tell)
    for fault in FAULTS:
        _add(part, fault, [one for one in stories if one.fault == fault.name], failed[fault.name])
    total = sum(one.requests for one in stories)
    works = sum(one.executions for one in stories)
    part.add("B23 executions ÷ requests", works / max(1, total), "", at_most=1.2)
    part.add("requests in all", total, "", note=f"{sum(o.by_sdk for o in stories)} by the SDK")
    if health_ms:
        p99_ms = statistics.quantiles(health_ms, n=100)[98]
        note = f"{len(health_ms)} asked, longest {max(health_ms):.0f} ms"
        part.add("I14 /health p99", p99_ms, "ms", at_most=250, note=note)
    run_rows(part, tell, LLAMA)


# Private


def _play(
    arena: Arena, fault: Fault, stories: list[Story], failed: Counter[str], tell: Tell
) -> None:
    try:
        story = arena.play(
            fault.name, fault.deed, breaks_streams=fault.breaks_streams, within_s=fault.within_s
        )
    except AssertionError as error:
        failed[fault.name] += 1
        tell(f"{fault.name}: {str(error)[:4000]}")
        return
    outcomes = " ".join(f"{name} {count}" for name, count in sorted(story.outcomes.items()))
    tell(f"seed {story.seed} {fault.name:30} {outcomes:30} slowest {story.slowest_s:6.2f} s")
    stories.append(story)


def _add(part: Part, fault: Fault, stories: list[Story], failed: int) -> None:
    outcomes: Counter[str] = Counter()
    for one in stories:
        outcomes.update(one.outcomes)
    told = outcomes.get("error_event", 0)
    slowest_s = max((one.slowest_s for one in stories), default=0.0)
    note = f"{outcomes.total()} requests, {told} streams told, slowest {slowest_s:.2f} s"
    part.add(f"{fault.name}: rounds with a breach", failed, "", at_most=0, note=note)


@contextmanager
def _asked(arena: Arena, took_ms: list[float]) -> Iterator[None]:
    """Ask for /health all the while, on a connection of its own each time."""
    target, over = target_of(arena.cluster), threading.Event()

    def ask() -> None:
        while not over.wait(_LOOK_EVERY_S):
            began_s = time.monotonic()
            connection = http.client.HTTPConnection(target.host, target.port, timeout=10)
            try:
                connection.request("GET", "/health")
                connection.getresponse().read()
                took_ms.append((time.monotonic() - began_s) * 1000)
            finally:
                connection.close()

    asking = threading.Thread(target=ask, name="health")
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join(20)
