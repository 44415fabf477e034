"""What a model may ask of Ray beyond CPUs, on two machines of which Ray believes that they have GPUs."""

import os
import signal
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
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
    pytest.mark.slow(80, busy=True),
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(rays.missing()), reason=rays.missing()),
]


PATIENCE_S = 200  # Ray on a busy machine of two cores
CONFIG = """
[heartbeat]
lost_after_s = 5
[[models]]
name = "echo"
engine = "fake"
[models.resources]
cpus = 0
"""
INFO = "tinything-1.0.dist-info"
WORKER = """
import os, sys
from hostler import ModelMetadata, ModelOutput, ModelWorker
import tinything

class Own(ModelWorker):
    def load(self, spec):
        return ModelMetadata(model=spec.model_name)

    def generate_stream(self, request):
        told = [tinything.WORD, os.environ["OWN_WORD"], os.getcwd(), sys.prefix]
        yield ModelOutput(text=" ".join(told), finish_reason="stop")
"""


WIDE = """
import os, ray
from hostler import ModelMetadata, ModelOutput, ModelWorker
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

@ray.remote(num_gpus=1, num_cpus=0)
def where():
    context = ray.get_runtime_context()
    return context.get_node_id()[:8] + ":" + ",".join(context.get_accelerator_ids()["GPU"])

class Wide(ModelWorker):
    def load(self, spec):
        ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False)
        group = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(os.environ["HOSTLER_RAY_PLACEMENT_GROUP"])))
        parts = [PlacementGroupSchedulingStrategy(group, n) for n in range(2)]
        asked = [where.options(scheduling_strategy=part).remote() for part in parts]
        self.told = " ".join(ray.get(asked, timeout=60))
        return ModelMetadata(model=spec.model_name)

    def generate_stream(self, request):
        yield ModelOutput(text=self.told, finish_reason="stop")
"""


def make_wheel(folder: Path) -> None:
    """A package that is installed nowhere: `tinything`, 1.0."""
    files = {
        "tinything.py": 'WORD = "tiny"\n',
        f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: tinything\nVersion: 1.0\n",
        f"{INFO}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / "tinything-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(
            f"{INFO}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{INFO}/RECORD"])
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayUp]:
    index = tmp_path_factory.mktemp("index")
    make_wheel(index)
    with (
        Network("a", "b") as network,
        RayMachines(
            network,
            "a",
            {"b": None},
            gpus={"a": 1, "b": 3},
            # where the nodes find packages, for no other net is reached from there; Ray tries once
            env={
                "PIP_NO_INDEX": "1",
                "PIP_FIND_LINKS": str(index),
                "RUNTIME_ENV_RETRY_TIMES": "1",
            },
        ) as ray,
        RayUp(ray, CONFIG) as up,
    ):
        up.until(lambda: len(up.told("hosts")) == 2, "every node is a host", PATIENCE_S)
        yield up


def start(up: RayUp, name: str, *options: str, engine: str = "fake") -> None:
    done = up.run(
        "model",
        "start",
        name,
        f"--engine={engine}",
        f"--timeout={PATIENCE_S}",
        *options,
        timeout_s=PATIENCE_S + 30,
    )
    assert done.returncode == 0, done.stderr


def drop(up: RayUp, *names: str) -> None:
    for name in names:
        assert up.run("model", "stop", name, "--delete").returncode == 0
        up.until(lambda name=name: not up.instances(name), f"{name} is gone")  # type: ignore[misc]


def kill_controller(up: RayUp) -> None:
    ours = tagged(STATE_TAG, str(up.state_dir))
    for pid in [pid for pid in tagged(ROLE_TAG, "controller") if pid in ours]:
        os.kill(pid, signal.SIGKILL)


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
    a, b = (f"ray-{up.ray.network.address(name)}" for name in "ab")
    assert two["host_name"] == b, "no other node has two"
    given = {one["host_name"]: seen_by(one) for one in ones}
    assert sorted([*seen_by(two).split(","), given[b]]) == ["0", "1", "2"], "each has its own"
    assert given[a] == "0"
    assert seen_by(none) == "", "it asked for none, and takes nobody's"
    before = {one["instance_id"]: one["pid"] for one in (two, *ones, none)}
    drop(up, "none")
    kill_controller(up)
    up.until(lambda: up.held("GPU: alive") == 3, "their places are held", 60)
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


