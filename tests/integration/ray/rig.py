"""A server on three machines under Ray, brought to its own start before each test; and clients of it."""

import os
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx2
from openai import OpenAI, OpenAIError

from hostler.app.process import tagged
from hostler.manager.workers import ROLE_TAG, STATE_TAG
from hostler.testing.ray_up import RayUp
from tests.models import model_path

MODELS = ("chat", "embed")
NODES = ("b", "c")
PAUSE_S = 0.3  # of a client between two requests: Ray needs the processors, too
BOXES = '{"box":4}'  # of each node: one has room for all that there is


def config() -> str:
    """Two llama.cpp replicas and an embedding model, and a quick loss."""
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
cpus = 0.2
resources = {{ box = 1 }}

[[models]]
name = "embed"
type = "text2vec"
engine = "onnx"
source = "{model_path("embedding")}"
[models.resources]
cpus = 0.2
resources = {{ box = 1 }}
"""


class Town:
    """The server, and which of its machines a test has hurt."""

    def __init__(self, up: RayUp) -> None:
        self.up = up
        self.network = up.ray.network
        self.hurt: set[str] = set()

    # What a test looks at

    def host(self, machine: str) -> str:
        """What the host on a machine is called."""
        return f"ray-{self.network.address(machine)}"

    def nodes_of(self, model: str) -> set[str]:
        return {one["host_name"] for one in self.up.instances(model)}

    def ids(self, model: str) -> list[str]:
        return [one["instance_id"] for one in self.up.instances(model)]

    def reason(self, model: str) -> str:
        """Why the instances of a model are as they are."""
        found = (one for one in self.up.told("instances") if one["model_name"] == model)
        return "; ".join(str(one["reason"]) for one in found)

    def standing(self, machine: str) -> str:
        """How the newest host on a machine is: alive, suspect, lost..."""
        found = [one for one in self.up.told("hosts") if self._is_on(one, machine)]
        newest = sorted(found, key=lambda one: float(one["joined_at_s"]))[-1:]
        return str(newest[0]["standing"]) if newest else ""

    def workers_on(self, machine: str) -> set[int]:
        ours = tagged(ROLE_TAG, "worker")
        return {pid for pid in self.network.pids(machine) if pid in ours}

    def host_processes_on(self, machine: str) -> list[int]:
        """Those that live, and are no zombies."""
        return [pid for pid in self.network.pids(machine) if b"\0host\0join\0" in _words(pid)]

    def waits(self, is_so: Callable[[], Any], what: str, within_s: float) -> float:
        """As `RayUp.until`, without a command of ours between two looks."""
        began_s = time.monotonic()
        while not is_so():
            assert time.monotonic() - began_s < within_s, f"not within {within_s:g} s: {what}"
            time.sleep(0.05)
        return time.monotonic() - began_s

    # What a test does

    def kill_machine(self, machine: str) -> None:
        """End everything on a machine at once: Ray, the host process, its workers."""
        self.hurt.add(machine)
        for pid in self.network.pids(machine):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_ray(self, machine: str) -> None:
        """End Ray on a machine; on the head's: all that Ray knows."""
        self.hurt.add(machine)
        self.up.ray.kill(machine)

    def kill_actors(self, machine: str, kind: str) -> int:
        """End Ray's processes of one class of actors on a machine; return how many there were."""
        found = [
            pid
            for pid in self.network.pids(machine)
            if _words(pid).startswith(f"ray::{kind}".encode())
        ]
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return len(found)

    def kill_controller(self) -> None:
        ours = tagged(STATE_TAG, str(self.up.state_dir))
        for pid in [pid for pid in tagged(ROLE_TAG, "controller") if pid in ours]:
            os.kill(pid, signal.SIGKILL)

    def cut_off(self, machine: str) -> None:
        """Lose every packet between a machine and the others."""
        self.hurt.add(machine)
        for other in {self.up.ray.head, *NODES} - {machine}:
            self.network.cut(machine, other)

    def bring_back(self) -> None:
        """Have everything as a test may find it: Ray on all machines, a replica on each node."""
        up = self.up
        self.network.heal()
        stopped = self._stopped()
        for name in stopped:
            if name == up.ray.head:  # the server is there as well
                up.ray.kill(name)
            else:
                self.kill_machine(name)
        for name in stopped:  # a head does not start where it sees one of its nodes still run
            up.ray.start(name)
        self.hurt.clear()
        for model in {one["name"] for one in up.told("models")} - {*MODELS}:
            assert up.run("model", "stop", model, "--delete").returncode == 0
        up.until(lambda: all(self.standing(name) == "alive" for name in NODES), "hosts", 180)
        up.until(lambda: self._is_whole("chat", 2), "two replicas", 180)
        if self.nodes_of("chat") != {self.host(name) for name in NODES}:
            self._place_anew()
            up.until(lambda: self._is_whole("chat", 2), "two replicas", 180)
        up.until(lambda: up.instances("embed"), "the embedding model is ready")
        assert self.nodes_of("chat") == {self.host(name) for name in NODES}

    # Private

    def _stopped(self) -> list[str]:
        """Whom Ray is to be started on, the head first, without which no other node stays."""
        head = self.up.ray.head
        return [head, *NODES] if head in self.hurt else sorted(self.hurt)

    def _place_anew(self) -> None:
        """Start the chat model again, as in the settings: Ray spreads it then."""
        up = self.up
        assert up.run("model", "stop", "chat", "--delete").returncode == 0
        up.until(lambda: not self._all("chat"), "nothing of it is left")
        words = ["--engine=llama.cpp", f"--source={model_path('chat')}", "--context-length=512"]
        words += ["--replicas=2", "--concurrency=2", "--cpus=0.2", "--resource=box=1"]
        order = up.run("model", "start", "chat", *words, "--timeout=120", timeout_s=150)
        assert order.returncode == 0, order.stderr

    def _is_whole(self, model: str, many: int) -> bool:
        return len(self._all(model)) == len(self.up.instances(model)) == many

    def _all(self, model: str) -> list[dict[str, Any]]:
        return [
            one
            for one in self.up.told("instances")
            if one["model_name"] == model and one["state"] not in ("failed", "stopped")
        ]

    def _is_on(self, host: dict[str, Any], machine: str) -> bool:
        return bool(host["facts"]["name"] == self.host(machine))


class Load:
    """Clients that ask one request after the other, by the official SDK, which tries none again."""

    def __init__(self, town: Town, model: str = "chat") -> None:
        up = town.up
        self._model = model
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
        self.by: list[str] = []  # the instance of each good answer

    def close(self) -> None:
        self._client.close()

    def ask(self) -> str:
        """Ask once; return the instance that answered."""
        chat: Any = self._client.chat.completions.with_raw_response
        raw = chat.create(
            model=self._model, messages=[{"role": "user", "content": "Say hello."}], max_tokens=4
        )
        assert raw.parse().usage.completion_tokens >= 1
        return str(raw.headers["x-hostler-instance"])

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

    def until_good(self, many: int) -> None:
        """Wait for so many good answers more."""
        wanted, ends_s = self.good + many, time.monotonic() + 60
        while self.good < wanted:
            assert time.monotonic() < ends_s, f"{self.good} good, {self.errors[-3:]}"
            time.sleep(0.1)

    # Private

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.by.append(self.ask())
                self.good += 1
            except OpenAIError as error:
                self.errors.append(f"{type(error).__name__}: {error}")
            self._stop.wait(PAUSE_S)


# Private


def _words(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()  # empty for a zombie
    except OSError:
        return b""
