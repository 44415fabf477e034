"""A server and two hosts, each in a network of its own: lines between them are cut and healed, under load."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from hostler.app.config import child_environment
from hostler.testing import netns
from hostler.testing.cluster import Cluster, fake_model
from hostler.testing.host_run import HostRun
from hostler.testing.netns import Network
from tests.chaos.figures import IS_LONG

WHY_NOT = netns.missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

CONFIG = """
[server]
tls = true
host = "{address}"
[control]
host = "{address}"
port = 0
names = ["{address}"]
[heartbeat]
interval_s = 0.3
suspect_after_s = 0.9
lost_after_s = 3.0
[life]
drain_timeout_s = 3.0
kill_grace_s = 1.0
backoff_first_s = 0.2
"""


class World:
    """Machine a has the server, b and c run models for it."""

    def __init__(self, net: Network) -> None:
        self.net = net
        config = CONFIG.format(address=net.address("a")) + fake_model("local")
        self.server = Cluster(config, around=partial(net.command, "a"))
        self.server.ca = str(self.server.state_dir / "tls" / "ca.pem")
        self.hosts = {name: HostRun(around=partial(net.command, name)) for name in "bc"}
        self.server.truth.others += [host.state_dir for host in self.hosts.values()]

    def begin(self) -> None:
        record = json.loads((self.server.state_dir / "up.json").read_bytes())
        for name, host in self.hosts.items():
            words = ("host", "join", f"--controller={record['control_url']}")
            more = (f"--name={name}", "--labels=far=yes", "--port=0")
            host.start(*words, f"--token={self.token()}", *more)
        self.until(lambda: len(self.standings()) == 2, "both have joined")
        body = {
            "model": "far",
            "worker_type": "llm",
            "engine": "fake",
            "replicas": 2,
            "labels": {"far": "yes"},
        }
        self.server.json("POST", "/api/v1/models", body)
        self.until(lambda: self.where() == ["b", "c"], "one copy on each")

    def token(self) -> str:
        argv = [sys.executable, "-m", "hostler", "token", "create", "--role=host", "--json"]
        told = {**child_environment(), "HOSTLER_STATE_DIR": str(self.server.state_dir)}
        done = subprocess.run(
            argv, env=told, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        token: str = json.loads(done.stdout)["token"]
        return token

    def standings(self) -> dict[str, str]:
        hosts = self.server.json("GET", "/api/v1/hosts")["hosts"]
        return {
            one["facts"]["name"]: one["standing"] for one in hosts if one["heard_s"] is not None
        }

    def where(self) -> list[str]:
        return sorted(one["host_name"] for one in self.server.ready("far"))

    def until(self, is_true: Callable[[], bool], what: str, within_s: float = 25.0) -> float:
        return self.server.wait_for(is_true, within_s, what)


class Load:
    """Two clients that ask one after the other; what was no answer is kept."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._over = threading.Event()
        self.answered = 0
        self.failed: list[Any] = []
        self.slowest_s = 0.0

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._ask) for _ in range(2)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self) -> None:
        while not self._over.is_set():
            time.sleep(0.02)
            began_s = time.monotonic()
            status, _, body = self._world.server.chat("far", "hello")
            self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
            if status == 200:
                self.answered += 1
            else:
                self.failed.append((status, body[:200]))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Network("a", "b", "c") as net:
        made = World(net)
        with made.hosts["b"], made.hosts["c"], made.server:
            made.begin()
            yield made
            net.heal()
            made.server.json("DELETE", "/api/v1/models/far?delete=true")
            for host in made.hosts.values():
                made.until(lambda host=host: not host.workers(), "nothing runs there")  # type: ignore[misc]
                assert host.stop() == 0
                host.wait_gone()


@pytest.mark.parametrize("one_way", [True, False] if IS_LONG else [True])
def test_F19_F20_a_host_that_is_cut_off_is_replaced_and_ends_what_was_given_up(
    world: World, one_way: bool
) -> None:
    (before,) = world.hosts["b"].workers()
    with Load(world) as load:
        world.net.cut("b", "a", one_way=one_way)
        world.until(lambda: world.standings()["b"] == "lost", "it is missed")
        world.until(lambda: world.where() == ["c", "c"], "its copy is on the other one")
        assert before in world.hosts["b"].workers(), "what is cut off goes on"
        world.net.heal()
        world.until(lambda: world.standings()["b"] == "alive", "it is back")
        world.until(lambda: before not in world.hosts["b"].workers(), "what was given up is ended")
    assert load.failed == []
    assert load.answered > 50
    # a copy goes back, so that the next test finds one on each
    update = {"model": "far", "apply_type": "restart"}
    assert world.server.json("POST", "/api/v1/apply", update)["success"]
    world.until(lambda: world.where() == ["b", "c"], "one copy on each again")
