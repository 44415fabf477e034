"""Two real worker processes that claim one identity: the one that was there first serves on."""

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hostler.app.environment import child_environment
from hostler.app.process import ProcessHandle, tagged
from hostler.core.fleet import WorkerSpec
from hostler.manager.workers import INSTANCE_TAG, ROLE_TAG, STATE_TAG
from hostler.storage.sql import SqlStore
from hostler.testing.cluster import Cluster, fake_model
from tests.chaos.pressure import Pressure

LIFE = "[life]\norphan_grace_s = 20.0\nstart_timeout_s = 30.0\n"
LEAVES_S = 30.0  # it loads its engine before it says who it is
OWN = {"engine_socket", "agent_socket"}
# What else the second process says of itself.
CLAIMS: dict[str, tuple[int, bool]] = {
    "the very same": (0, False),
    "the same, elsewhere": (0, True),
    "an older epoch": (-1, True),
    "a newer epoch that nobody gave": (1, True),
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(LIFE + fake_model("echo", tokens=6)) as cluster:
        yield cluster


def claim(cluster: Cluster, changes: Mapping[str, Any], name: str) -> tuple[int, str]:
    """Run a second process for the one instance there is; return its exit code and its log."""
    (spec,) = cluster.known_instances()
    path = cluster.root / f"{name}.json"
    path.write_text(json.dumps({**spec, **changes}))
    log = cluster.root / f"{name}.log"
    tags = {
        STATE_TAG: str(cluster.state_dir),
        ROLE_TAG: "worker",
        INSTANCE_TAG: spec["instance_id"],
    }
    with log.open("wb") as output:
        second = subprocess.Popen(
            [sys.executable, "-m", "hostler", "worker", f"--spec={path}"],
            env=child_environment(tags),
            stdout=output,
            stderr=output,
        )
    try:
        return second.wait(LEAVES_S), log.read_text(errors="replace")
    finally:
        second.kill()
        second.wait(10)


@pytest.mark.parametrize("kind", list(CLAIMS))
def test_F29_the_second_process_of_an_identity_leaves_and_nobody_notices(
    cluster: Cluster, kind: str
) -> None:
    more, has_own_sockets = CLAIMS[kind]
    (before,) = cluster.ready("echo")
    (spec,) = cluster.known_instances()
    changes: dict[str, Any] = {"epoch": spec["epoch"] + more}
    if has_own_sockets:
        changes |= {key: str(cluster.root / f"claim.{key}") for key in OWN}
    engines = tagged(INSTANCE_TAG, before["instance_id"])
    with Pressure(cluster, clients=4, name=kind.replace(" ", "-")) as pressure:
        code, log = claim(cluster, changes, "claim")
    assert code == 1, log
    assert "another process is instance" in log
    pressure.assert_unharmed(at_least=20)
    (after,) = cluster.ready("echo")
    assert (after["instance_id"], after["pid"]) == (before["instance_id"], before["pid"])
    assert {one.headers["x-hostler-instance"] for one in pressure.seen} == {before["instance_id"]}
    assert tagged(INSTANCE_TAG, before["instance_id"]) == engines  # its engine too, and no other
    assert Path(spec["agent_socket"]).exists()


@pytest.mark.slow
def test_F29_of_two_processes_for_one_place_the_older_epoch_leaves() -> None:
    """As a split between two controllers may leave it: both are in the store, both serve."""
    with Cluster(LIFE + fake_model("echo", tokens=6)) as cluster:
        (first,) = cluster.ready("echo")
        assert cluster.up is not None
        cluster.kill("up")
        cluster.up.wait(10)
        cluster.kill("controller")
        with twin(cluster) as instance_id:
            cluster.start()
            with Pressure(cluster, clients=4) as pressure:
                cluster.wait_for(lambda: is_one_left(cluster), 30, "one process is left")
                (left,) = cluster.ready("echo")
            pressure.assert_unharmed(at_least=1)
            assert left["instance_id"] == instance_id != first["instance_id"]
            assert {left["pid"]} == set(cluster.pids("worker"))
            assert cluster.chat("echo", "hi")[1]["x-hostler-instance"] == instance_id
            cluster.assert_truth()
            assert cluster.stop() == 0


def is_one_left(cluster: Cluster) -> bool:
    return (
        len(cluster.ready("echo")) == len(cluster.instances()) == len(cluster.pids("worker")) == 1
    )


@contextmanager
def twin(cluster: Cluster) -> Iterator[str]:
    """A second, newer process for the place of the first one, and its record in the store."""
    run = cluster.state_dir / "run"
    (data,) = cluster.known_instances()
    name = secrets.token_hex(6)
    overlook(cluster, name)
    with closing(SqlStore(cluster.state_dir / "hostler.db")) as store:
        (launch,) = store.launches()
        epoch = store.next_epoch(launch.worker_key, launch.replica)
        assert epoch > launch.epoch
        spec = msgspec.structs.replace(
            msgspec.convert(data, WorkerSpec),
            instance_id=name,
            epoch=epoch,
            engine_socket=str(run / f"{name}.sock"),
            agent_socket=str(run / f"{name}.agent"),
        )
        path = run / f"{name}.json"
        path.touch(mode=0o600)
        path.write_bytes(msgspec.json.encode(spec))
        tags = {STATE_TAG: str(cluster.state_dir), ROLE_TAG: "worker", INSTANCE_TAG: name}
        with (cluster.state_dir / "logs" / f"worker-{name}.log").open("wb") as output:
            second = subprocess.Popen(
                [sys.executable, "-m", "hostler", "worker", f"--spec={path}"],
                env=child_environment(tags),
                stdout=output,
                stderr=output,
            )
        try:
            handle = ProcessHandle.of(second.pid)
            assert handle is not None
            store.save_launch(
                msgspec.structs.replace(
                    launch,
                    instance_id=name,
                    epoch=epoch,
                    spec=msgspec.structs.replace(spec, secret=""),
                    pid=handle.pid,
                    pid_start_ticks=handle.start_ticks,
                    boot_id=handle.boot_id,
                )
            )
            cluster.wait_for(Path(spec.engine_socket).exists, 30, "the second process serves")
            yield name
        finally:
            second.kill()
            second.wait(10)


def overlook(cluster: Cluster, instance_id: str) -> None:
    """Let the oracle not blame the server for the second process in one place (I17): it is ours."""
    cluster.truth.deeds.staged.add(instance_id)
