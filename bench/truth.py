"""`make soak ARGS=--truth`: how soon the manager's words are true again after a fault, and what was lost.

The numbers are those of the fault list: B14 orphans, B15 controller kills under load, B16 death while
idle, B24 rolling restarts under load.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

import uvloop

from bench.figures import Part, median
from hostler.app.process import tagged
from hostler.manager.workers import INSTANCE_TAG
from hostler.testing.cluster import Cluster, fake_model
from hostler.testing.load import Outcome, Seen, Target, run_load

CONFIG = "[life]\nbackoff_first_s = 0.2\nbackoff_last_s = 0.3\ncrash_limit = 100000\n"
POLL_S = 0.002


def measure(part: Part, *, requests: int = 10_000, kills: int = 100) -> None:
    """Add every figure of this part."""
    with Cluster(CONFIG + fake_model("echo", replicas=3, concurrency=16, tokens=4)) as cluster:
        measure_orphans(part, cluster)
        measure_deaths(part, cluster)
        measure_silence(part, cluster)
        measure_controller_kills(part, cluster)
        measure_random_kills(part, cluster, kills)
        measure_rolling(part, cluster, requests)
    with Cluster(CONFIG + fake_model("echo", replicas=50)) as cluster:
        measure_adoption(part, cluster)


def measure_orphans(part: Part, cluster: Cluster, times: int = 20) -> None:
    """B14: SIGKILL to an agent, until nothing of its instance is left."""
    took_s = kill_workers(cluster, times, lambda one: not tagged(INSTANCE_TAG, one))
    part.add(
        "B14 agent killed, until nothing of it is left, longest", max(took_s), "s", at_most=2.0
    )


def measure_deaths(part: Part, cluster: Cluster, times: int = 20) -> None:
    """B16: a worker dies while nobody asks it, until the table says so."""
    took_s = kill_workers(cluster, times, lambda one: is_not_ready(cluster, one))
    part.add("B16 worker killed, until it is not ready, idle, median", median(took_s), "s")
    part.add("B16 the same, longest", max(took_s), "s", at_most=3.3)


def measure_silence(part: Part, cluster: Cluster, times: int = 5) -> None:
    """A worker and its engine stop (SIGSTOP), until no new request goes there."""
    took_s = []
    for number in range(times):
        wait_ready(cluster, 3)
        victim = cluster.ready("echo")[number % 3]
        pids = [victim["pid"], *tagged(INSTANCE_TAG, victim["instance_id"])]
        began_s = time.monotonic()
        for pid in pids:
            cluster.kill_pid(pid, signal.SIGSTOP)
        until(lambda: is_not_ready(cluster, victim["instance_id"]), 20)  # noqa: B023
        took_s.append(time.monotonic() - began_s)
        for pid in pids:
            cluster.kill_pid(pid, signal.SIGCONT)
    part.add("silence, until suspect, longest", max(took_s), "s", at_most=3.0)


def measure_controller_kills(part: Part, cluster: Cluster, times: int = 20) -> None:
    """B15: kill -9 of the controller under load."""
    wait_ready(cluster, 3)
    before = {one["instance_id"]: one["pid"] for one in cluster.ready("echo")}
    took_s: list[float] = []

    def kill() -> None:
        for _ in range(times):
            old = cluster.kill("controller")
            began_s = time.monotonic()
            until(lambda: is_back(cluster, old, 3), 30)  # noqa: B023
            took_s.append(time.monotonic() - began_s)

    seen = under_load(cluster, kill, 17)
    after = {one["instance_id"]: one["pid"] for one in cluster.ready("echo")}
    part.add(
        f"B15 lost of {len(seen)} requests", lost(seen), "requests", at_most=0, note=told(seen)
    )
    part.add("B15 controller killed, until reconciled, longest", max(took_s), "s", at_most=5.0)
    part.add("B15 engines restarted", len(before.items() - after.items()), "", at_most=0)


def measure_random_kills(part: Part, cluster: Cluster, times: int) -> None:
    """One process after the other dies under load."""
    chosen = random.Random(3)

    def kill() -> None:
        for _ in range(times):
            wait_ready(cluster, 3)
            victim = chosen.choice(cluster.ready("echo"))
            pids = list(tagged(INSTANCE_TAG, victim["instance_id"]))
            cluster.kill_pid(chosen.choice(pids or [victim["pid"]]))
            time.sleep(0.05)

    seen = under_load(cluster, kill, 23)
    failed = [s for s in seen if s.outcome is not Outcome.OK and not s.text]
    part.add(
        f"{times} kills of one process: lost of {len(seen)} requests, not yet started ones",
        len(failed),
        "requests",
        at_most=0,
        note=told(seen),
    )


def measure_rolling(part: Part, cluster: Cluster, requests: int) -> None:
    """B24: rolling restarts until so many requests were served."""
    count = 0
    seen: list[Seen] = []
    while len(seen) < requests:

        def restart() -> None:
            order = {"model": "echo", "apply_type": "restart", "timeout_s": 60}
            assert cluster.json("POST", "/api/v1/apply", order, timeout_s=70)["success"]

        seen += under_load(cluster, restart, 31 + count)
        count += 1
    part.add(
        f"B24 {count} rolling restarts: errors of {len(seen)} requests",
        lost(seen),
        "requests",
        at_most=0,
        note=told(seen),
    )


def measure_adoption(part: Part, cluster: Cluster) -> None:
    """The controller dies beside 50 instances, until all are ready again in its table."""
    took_s = []
    for _ in range(3):
        old = cluster.kill("controller")
        began_s = time.monotonic()
        until(lambda: is_back(cluster, old, 50), 60)  # noqa: B023
        took_s.append(time.monotonic() - began_s)
    part.add("controller killed, until 50 instances are adopted", max(took_s), "s", at_most=5.0)


# Private


def kill_workers(cluster: Cluster, times: int, is_seen: Callable[[str], bool]) -> list[float]:
    """SIGKILL one idle worker after the other; return how long each took to be seen.

    is_seen: whether that shows yet, by the instance's id.
    """
    took_s = []
    for number in range(times):
        wait_ready(cluster, 3)
        victim = cluster.ready("echo")[number % 3]
        began_s = time.monotonic()
        cluster.kill_pid(victim["pid"])
        until(lambda: is_seen(victim["instance_id"]), 20)  # noqa: B023
        took_s.append(time.monotonic() - began_s)
    return took_s


def under_load(cluster: Cluster, fault: Callable[[], None], seed: int) -> list[Seen]:
    """Ask all the while a fault takes; return what the clients saw."""
    address = urlsplit(cluster.url)
    target = Target(
        host=address.hostname or "",
        port=address.port or 0,
        headers={"authorization": f"Bearer {cluster.admin_key}"},
    )

    async def ask() -> list[Seen]:
        seen: list[Seen] = []
        fault_done = asyncio.ensure_future(asyncio.to_thread(fault))
        number = 0
        while not fault_done.done():
            number += 1
            seen += await run_load(
                target,
                models=("echo",),
                clients=8,
                requests=200,
                seed=seed * 1000 + number,
                prefix=f"truth{os.getpid()}.{seed}.{number}",
            )
        await fault_done
        return seen

    return uvloop.run(ask())


def lost(seen: list[Seen]) -> int:
    return sum(one.outcome is not Outcome.OK for one in seen)


def told(seen: list[Seen]) -> str:
    return " ".join(f"{k.value} {n}" for k, n in Counter(one.outcome for one in seen).items())


def is_not_ready(cluster: Cluster, instance_id: str) -> bool:
    return instance_id not in {one["instance_id"] for one in cluster.ready("echo")}


def is_back(cluster: Cluster, killed: list[int], wanted: int) -> bool:
    new = set(cluster.pids("controller")) - set(killed)
    return bool(new) and cluster.answers("/api/v1/status") and len(cluster.ready("echo")) >= wanted


def wait_ready(cluster: Cluster, wanted: int) -> None:
    until(lambda: len(cluster.ready("echo")) >= wanted, 60)


def until(is_true: Callable[[], bool], seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {seconds:g} s")
        time.sleep(POLL_S)
