"""`hostler chat` on a real terminal: lines, words for itself, history, Ctrl-C, Ctrl-D."""

import os
import select
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostler.cli.exits import Exit
from hostler.testing.cluster import Cluster, fake_model
from tests.integration.cli.program import environment

pytestmark = pytest.mark.slow

MODELS = (
    fake_model("talker", tokens=6)
    + fake_model("other", tokens=6)
    + fake_model("slow", tokens=400, delay_ms=50)
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(MODELS) as running:
        yield running


class Terminal:
    def __init__(self, process: "subprocess.Popen[bytes]", master: int) -> None:
        self.process = process
        self._master = master
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait(self, text: str, within_s: float = 20.0) -> str:
        """Wait until this is shown, and return what was shown until then since the last time."""
        ends_s = time.monotonic() + within_s
        while text not in self._seen:
            assert time.monotonic() < ends_s, f"not shown: {text!r}; shown: {self._seen[-600:]!r}"
            if select.select([self._master], [], [], 0.05)[0]:
                self._seen += os.read(self._master, 65536).decode(errors="replace")
        shown, _, self._seen = self._seen.partition(text)
        return shown


@contextmanager
def talking(cluster: Cluster, home: Path, model: str = "talker") -> Iterator[Terminal]:
    master, slave = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "hostler", "chat", "-m", model],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**environment(cluster), "TERM": "xterm", "XDG_STATE_HOME": str(home)},
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(slave), os.O_RDWR)),  # its own terminal: ^C
    )
    try:
        terminal = Terminal(process, master)
        terminal.wait("Ctrl-D ends.")
        terminal.wait("> ")
        yield terminal
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def test_a_conversation_with_two_models_and_several_lines(cluster: Cluster, tmp_path: Path) -> None:
    with talking(cluster, tmp_path) as terminal:
        terminal.type("good morning\n")
        assert "talker" in terminal.wait("> ")
        terminal.type("/model\n")
        assert "this is talker; there are: other, slow, talker" in terminal.wait("> ")
        terminal.type("/model nosuch\n")
        assert "no model is named 'nosuch'" in terminal.wait("> ")
        terminal.type("/model ot\t\n")  # completed
        assert "now other" in terminal.wait("> ")
        terminal.type("one\\\ntwo\n")
        assert "other" in terminal.wait("> ")
        terminal.type("\x04")
        assert terminal.process.wait(10) == Exit.OK
    history = tmp_path / "hostler" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert history.read_text().splitlines()[:2] == ["good morning", "/model"]
    with talking(cluster, tmp_path) as terminal:
        terminal.type("\x1b[A\x1b[A")  # arrow up, twice
        terminal.wait("one\\")
        terminal.type("\x15/exit\n")
        assert terminal.process.wait(10) == Exit.OK


def test_ctrl_c_stops_the_answer_and_not_the_conversation(cluster: Cluster, tmp_path: Path) -> None:
    with talking(cluster, tmp_path, "slow") as terminal:
        terminal.type("tell me a story\n")
        terminal.wait("slow")  # it has begun
        terminal.type("\x03")
        terminal.wait("> ", 5)
        cluster.wait_for(
            lambda: all(one["in_flight"] == 0 for one in cluster.ready("slow")),
            5,
            "the slot is back",
        )
        terminal.type("half a line")
        terminal.wait("half a line")
        time.sleep(
            0.2
        )  # CPython's readline does not notice a signal while it works on what was typed
        terminal.type("\x03")
        terminal.wait("> ")
        terminal.type("/exit\n")
        assert terminal.process.wait(10) == Exit.OK
