"""examples/embedded_app.py under a real ASGI server, with a real model process behind it."""

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from hostler.app.config import child_environment
from hostler.app.process import sweep, tagged
from hostler.manager.workers import STATE_TAG

ROOT = Path(__file__).parents[3]
CODE = (ROOT / "examples" / "embedded_app.py").read_text()
SETTINGS = """
[[models]]
name = "echo"
type = "llm"
engine = "fake"
[models.params]
tokens = 20
delay_ms = 20.0
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The application, served by uvicorn in a process of its own; it is stopped as Ctrl-C would."""
    folder = Path(tempfile.mkdtemp(prefix="hst", dir="/tmp"))
    (folder / "app.toml").write_text(SETTINGS)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    state = folder / "s"
    with (folder / "app.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "embedded_app:app", f"--port={port}"],
            cwd=ROOT / "examples",
            env=child_environment(
                {"APP_STATE": str(state), "APP_SETTINGS": str(folder / "app.toml")}
            ),
            stdout=output,
            stderr=output,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline_s = time.monotonic() + 60
        while _status(address) != 200:
            assert process.poll() is None, (folder / "app.log").read_text()
            assert time.monotonic() < deadline_s, (folder / "app.log").read_text()
            time.sleep(0.1)
        yield address
        process.send_signal(signal.SIGINT)
        process.wait(30)
        assert tagged(STATE_TAG, str(state)) == {}, "a worker outlived its application"
    finally:
        process.kill()
        process.wait(30)
        sweep(STATE_TAG, str(state))
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_route_of_the_application_streams_what_a_model_says(url: str) -> None:
    asked = {"model": "echo", "prompt": "hello"}
    arrived_s: list[float] = []
    text = ""
    with httpx2.stream("POST", f"{url}/tell", json=asked, timeout=30.0) as answer:
        assert answer.status_code == 200
        for part in answer.iter_text():
            text += part
            arrived_s.append(time.monotonic())
    assert len(text.split()) == 20, text
    assert len(arrived_s) >= 5
    assert arrived_s[-1] - arrived_s[0] > 0.1, "it came at once: not a stream"


@pytest.mark.slow
def test_many_streams_at_once_and_clients_that_leave(url: str) -> None:
    asked = {"model": "echo", "prompt": "hello"}
    for _ in range(3):
        with httpx2.stream("POST", f"{url}/tell", json=asked, timeout=30.0) as answer:
            next(answer.iter_text())  # and away
    whole = httpx2.post(f"{url}/tell", json=asked, timeout=30.0)
    assert len(whole.text.split()) == 20


@pytest.mark.slow
def test_errors_before_the_first_word_are_ordinary_answers(url: str) -> None:
    answer = httpx2.post(f"{url}/tell", json={"model": "absent", "prompt": "x"}, timeout=30.0)
    assert answer.status_code == 404
    assert "absent" in answer.json()["error"]
    assert "smollm2-135m-instruct" in httpx2.get(f"{url}/models", timeout=30.0).json()


def test_the_page_shows_the_code_that_is_tested() -> None:
    page = (ROOT / "docs" / "how-to" / "embed.md").read_text()
    shown = page.partition("```python\n")[2].partition("```")[0]
    assert shown == CODE


# Private


def _status(url: str) -> int:
    """Whether the model answers yet: 200, or what else came, 0 for nothing."""
    try:
        asked = {"model": "echo", "prompt": "ready?"}
        return httpx2.post(f"{url}/tell", json=asked, timeout=5.0).status_code
    except httpx2.TransportError:
        return 0
