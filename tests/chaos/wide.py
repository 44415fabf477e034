"""A server, hosts and gateways, each on a machine of its own (a network namespace); a model on the hosts."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from hostler.testing.cluster import Cluster, fake_model
from hostler.testing.host_run import HostRun
from hostler.testing.netns import Network
from tests.asking import Asking
from tests.integration.server.test_distant_gateway import Elsewhere

SERVER = """
[life]
drain_timeout_s = 3.0
kill_grace_s = 1.0
hung_after_s = 120.0
"""
QUICK = "[heartbeat]\ninterval_s = 0.8\nsuspect_after_s = 2.0\nlost_after_s = 4.0\n"


class Wide:
    """control: where `hostler up` is. Machines of hosts and gateways have the names given."""

    def __init__(
        self, net: Network, folder: Path, hosts: Sequence[str], gateways: Sequence[str], beats: str
    ) -> None:
        self.net = net
        self.server = Cluster(
            SERVER + beats + fake_model("local"),
            around=partial(net.command, "control"),
            joined_at=net.address("control"),
        )
        self.hosts = {name: HostRun(around=partial(net.command, name)) for name in hosts}
        self.server.truth.others += [host.state_dir for host in self.hosts.values()]
        self.gateways: dict[str, Elsewhere] = {}
        for name in gateways:
            (folder / name).mkdir()
            self.gateways[name] = Elsewhere(self.server, folder / name, net.address(name))

    @contextmanager
    def running(self) -> Iterator["Wide"]:
        with ExitStack() as stack:
            for host in self.hosts.values():
                stack.enter_context(host)
            stack.enter_context(self.server)
            for name, gateway in self.gateways.items():
                with self.net.inside(name):
                    gateway.start(f"--token={self.token('gateway')}")
                stack.callback(gateway.end)
            yield self
            self.net.heal()
            self.server.request("DELETE", "/api/v1/models/far?delete=true")

    def join(self, name: str, *words: str) -> None:
        """Start a host's process on its machine."""
        url = json.loads((self.server.state_dir / "up.json").read_bytes())["control_url"]
        told = (f"--controller={url}", f"--token={self.token('host')}", f"--name={name}")
        self.hosts[name].start("host", "join", *told, "--labels=far=yes", *words)

    def join_all(self) -> None:
        for name in self.hosts:
            self.join(name, "--port=8102")
        self.until(lambda: len(self.standings()) == len(self.hosts), "all have joined")

    def begin(self, replicas: int, concurrency: int = 8, **params: object) -> None:
        """Start `far` on the hosts, and wait until all gateways serve."""
        self.join_all()
        self.start_model(replicas, concurrency, **params)

    def start_model(self, replicas: int, concurrency: int = 8, **params: object) -> None:
        body = {
            "model": "far",
            "worker_type": "llm",
            "engine": "fake",
            "replicas": replicas,
            "concurrency": concurrency,
            "params": params,
            "labels": {"far": "yes"},
        }
        self.server.json("POST", "/api/v1/models", body)
        self.until(lambda: len(self.where()) == replicas, "every copy is ready")
        for gateway in self.gateways.values():
            gateway.wait_ready()
            self.until(lambda g=gateway: g.chat("hello", "far")[0] == 200, "it serves")  # type: ignore[misc]

    def stop_model(self) -> None:
        self.server.json("DELETE", "/api/v1/models/far?delete=true")
        self.until(lambda: not self.copies(), "no copy is left")

    def token(self, role: str) -> str:
        return str(self.server.json("POST", "/api/v1/tokens", {"role": role})["token"])

    def standings(self) -> dict[str, str]:
        hosts = self.server.json("GET", "/api/v1/hosts")["hosts"]
        return {
            one["facts"]["name"]: one["standing"]
            for one in hosts
            if one["role"] == "host" and one["heard_s"] is not None
        }

    def where(self) -> dict[str, str]:
        """The host of each ready copy, by instance."""
        return {one["instance_id"]: one["host_name"] for one in self.server.ready("far")}

    def copies(self) -> set[str]:
        """Every copy there is, in whatever state."""
        return {one["instance_id"] for one in self.server.instances() if one["model_name"] == "far"}

    def until(self, is_true: Callable[[], bool], what: str, within_s: float = 25.0) -> float:
        return self.server.wait_for(is_true, within_s, what)

    def cut(self, name: str, *others: str) -> None:
        for other in others:
            self.net.cut(name, other)


def ask_far(gateways: Sequence[Elsewhere], threads: int = 2, pause_s: float = 0.02) -> Asking:
    """Ask gateways for the model on the hosts."""
    return Asking(
        {one.address: partial(one.chat, model="far") for one in gateways}, threads, pause_s
    )
