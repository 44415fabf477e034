"""Five machines on one: a controller, two hosts, a gateway, its clients. Lines are cut, machines die."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from hostler.app.config import child_environment
from hostler.app.process import sweep
from hostler.manager.workers import STATE_TAG
from hostler.testing import netns
from hostler.testing.cluster import Cluster, fake_model
from hostler.testing.host_run import HostRun
from hostler.testing.netns import Network
from tests.chaos.figures import IS_LONG, tell
from tests.integration.server.test_distant_gateway import Elsewhere

WHY_NOT = netns.missing() or ("" if IS_LONG else "a minute and a half: HOSTLER_LONG=1")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

CONFIG = """
[heartbeat]
interval_s = 0.5
suspect_after_s = 1.25
lost_after_s = 6.0
mass_lost_after_s = 8.0
"""
CLIENTS = 6


class Clients:
    """Threads on a machine of their own that ask `far` of a gateway, one request after the other."""

    def __init__(self, net: Network, gateway: Elsewhere) -> None:
        self._net = net
        self._gateway = gateway
        self._is_over = False
        self.bad: list[str] = []
        self.served: Counter[str] = Counter()
        self.slowest_s = 0.0

    @contextmanager
    def asking(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over = True
            for thread in threads:
                thread.join()

    def phase(self, name: str, seconds: float) -> Counter[str]:
        """Let them ask so long; none of them may fail. Return who served, by instance."""
        self.served, self.slowest_s = Counter(), 0.0
        time.sleep(seconds)
        tell(f"F19 {name}: {self.served.total()} requests, slowest {self.slowest_s:.2f} s")
        assert not self.bad, (name, self.bad)
        assert self.served.total() > 10
        assert self.slowest_s < 12.0
        return self.served

    def _ask(self, number: int) -> None:
        with self._net.inside("clients"):
            while not self._is_over:
                began_s = time.monotonic()
                try:
                    status, headers, body = self._gateway.chat(f"{number} {began_s}", "far")
                except OSError as error:
                    self.bad.append(repr(error))
                    continue
                self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
                if status == 200:
                    self.served[headers["x-hostler-instance"]] += 1
                else:
                    self.bad.append(f"{status} {body[:200]!r}")


def command(cluster: Cluster, *words: str) -> str:
    told = {**child_environment(), "HOSTLER_STATE_DIR": str(cluster.state_dir)}
    argv = [sys.executable, "-m", "hostler", *words]
    done = subprocess.run(argv, env=told, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def token(cluster: Cluster, role: str) -> str:
    made = json.loads(command(cluster, "token", "create", f"--role={role}", "--json"))
    return str(made["token"])


def is_whole(cluster: Cluster) -> bool:
    try:
        return len(cluster.ready("far")) == 3
    except (AssertionError, OSError):  # the controller is being started
        return False


def join(cluster: Cluster, net: Network, name: str) -> HostRun:
    """Start a host process on a machine."""
    url = json.loads((cluster.state_dir / "up.json").read_bytes())["control_url"]
    host = HostRun()
    with net.inside(name):
        words = (f"--controller={url}", f"--token={token(cluster, 'host')}", f"--name={name}")
        host.start("host", "join", *words, "--port=8102")
    return host


def test_F19_F20_F21_F22_lines_and_machines_fail_and_no_request_does(tmp_path: Path) -> None:
    names = ("control", "hosta", "hostb", "gateway", "clients")
    with ExitStack() as stack:
        net = stack.enter_context(Network(*names))
        stack.enter_context(net.inside("control"))
        made = Cluster(CONFIG + fake_model("echo"), joined_at=net.address("control"))
        cluster = stack.enter_context(made)
        hosts = {name: stack.enter_context(join(cluster, net, name)) for name in names[1:3]}
        cluster.wait_for(
            lambda: len(cluster.json("GET", "/api/v1/hosts")["hosts"]) >= 2, 20, "both have joined"
        )
        command(
            cluster, "model", "start", "far", "--type=llm", "--engine=fake", "--replicas=3",
            "--concurrency=16",
        )  # fmt: skip
        gateway = Elsewhere(cluster, tmp_path, net.address("gateway"))
        with net.inside("gateway"):
            gateway.start(f"--token={token(cluster, 'gateway')}")
        stack.callback(lambda: gateway.end(9))
        gateway.wait_ready()
        clients = Clients(net, gateway)
        with clients.asking():
            assert len(clients.phase("calm", 3)) == 3
            net.cut("gateway", "control")
            assert len(clients.phase("gateway cut from its controller", 10)) >= 2
            net.heal()
            clients.phase("healed", 3)
            net.cut("hosta", "gateway", one_way=True)
            clients.phase("answers of a host lost", 5)
            net.heal()
            clients.phase("healed", 3)
            for name in ("hosta", "hostb", "control"):
                net.lose(20, name, "gateway")
            clients.phase("20 % lost to all", 15)
            net.heal()
            clients.phase("healed", 3)
            hosts["hosta"].kill()
            sweep(STATE_TAG, str(hosts["hosta"].state_dir))  # its workers with it
            clients.phase("a host died", 12)
            cluster.kill("controller")
            clients.phase("the controller was killed", 6)
            cluster.wait_for(lambda: is_whole(cluster), 30, "three again")
        command(cluster, "model", "stop", "far", "--delete")
        assert gateway.end() == 0
