"""Controller, registry and clocks go wrong on a real server: the data plane goes on, nobody is replaced."""

import http.client
import json
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostler.app.process import tagged
from hostler.testing.cluster import Cluster, fake_model
from tests.chaos.figures import IS_LONG
from tests.chaos.pressure import Pressure, engines_of, is_engine

# Ten times as quick as the defaults, so that a test sees what follows after minutes.
QUICK = (
    "[heartbeat]\ninterval_s = 0.3\nsuspect_after_s = 0.9\nlost_after_s = 2.0\n"
    "[life]\norphan_grace_s = 3.0\nbackoff_first_s = 0.2\ncrash_limit = 100\ndrain_timeout_s = 3.0\n"
)
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(QUICK + fake_model("echo", replicas=3, tokens=6)) as running:
        yield running


def pids(cluster: Cluster) -> dict[str, int]:
    return {one["instance_id"]: one["pid"] for one in cluster.ready("echo")}


def whole(cluster: Cluster) -> bool:
    """Three are ready and no other is left."""
    mine = [one for one in cluster.instances() if one["model_name"] == "echo"]
    return [one["state"] for one in mine] == ["ready"] * 3


def settled(cluster: Cluster) -> dict[str, int]:
    cluster.wait_for(
        lambda: cluster.answers("/api/v1/status") and whole(cluster), 20, "three ready"
    )
    return pids(cluster)


def ready_text(cluster: Cluster) -> tuple[int, str]:
    status, _, body = cluster.request("GET", "/ready", timeout_s=5)
    return status, json.loads(body)["status"]


def test_F22_a_controller_that_does_not_answer_costs_no_request_and_no_worker(
    cluster: Cluster,
) -> None:
    before = settled(cluster)
    with Pressure(cluster) as pressure:
        cluster.kill("controller", signal.SIGSTOP)
        try:
            cluster.wait_for(
                lambda: ready_text(cluster) == (200, "degraded"), 15, "/ready says degraded"
            )
            time.sleep(0.5)  # together well over the grace of orphans
        finally:
            cluster.kill("controller", signal.SIGCONT)
        cluster.wait_for(lambda: ready_text(cluster) == (200, "ok"), 15, "/ready says ok again")
        assert settled(cluster) == before
    pressure.assert_unharmed(at_least=300)


def test_F23_lost_beats_alone_evict_nobody_and_start_no_second_copy(cluster: Cluster) -> None:
    before = settled(cluster)
    registry = cluster.state_dir / "run" / "registry.sock"
    aside = registry.with_name("aside.sock")
    with Pressure(cluster) as pressure:
        registry.rename(aside)  # no worker can report any more
        try:
            ends_s = time.monotonic() + 4.5  # longer than it takes to be lost, or an orphan
            while time.monotonic() < ends_s:
                assert pids(cluster) == before
                time.sleep(0.1)
        finally:
            aside.rename(registry)
        time.sleep(1.0)
        assert settled(cluster) == before
    pressure.assert_unharmed(at_least=300)


def test_F23_an_agent_that_is_stopped_while_its_engine_serves_is_not_replaced(
    cluster: Cluster,
) -> None:
    before = settled(cluster)
    victim = cluster.ready("echo")[0]
    with Pressure(cluster, clients=4) as pressure:
        cluster.kill_pid(victim["pid"], signal.SIGSTOP)
        try:
            ends_s = time.monotonic() + 3.5  # longer than it takes to be lost
            while time.monotonic() < ends_s:
                there = {one["instance_id"] for one in cluster.instances()}
                assert there == set(before), "nobody is replaced"
                time.sleep(0.1)
            cluster.wait_for(
                lambda: {one["instance_id"] for one in cluster.ready("echo")} == set(before),
                5,
                "whoever asks its engine hears it",
            )
        finally:
            cluster.kill_pid(victim["pid"], signal.SIGCONT)
    assert settled(cluster) == before
    pressure.assert_unharmed(at_least=100)


