"""The machine as /proc tells it: CPU and memory of process trees, and what everybody else uses."""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
MB = 1_000_000
PERIOD_US = 10_000  # of a share of a core: of it the kernel gives no less than 1 ms


def stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def all_pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def tree(root: int) -> list[int]:
    """root and all its descendants."""
    parents = {pid: int(found[1]) for pid in all_pids() if (found := stat_fields(pid))}
    members = {root} & parents.keys()
    while more := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= more
    return sorted(members)


def cpu_s(pids: Iterable[int]) -> float:
    """utime + stime of these processes, in seconds."""
    return sum(
        int(found[11]) + int(found[12]) for pid in pids if (found := stat_fields(pid))
    ) / TICK  # fmt: skip


def memory_mb(pids: Iterable[int]) -> tuple[float, float]:
    """RSS and PSS of these processes together, in MB (10^6 bytes)."""
    rss = pss = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        for line in lines:
            if line.startswith("Rss:"):
                rss += int(line.split()[1]) * 1024
            elif line.startswith("Pss:"):
                pss += int(line.split()[1]) * 1024
    return rss / MB, pss / MB


def folder_mb(folder: Path) -> float:
    """What the files of a folder take on the disk, each inode once, in MB."""
    seen: dict[tuple[int, int], int] = {}
    for path in [folder, *folder.rglob("*")]:
        found = path.lstat()
        seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(seen.values()) / MB


def pin(pid: int, core: int) -> None:
    """Keep a process, all its threads and its later children on one core."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {core})


def free(pid: int) -> None:
    """Let a process, threads included, run on every core again."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), range(os.cpu_count() or 1))


def cores() -> tuple[int, int]:
    """The core for load and engines, and the one for what is measured."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


@contextmanager
def share_of_a_core(groups: Sequence[int], share: float) -> Iterator[None]:
    """Let each of these processes have that share of a core and no more, by a control group of its own.

    Raises:
        OSError: there are no control groups here that we may make.
    """
    root = Path("/sys/fs/cgroup/cpu")
    is_old = root.exists()
    root = root if is_old else Path("/sys/fs/cgroup")
    quota_us = round(share * PERIOD_US)
    made: list[Path] = []
    try:
        for pid in groups:
            folder = root / f"hostler-bench-{pid}"
            folder.mkdir()
            made.append(folder)
            if is_old:
                (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (folder / "cpu.cfs_quota_us").write_text(str(quota_us))
            else:
                (folder / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
            (folder / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for folder in made:
            for line in (folder / "cgroup.procs").read_text().split():
                (root / "cgroup.procs").write_text(line)
            folder.rmdir()


class Noise:
    """How many cores other programs used, on average, while something was measured."""

    def __init__(self) -> None:
        self.others_cores = 0.0


@contextmanager
def watch_noise(roots: Iterable[int] = ()) -> Iterator[Noise]:
    """Measure the noise of the block: all busy CPU but ours.

    roots: processes of ours that are not our descendants. What our reaped children used counts as ours.
    """
    noise = Noise()
    roots = tuple(roots)
    busy, ours, began_s = _busy_s(), _ours_s(roots), time.monotonic()
    yield noise
    took_s = max(0.01, time.monotonic() - began_s)
    others_s = (_busy_s() - busy) - (_ours_s(roots) - ours)
    noise.others_cores = round(max(0.0, others_s) / took_s, 2)


def end(process: subprocess.Popen[bytes], *, grace_s: float = 10.0) -> None:
    """SIGTERM, then SIGKILL: this one process, which we started."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(grace_s)


# Private


def _busy_s() -> float:
    """CPU seconds the machine has worked since it started."""
    found = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(found) - found[3] - found[4]) / TICK


def _ours_s(roots: tuple[int, ...]) -> float:
    pids = {pid for root in (os.getpid(), *roots) for pid in tree(root)}
    total = 0
    for pid in pids:
        if (found := stat_fields(pid)) is not None:
            total += sum(int(word) for word in found[11:15])  # with reaped children
    return total / TICK
