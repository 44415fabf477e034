"""SIGKILL of each process of a real server: what goes on, what comes back, what is left behind."""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hostler.app.paths import StatePaths
from hostler.core.lifecycle import State
from hostler.registry.kept import KeptSnapshot
from hostler.testing.cluster import Cluster, fake_model

LIFE = "[life]\norphan_grace_s = 4.0\ndrain_timeout_s = 5.0\nkill_grace_s = 1.0\n"
TWO = LIFE + fake_model("echo", replicas=2, tokens=6)
PAUSE_S = 0.01  # of a client between two requests: what is killed must start again beside them
PATIENT = fake_model("echo", replicas=2, tokens=6)  # a slow machine may take seconds to restart


@pytest.fixture(scope="module")
def lasting() -> Iterator[Cluster]:
    """A server for those after whose kills everything is as before."""
    with Cluster(PATIENT + fake_model("slow", tokens=40, delay_ms=50)) as cluster:
        yield cluster


@pytest.fixture
def cluster(lasting: Cluster) -> Cluster:
    """It, as each test finds it: whole."""
    lasting.wait_for(
        lambda: lasting.is_ready() and len(lasting.instances()) == 3, 30, "every process is back"
    )
    return lasting


class Load:
    """Closed-loop clients; every outcome is counted."""

    def __init__(self, cluster: Cluster, clients: int = 4, *, stream: str = "") -> None:
        """stream: the model whose streams are read; "": whole answers of the quick one."""
        self._cluster = cluster
        self._model = stream or "echo"
        self._stream = bool(stream)
        self._over = threading.Event()
        self._url, self._key = cluster.url, cluster.admin_key
        self.outcomes: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(clients)]

    def _run(self, number: int) -> None:
        step = 0
        while not self._over.is_set():
            step += 1
            self.outcomes[self._one(f"client {number} step {step}")] += 1
            self._over.wait(PAUSE_S)

    def _one(self, text: str) -> str:
        try:
            status, _, body = self._cluster.chat(self._model, text, stream=self._stream)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        if status != 200:
            return f"{status} {body.decode()[:300]}"
        if self._stream and not body.endswith(b"data: [DONE]\n\n"):
            return "cut"
        return "ok"

    @contextmanager
    def running(self) -> Iterator["Load"]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(60)

    @property
    def failed(self) -> dict[str, int]:
        return {kind: count for kind, count in self.outcomes.items() if kind != "ok"}


def test_F01_a_killed_worker_costs_no_request_and_comes_back(cluster: Cluster) -> None:
    with Load(cluster).running() as load:
        time.sleep(0.5)
        victim = cluster.ready("echo")[0]
        cluster.kill_pid(victim["pid"])
        cluster.wait_for(
            lambda: (
                len(cluster.ready("echo")) == 2
                and victim["instance_id"] not in {i["instance_id"] for i in cluster.ready("echo")}
            ),
            15,
            "the killed worker is replaced",
        )
        time.sleep(0.3)
    assert load.failed == {}
    assert load.outcomes["ok"] > 50


def test_F25_a_killed_controller_costs_nothing_and_adopts_every_worker(
    cluster: Cluster,
) -> None:
    with Load(cluster).running() as load:
        for _ in range(3):
            time.sleep(0.4)
            before = {i["instance_id"]: i["pid"] for i in cluster.ready("echo")}
            (old,) = cluster.kill("controller")
            cluster.wait_for(
                lambda: cluster.answers("/api/v1/status") and len(cluster.ready("echo")) == 2,
                15,
                "a new controller has adopted both workers",
            )
            assert cluster.pids("controller") != [old]
            assert {i["instance_id"]: i["pid"] for i in cluster.ready("echo")} == before
    assert load.failed == {}
    assert load.outcomes["ok"] > 50


def test_a_stream_outlives_the_controller(cluster: Cluster) -> None:
    with Load(cluster, 2, stream="slow").running() as load:
        time.sleep(0.5)
        cluster.kill("controller")
        time.sleep(3.0)
    assert load.failed == {}
    assert load.outcomes["ok"] >= 2


def test_F22_a_gateway_that_dies_without_a_controller_serves_again(cluster: Cluster) -> None:
    kept = KeptSnapshot(StatePaths(cluster.state_dir).kept_snapshot)

    def is_kept() -> bool:
        found = kept.load()
        ready = [i for i in found.instances if i.state is State.READY] if found else []
        return len(ready) == 3

    cluster.wait_for(is_kept, 8.0, "the last snapshot is kept")
    controller, gateway = cluster.pids("controller")[0], cluster.pids("gateway")[0]
    cluster.kill_pid(controller, signal.SIGSTOP)
    try:
        cluster.kill_pid(gateway)

        def answers() -> bool:
            try:
                return cluster.chat("echo", "meanwhile")[0] == 200
            except (OSError, http.client.HTTPException):
                return False

        cluster.wait_for(answers, 8.0, "the next gateway serves")
        assert json.loads(cluster.request("GET", "/ready")[2]) == {"status": "degraded"}
    finally:
        cluster.kill_pid(controller, signal.SIGCONT)
    cluster.wait_for(
        lambda: json.loads(cluster.request("GET", "/ready")[2]) == {"status": "ok"},
        8.0,
        "the controller is heard again",
    )