def test_a_model_runs_with_packages_variables_and_a_folder_of_its_own(
    server: RayUp, tmp_path: Path
) -> None:
    up = server
    (tmp_path / "own.py").write_text(WORKER)
    start(
        up, "own", "--type=llm", "--worker-class=own:Own", "--cpus=0.5", "--pip=tinything==1.0",
        "--env=OWN_WORD=mine", f"--working-dir={tmp_path}", engine="python",
    )  # fmt: skip
    done = up.run("chat", "own", "hello")
    assert done.returncode == 0, done.stderr
    tiny, mine, folder, prefix = done.stdout.split()[-4:]
    assert (tiny, mine) == ("tiny", "mine")
    assert folder != str(tmp_path), "it was sent there"
    assert (Path(folder) / "own.py").read_text() == WORKER
    assert "runtime_resources/pip" in prefix
    assert find_spec("tinything") is None
    drop(up, "own")


def test_an_environment_that_cannot_be_made_says_why_and_holds_up_nobody(server: RayUp) -> None:
    up = server
    began = up.run(
        "model",
        "start",
        "bad",
        "--engine=fake",
        "--cpus=0.1",
        "--pip=no-such-thing==9",
        "--no-wait",
    )
    assert began.returncode == 0, began.stderr
    up.until(
        lambda: "its environment (no-such-thing==9)" in up.run("model", "show", "bad").stdout,
        "it waits",
    )
    start(up, "good", "--cpus=0.1")
    drop(up, "good")
    why = "No matching distribution found for no-such-thing==9"
    up.until(lambda: any(why in str(one) for one in up.told("events")), "it says why", PATIENCE_S)
    assert why in up.run("events", "--model=bad").stdout
    drop(up, "bad")


def test_a_model_over_two_nodes_has_its_bundles_until_it_is_gone(
    server: RayUp, tmp_path: Path
) -> None:
    up = server
    (tmp_path / "wide.py").write_text(WIDE)
    start(
        up, "wide", "--type=llm", "--worker-class=wide:Wide", f"--python-path={tmp_path}",
        "--bundle=gpus=1", "--bundle=gpus=1", "--strategy=STRICT_SPREAD", engine="python",
    )  # fmt: skip
    assert "2 bundles STRICT_SPREAD (1 GPU; 1 GPU): alive" in up.run("ps").stdout
    done = up.run("chat", "wide", "hello")
    assert done.returncode == 0, done.stderr
    first, second = (told.partition(":") for told in done.stdout.split()[-2:])
    assert first[0] != second[0], "each is on a node of its own"
    assert {first[2], second[2]} <= {"0", "1", "2"}, "and has a GPU there"
    assert (
        up.run(
            "model",
            "start",
            "wider",
            "--engine=fake",
            "--bundle=gpus=1",
            "--bundle=gpus=4",
            "--no-wait",
        ).returncode
        == 0
    )
    up.until(lambda: "for 4 GPU: " in up.run("model", "show", "wider").stdout, "it says what lacks")
    drop(up, "wider")
    (before,) = up.instances("wide")
    kill_controller(up)
    up.until(lambda: up.held("STRICT_SPREAD (1 GPU; 1 GPU): alive"), "it is held", 60)
    (after,) = up.instances("wide")
    assert (after["instance_id"], after["pid"]) == (before["instance_id"], before["pid"])
    drop(up, "wide")
    start(up, "three", "--gpus=3", "--cpus=0.1")
    drop(up, "three")
