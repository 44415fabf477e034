"""A real `hostler up --tls` and a real host process beside it, with its relay before its engines."""

import concurrent.futures
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from hostler.app.config import child_environment
from hostler.testing.cluster import LOOPBACK, Cluster, fake_model
from hostler.testing.host_run import HostRun

CONFIG = """
[heartbeat]
interval_s = 0.3
suspect_after_s = 0.9
lost_after_s = 3.0
[life]
drain_timeout_s = 3.0
kill_grace_s = 1.0
backoff_first_s = 0.1
"""
SOON_S = 20.0


class Pair:
    """A server, and one more machine."""

    def __init__(self, cluster: Cluster, host: HostRun) -> None:
        self.cluster = cluster
        self.host = host

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "hostler", *words]

    @property
    def env(self) -> dict[str, str]:
        return {**child_environment(), "HOSTLER_STATE_DIR": str(self.cluster.state_dir)}

    def command(self, *words: str) -> str:
        """One command as a person gives it on the server's machine."""
        done = subprocess.run(
            self.argv(*words),
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def join(self) -> None:
        record = json.loads((self.cluster.state_dir / "up.json").read_bytes())
        made = json.loads(self.command("token", "create", "--role", "host", "--json"))
        self.host.start(
            "host",
            "join",
            f"--controller={record['control_url']}",
            f"--token={made['token']}",
            "--address=127.0.0.1",
            "--port=0",
            "--name=b",
            "--labels=gpu=a100",
        )
        self.until(lambda: self.standing() == "alive", "the host has joined")

    def standing(self) -> str:
        hosts = self.cluster.json("GET", "/api/v1/hosts")["hosts"]
        return next((one["standing"] for one in hosts if one["heard_s"] is not None), "")

    def ready(self) -> list[tuple[str, str]]:
        """The machine and id of each instance of `far` that serves."""
        return sorted((one["host_name"], one["instance_id"]) for one in self.cluster.ready("far"))

    def where(self) -> list[str]:
        return [name for name, _ in self.ready()]

    def until(self, is_true: Callable[[], bool], what: str) -> None:
        """Wait until it is so, also over a restart of the controller."""

        def is_so() -> bool:
            try:
                return is_true()
            except (AssertionError, OSError):  # a 503 meanwhile
                return False

        self.cluster.wait_for(is_so, SOON_S, what)

    def asks(self) -> str:
        """One answer of `far`, through a gateway."""
        status, _, body = self.cluster.chat("far", "hello")
        assert status == 200, body
        said: str = json.loads(body)["choices"][0]["message"]["content"]
        return said


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    cluster = Cluster(CONFIG + fake_model("echo"), joined_at=LOOPBACK)
    with cluster, HostRun() as host:
        made = Pair(cluster, host)
        made.join()
        yield made
        made.command("model", "stop", "far", "--delete")
        if host.process is not None:
            assert host.stop() == 0
        host.wait_gone()


def test_a_model_is_started_on_another_machine_and_answers(pair: Pair) -> None:
    pair.command("model", "start", "far", "--type=llm", "--engine=fake", "--label=gpu=a100")
    assert pair.where() == ["b"]
    assert pair.asks().startswith("far")
    assert len(pair.host.workers()) == 1
    shown = pair.command("ps")
    assert "HOST" in shown.splitlines()[0]
    (one,) = pair.cluster.ready("far")
    folder = str(pair.host.state_dir)
    assert folder in " ".join(one["command_args"])
    assert folder in pair.command("model", "show", "far")
    listed = json.loads(pair.command("host", "list", "--json"))
    assert [(one["facts"]["name"], one["instances"]) for one in listed] == [("b", 1)]


def test_its_log_is_read_at_the_controller_without_secrets(pair: Pair) -> None:
    ((_, instance_id),) = pair.ready()
    log = pair.host.paths.worker_log(instance_id)
    with log.open("a") as file:
        file.write("the last line\n")
    assert "the last line" in pair.command("model", "logs", "far")
    words = ("model", "logs", "far", "--follow", "--tail=1")
    with subprocess.Popen(pair.argv(*words), env=pair.env, stdout=subprocess.PIPE) as follower:
        try:
            assert follower.stdout is not None
            assert follower.stdout.readline() == b"the last line\n"
            with log.open("a") as file:
                file.write("Authorization: Bearer sk-secret\n")
            assert b"Bearer [redacted]" in follower.stdout.readline()
        finally:
            follower.terminate()


def test_the_log_of_one_that_failed_there_is_told_as_well(pair: Pair) -> None:
    script = json.dumps({"exit_at_start": 7})
    body = {"model": "bad", "worker_type": "llm", "engine": "fake", "host": "b"}
    pair.cluster.json("POST", "/api/v1/models", {**body, "params": {"script": script}})

    def is_told() -> bool:
        """It is tried again and again, and one that failed is forgotten for the next one."""
        found = [one for one in pair.cluster.instances() if one["model_name"] == "bad"]
        failed = [one["instance_id"] for one in found if one["state"] == "failed"]
        told = [pair.cluster.json("GET", f"/api/v1/instances/{one}/logs") for one in failed]
        return any(one["logs"][0]["lines"] for one in told)

    pair.until(is_told, "what its worker said")
    pair.cluster.json("DELETE", "/api/v1/models/bad?delete=true")


def test_a_worker_that_dies_there_is_replaced_there(pair: Pair) -> None:
    ((_, before),) = pair.ready()
    (name,) = pair.host.workers()
    pair.host.kill_worker(name)
    pair.until(
        lambda: pair.where() == ["b"] and [pid for _, pid in pair.ready()] not in ([], [before]),
        "a new worker",
    )
    assert pair.asks()


def test_one_instance_there_is_replaced_by_order(pair: Pair) -> None:
    ((_, before),) = pair.ready()
    told = json.loads(pair.command("model", "restart", "far", "--instance", before, "--json"))
    assert told["success"] is True
    ((where, after),) = pair.ready()
    assert where == "b"
    assert after != before
    assert pair.asks()


def test_a_host_process_that_is_killed_finds_its_workers_again(pair: Pair) -> None:
    before, workers = pair.ready(), pair.host.workers()
    pair.host.kill()
    pair.host.start()
    pair.until(lambda: pair.standing() == "alive" and pair.ready() == before, "the same again")
    assert pair.host.workers() == workers
    pair.until(lambda: bool(pair.asks()), "it answers")


def test_a_controller_that_is_killed_ends_nothing_there(pair: Pair) -> None:
    before, workers = pair.ready(), pair.host.workers()
    pair.cluster.kill("controller")
    assert pair.asks(), "its gateway goes on"
    pair.until(lambda: pair.ready() == before, "back")
    assert pair.host.workers() == workers
    assert all(one["command_args"] for one in pair.cluster.ready("far")), "told anew"


def test_F35_what_a_lost_machine_still_runs_is_ended_when_it_is_back(pair: Pair) -> None:
    update = {"model": "far", "apply_type": "update_params", "labels": {}}
    assert pair.cluster.json("POST", "/api/v1/apply", update)["success"]
    pair.cluster.json("POST", "/api/v1/apply", {**update, "host": "b"})
    pair.until(lambda: pair.where() == ["b"], "on b again")
    pair.cluster.json("POST", "/api/v1/apply", {**update, "host": "", "timeout_s": 1.0})
    pair.until(lambda: pair.where() == ["b"], "where its files are, of all that have room")
    pair.cluster.json("POST", "/api/v1/apply", {**update, "replicas": 2})
    pair.until(lambda: pair.where() == ["", "b"], "one on each")
    old = pair.host.workers()
    pair.host.send(signal.SIGSTOP)
    try:
        pair.until(lambda: pair.where() == ["", ""], "replaced on the other machine")
        assert pair.host.workers() == old, "its worker serves on"
        assert all(pair.asks() for _ in range(5))
    finally:
        pair.host.send(signal.SIGCONT)
    pair.until(lambda: not pair.host.workers() and pair.standing() == "alive", "cleaned")
    assert pair.where() == ["", ""]


def test_the_load_brings_a_replica_to_the_other_machine_and_takes_it_back(pair: Pair) -> None:
    rules = {"max_replicas": 2, "up_s": 1, "down_s": 4}
    params = {"script": '{"delay_ms": 40}', "tokens": 10}
    wish = {"model": "grow", "worker_type": "llm", "engine": "fake", "concurrency": 2}
    pair.cluster.json("POST", "/api/v1/models", {**wish, "params": params, "scaling": rules})

    def where() -> list[str]:
        return sorted(one["host_name"] for one in pair.cluster.ready("grow"))

    stop, statuses = threading.Event(), set()

    def ask() -> None:
        while not stop.is_set():
            statuses.add(pair.cluster.chat("grow", "hello")[0])

    pair.until(lambda: len(where()) == 1, "one is there")
    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        try:
            for _ in range(8):
                clients.submit(ask)
            pair.until(lambda: where() == ["", "b"], "one on each machine")
        finally:
            stop.set()
    assert statuses == {200}
    pair.until(lambda: len(where()) == 1, "one is enough")
    pair.cluster.json("DELETE", "/api/v1/models/grow")


def test_a_machine_is_drained_and_removed(pair: Pair) -> None:
    pair.command("model", "update", "far", "--host=b", "--replicas=1")
    assert pair.where() == ["b"]
    pair.command("model", "update", "far", "--host=any")
    pair.command("host", "drain", "b")
    pair.until(lambda: pair.where() == [""] and not pair.host.workers(), "empty")
    pair.command("host", "remove", "b")
    assert pair.cluster.json("GET", "/api/v1/hosts")["hosts"] == []
    assert pair.host.ended() != 0, "it is not wanted any more"
