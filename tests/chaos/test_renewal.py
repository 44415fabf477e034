"""Gateways restarted under load, one or several: no request notices."""

import asyncio
import json
import signal
from itertools import accumulate
from typing import Any

import pytest

from hostler.core.snapshot import Endpoint
from hostler.testing.cluster import Cluster, fake_model
from hostler.testing.steady import Steady
from hostler.wire.client import fetch
from tests.chaos.pressure import target_of

CONFIG = "[gateway]\nprocesses = 2\n[life]\ndrain_timeout_s = 6.0\n"
MODEL = fake_model(replicas=2, concurrency=16, tokens=5, delay_ms=1)
REQUESTS = 3000


@pytest.mark.slow
def test_F57_B24_gateways_restarted_three_times_under_load_cost_no_request() -> None:
    with Cluster(CONFIG + MODEL) as cluster:
        before = cluster.json("GET", "/api/v1/gateways")["gateways"]
        assert [(one["number"], one["state"]) for one in before] == [
            (1, "serving"),
            (2, "serving"),
        ]
        pids = {one["pid"] for one in before}
        with Steady(target_of(cluster)) as clients:
            for turn in range(1, 4):
                told = cluster.json("POST", "/api/v1/gateways/restart", timeout_s=60)
                serving = {one["pid"] for one in told["gateways"] if one["state"] == "serving"}
                assert len(serving) == 2
                assert not serving & pids
                pids |= serving
                cluster.wait_for(
                    lambda: clients.answered >= REQUESTS * turn // 3,  # noqa: B023
                    60,
                    "a third of the requests",
                )
        assert clients.errors == []
        assert clients.answered >= REQUESTS
        cluster.wait_for(
            lambda: set(cluster.pids("gateway")) == serving, 5, "those before them have gone"
        )

        # What the settings say now is taken; what cannot be is named; nonsense changes nothing.
        cluster.config.write_text(
            CONFIG.replace("6.0", "7.0") + "[limits]\nbody_bytes = 500\n" + MODEL
        )
        told = cluster.json("POST", "/api/v1/gateways/restart", timeout_s=60)
        assert told["notes"] == ["life: takes effect when `hostler up` is started anew"]
        assert cluster.chat("echo", "x" * 600)[0] == 413
        cluster.config.write_text("[limits]\nbody_bites = 1\n")
        status, _, data = cluster.request("POST", "/api/v1/gateways/restart")
        assert status == 409
        assert "did you mean limits.body_bytes" in json.loads(data)["error"]["message"]
        assert cluster.chat("echo", "still there")[0] == 200


@pytest.mark.slow
def test_F54_two_gateways_never_lend_more_slots_than_an_instance_has() -> None:
    slots = 4
    model = fake_model(replicas=1, concurrency=slots, tokens=2, delay_ms=3)
    with Cluster(CONFIG + model) as cluster:
        (engine,) = cluster.ready("echo")

        def is_known() -> bool:
            return all(cluster.chat("echo", f"first {n}")[0] == 200 for n in range(8))

        cluster.wait_for(is_known, 20, "both gateways know it")
        with Steady(target_of(cluster), clients=24, pause_s=0.0) as clients:
            cluster.wait_for(lambda: clients.answered >= 200, 30, "two hundred answers")
            cluster.json("POST", "/api/v1/gateways/restart", timeout_s=60)
            cluster.wait_for(lambda: clients.answered >= 700, 30, "seven hundred answers")
        assert clients.errors == []
        assert len(clients.by_client) == 24  # at neither of the two does anybody wait for ever
        executions = asyncio.run(ledger(engine["address"]))
        steps = sorted(
            step
            for one in executions
            for step in ((one["started_at_s"], 1), (one["ended_at_s"], -1))
        )
        busy = list(accumulate(count for _, count in steps))
        assert slots <= max(busy) <= slots + 1  # two may take the last one in the same moment
        # one that finishes what it has counts as long as it lives
        cluster.wait_for(lambda: cluster.json("GET", "/status")["gateways"] == 2, 10, "two left")
        assert cluster.json("GET", "/status")["number"] in (1, 2)
        assert b'hostler_gateway{number="' in cluster.request("GET", "/metrics")[2]


async def ledger(address: str) -> list[dict[str, Any]]:
    path = address.removeprefix("unix:").removeprefix("//")
    answer = await fetch(Endpoint(socket=path), "GET", "/_fake/ledger", timeout_s=5)
    found: list[dict[str, Any]] = json.loads(answer.body)["executions"]
    return found


@pytest.mark.slow
def test_F57_one_of_two_gateways_killed_is_back_on_its_own_socket() -> None:
    with Cluster(CONFIG + MODEL) as cluster:
        first, second = cluster.json("GET", "/api/v1/gateways")["gateways"]
        cluster.kill_pid(second["pid"])
        # Half of the connections wait in the socket of the one that died, for the next one.
        assert all(cluster.chat("echo", f"{n}")[0] == 200 for n in range(12))
        cluster.wait_for(
            lambda: first["pid"] in cluster.pids("gateway") and len(cluster.pids("gateway")) == 2,
            10,
            "two gateways again",
        )
        before = set(cluster.pids("gateway"))
        assert cluster.up is not None
        cluster.up.send_signal(signal.SIGHUP)  # as `systemctl reload` does
        cluster.wait_for(
            lambda: (
                len(set(cluster.pids("gateway")) - before) == 2
                and not before & set(cluster.pids("gateway"))
            ),
            30,
            "two fresh gateways",
        )
        assert cluster.chat("echo", "hello")[0] == 200
