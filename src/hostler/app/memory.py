"""OomWatch: was it the kernel that ended a process, for want of memory? Linux control groups, v1 and v2."""

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


class OomWatch:
    """Watches the memory group of one process; `look` now and then, as it may be moved to another."""

    def __init__(self, pid: int, root: Path = CGROUPS) -> None:
        self._pid = pid
        self._root = root
        self._file: Path | None = None
        self._count = 0
        self.look()

    def look(self) -> None:
        """Remember which group it is in while it lives."""
        found = _counter(self._pid, self._root)
        if found is not None and found != self._file:
            self._file, self._count = found, _kills(found)

    def struck(self) -> bool:
        """Whether its group has counted an OOM kill since. One of a neighbour in the group counts, too."""
        return self._file is not None and _kills(self._file) > self._count


def counter_file(groups: str, root: Path = CGROUPS) -> Path | None:
    """Return the file that counts the OOM kills of a memory group. groups: a `/proc/PID/cgroup`."""
    for line in groups.splitlines():
        _, controllers, group = line.split(":", 2)
        inside = group.lstrip("/")
        if "memory" in controllers.split(","):
            return root / "memory" / inside / "memory.oom_control"
        if not controllers and (found := root / inside / "memory.events").exists():
            return found
    return None


# Private


def _counter(pid: int, root: Path) -> Path | None:
    try:
        return counter_file(Path(f"/proc/{pid}/cgroup").read_text(), root)
    except OSError:
        return None


def _kills(path: Path) -> int:
    try:
        facts = dict(line.split() for line in path.read_text().splitlines())
        return int(facts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
