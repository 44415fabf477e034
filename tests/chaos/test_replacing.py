"""One of several instances is replaced under load, also when the controller is killed in the middle."""

import json
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from hostler.app.config import child_environment
from hostler.testing.cluster import Cluster, fake_model
from hostler.testing.steady import Steady
from tests.chaos.pressure import target_of

MODEL = fake_model(
    replicas=3, concurrency=16, tokens=5, delay_ms=1, script=json.dumps({"load_s": 0.5})
)
REQUESTS = 600  # between two orders


def pids(cluster: Cluster) -> dict[int, int]:
    """The process of each place that serves."""
    return {one["replica"]: one["pid"] for one in cluster.ready("echo")}


def order(cluster: Cluster, instance_id: str) -> dict[str, Any]:
    found: dict[str, Any] = cluster.json("POST", f"/api/v1/instances/{instance_id}/restart")
    return found


def has_moved(cluster: Cluster, before: dict[int, int], replica: int) -> bool:
    now = pids(cluster)
    is_over = len(cluster.instances()) == 3 == len(now)
    return is_over and now[replica] != before[replica]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_F57_one_instance_is_replaced_under_load_and_no_request_notices() -> None:
    with Cluster(MODEL) as cluster, Steady(target_of(cluster)) as clients:
        before = pids(cluster)
        [one] = [row for row in cluster.ready("echo") if row["replica"] == 1]
        told = order(cluster, one["instance_id"])
        assert told["instance"]["instance_id"] == one["instance_id"]
        assert told["events"].startswith("/api/v1/events?follow=true&after=")
        cluster.wait_for(lambda: has_moved(cluster, before, 1), 60, "it is replaced")
        now = pids(cluster)
        assert {**now, 1: before[1]} == before, "the others keep their processes"

        # the same by the command, which waits for the end
        [one] = [row for row in cluster.ready("echo") if row["replica"] == 2]
        argv = [sys.executable, "-m", "hostler", "model", "restart", "echo"]
        argv += ["--instance", one["instance_id"][:8], f"--state-dir={cluster.state_dir}"]
        done = subprocess.run(
            argv, env=child_environment(), capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == 0, done.stderr
        after = pids(cluster)
        assert {**after, 2: now[2]} == now
        assert after[2] != now[2]
        cluster.wait_for(lambda: clients.answered >= REQUESTS, 60, "many requests")
        assert clients.errors == []
        events = cluster.json("GET", "/api/v1/events?model=echo&limit=1000")["events"]
        kinds = [event["kind"] for event in events]
        assert kinds.count("instance.restart") == kinds.count("instance.replaced") == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_F22_a_controller_killed_in_the_middle_replaces_that_one_or_none() -> None:
    with Cluster(MODEL) as cluster, Steady(target_of(cluster)) as clients:
        for turn, wait_s in enumerate((0.0, 0.3, 0.7)):
            before = pids(cluster)
            [one] = [row for row in cluster.ready("echo") if row["replica"] == turn]

            def give(instance_id: str = one["instance_id"]) -> None:
                with suppress(AssertionError, OSError, ValueError):  # it is killed meanwhile
                    order(cluster, instance_id)

            thread = threading.Thread(target=give)
            thread.start()
            time.sleep(wait_s)  # somewhere in the middle: whatever it is, it must come out right
            cluster.kill("controller")
            thread.join(30)

            def has_settled(before: dict[int, int] = before, turn: int = turn) -> bool:
                with suppress(AssertionError, OSError, ValueError):
                    now = pids(cluster)
                    others = {**now, turn: before[turn]} == before
                    return len(cluster.instances()) == 3 == len(now) and others
                return False

            cluster.wait_for(has_settled, 60, "three serve, of which two are those of before")
            answered = clients.answered
            cluster.wait_for(lambda: clients.answered > answered + 50, 60, "more answers")  # noqa: B023
            assert has_settled()
        assert clients.errors == []
