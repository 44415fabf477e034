"""The oracle over a real server sees real breaches; and a cluster ends with the test process that made it."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hostler.app.process import ProcessHandle, tagged
from hostler.manager.workers import INSTANCE_TAG, STATE_TAG
from hostler.testing.cluster import Cluster, fake_model
from hostler.testing.watch import CLUSTER_TAG, Watch

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
OWNER = """
import json, sys, time
from hostler.testing.cluster import Cluster, fake_model
cluster = Cluster(fake_model("echo"))
cluster.start()
sys.stdout.write(json.dumps({"root": str(cluster.root), "pids": cluster.everything()}) + "\\n")
sys.stdout.flush()
time.sleep(600)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(fake_model("echo", tokens=3)) as running:
        yield running


def test_a_server_left_alone_is_true(cluster: Cluster) -> None:
    cluster.json("POST", "/api/v1/models", {"model": "other", "engine": "fake"})
    cluster.assert_truth()
    cluster.json("DELETE", "/api/v1/models/other?delete=true")
    cluster.assert_truth()


def test_I16_an_orphan_is_seen_in_the_table_s_place(cluster: Cluster) -> None:
    tags = {STATE_TAG: str(cluster.state_dir), INSTANCE_TAG: "0123456789ab"}
    orphan = subprocess.Popen(SLEEP, env=tags)
    try:
        with pytest.raises(AssertionError, match=r"I16 instance 0123456789ab \(unknown\)"):
            cluster.assert_truth(within_s=0.2)
    finally:
        orphan.kill()
        orphan.wait(10)
    cluster.assert_truth()


def test_I22_a_write_that_vanished_is_seen(cluster: Cluster) -> None:
    order = {"model": "lost", "engine": "fake", "replicas": 0}
    write = cluster.truth.deeds.begin("POST", "/api/v1/models", order)
    assert write is not None
    answer = {"model": {"deployment": {"name": "lost", "generation": 1}}}
    cluster.truth.deeds.end(write, 202, json.dumps(answer).encode())
    try:
        with pytest.raises(AssertionError, match="I22 model 'lost' was ordered"):
            cluster.assert_truth(within_s=0.2)
    finally:
        cluster.truth.deeds.writes.remove(write)


def test_I17_I19_the_watch_sees_who_lives_when_and_who_was_hit(tmp_path: Path) -> None:
    state = tmp_path / "s"
    tags = {STATE_TAG: str(state), INSTANCE_TAG: "a"}
    watch = Watch(state, tmp_path)
    watch.start()
    first = subprocess.Popen(SLEEP, env=tags)
    stranger = subprocess.Popen(SLEEP, env={STATE_TAG: f"{state}x"})
    try:
        wait_for(lambda: any(one.kind == "engine" for one in watch.sightings()))
        first.kill()
        first.wait(10)
        wait_for(lambda: any(one.is_over for one in watch.sightings()))
        (one,) = watch.sightings()
        assert (one.kind, one.instance_id, one.pid) == ("engine", "a", first.pid)
        assert one.last_s >= one.first_s
        assert watch.is_alive
        handle = ProcessHandle.of(watch.pid or 0)
        assert handle is not None
        handle.kill()
        wait_for(lambda: not watch.is_alive)
        with pytest.raises(AssertionError, match="I19"):
            watch.stop()
    finally:
        watch.stop()
        for process in (first, stranger):
            process.kill()
            process.wait(10)


def test_I22_a_damaged_file_is_told_at_the_end() -> None:
    cluster = Cluster(fake_model("echo"))
    cluster.start()
    cluster.stop()
    with closing(sqlite3.connect(cluster.state_dir / "hostler.db")) as store:
        store.execute("PRAGMA writable_schema=ON")
        store.execute("UPDATE sqlite_schema SET rootpage = 1 WHERE name = 'keys'")
        store.commit()
    with pytest.raises(AssertionError, match="I22 the database"):
        cluster.close()


def test_I16_a_cluster_ends_when_its_test_process_is_killed() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        told = json.loads(owner.stdout.readline())
        root = Path(told["root"])
        state = str(root / "s")
        assert len(told["pids"]) >= 5
        assert len(tagged(CLUSTER_TAG, str(root))) >= 4  # up, controller, gateway, worker
        owner.send_signal(signal.SIGKILL)
        owner.wait(10)
        wait_for(
            lambda: (
                not tagged(STATE_TAG, state)
                and not tagged(CLUSTER_TAG, str(root))
                and not root.exists()
            )
        )
    finally:
        owner.kill()
        owner.wait(10)
        if owner.stdout is not None:
            owner.stdout.close()


# Private


def wait_for(is_true: object, within_s: float = 60.0) -> None:
    assert callable(is_true)
    ends_s = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < ends_s, f"not within {within_s:g} s"
        time.sleep(0.05)
