"""Arena: a real server before two models that are loaded at once, and what can be done to their engines.

`alpha` is the server's own: two replicas on Unix sockets, replaced when they die. `beta` is given by URL: two
engines on TCP ports, where a reset is one, that are started here and come back only when they are started.
"""

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from hostler.core.errors import HostlerError
from hostler.core.snapshot import Endpoint
from hostler.testing.access import access_lines, in_flight
from hostler.testing.cluster import Cluster, fake_model
from hostler.testing.executions import read_executions
from hostler.testing.ledger import assert_invariants, tally
from hostler.testing.load import Outcome, Seen
from hostler.wire.client import UpstreamLost, fetch
from tests.chaos.pressure import Pressure, engines_of, is_engine
from tests.integration.gateway.test_identity import free_port

MODELS = ("alpha", "beta")
TOKENS, DELAY_MS = 8, 8
SETTINGS = (
    "log_json = true\n[life]\nbackoff_first_s = 0.1\ncrash_limit = 1000\n"
    "[gateway]\nstall_s = 1.0\ncanary_timeout_s = 1.0\n"
)
SLOTS = 32  # of an engine: one of two has room for all
HEARD_S = 0.2  # of load before a fault, and after it


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What one fault brought."""

    fault: str
    seed: int
    requests: int
    by_sdk: int
    outcomes: dict[str, int]
    executions: int
    slowest_s: float


class Own:
    """One replica of `alpha`, as it is now."""

    def __init__(self, cluster: Cluster, place: int) -> None:
        self._cluster = cluster
        ready = sorted(cluster.ready(MODELS[0]), key=lambda one: one["replica"])
        self.row: dict[str, Any] = ready[place]
        (self._engine,) = [pid for pid in engines_of(self.row) if is_engine(pid)]

    def hit(self, number: signal.Signals) -> None:
        self._cluster.kill_pid(self._engine, number)

    def kill_worker(self) -> None:
        self._cluster.kill_pid(self.row["pid"])

    def is_gone(self) -> bool:
        ready = self._cluster.ready(MODELS[0])
        return self.row["instance_id"] not in {one["instance_id"] for one in ready}

    def script(self, **changes: object) -> None:
        order(Endpoint(socket=self.row["address"].removeprefix("unix:")), changes)


class Given:
    """One server of `beta`."""

    def __init__(self, ledger: Path, number: int) -> None:
        self.port = free_port()
        self._argv = [sys.executable, "-m", "hostler.testing.fake_engine", f"--port={self.port}"]
        self._argv += [f"--model={MODELS[1]}", f"--ledger={ledger}"]
        self._argv += ["--script=" + json.dumps({"tokens": TOKENS, "delay_ms": DELAY_MS})]
        self._env = {**os.environ, "HOSTLER_INSTANCE": f"given-{number}"}
        self._env["PYTHONPATH"] = str(Path(__file__).parents[2] / "src")
        self._process: subprocess.Popen[bytes] | None = None

    def revive(self) -> None:
        """Let it run, and wait until it answers."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
        else:
            null = subprocess.DEVNULL
            self._process = subprocess.Popen(self._argv, env=self._env, stdout=null, stderr=null)
        asyncio.run(answers(Endpoint(host="127.0.0.1", port=self.port)))

    def hit(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        if number is signal.SIGKILL:
            self._process.wait(10)

    def kill_worker(self) -> None:
        """It has none but itself."""
        self.hit(signal.SIGKILL)

    def script(self, **changes: object) -> None:
        order(Endpoint(host="127.0.0.1", port=self.port), changes)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)


