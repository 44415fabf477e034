"""Who reads the logs hangs: nobody who writes them notices."""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from hostler.app.environment import child_environment
from hostler.manager.workers import ROLE_TAG, STATE_TAG
from hostler.testing.cluster import Cluster, fake_model
from tests.chaos.figures import IS_LONG, tell

CONFIG = (
    "log_json = true\n[server]\nport = 0\n[life]\ndrain_timeout_s = 3.0\norphan_grace_s = 20.0\n"
)
ROUNDS, EACH_S = (6, 5.0) if IS_LONG else (3, 0.7)
# A writer that waits for a reader waits for ever. How near the two are (the row wants 1.1) is told, and
# only a quiet machine can show it.
SLOWER, SPARE_S = (2.0, 0.001) if IS_LONG else (3.0, 0.05)


@contextmanager
def full_pipe(path: Path) -> Iterator[None]:
    """A named pipe that somebody holds and nobody reads, without any room."""
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        with suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 4096)
        yield
    finally:
        os.close(reading)
        os.close(writing)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A server whose own terminal takes nothing, from its first word on."""
    cluster = Cluster(CONFIG + fake_model("echo", tokens=1))
    log, cluster.output = cluster.output, cluster.root / "terminal"
    with full_pipe(cluster.output), closing(cluster):
        cluster.launch()
        cluster.output = log
        cluster.wait_for(cluster.is_ready, 60, "it serves, though it cannot say so")
        yield cluster


@pytest.mark.slow
def test_F86_a_log_that_nobody_reads_slows_no_request(cluster: Cluster) -> None:
    """`HOSTLER_LONG=1`: for half a minute."""
    read_s, unread_s = [], []
    pipe = cluster.root / "second.log"
    with full_pipe(pipe), gateway(cluster, "second") as port:
        for _ in range(ROUNDS):  # by turns: the machine's other work meets both
            unread_s.append(median_s(cluster, port))
            with reader(pipe):
                read_s.append(median_s(cluster, port))
        dropped = dropped_lines(cluster, port)
    tell(
        f"F86: a request takes {min(read_s) * 1000:.2f} ms while its log is read, "
        f"{min(unread_s) * 1000:.2f} ms while it is not; {dropped:.0f} lines dropped"
    )
    assert min(unread_s) < min(read_s) * SLOWER + SPARE_S
    assert dropped > 0 or not IS_LONG


@pytest.mark.slow
def test_F86_a_terminal_that_takes_nothing_stops_no_supervisor(cluster: Cluster) -> None:
    (old,) = cluster.kill("gateway")
    cluster.wait_for(
        lambda: cluster.pids("gateway") not in ([], [old]) and cluster.answers("/ready"),
        30,
        "the gateway is back",
    )
    assert cluster.chat("echo", "hi")[0] == 200
    assert cluster.stop() == 0


@contextmanager
def reader(pipe: Path) -> Iterator[None]:
    """Somebody who takes what comes, while the block lasts."""
    is_over = threading.Event()

    def take() -> None:
        reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        while not is_over.wait(0.01):
            with suppress(BlockingIOError):
                os.read(reading, 1 << 20)
        os.close(reading)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(10)


@contextmanager
def gateway(cluster: Cluster, name: str) -> Iterator[int]:
    """A second gateway for the cluster's workers, on a port of its own; its log is NAME.log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    config = cluster.root / f"{name}.toml"
    config.write_text(CONFIG.replace("port = 0", f"port = {port}"))
    argv = [sys.executable, "-m", "hostler", "gateway", f"--config={config}", "--number=2"]
    with (cluster.root / f"{name}.log").open("ab") as output:
        one = subprocess.Popen(
            [*argv, f"--state-dir={cluster.state_dir}"],
            env=child_environment({STATE_TAG: str(cluster.state_dir), ROLE_TAG: "second gateway"}),
            stdout=output,
            stderr=output,
        )
    try:
        cluster.wait_for(lambda: is_served(cluster, port), 30, f"gateway {name} answers")
        yield port
        one.terminate()
        assert one.wait(20) == 0  # it can be stopped, too
    finally:
        one.kill()
        one.wait(10)


def ask(cluster: Cluster, connection: http.client.HTTPConnection) -> int:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    headers = {
        "content-type": "application/json",
        "authorization": f"Bearer {cluster.admin_key}",
    }
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def is_served(cluster: Cluster, port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            return ask(cluster, connection) == 200
        except OSError:
            return False


def median_s(cluster: Cluster, port: int) -> float:
    """What a request takes there, one after the other for a while."""
    took_s: list[float] = []
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        end_s = time.monotonic() + EACH_S
        while time.monotonic() < end_s:
            began_s = time.monotonic()
            assert ask(cluster, connection) == 200
            took_s.append(time.monotonic() - began_s)
    return sorted(took_s)[len(took_s) // 2]


def dropped_lines(cluster: Cluster, port: int) -> float:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(
            "GET", "/metrics", headers={"authorization": f"Bearer {cluster.admin_key}"}
        )
        text = connection.getresponse().read().decode()
    (found,) = re.findall(r"^hostler_log_lines_dropped_total (\S+)$", text, re.MULTILINE)
    return float(found)
