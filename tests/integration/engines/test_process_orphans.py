"""F15: nothing of an engine survives its agent, whoever is killed, setsid and double forks included."""

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler.app.process import ProcessHandle, sweep, tagged
from hostler.engines.process import Isolation, best_isolation

TAG = "HOSTLER_INSTANCE"
ORPHAN_MAX_S = 2.0
PROCESSES = {
    Isolation.PID_NAMESPACE: 5,
    Isolation.PROCESS_TREE: 4,
}  # warden, engine, 2 grandchildren


class TinyAgent:
    """An agent process with one engine, and the names of all that belongs to it."""

    def __init__(self, folder: Path, isolation: Isolation) -> None:
        self.instance_id = secrets.token_hex(6)
        self.isolation = isolation
        socket = str(folder / f"{self.instance_id}.sock")
        module = "tests.integration.engines.tiny_agent"
        command = [sys.executable, "-m", module, socket, self.instance_id, isolation.value]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)

    def wait(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        assert len(tagged(TAG, self.instance_id)) == PROCESSES[self.isolation]

    def warden(self) -> ProcessHandle:
        for pid in tagged(TAG, self.instance_id):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[0] != b"unshare" and any(word.endswith(b"warden.py") for word in words):
                handle = ProcessHandle.of(pid)
                assert handle is not None
                return handle
        raise AssertionError("no warden")

    def end(self) -> None:
        self.process.kill()
        self.process.wait(5)
        if self.process.stdout is not None:
            self.process.stdout.close()
        sweep(TAG, self.instance_id)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pe") as name:
        yield Path(name)


def seconds_until_gone(agents: list[TinyAgent]) -> float:
    """Wait until no process of these agents is left."""
    began_s = time.monotonic()
    while left := [pid for agent in agents for pid in tagged(TAG, agent.instance_id)]:
        assert time.monotonic() - began_s < ORPHAN_MAX_S, f"still there: {left}"
        time.sleep(0.005)
    return time.monotonic() - began_s


# 20 kills in all
CASES = [
    (Isolation.PID_NAMESPACE, "agent", 4),
    (Isolation.PID_NAMESPACE, "warden", 4),
    (Isolation.PID_NAMESPACE, "both", 4),
    (Isolation.PROCESS_TREE, "agent", 4),
    (Isolation.PROCESS_TREE, "warden", 4),
]


@pytest.mark.parametrize(("isolation", "victim", "count"), CASES)
def test_F15_nothing_survives_a_sigkill(
    folder: Path, isolation: Isolation, victim: str, count: int
) -> None:
    if isolation is Isolation.PID_NAMESPACE and best_isolation() is not isolation:
        pytest.skip("this system allows no PID namespace")
    agents = [TinyAgent(folder, isolation) for _ in range(count)]
    try:
        for agent in agents:
            agent.wait()
        wardens = [agent.warden() for agent in agents]
        for agent, warden in zip(agents, wardens, strict=True):
            if victim != "warden":
                agent.process.kill()
            if victim != "agent":
                warden.kill()
        seconds_until_gone(agents)
    finally:
        for agent in agents:
            agent.end()


def test_F15_what_a_double_kill_leaves_without_a_namespace_is_swept(folder: Path) -> None:
    agent = TinyAgent(folder, Isolation.PROCESS_TREE)
    try:
        agent.wait()
        warden = agent.warden()
        os.kill(agent.process.pid, 19)  # SIGSTOP: the warden's death must not be answered
        warden.kill()
        agent.process.kill()
        time.sleep(0.2)
        sweep(TAG, agent.instance_id)
        assert seconds_until_gone([agent]) < 0.5
    finally:
        agent.end()