def test_a_killed_gateway_is_back_on_the_same_socket_and_port(cluster: Cluster) -> None:
    url = cluster.url
    (old,) = cluster.kill("gateway")
    # The supervisor holds the listening socket: this connection waits in it, and is served.
    status, _, _ = cluster.chat("echo", "are you back?")
    assert status in (200, 503)
    cluster.wait_for(lambda: cluster.chat("echo", "hi")[0] == 200, 10, "chat works again")
    assert cluster.url == url
    assert cluster.pids("gateway") != [old]


def test_a_killed_up_leaves_nothing_after_the_grace() -> None:
    with Cluster(TWO) as cluster:
        cluster.kill("up")
        assert cluster.chat("echo", "still there?")[0] == 200
        told = _hostler(cluster, "ps")
        assert told.returncode == 0
        assert "echo" in told.stdout
        cluster.wait_for(lambda: cluster.everything() == [], 4.0 + 12.0, "no process is left")


def test_a_new_up_within_the_grace_adopts_the_workers() -> None:
    with Cluster("[life]\norphan_grace_s = 10.0\n" + PATIENT) as cluster:
        before = {i["instance_id"]: i["pid"] for i in cluster.ready("echo")}
        cluster.kill("up")
        assert cluster.up is not None
        cluster.up.wait(5)
        cluster.start()
        cluster.wait_for(lambda: len(cluster.ready("echo")) == 2, 15, "both are adopted")
        after = {i["instance_id"]: i["pid"] for i in cluster.ready("echo")}
        assert after == before
        assert cluster.chat("echo", "hi")[0] == 200
        time.sleep(10.5)  # past the grace of the first one's processes
        assert {i["instance_id"]: i["pid"] for i in cluster.ready("echo")} == before


def test_F15_everything_killed_at_once_leaves_no_process() -> None:
    with Cluster(TWO) as cluster:
        assert len(cluster.everything()) >= 6
        for role in ("up", "controller", "gateway"):
            cluster.kill(role)
        cluster.wait_for(lambda: cluster.everything() == [], 4.0 + 12.0, "no process is left")


def test_the_workers_that_remain_are_told_truly_when_nobody_answers() -> None:
    with Cluster(PATIENT) as cluster:
        for role in ("up", "controller", "gateway"):
            cluster.kill(role)
        told = _hostler(cluster, "ps")
        assert "no controller answers" in told.stdout + told.stderr
        for pid in cluster.pids("worker"):
            assert str(pid) in told.stdout
        cluster.clear()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_F75_one_signal_drains_and_leaves_no_process(number: signal.Signals) -> None:
    slow = LIFE + fake_model("echo", tokens=20, delay_ms=50)
    with Cluster(slow) as cluster:
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(cluster.chat("echo", "hi")[0]))
        asking.start()
        time.sleep(0.3)
        pids = cluster.everything()
        assert cluster.stop(number) == 0
        asking.join(10)
        assert answers == [200]
        assert not set(pids) & set(cluster.everything())


def test_a_second_signal_ends_at_once() -> None:
    slow = "[life]\ndrain_timeout_s = 60.0\n" + fake_model("echo", tokens=1000, delay_ms=100)
    with Cluster(slow) as cluster:
        asking = threading.Thread(target=_quietly, args=(cluster,))
        asking.start()
        time.sleep(0.5)
        assert cluster.up is not None
        cluster.up.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert cluster.up.poll() is None
        began_s = time.monotonic()
        cluster.up.send_signal(signal.SIGINT)
        assert cluster.up.wait(10) == 130
        assert time.monotonic() - began_s < 5
        asking.join(10)
        assert cluster.everything() == []


def test_an_engine_that_crashes_mid_stream_is_told_and_restarted() -> None:
    model = fake_model("echo", script=json.dumps({"crash_at": 3, "tokens": 10}))
    with Cluster(LIFE + model) as cluster:
        (before,) = cluster.ready("echo")
        status, _, body = _whatever_came(cluster)
        assert status == 200
        assert b'"code":"worker_lost"' in body
        assert b"[DONE]" not in body
        cluster.wait_for(
            lambda: any(i["instance_id"] != before["instance_id"] for i in cluster.ready("echo")),
            15,
            "another instance has taken its place",
        )


# Private


def _hostler(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "hostler", *arguments, f"--state-dir={cluster.state_dir}"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def _quietly(cluster: Cluster) -> None:
    try:
        cluster.chat("echo", "hi", stream=True)
    except (OSError, http.client.HTTPException):
        return


def _whatever_came(cluster: Cluster) -> tuple[int, dict[str, str], bytes]:
    """A stream that may end uncleanly: what was received until then."""
    from urllib.parse import urlsplit

    address = urlsplit(cluster.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"content-type": "application/json", "authorization": f"Bearer {cluster.admin_key}"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    try:
        data = answer.read()
    except http.client.IncompleteRead as error:
        data = error.partial
    connection.close()
    return answer.status, {}, data
