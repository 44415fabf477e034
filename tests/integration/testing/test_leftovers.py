"""What a test leaves behind is told: a process of one of its folders, a child that was not reaped."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hostler.manager.workers import INSTANCE_TAG, STATE_TAG
from hostler.testing.leftovers import Folders, leftovers, wait_gone

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_I16_a_process_of_a_folder_that_was_made_here_is_left(tmp_path: Path) -> None:
    folders = Folders()
    folders.made.add(os.path.realpath(tmp_path))
    left = subprocess.Popen(SLEEP, env={STATE_TAG: str(tmp_path / "s")})
    child = subprocess.Popen(SLEEP, env={INSTANCE_TAG: "elsewhere"})
    try:
        ends_s = time.monotonic() + 30
        while len(told := leftovers(folders)) < 2 and time.monotonic() < ends_s:
            time.sleep(0.02)  # until both have begun their program
        assert any(f"I16 process {left.pid} is left: {STATE_TAG}=" in one for one in told)
        assert any(f"I16 process {child.pid} is left: {INSTANCE_TAG}=else" in one for one in told)
    finally:
        for one in (left, child):
            one.kill()
    told = wait_gone(folders, within_s=0.2)
    assert f"I16 child {left.pid} ended and was not reaped" in told
    for one in (left, child):
        one.wait(10)
    assert wait_gone(folders) == []


def test_every_folder_that_is_made_is_known() -> None:
    before = tempfile.mkdtemp
    folders = Folders()
    folders.record()
    try:
        with tempfile.TemporaryDirectory() as made:
            assert folders.hold(made)
            assert folders.hold(f"{made}/below/it")
            assert not folders.hold(f"{made}x")
    finally:
        tempfile.mkdtemp = before
