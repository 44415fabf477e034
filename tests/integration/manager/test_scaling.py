"""As many copies as the load asks for: through the gateway, over a controller's death, and back."""

import concurrent.futures
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hostler.testing.cluster import Cluster

CONFIG = """
[[models]]
name = "echo"
type = "llm"
engine = "fake"
concurrency = 2
params = { script = '{"delay_ms": 40}', tokens = 10 }
[models.scaling]
max_replicas = 3
up_s = 1
down_s = 4
"""
FEW_S = 20.0


@contextmanager
def load(cluster: Cluster, clients: int) -> Iterator[list[int]]:
    """So many clients ask, one request after the other; the statuses they got."""
    stop, statuses = threading.Event(), []
    body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}

    def ask() -> None:
        while not stop.is_set():
            statuses.append(cluster.request("POST", "/v1/chat/completions", body)[0])

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        for _ in range(clients):
            pool.submit(ask)
        try:
            yield statuses
        finally:
            stop.set()


def model(cluster: Cluster) -> dict[str, Any]:
    status, _, body = cluster.request("GET", "/api/v1/models/echo")
    found: dict[str, Any] = json.loads(body) if status == 200 else {}
    return found


def until_wanted(cluster: Cluster, wanted: int) -> dict[str, Any]:
    ends_s = time.monotonic() + FEW_S
    while (found := model(cluster)).get("wanted") != wanted or found.get("ready") != wanted:
        assert time.monotonic() < ends_s, f"{wanted} replicas were due: {found}"
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_replicas_follow_the_load_up_through_a_controllers_death_and_down() -> None:
    with Cluster(CONFIG) as cluster:
        until_wanted(cluster, 1)
        with load(cluster, 8) as statuses:
            until_wanted(cluster, 3)
            cluster.kill("controller")
            found = until_wanted(cluster, 3)
            assert found["deployment"]["scaled"] == 3, "a new controller knows what was decided"
        assert set(statuses) == {200}
        until_wanted(cluster, 1)
        _, _, body = cluster.request("GET", "/api/v1/events?model=echo&limit=1000")
        told = [e["message"] for e in json.loads(body)["events"] if e["kind"] == "model.scaled"]
        assert told[0].startswith("1 -> "), told
        assert told[-1].split(" replicas")[0].endswith("-> 1"), told


@pytest.mark.slow
def test_an_update_without_an_upper_bound_ends_scaling() -> None:
    with Cluster(CONFIG) as cluster:
        until_wanted(cluster, 1)
        order = {"model": "echo", "apply_type": "update_params", "scaling": {"max_replicas": 0}}
        status, _, body = cluster.request("POST", "/api/v1/apply", order)
        assert status == 200, body
        with load(cluster, 8):
            time.sleep(3)
            assert model(cluster)["wanted"] == 1
