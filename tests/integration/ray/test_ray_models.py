"""What a model may ask of Ray beyond CPUs, on three machines of which Ray believes that two have GPUs."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from hostler.app.process import tagged
from hostler.manager.workers import ROLE_TAG, STATE_TAG
from hostler.testing import rays
from hostler.testing.netns import Network
from hostler.testing.ray_up import RayUp
from hostler.testing.rays import RayMachines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(rays.missing()), reason=rays.missing()),
]


@pytest.fixture(scope="module")
def server() -> Iterator[RayUp]:
    with (
        Network("a", "b", "c") as network,
        RayMachines(network, "a", {"b": None, "c": None}, gpus={"b": 3, "c": 1}) as ray,
        RayUp(ray, "[heartbeat]\nlost_after_s = 5\n") as up,
    ):
        up.until(lambda: len(up.told("host", "list") or ()) == 3, "every node is a host")
        yield up


def start(up: RayUp, name: str, *options: str, engine: str = "fake") -> None:
    done = up.run("model", "start", name, f"--engine={engine}", "--timeout=90", *options)
    assert done.returncode == 0, done.stderr


def drop(up: RayUp, *names: str) -> None:
    for name in names:
        assert up.run("model", "stop", name, "--delete").returncode == 0
        up.until(lambda name=name: not up.instances(name), f"{name} is gone")  # type: ignore[misc]


def seen_by(one: dict[str, Any]) -> str:
    """The GPUs that an instance's own process sees, as the kernel keeps its environment."""
    return str(psutil.Process(one["pid"]).environ()["CUDA_VISIBLE_DEVICES"])


def test_the_gpus_that_ray_gave_are_those_that_a_worker_sees_also_after_a_restart(
    server: RayUp,
) -> None:
    up = server
    start(up, "two", "--gpus=2", "--cpus=0.5")
    start(up, "one", "--gpus=1", "--cpus=0.5", "--replicas=2")
    start(up, "none", "--cpus=0.5")
    (two,), ones, (none,) = up.instances("two"), up.instances("one"), up.instances("none")
    b, c = (f"ray-{up.ray.network.address(name)}" for name in "bc")
    assert two["host_name"] == b, "no other node has two"
    given = {one["host_name"]: seen_by(one) for one in ones}
    assert sorted([*seen_by(two).split(","), given[b]]) == ["0", "1", "2"], "each has its own"
    assert given[c] == "0"
    assert seen_by(none) == "", "it asked for none, and takes nobody's"
    before = {one["instance_id"]: one["pid"] for one in (two, *ones, none)}
    drop(up, "none")
    ours = tagged(STATE_TAG, str(up.state_dir))
    for pid in [pid for pid in tagged(ROLE_TAG, "controller") if pid in ours]:
        os.kill(pid, signal.SIGKILL)
    up.until(lambda: up.run("ps").stdout.count("GPU: alive") == 3, "their places are held", 60)
    start_late = up.run("model", "start", "late", "--engine=fake", "--gpus=1", "--no-wait")
    assert start_late.returncode == 0, start_late.stderr
    up.until(lambda: "lacks GPU" in up.run("model", "show", "late").stdout, "all GPUs are taken")
    after = [*up.instances("two"), *up.instances("one")]
    del before[none["instance_id"]]
    assert {one["instance_id"]: one["pid"] for one in after} == before
    drop(up, "two")
    up.until(lambda: up.instances("late"), "what was given back is another one's")
    assert seen_by(up.instances("late")[0]) in ("0", "1", "2")
    drop(up, "one", "late")
