"""Storm: load on a real server while its processes are killed, judged by the ledger oracle after each round.

Used by the chaos tests (a few rounds) and by `make soak` (many). The seed makes a run's order of faults.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
import uvloop

from hostler.app.process import tagged
from hostler.testing.access import access_lines, in_flight
from hostler.testing.cluster import Cluster, fake_model
from hostler.testing.executions import read_executions
from hostler.testing.ledger import assert_invariants
from hostler.testing.load import Seen, Target, run_load

MODELS = ("alpha", "beta")


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What one round was and brought."""

    number: int
    fault: str
    requests: int
    outcomes: Mapping[str, int]
    slowest_s: float
    recovered_s: float


def storm_config(folder: str, *, replicas: int = 2, tokens: int = 6) -> str:
    """Return the config of a storm: fake engines whose ledgers are files."""
    head = "log_json = true\n[life]\nbackoff_first_s = 0.2\ncrash_limit = 1000\n"
    return head + "".join(
        fake_model(
            name, replicas=replicas, concurrency=16, tokens=tokens, ledger=f"{folder}/{name}.jsonl"
        )
        for name in MODELS
    )


class Storm:
    """Rounds of load with one fault each, on one cluster."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster = cluster
        self._random = random.Random(seed)
        self._seed = seed
        self._number = 0
        self.faults: dict[str, Callable[[], None]] = {
            "none": lambda: None,
            "kill a worker": self._kill_worker,
            "kill an engine": self._kill_engine,
            "kill the controller": self._kill_controller,
            "restart a model": self._restart,
        }

    def round(self, fault: str | None = None, *, requests: int = 400, clients: int = 20) -> Round:
        """Run one round and judge it.

        Raises:
            AssertionError: the clients', the gateway's and the engines' stories do not agree.
        """
        self._number += 1
        name = fault or self._random.choice(sorted(self.faults))
        seen = uvloop.run(self._load(name, requests, clients))
        recovered_s = self._cluster.wait_for(
            lambda: self._cluster.answers("/api/v1/status") and self._all_ready(),
            40,
            f"every instance is ready again (round {self._number}, {name})",
        )
        self._cluster.wait_for(lambda: in_flight(self._cluster) == 0, 5, "nothing is in flight")
        self._cluster.assert_truth()
        executions = read_executions([self._cluster.root / f"{model}.jsonl" for model in MODELS])
        asked = {one.request_id for one in seen}
        assert_invariants(
            seen,
            [one for one in executions if one.request_id in asked],
            access_lines(self._cluster, asked),
            tokens=6,
            survivable=True,
        )
        return Round(
            number=self._number,
            fault=name,
            requests=len(seen),
            outcomes=dict(Counter(one.outcome.value for one in seen)),
            slowest_s=round(max(one.seconds for one in seen), 3),
            recovered_s=round(recovered_s, 3),
        )

    # Private

    async def _load(self, fault: str, requests: int, clients: int) -> list[Seen]:
        address = urlsplit(self._cluster.url)
        target = Target(
            host=address.hostname or "",
            port=address.port or 0,
            headers={"authorization": f"Bearer {self._cluster.admin_key}"},
        )
        async with asyncio.TaskGroup() as tasks:
            load = tasks.create_task(
                run_load(
                    target,
                    models=MODELS,
                    clients=clients,
                    requests=requests,
                    seed=self._seed * 1000 + self._number,
                    prefix=f"storm{self._number}",
                    pause_s=0.01,
                )
            )
            await asyncio.sleep(self._random.uniform(0.05, 0.3))
            await asyncio.to_thread(self.faults[fault])
            return await load

    def _all_ready(self) -> bool:
        models = self._cluster.json("GET", "/api/v1/models")["models"]
        return all(
            model["ready"] >= model["wanted"] and set(model["states"]) == {"ready"}
            for model in models
        )

    def _victim(self) -> dict[str, Any]:
        return self._random.choice(self._cluster.ready(self._random.choice(MODELS)))

    def _kill_worker(self) -> None:
        self._cluster.kill_pid(self._victim()["pid"])

    def _kill_engine(self) -> None:
        victim = self._victim()
        pids = [pid for pid in tagged("HOSTLER_INSTANCE", victim["instance_id"])]
        self._cluster.kill_pid(max(pid for pid in pids if pid != victim["pid"]))

    def _kill_controller(self) -> None:
        self._cluster.kill("controller")

    def _restart(self) -> None:
        order = {"model": self._random.choice(MODELS), "apply_type": "restart", "timeout_s": 30}
        self._cluster.json("POST", "/api/v1/apply", order, timeout_s=40)


def run_storm(seconds: float, seed: int, tell: Callable[[Round], None]) -> list[Round]:
    """Run rounds until the time is over; every one is told as it ends."""
    cluster = Cluster()
    cluster.config.write_text(storm_config(str(cluster.root)))
    rounds: list[Round] = []
    with cluster:
        storm = Storm(cluster, seed)
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            rounds.append(storm.round())
            tell(rounds[-1])
    return rounds