def test_F24_one_silent_worker_is_replaced_and_most_of_them_are_not(cluster: Cluster) -> None:
    settled(cluster)
    victim = cluster.ready("echo")[0]
    for pid in (victim["pid"], *engines_of(victim)):
        cluster.kill_pid(pid, signal.SIGSTOP)
    cluster.wait_for(
        lambda: victim["instance_id"] not in pids(cluster) and len(pids(cluster)) == 3,
        20,
        "the one that hangs is replaced",
    )
    before = settled(cluster)
    stopped = [pid for one in cluster.ready("echo")[:2] for pid in (one["pid"], *engines_of(one))]
    for pid in stopped:
        cluster.kill_pid(pid, signal.SIGSTOP)
    try:
        time.sleep(4.0)  # twice the time after which one alone is lost
        assert {one["instance_id"] for one in cluster.instances()} == set(before)
        texts = (f"who is left? {number}" for number in range(1000))
        cluster.wait_for(
            lambda: cluster.chat("echo", next(texts))[0] == 200, 20, "the gateway finds who is left"
        )
    finally:
        for pid in stopped:
            cluster.kill_pid(pid, signal.SIGCONT)
    assert settled(cluster) == before


def test_F26_an_agent_killed_takes_its_engine_along_and_never_are_there_two(
    cluster: Cluster,
) -> None:
    settled(cluster)
    victim = cluster.ready("echo")[0]
    engines = engines_of(victim)
    most, over = 0, threading.Event()

    def count() -> None:
        """Engines of all three places, 20 times a second; a warden and unshare are none."""
        nonlocal most
        ids = set(pids(cluster))
        while not over.is_set():
            owners = {i for pid, i in tagged("HOSTLER_INSTANCE").items() if is_engine(pid)}
            known = {one["instance_id"] for one in cluster.known_instances()}
            most = max(most, len(owners & (ids | known)))
            time.sleep(0.05)

    counting = threading.Thread(target=count)
    counting.start()
    began_s = time.monotonic()
    cluster.kill_pid(victim["pid"])
    left = cluster.wait_for(
        lambda: not set(engines) & set(tagged("HOSTLER_INSTANCE")), 6, "its engine is gone"
    )
    assert left < 6.0  # 2 s on a machine that is not shared
    after = settled(cluster)
    over.set()
    counting.join(10)
    assert victim["instance_id"] not in after
    assert len(after) == 3
    assert most == 3, f"{most} engines at once for three places"
    assert time.monotonic() - began_s < 20


