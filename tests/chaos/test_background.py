"""A fault in each task that a process needs all its life: the process ends soon and a whole one follows."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hostler.app.background import FAULTS_VARIABLE, Background
from hostler.app.environment import child_environment
from hostler.app.process import sweep
from hostler.manager.workers import ROLE_TAG, STATE_TAG
from hostler.testing.cluster import LOOPBACK, Cluster, fake_model
from tests.chaos.figures import IS_LONG, tell
from tests.chaos.pressure import Pressure

CONFIG = (
    "[life]\nbackoff_first_s = 0.2\nbackoff_last_s = 1.0\ncrash_limit = 1000\n"
    "drain_timeout_s = 5.0\nkill_grace_s = 1.0\norphan_grace_s = 30.0\n"
)
ENDS_S = 5.0
PATIENCE_S = 40.0
WORKER = (Background.LIFE, Background.REPORT, Background.ENGINE_PROBE, Background.ENGINE_WATCH)
GATEWAY = (
    Background.MIRROR,
    Background.PROBE,
    Background.SWEEP,
    Background.ACCOUNTS,
    Background.DOUBT,
    Background.DEMAND,
)
# Of a server with machines or a Ray cluster around it.
AT_CONTROL_PORT = (Background.CERTIFICATE, Background.REFUSALS)
RELAY = (Background.REFUSED,)
BETWEEN_GATEWAYS = (Background.LOADS,)
BETWEEN_MACHINES = (
    *AT_CONTROL_PORT,
    *RELAY,
    *BETWEEN_GATEWAYS,
    Background.GATEWAY_RENEWAL,
    Background.PLACES,
)
CONTROL = '[control]\nhost = "127.0.0.1"\nport = 0\n'
HOST = (
    Background.HOST_ORDERS,
    Background.HOST_BEATS,
    Background.HOST_OFFER,
    Background.HOST_RENEWAL,
    Background.HOST_LOOK,
)
CONTROLLER = tuple(sorted(set(Background) - {*WORKER, *GATEWAY, *HOST, *BETWEEN_MACHINES}))


def wait(is_true: Callable[[], object], what: str) -> float:
    began_s = time.monotonic()
    while not is_true():
        assert time.monotonic() - began_s < PATIENCE_S, what
        time.sleep(0.02)
    return time.monotonic() - began_s


def alone(name: Background) -> str:
    """A controller without a supervisor, one of whose tasks fails."""
    with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as root:
        state, log, orders = Path(root, "s"), Path(root, "log"), Path(root, "faults")
        orders.mkdir()
        config = Path(root, "c.toml")
        config.write_text("models = []\n" + CONFIG + (CONTROL if name in AT_CONTROL_PORT else ""))
        tags = {STATE_TAG: str(state), ROLE_TAG: "controller", FAULTS_VARIABLE: str(orders)}
        argv = [sys.executable, "-m", "hostler", "controller", f"--config={config}"]
        with log.open("wb") as output:
            one = subprocess.Popen(
                [*argv, f"--state-dir={state}"],
                env=child_environment(tags),
                stdout=output,
                stderr=output,
            )
        try:
            wait((state / "run" / "admin.sock").exists, f"a controller starts: {log.read_text()}")
            (orders / name.value).touch()
            began_s = time.monotonic()
            code = one.wait(PATIENCE_S)
            took_s = time.monotonic() - began_s
        finally:
            one.kill()
            one.wait(10)
            sweep(STATE_TAG, str(state))
        text = log.read_text(errors="replace")
        assert code == 1, text
        assert f"background.died task={name.value}" in text
        assert "hostler: a part of the controller died" in text
        assert took_s < ENDS_S, name
        return f"controller {name.value}: ended after {took_s:.2f} s"


@pytest.mark.slow(30)
def test_F83_a_controller_with_a_dead_task_ends_with_a_clear_line() -> None:
    with ThreadPoolExecutor(2) as pool:
        tell(*pool.map(alone, (*CONTROLLER, *AT_CONTROL_PORT)))


def broken(cluster: Cluster, orders: Path, role: str, names: Iterable[Background]) -> list[str]:
    """Break tasks of one role, one after the other; say what each took."""
    return [broken_one(cluster, orders, role, name) for name in names]


def broken_one(cluster: Cluster, orders: Path, role: str, name: Background) -> str:
    before = set(cluster.pids(role))
    (orders / name.value).touch()
    ended_s = wait(lambda: before - set(cluster.pids(role)), f"{name}: its process lives on")
    assert ended_s < ENDS_S, name
    back_s = wait(lambda: is_whole(cluster), f"no whole one after {name}")
    return f"{role} {name.value}: ended after {ended_s:.2f} s, whole {back_s:.2f} s later"


def is_whole(cluster: Cluster) -> bool:
    is_up = cluster.answers("/ready") and cluster.answers("/api/v1/status")
    return is_up and len(cluster.ready("echo")) == 2


@pytest.mark.slow
def test_F83_a_process_with_a_dead_task_is_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    """`HOSTLER_LONG=1` breaks every task of the controller here, too, against its growing back-off."""
    model = fake_model("echo", replicas=2, tokens=6)
    controller = CONTROLLER if IS_LONG else (Background.RECONCILE,)
    with Cluster(CONFIG + model, env={FAULTS_VARIABLE: str(tmp_path)}) as cluster:
        with Pressure(cluster, clients=4, name="others") as pressure:
            told = broken(cluster, tmp_path, "controller", controller)
            told += broken(cluster, tmp_path, "worker", WORKER)
        pressure.assert_survived(at_least=50)
        with Pressure(cluster, clients=4, name="gateway") as at_gateway:
            told += broken(cluster, tmp_path, "gateway", GATEWAY)
        at_gateway.assert_true(at_least=20)
        tell(*told, f"requests that failed while a gateway ended: {len(at_gateway.failed)}")
        assert cluster.chat("echo", "and now?")[0] == 200
        logs = "\n".join(
            path.read_text(errors="replace") for path in (cluster.state_dir / "logs").glob("*.log")
        )
        for name in (*controller, *WORKER, *GATEWAY):
            assert f"background.died task={name.value}" in logs, name


@pytest.mark.slow
def test_F83_a_relay_or_gateway_with_a_dead_task_between_machines_is_replaced(
    tmp_path: Path,
) -> None:
    config, env = CONFIG + fake_model("echo", replicas=2), {FAULTS_VARIABLE: str(tmp_path)}
    with Cluster(config, env=env, joined_at=LOOPBACK) as cluster:
        for role, names in (("relay", RELAY), ("gateway", BETWEEN_GATEWAYS)):
            tell(*broken(cluster, tmp_path, role, names))
            log = (cluster.state_dir / "logs" / f"{role}.log").read_text(errors="replace")
            assert f"background.died task={names[0].value}" in log
