"""`hostler up --ray` on three machines: placing, the loss of a node, of the controller, and of Ray itself."""

import os
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx2
import pytest
from openai import OpenAI, OpenAIError

from hostler.app.process import tagged
from hostler.manager.workers import ROLE_TAG, STATE_TAG
from hostler.testing import rays
from hostler.testing.netns import Network
from hostler.testing.ray_up import RayUp
from hostler.testing.rays import RayMachines
from tests.models import model_path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(rays.missing()), reason=rays.missing()),
]


def config() -> str:
    """Two llama.cpp replicas and an embedding model; each node has room for two of the former."""
    return f"""
[heartbeat]
lost_after_s = 5
mass_lost_after_s = 60

[[models]]
name = "chat"
engine = "llama.cpp"
source = "{model_path("chat")}"
replicas = 2
concurrency = 2
params = {{ context_length = 512 }}
[models.resources]
cpus = 0.5
resources = {{ box = 1 }}

[[models]]
name = "embed"
type = "text2vec"
engine = "onnx"
source = "{model_path("embedding")}"
[models.resources]
cpus = 0.5
resources = {{ box = 1 }}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[RayUp]:
    with (
        Network("a", "b", "c") as network,
        RayMachines(network, "a", {"b": '{"box":3}', "c": '{"box":3}'}) as ray,
        RayUp(ray, config()) as up,
    ):
        up.until(lambda: len(up.instances("chat")) == 2, "two chat replicas are ready")
        up.until(lambda: up.instances("embed"), "the embedding model is ready")
        yield up


class Load:
    """Clients that ask one request after the other, by the official SDK, which tries none again."""

    def __init__(self, up: RayUp) -> None:
        key = (up.state_dir / "admin.key").read_text().strip()
        trust = str(up.state_dir / "tls" / "ca.pem")
        self._client = OpenAI(
            base_url=f"{up.url}/v1",
            api_key=key,
            max_retries=0,
            http_client=httpx2.Client(verify=ssl.create_default_context(cafile=trust), timeout=60),
        )
        self._stop = threading.Event()
        self.good = 0
        self.errors: list[str] = []

    def close(self) -> None:
        self._client.close()

    def ask(self) -> None:
        chat: Any = self._client.chat.completions
        answer = chat.create(
            model="chat", messages=[{"role": "user", "content": "Say hello."}], max_tokens=4
        )
        assert answer.usage.completion_tokens >= 1

    def embed(self) -> int:
        found: Any = self._client.embeddings.create(model="embed", input="a horse")
        return len(found.data[0].embedding)

    @contextmanager
    def running(self, clients: int = 3) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(60)
            self.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.ask()
                self.good += 1
            except OpenAIError as error:
                self.errors.append(f"{type(error).__name__}: {error}")


def nodes_of(up: RayUp, model: str) -> set[str]:
    return {one["host_name"] for one in up.instances(model)}


def test_replicas_are_spread_over_nodes_and_what_waits_says_for_what(server: RayUp) -> None:
    up = server
    here = {f"ray-{up.ray.network.address(name)}" for name in "bc"}
    assert nodes_of(up, "chat") == here
    assert nodes_of(up, "embed") <= here
    client = Load(up)
    assert client.embed() == 384
    client.close()
    assert "0.5 CPU, 1 box: alive" in up.run("ps").stdout
    assert (
        up.run(
            "model", "start", "far", "--engine=fake", "--resource=moon=1", "--no-wait"
        ).returncode
        == 0
    )
    waits = up.until(lambda: "lacks moon" in up.run("model", "show", "far").stdout, "it says why")
    assert waits < 20
    assert up.run("model", "stop", "far", "--delete").returncode == 0


def test_F41_a_node_that_dies_under_load_costs_no_request_and_its_replica_comes_back(
    server: RayUp,
) -> None:
    up = server
    lost = f"ray-{up.ray.network.address('b')}"
    with Load(up).running() as load:
        until_good(load, 5)
        before = {one["instance_id"] for one in up.instances("chat")}
        began_s = time.monotonic()
        kill_machine(up, "b")
        up.until(
            lambda: len(up.instances("chat")) == 2 and lost not in nodes_of(up, "chat"),
            "both replicas are on nodes that live",
            60,
        )
        took_s = time.monotonic() - began_s
        until_good(load, load.good + 5)
        assert {one["instance_id"] for one in up.instances("chat")} != before
    assert load.errors == [], f"{load.good} good, back after {took_s:.1f} s"
    up.note(f"a node killed: {load.good} requests, no error, back after {took_s:.1f} s")


def test_F42_what_was_cut_off_and_replaced_ends_when_its_node_is_back(server: RayUp) -> None:
    up, network = server, server.ray.network
    up.ray.start("b")
    back = f"ray-{network.address('b')}"
    order = up.run("model", "update", "chat", "--replicas=3", "--timeout=90", timeout_s=120)
    assert order.returncode == 0, order.stderr
    assert back in nodes_of(up, "chat"), "the other node has no box left"
    with Load(up).running() as load:
        until_good(load, 3)
        zombies = set(workers_on(up, "b"))
        assert zombies
        network.cut("a", "b")
        network.cut("b", "c")
        up.until(lambda: back not in nodes_of(up, "chat"), "it is given up", 40)
        assert zombies <= set(workers_on(up, "b")), "nothing tells it so: it runs on"
        network.heal()
        took_s = up.until(lambda: not zombies & set(workers_on(up, "b")), "it ends", 30)
        until_good(load, load.good + 3)
    assert load.errors == []
    up.note(
        f"a cut healed: its old engine ended after {took_s:.1f} s, {load.good} requests, no error"
    )
    order = up.run("model", "update", "chat", "--replicas=2", "--timeout=90", timeout_s=120)
    assert order.returncode == 0, order.stderr


def test_a_controller_that_is_killed_finds_its_places_and_workers_again(server: RayUp) -> None:
    up = server
    before = {one["instance_id"]: one["pid"] for one in up.instances("chat")}
    with Load(up).running() as load:
        until_good(load, 3)
        ours = tagged(STATE_TAG, str(up.state_dir))
        for pid in [pid for pid in tagged(ROLE_TAG, "controller") if pid in ours]:
            os.kill(pid, signal.SIGKILL)
        up.until(lambda: len(up.instances("chat")) == 2, "the replicas are known again", 40)
        up.until(lambda: "box: alive" in up.run("ps").stdout, "places are held again", 40)
        until_good(load, load.good + 3)
    assert load.errors == []
    assert {one["instance_id"]: one["pid"] for one in up.instances("chat")} == before


def test_F43_without_ray_requests_go_on_and_new_instances_wait(server: RayUp) -> None:
    up = server
    with Load(up).running() as load:
        until_good(load, 3)
        up.ray.kill("a")  # the head: where Ray keeps all that it knows
        up.run("model", "start", "late", "--engine=fake", "--no-wait")
        told = lambda: "placement_unavailable" in up.run("model", "show", "late").stdout  # noqa: E731
        up.until(told, "what is started now waits for Ray", 40)
        until_good(load, load.good + 10)
        assert len(up.instances("chat")) == 2
    assert load.errors == []


def test_F44_a_ray_without_a_token_is_refused_before_anything_starts(server: RayUp) -> None:
    up = server
    env = {name: value for name, value in up.env.items() if name != "RAY_AUTH_MODE"}
    began_s = time.monotonic()
    done = subprocess.run(
        up.command("up", "--ray=127.0.0.1:1", "--port=0", "--control-port=0"),
        env={**env, "HOSTLER_STATE_DIR": str(up.root / "other")},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 78, done.stderr
    assert "RAY_AUTH_MODE=token" in done.stderr
    assert time.monotonic() - began_s < 10


def until_good(load: Load, many: int) -> None:
    ends_s = time.monotonic() + 60
    while load.good < many:
        assert time.monotonic() < ends_s, f"{load.good} good, {load.errors[-3:]}"
        time.sleep(0.1)


def workers_on(up: RayUp, name: str) -> list[int]:
    ours = tagged(ROLE_TAG, "worker")
    return [pid for pid in up.ray.network.pids(name) if pid in ours]


def kill_machine(up: RayUp, name: str) -> None:
    """End everything on a machine at once: Ray, the host process, its workers."""
    for pid in up.ray.network.pids(name):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
