"""RayWorkerManager in a plain program, on a real Ray of one node."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hostler import Config, RayWorkerManager
from hostler.app.config import child_environment
from hostler.app.paths import StatePaths
from hostler.app.process import tagged
from hostler.core.errors import StartupError
from hostler.manager.workers import STATE_TAG
from hostler.testing.ray_here import ADDRESS, RayHere
from hostler.testing.ray_start import missing

PROGRAM = Path(__file__).with_name("program.py")
RUN_S, GONE_S = 240.0, 90.0

needs_ray = pytest.mark.skipif(bool(missing()), reason=missing() or "ray is there")


@pytest.fixture(scope="module")
def ray() -> Iterator[RayHere]:
    with RayHere() as ray:
        yield ray


def start(ray: RayHere, state: Path, what: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, PROGRAM, ray.address, str(state), what],
        env=child_environment(ray.env), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def told(line: str, error: str = "") -> Any:
    assert line, error[-4000:]
    return json.loads(line)


def left_on_nodes(ray: RayHere) -> list[str]:
    """What still runs there of ours."""
    found = [str(pid) for folder in ray.host_folders() for pid in tagged(STATE_TAG, str(folder))]
    root = str(ray.root / "d")
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "hostler" in words and any(root in word for word in words):
            found.append(" ".join(words))
    return found


def until(is_so: Callable[[], bool], what: Callable[[], object], within_s: float = GONE_S) -> None:
    ends_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < ends_s, what()
        time.sleep(0.2)


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_program_runs_its_models_on_ray_again_and_again_and_leaves_nothing(
    ray: RayHere, tmp_path: Path
) -> None:
    """The second time with a connection of its own, which stays; the node's files are those of the first."""
    for what in ("ask", "own"):
        with start(ray, tmp_path / "s", what) as program:
            output, error = program.communicate(timeout=RUN_S)
        seen = told(output, error)
        assert program.returncode == 0, error[-4000:]
        assert (seen["hosts"], seen["at"]) == ([f"ray-{ADDRESS}"], [f"ray-{ADDRESS}"])
        assert seen["text"] == seen["streamed"] == seen["in_thread"] != ""
        assert (seen["vectors"], seen["tokens"] >= 2) == (2, True)
        assert left_on_nodes(ray) == []
        assert tagged(STATE_TAG, str(tmp_path / "s")) == {}
    assert len(ray.host_folders()) == 1


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_F15_a_program_that_is_killed_leaves_nothing_on_the_nodes(
    ray: RayHere, tmp_path: Path
) -> None:
    with start(ray, tmp_path / "s", "stay") as program:
        assert program.stdout is not None
        assert program.stderr is not None
        line = program.stdout.readline()
        seen = told(line, "" if line else program.stderr.read())
        assert seen["hosts"] == [f"ray-{ADDRESS}"]
        assert left_on_nodes(ray)
        program.kill()
        program.communicate(timeout=10)
    until(lambda: not left_on_nodes(ray), lambda: left_on_nodes(ray))
    # what waits for the next one of this state folder, which does not come
    shutil.rmtree(StatePaths(tmp_path / "s").run_dir)


def refusal(folder: Path) -> str:
    """Why a manager does not start."""
    manager = RayWorkerManager("127.0.0.1:1", Config(state_dir=str(folder)), models=())
    with pytest.raises(StartupError) as caught:
        asyncio.run(manager.start())
    assert not os.path.exists(folder / "tls"), "nothing was made"
    return caught.value.message


def test_a_ray_that_is_missing_or_old_is_told_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    old = tmp_path / "old" / "ray-2.51.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: ray\nVersion: 2.51.1\n")
    monkeypatch.syspath_prepend(tmp_path / "old")
    assert "ray 2.51.1 is too old" in refusal(tmp_path / "s")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert "pip install 'hostler[ray]'" in refusal(tmp_path / "s")


@needs_ray
def test_F44_a_ray_without_a_token_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert "RAY_AUTH_MODE=token" in refusal(tmp_path / "s")