class Arena(AbstractContextManager["Arena"]):
    """The server, the engines, and rounds of load with one fault each."""

    def __init__(
        self, seed: int = 1, *, raw: int = 10, sdk: int = 6, is_long: bool = False
    ) -> None:
        """raw, sdk: clients of each kind. is_long: faults last longer, and the load goes on after them."""
        self.cluster = Cluster()
        self.random = random.Random(seed)
        self.is_long = is_long
        self._seed, self._raw, self._sdk = seed, raw, sdk
        self._ledgers = [self.cluster.root / f"{name}.jsonl" for name in MODELS]
        self._given = [Given(self._ledgers[1], number) for number in range(2)]
        self._stack = ExitStack()
        self._rounds = 0

    def __enter__(self) -> "Arena":
        with self._stack as stack:
            for server in self._given:
                stack.callback(server.close)
                server.revive()
            urls = ", ".join(f'"http://127.0.0.1:{server.port}/v1"' for server in self._given)
            own = fake_model(
                MODELS[0],
                replicas=2,
                concurrency=SLOTS,
                tokens=TOKENS,
                delay_ms=DELAY_MS,
                ledger=str(self._ledgers[0]),
            )
            given = f'[[models]]\nname = "{MODELS[1]}"\nengine = "openai"\n'
            given += f"concurrency = {SLOTS}\nurls = [{urls}]\n"
            self.cluster.config.write_text(SETTINGS + own + given)
            stack.enter_context(self.cluster)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def victims(self, place: int | None = None) -> tuple[Own, Given]:
        """One engine of each model. place: which of the two, by chance when left out."""
        picked = self.random.randrange(2) if place is None else place
        return Own(self.cluster, picked), self._given[picked]

    def settled(self) -> None:
        """Wait until everyone runs, and may be asked."""
        for server in self._given:
            server.revive()
        self.cluster.wait_for(self._all_serve, 40, "every engine may be asked again")

    def play(
        self, name: str, deed: Callable[["Arena"], None], *, breaks_streams: bool, within_s: float
    ) -> Story:
        """Do something while both models are loaded, and judge what came of it.

        breaks_streams: may a stream end with an error that has begun? within_s: no request lasts longer.

        Raises:
            AssertionError: a client saw an error it need not have seen, or the stories do not agree.
        """
        self._rounds += 1
        told = f"{re.sub('[^A-Za-z0-9]+', '-', name)}-{self._seed}-{self._rounds}"
        self.settled()
        pressure = Pressure(
            self.cluster,
            models=MODELS,
            clients=self._raw,
            sdk=self._sdk,
            tokens=TOKENS,
            name=told,
        )
        with pressure:
            begun = self._raw + self._sdk
            self.cluster.wait_for(lambda: len(pressure.seen) >= begun, 20, "the load has begun")
            time.sleep(HEARD_S)
            deed(self)
            time.sleep(5 * HEARD_S if self.is_long else HEARD_S)
        self.settled()
        return self._judge(name, pressure.seen, breaks_streams, within_s)

    # Private

    def _judge(self, name: str, seen: list[Seen], breaks_streams: bool, within_s: float) -> Story:
        cluster = self.cluster
        cluster.wait_for(lambda: in_flight(cluster) == 0, 5, "nothing is in flight")
        asked = {one.request_id for one in seen}
        found = read_executions(path for path in self._ledgers if path.exists())
        mine = [one for one in found if one.request_id in asked]
        lines = access_lines(cluster, asked)
        assert_invariants(seen, mine, lines, tokens=TOKENS, survivable=True)
        may_be = {Outcome.OK, Outcome.ERROR_EVENT} if breaks_streams else {Outcome.OK}
        odd = [one for one in seen if one.outcome not in may_be]
        assert odd == [], odd[:3]
        assert {one.error_code for one in seen} <= {"", "worker_lost", "upstream_error"}
        for model in MODELS:
            assert Counter(one.asked for one in seen)[model] >= 20, "hardly any load"
        slowest_s = max(one.seconds for one in seen)
        assert slowest_s < within_s, f"{name}: a request took {slowest_s:.2f} s"
        return Story(
            fault=name,
            seed=self._seed,
            requests=len(seen),
            by_sdk=sum(int(one.request_id.split("-")[-2]) >= self._raw for one in seen),
            outcomes=tally(seen),
            executions=len(mine),
            slowest_s=round(slowest_s, 3),
        )

    def _all_serve(self) -> bool:
        if not self.cluster.answers("/api/v1/status"):
            return False
        _, _, data = self.cluster.request("GET", "/status")
        rows = json.loads(data)["instances"]
        ready = {name: {one["instance_id"] for one in self.cluster.ready(name)} for name in MODELS}
        routable = {row["instance_id"] for row in rows if row["routable"] and not row["down"]}
        return all(len(ids) == 2 and ids <= routable for ids in ready.values())


def order(endpoint: Endpoint, changes: dict[str, object]) -> None:
    """Change a fake engine's script; one that is gone needs no order."""
    body = msgspec.json.encode(changes)
    with suppress(UpstreamLost, HostlerError, TimeoutError):
        asyncio.run(fetch(endpoint, "POST", "/_fake/script", body=body, timeout_s=2))


async def answers(endpoint: Endpoint) -> None:
    """Wait until somebody answers there."""
    async with asyncio.timeout(20):
        while True:
            with suppress(UpstreamLost, TimeoutError):
                await fetch(endpoint, "GET", "/health", timeout_s=1)
                return
            await asyncio.sleep(0.02)
