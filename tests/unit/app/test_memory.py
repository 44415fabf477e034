"""Where the kernel counts the processes that it ended for want of memory."""

import os
from pathlib import Path

from hostler.app.memory import OomWatch, counter_file


def test_F10_both_kinds_of_groups_are_read(tmp_path: Path) -> None:
    first = "9:cpu:/\n4:memory:/a/b\n0::/\n"
    assert counter_file(first, tmp_path) == tmp_path / "memory/a/b/memory.oom_control"
    assert counter_file("0::/a/b\n", tmp_path) is None  # no such controller there
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/memory.events").write_text("oom 1\noom_kill 0\n")
    assert counter_file("0::/a/b\n", tmp_path) == tmp_path / "a/b/memory.events"


def test_F10_only_kills_after_the_first_look_count(tmp_path: Path) -> None:
    mine = counter_file(Path("/proc/self/cgroup").read_text(), tmp_path)
    file = mine or tmp_path / "memory.events"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    watch = OomWatch(os.getpid(), tmp_path)
    assert not watch.struck()
    file.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    assert watch.struck() is (mine is not None)
