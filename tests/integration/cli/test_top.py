"""`hostler top` against a whole server with fake engines, on a real pseudo-terminal and without one."""

import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hostler.cli.client import Client
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.target import Target
from hostler.cli.top import carry_out
from hostler.cli.top_keys import Action, Deed
from hostler.core.hosts import Standing
from hostler.testing.cluster import Cluster, fake_model
from tests.integration.cli.program import begun, environment, run
from tests.integration.cli.serving import served
from tests.unit.admin.plane import Plane

pytestmark = pytest.mark.slow

MODELS = fake_model("talker", tokens=6) + fake_model("slow", concurrency=1, tokens=400, delay_ms=20)
LEAVE = b"\x1b[?1049l"
WAIT_S = 30.0


class Seen:
    """A `hostler top` on a terminal of its own, and what that shows."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", terminal: int, before: list[Any]
    ) -> None:
        self.process = process
        self.before = before
        self.raw = b""
        self._terminal = terminal

    def press(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def resize(self, columns: int, lines: int) -> None:
        set_size(self._terminal, columns, lines)
        self.process.send_signal(signal.SIGWINCH)

    def wait(self, text: str, meanwhile: Callable[[], object] = lambda: None) -> str:
        """Wait until a frame holds this; return the frame. meanwhile: done between two looks."""
        end_s = time.monotonic() + WAIT_S
        while time.monotonic() < end_s:
            meanwhile()
            self._read()
            if text in (frame := self.frame()):
                return frame
        raise AssertionError(f"{text!r} was not shown; the last frame:\n{self.frame()}")

    def frame(self) -> str:
        """The last whole frame, without what is for the terminal alone."""
        whole, _, _ = self.raw.rpartition(b"\x1b[J")
        last = whole.rpartition(b"\x1b[H")[2].decode(errors="replace")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last)

    def end(self) -> int:
        """Wait for its end; see that the terminal is as it was before."""
        end_s = time.monotonic() + WAIT_S
        while self.process.poll() is None and time.monotonic() < end_s:
            self._read()
        code = self.process.wait(1)
        self._read()
        assert termios.tcgetattr(self._terminal) == self.before
        assert self.raw.count(b"\x1b[?1049h") == self.raw.count(LEAVE) == 1
        assert self.raw.rpartition(LEAVE)[2] in (b"\x1b[0m", b"\x1b[0m^C")
        assert b"Traceback" not in self.raw
        return code

    def _read(self) -> None:
        while select.select([self._terminal], [], [], 0.05)[0]:
            self.raw += os.read(self._terminal, 65536)


def set_size(terminal: int, columns: int, lines: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@contextmanager
def live(cluster: Cluster, columns: int = 80, lines: int = 24) -> Iterator[Seen]:
    master, slave = os.openpty()
    set_size(master, columns, lines)
    before = termios.tcgetattr(master)
    process = subprocess.Popen(
        [sys.executable, "-m", "hostler", "top"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**environment(cluster), "TERM": "xterm-256color"},
        start_new_session=True,
    )
    try:
        seen = Seen(process, master, before)
        seen.wait("talker")
        yield seen
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def top(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(cluster, "top", *arguments)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(MODELS) as running:
        yield running


def test_a_model_is_restarted_its_log_read_and_the_terminal_given_back(cluster: Cluster) -> None:
    before = {one["pid"] for one in cluster.ready("talker")}
    with live(cluster) as seen:
        assert "1/1" in seen.wait("q quit")
        seen.press(b"?")
        seen.wait("any key leads back")
        seen.press(b" j")
        seen.press(b"l")
        assert "log of talker@llm" in seen.wait("worker.registered")
        seen.press(b"\x1b")
        seen.wait("q quit")
        seen.press(b"r")
        assert "restart talker@llm (1 instance" in seen.wait("y/n")
        seen.press(b"n")
        seen.wait("left as it is")
        assert {one["pid"] for one in cluster.ready("talker")} == before
        seen.press(b"ry")
        seen.wait("talker@llm: restart done in")
        assert not {one["pid"] for one in cluster.ready("talker")} & before
        seen.press(b"q")
        assert seen.end() == Exit.OK


def test_one_instance_is_replaced_and_its_model_goes_on(cluster: Cluster) -> None:
    before = {one["instance_id"] for one in cluster.ready("talker")}
    with live(cluster) as seen:
        seen.wait("q quit")
        seen.press(b"Gr")  # the last row is its instance
        [old] = before
        assert f"drain {old} of talker@llm, and start another" in seen.wait("y/n")
        seen.press(b"y")
        seen.wait(f"{old}: restart done in")
        seen.press(b"q")
        assert seen.end() == Exit.OK
    [new] = {one["instance_id"] for one in cluster.ready("talker")}
    assert new != old


def test_a_model_is_drained_and_its_row_says_so(cluster: Cluster) -> None:
    with live(cluster) as seen:
        seen.press(b"d")
        assert "drain and stop slow@llm" in seen.wait("y/n")
        seen.press(b"y")
        seen.wait("slow@llm: drain has begun")
        assert "0/0" in seen.wait("stopped")
        seen.press(b"q")
        assert seen.end() == Exit.OK
    order = {"model": "slow", "worker_type": "llm"}
    cluster.json("POST", "/api/v1/apply", {**order, "apply_type": "start"})
    cluster.wait_for(lambda: len(cluster.ready("slow")) == 1, 20, "slow is back")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, -signal.SIGTERM),
        (signal.SIGHUP, -signal.SIGHUP),
        (signal.SIGINT, Exit.INTERRUPTED),
    ],
)
def test_a_signal_ends_it_with_the_terminal_as_it_was(
    cluster: Cluster, number: signal.Signals, code: int
) -> None:
    with live(cluster) as seen:
        seen.wait("q quit")
        seen.process.send_signal(number)
        assert seen.end() == code


def test_it_follows_the_size_of_its_terminal(cluster: Cluster) -> None:
    with live(cluster, 40, 10) as seen:
        assert "MEMORY" not in seen.wait("q quit")
        assert seen.frame().count("\n") == 9
        seen.resize(120, 40)
        assert seen.wait("MEMORY").count("\n") == 39
        seen.press(b"q")
        assert seen.end() == Exit.OK


def test_a_controller_that_is_gone_for_a_while_is_told_and_no_end(cluster: Cluster) -> None:
    with live(cluster) as seen:
        # again and again: one that is back before the next look was never away
        seen.wait("as of ", lambda: cluster.kill("controller"))
        cluster.wait_for(cluster.is_ready, 30, "the controller is back")
        seen.wait("q quit")
        seen.press(b"q")
        assert seen.end() == Exit.OK


def test_without_a_terminal_it_is_one_frame_with_rates(cluster: Cluster) -> None:
    with asking(cluster, "slow", 3):
        done = top(cluster)
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    row = next(line for line in done.stdout.splitlines() if line.startswith("slow"))
    name, ready, state, busy, queue, _, tokens_per_s, *_ = row.split()
    assert (name, ready, state, busy, queue) == ("slow", "1/1", "ready", "1", "2")
    assert 5 < float(tokens_per_s) < 60
    assert "\x1b" not in done.stdout


def test_json_is_one_object_or_one_a_second(cluster: Cluster) -> None:
    done = top(cluster, "--once", "--json")
    told = json.loads(done.stdout)
    assert {one["name"] for one in told["models"]} == {"talker", "slow"}
    assert told["models"][0]["pace"]["requests_per_s"] >= 0
    assert all(one["state"] == "ready" for one in told["instances"])
    with begun(cluster, "top", "--json") as process:
        assert process.stdout is not None
        moments = [json.loads(process.stdout.readline())["at_s"] for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, told_wrong = process.communicate(timeout=10)
    assert (process.returncode, told_wrong) == (Exit.INTERRUPTED, "")
    assert 1.5 < moments[2] - moments[0] < 10


def test_who_may_not_see_it_and_a_server_that_is_not_there_are_told(cluster: Cluster) -> None:
    made = cluster.json("POST", "/api/v1/keys", {"scopes": ["inference"]})
    refused = top(cluster, "--key", made["key"])
    assert (refused.returncode, refused.stdout) == (Exit.AUTH, "")
    gone = top(cluster, "--url", "http://127.0.0.1:9")
    assert gone.returncode == Exit.UNREACHABLE
    assert "hostler up" in gone.stderr


def test_a_machine_is_drained_and_a_refused_order_says_why(tmp_path: Path) -> None:
    plane = Plane(tmp_path)
    with (
        served(plane, tmp_path / "state") as url,
        Client(Target(url=url, key=plane.admin.plain)) as client,
    ):
        drain = Action(deed=Deed.DRAIN_HOST, name="b", told="shed: drain")
        assert carry_out(client, drain) == "shed: drain has begun; `hostler host undrain` ends it"
        assert plane.control.host("b").standing is Standing.DRAINING
        unknown = Action(deed=Deed.DRAIN, name="nosuch", told="nosuch@llm: drain")
        with pytest.raises(CommandFailed, match="nosuch"):
            carry_out(client, unknown)


@contextmanager
def asking(cluster: Cluster, model: str, count: int) -> Iterator[None]:
    """So many streams at once of this model, for as long as it lasts."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    command = [sys.executable, "-c", _ASK, cluster.url, cluster.admin_key, json.dumps(body)]
    clients = [subprocess.Popen(command) for _ in range(count)]

    def is_busy() -> bool:
        found = cluster.json("GET", f"/api/v1/requests?model={model}")["requests"]
        return sum(one["outcome"] is None for one in found) == count

    try:
        cluster.wait_for(is_busy, 10, "all of them are there")
        yield
    finally:
        for client in clients:
            client.kill()
            client.wait()


_ASK = """
import sys, urllib.request
url, key, body = sys.argv[1:]
headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
request = urllib.request.Request(url + "/v1/chat/completions", body.encode(), headers)
urllib.request.urlopen(request).read()
"""