def test_F31_F30_F29_a_stranger_on_the_registry_socket_changes_nothing(cluster: Cluster) -> None:
    before = settled(cluster)
    path = cluster.state_dir / "run" / "registry.sock"
    mine = [d for d in cluster.known_instances() if d["instance_id"] in before]
    ids, secrets = [d["instance_id"] for d in mine], [d["secret"] for d in mine]
    base = {"epoch": mine[0]["epoch"], "pid": 1, "endpoint": {"socket": "/tmp/thief.sock"}}
    base["metadata"] = {"model": "echo"}
    forged = [
        {**base, "instance_id": ids[0], "secret": ""},  # no secret
        {**base, "instance_id": ids[0], "secret": "x" * 43},  # a guess
        {**base, "instance_id": ids[0], "secret": secrets[1]},  # another worker's
        {**base, "instance_id": ids[0], "secret": secrets[0]},  # its own, from another process
        {**base, "instance_id": "0" * 12, "secret": secrets[0]},  # unknown
    ]
    for body in forged:
        for route in ("/register", "/beat", "/deregister"):
            if (
                route != "/register"
                and body["secret"] == secrets[0]
                and body["instance_id"] == ids[0]
            ):
                continue
            sent = dict(body)
            if route != "/register":
                for name in ("pid", "endpoint", "metadata"):
                    sent.pop(name)
            if route == "/beat":
                sent["seq"] = 1 << 40
            assert post(path, route, sent) in (409, 410), (route, body)
    assert pids(cluster) == before
    assert cluster.chat("echo", "still you?")[0] == 200
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def post(path: Path, route: str, body: dict[str, Any]) -> int:
    """The status of one POST on a Unix socket."""
    connection = http.client.HTTPConnection("localhost", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("POST", route, json.dumps(body), {"content-type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("seed", [1])
def test_F33_everything_stopped_for_a_while_and_continued_in_any_order(
    cluster: Cluster, seed: int
) -> None:
    before = settled(cluster)
    assert cluster.up is not None
    everything = [*cluster.everything(), cluster.up.pid]
    with Pressure(cluster, clients=6) as pressure:
        time.sleep(0.5)
        for pid in everything:
            cluster.kill_pid(pid, signal.SIGSTOP)
        # Longer than lost_after_s and than the grace of orphans; the row's own time in the long form.
        time.sleep(20.0 if IS_LONG else 3.5)
        random.Random(seed).shuffle(everything)
        for pid in everything:
            cluster.kill_pid(pid, signal.SIGCONT)
            time.sleep(0.01)
        time.sleep(1.0)
        assert settled(cluster) == before
    pressure.assert_unharmed(at_least=50)


def test_F36_orders_repeated_and_crossing_end_in_the_last_wish(cluster: Cluster) -> None:
    order = {"model": "twin", "worker_type": "llm", "engine": "fake", "params": {"tokens": 3}}
    choice = random.Random(36)

    def storm(number: int) -> None:
        for _ in range(8):
            if choice.random() < 0.5:
                cluster.request("POST", "/api/v1/models", order)
            else:
                cluster.request("DELETE", "/api/v1/models/twin")
            time.sleep(choice.uniform(0, 0.15))

    threads = [threading.Thread(target=storm, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        mine = [one for one in cluster.instances() if one["model_name"] == "twin"]
        running = [one for one in mine if one["state"] in ("starting", "ready", "suspect")]
        assert len(running) <= 1, running
        time.sleep(0.05)
    for _ in range(3):
        assert cluster.request("POST", "/api/v1/models", order)[0] < 300
    cluster.wait_for(lambda: len(cluster.ready("twin")) == 1, 20, "the last wish: it runs")
    for _ in range(3):
        assert cluster.request("DELETE", "/api/v1/models/twin")[0] in (200, 202, 404)
    cluster.wait_for(
        lambda: all(one["model_name"] != "twin" for one in cluster.instances()),
        20,
        "the last wish: it is gone",
    )


@pytest.mark.skipif(not FAKETIME.exists(), reason="needs libfaketime")
def test_F34_the_wall_clock_may_jump_hours_and_years(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    env = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
    }
    with Cluster(QUICK + fake_model("echo", replicas=2, tokens=6), env=env) as shifted:
        before = pids(shifted)
        soon = {"scopes": ["inference"], "name": "soon", "expires_in_s": 1800}
        key = shifted.json("POST", "/api/v1/keys", soon)["key"]
        body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}

        def status_of_key() -> int:
            return shifted.request("POST", "/v1/chat/completions", body, key=key)[0]

        shifted.wait_for(lambda: status_of_key() == 200, 5, "the key works")
        with Pressure(shifted, clients=4) as pressure:
            for jump in ("+1h", "-1h", "+10y", "-10y", "+0"):
                clock.write_text(jump + "\n")
                time.sleep(1.0)
                assert pids(shifted) == before, jump
                if jump in ("+1h", "+10y"):
                    assert status_of_key() == 401, jump  # its date has passed
        pressure.assert_unharmed(at_least=100)
        assert status_of_key() == 200
        log = (shifted.state_dir / "logs" / "gateway.log").read_text()
        assert "clock.went_back" in log


def test_no_process_of_this_server_is_a_zombie(cluster: Cluster) -> None:
    """Last: after all that was killed above, everybody's children were reaped (F14)."""
    settled(cluster)
    parents = {str(pid) for pid in cluster.everything()}
    told = subprocess.run(
        ["ps", "-eo", "ppid=,stat=,pid="], capture_output=True, text=True, check=True, timeout=10
    )
    rows = [line.split() for line in told.stdout.splitlines()]
    assert [row for row in rows if row[0] in parents and row[1].startswith("Z")] == []
