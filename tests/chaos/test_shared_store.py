"""Two `hostler up` on one PostgreSQL: what clients and operators see when it, or one of them, is away."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from hostler.app.process import tagged
from hostler.manager.workers import STATE_TAG
from hostler.testing.cluster import Cluster, fake_model
from hostler.testing.host_run import HostRun
from hostler.wire.authority import CA_KEY_FILE, Authority
from hostler.wire.identity import CA_FILE
from tests.chaos.figures import tell
from tests.chaos.pressure import Pressure
from tests.postgres import Postgres, running_postgres, until

GRACE_S = 10.0  # longer than a process takes to start on a machine that is shared
LIFE = (
    f"[life]\norphan_grace_s = {GRACE_S}\nbackoff_first_s = 0.2\ndrain_timeout_s = 3.0\n"
    "[heartbeat]\ninterval_s = 0.3\nsuspect_after_s = 0.9\nlost_after_s = 3.0\n"
)

pytestmark = pytest.mark.slow(40)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def both(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Cluster, Cluster]]:
    """The one that leads, and its standby; one authority vouches for both, as hosts know one."""
    url = postgres.new_url().replace("not-needed", "s3cret")
    folder = tmp_path_factory.mktemp("ca")
    Authority.open(folder, ())
    control = (
        '[control]\nhost = "127.0.0.1"\nport = 0\nnames = ["127.0.0.1"]\n'
        f'tls_ca = "{folder / CA_FILE}"\ntls_ca_key = "{folder / CA_KEY_FILE}"\n'
    )
    made = [
        Cluster(
            f'{LIFE}[store]\nurl = "{url}"\nname = "{name}"\n{control}'
            + fake_model("echo", tokens=6)
        )
        for name in ("anna", "bert")
    ]
    try:
        made[0].start()
        made[1].launch()
        until(lambda: "stands by: anna leads" in said(made[1]), 30, "bert says that it stands by")
        yield made[0], made[1]
        for cluster in made:
            for path in [cluster.output, *(cluster.state_dir / "logs").glob("*.log")]:
                assert "s3cret" not in path.read_text(), path.name
    finally:
        for cluster in made:
            cluster.clear()
            cluster.truth.watch.stop()
            shutil.rmtree(cluster.root, ignore_errors=True)


@pytest.fixture(scope="module")
def host(both: tuple[Cluster, Cluster]) -> Iterator[HostRun]:
    """A machine that has joined whoever leads of the two, with a model of its own."""
    anna = both[0]
    told = [json.loads((one.state_dir / "up.json").read_bytes())["control_url"] for one in both]
    token = anna.json("POST", "/api/v1/tokens", {"role": "host"})["token"]
    with HostRun() as made:
        made.start(
            "host", "join", *(f"--controller={url}" for url in told), f"--token={token}",
            "--address=127.0.0.1", "--port=0", "--name=far-away",
        )  # fmt: skip
        until(lambda: "far-away" in str(anna.json("GET", "/api/v1/hosts")), 30, "it has joined")
        order = {"model": "far", "engine": "fake", "worker_type": "llm", "host": "far-away"}
        assert anna.request("POST", "/api/v1/models", order)[0] == 202
        until(lambda: len(anna.ready("far")) == 1, 30, "its model is ready")
        yield made


def said(cluster: Cluster) -> str:
    return cluster.output.read_text()


def ids(cluster: Cluster) -> set[str]:
    return {one["instance_id"] for one in cluster.ready("echo")}


def answer(cluster: Cluster) -> bytes:
    """What an order gets while no controller leads here."""
    return cluster.request("POST", "/api/v1/models", {"model": "x"})[2]


def leads(cluster: Cluster) -> bool:
    return cluster.answers("/api/v1/status")


def test_a_standby_says_of_whom_and_refuses_orders(both: tuple[Cluster, Cluster]) -> None:
    anna, bert = both
    key = anna.admin_key
    assert bert.request("GET", "/health", key="")[0] == 200
    assert bert.request("GET", "/ready", key="")[0] == 503
    order = {"model": "other", "engine": "fake"}
    status, fields, body = bert.request("POST", "/api/v1/models", order, key=key)
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (503, "standby")
    assert "anna leads" in error["message"]
    assert int(fields["retry-after"]) >= 1
    assert bert.request("GET", "/api/v1/status", key="")[0] == 401  # strangers are not told
    for command in (["ps"], ["model", "list"]):
        done = subprocess.run(
            [sys.executable, "-m", "hostler", *command, f"--state-dir={bert.state_dir}"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode, "(bert) stands by: anna leads" in done.stderr) == (75, True)


def test_F79_an_outage_of_the_database_costs_no_request_and_no_worker(
    both: tuple[Cluster, Cluster], postgres: Postgres
) -> None:
    anna, _ = both
    before = ids(anna)
    assert before
    with Pressure(anna, clients=4) as pressure:
        postgres.stop("immediate")
        try:
            until(lambda: not leads(anna), 15, "who cannot say that it leads does not")
            ended_s = time.monotonic()
            until(lambda: b'"standby"' in answer(anna), 20, "its next process stands by")
            # longer than workers without a controller live
            time.sleep(max(1.0, ended_s + GRACE_S + 1.0 - time.monotonic()))
        finally:
            postgres.start()
        took_s = anna.wait_for(lambda: leads(anna), 20, "it leads again")
        time.sleep(1.0)
    pressure.assert_unharmed(at_least=100)
    tell(f"database back: the controller before leads again after {took_s:.2f} s")
    until(lambda: ids(anna) == before, 15, "its workers were adopted")


def test_F35_the_standby_serves_and_the_workers_of_the_dead_leader_end(
    both: tuple[Cluster, Cluster], host: HostRun
) -> None:
    """Those on another machine stay, and report to the new leader."""
    anna, bert = both
    (far,) = anna.ready("far")
    for role in ("up", "controller", "gateway"):
        anna.kill(role, signal.SIGKILL)
    began_s = time.monotonic()
    until(lambda: leads(bert), 20, "bert leads")
    led_s = time.monotonic() - began_s
    until(lambda: bert.chat("far", "who serves?")[0] == 200, 20, "the host's model serves")
    far_s = time.monotonic() - began_s
    assert [one["instance_id"] for one in bert.ready("far")] == [far["instance_id"]]
    until(bert.is_ready, 30, "bert serves")
    ready_s = time.monotonic() - began_s
    assert bert.chat("echo", "still there?")[0] == 200
    until(lambda: "Hostler serves 2 of 2 models" in said(bert), 20, "bert says that it serves")

    def left() -> bool:
        return bool(tagged(STATE_TAG, str(anna.state_dir)))

    until(lambda: not left(), 30, "nothing of anna runs")
    both_s = time.monotonic() - began_s - ready_s
    tell(
        f"leader's machine killed: the standby leads after {led_s:.2f} s, serves what runs on a host "
        f"after {far_s:.2f} s and what it starts itself after {ready_s:.2f} s",
        f"two processes of one place for {max(both_s, 0.0):.2f} s",
    )
    assert both_s < GRACE_S + 10.0
    assert bert.stop() == 0
