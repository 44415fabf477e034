"""A server and two hosts, each in a network of its own: lines between them are cut and healed, under load."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from hostler.app.config import child_environment
from hostler.testing import netns
from hostler.testing.cluster import Cluster, fake_model
from hostler.testing.host_run import HostRun
from hostler.testing.netns import Network
from tests.asking import Asking
from tests.chaos.figures import IS_LONG

WHY_NOT = netns.missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

CONFIG = """
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
        self.server = Cluster(
            CONFIG + fake_model("local"),
            around=partial(net.command, "a"),
            joined_at=net.address("a"),
        )
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
    with Asking({"server": lambda text: world.server.chat("far", text)}) as load:
        world.net.cut("b", "a", one_way=one_way)
        world.until(lambda: world.standings()["b"] == "lost", "it is missed")
        world.until(lambda: world.where() == ["c", "c"], "its copy is on the other one")
        assert before in world.hosts["b"].workers(), "what is cut off goes on"
        world.net.heal()
        world.until(lambda: world.standings()["b"] == "alive", "it is back")
        world.until(lambda: before not in world.hosts["b"].workers(), "what was given up is ended")
    assert load.failed == []
    assert load.answered.total() > 50
    # a copy goes back, so that the next test finds one on each
    update = {"model": "far", "apply_type": "restart"}
    assert world.server.json("POST", "/api/v1/apply", update)["success"]
    world.until(lambda: world.where() == ["b", "c"], "one copy on each again")
