"""Watchman: a small process beside one cluster. Looks at /proc many times a second, and cleans up when its
parent dies.

Run as a file, by `python -I -S`: the standard library only, so that it starts quickly and costs little.
It keeps for each process of the cluster's state folder when it was first and last seen alive. Lines on
stdin: `s` answers with all that is known, as a line of JSON; `q` answers likewise and ends. When stdin
ends without `q`, the parent is gone: every process of the cluster is killed and the folder removed.

watchman.py STATE_DIR ROOT LOOKS_A_SECOND
"""

import json
import os
import select
import shutil
import signal
import sys
import time

YOUNG_S = (
    0.5  # between fork and exec a process shows its parent's environment: look again until then
)
GUARD_S = 30.0
QUIET_PASSES = 3
STATE_TAG, ROLE_TAG, INSTANCE_TAG = b"HOSTLER_STATE_DIR", b"HOSTLER_ROLE", b"HOSTLER_INSTANCE"
CLUSTER_TAG = b"TEST_CLUSTER"


class Seen:
    """One process of the cluster."""

    def __init__(self, pid: int, pidfd: int, at_s: float) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.first_s = at_s
        self.last_s = at_s
        self.kind = ""
        self.instance_id = ""

    def told(self, is_over: bool) -> dict[str, object]:
        return {
            "pid": self.pid,
            "kind": self.kind,
            "instance_id": self.instance_id,
            "first_s": self.first_s,
            "last_s": self.last_s,
            "is_over": is_over,
        }


class Watchman:
    """The looks at one cluster's processes."""

    def __init__(self, state_dir: str, root: str) -> None:
        self._state = STATE_TAG + b"=" + os.fsencode(state_dir)
        self._cluster = CLUSTER_TAG + b"=" + os.fsencode(root)
        self._living: dict[int, Seen] = {}
        self._ended: list[dict[str, object]] = []
        self._others: dict[int, float] = {}
        self._poll = select.poll()

    def look(self) -> None:
        """Note who is gone and who is new."""
        now_s = time.monotonic()
        gone = {pidfd for pidfd, _ in self._poll.poll(0)}
        for seen in list(self._living.values()):
            if seen.pidfd in gone:
                self._drop(seen)
            else:
                seen.last_s = now_s
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        for pid in pids:
            known = self._living.get(pid)
            if known is not None:
                if now_s - known.first_s < YOUNG_S:
                    self._classify(known)
            elif now_s - self._others.get(pid, now_s) < YOUNG_S:
                self._meet(pid, now_s)
        for pid in self._others.keys() - set(pids):
            del self._others[pid]  # the next process of this number is another one

    def take(self) -> list[dict[str, object]]:
        """Return all that is known: who lives, and once only who ended since the last time."""
        ended, self._ended = self._ended, []
        return [*ended, *(seen.told(False) for seen in self._living.values())]

    def kill_all(self) -> None:
        """End every process of the cluster."""
        ends_s = time.monotonic() + GUARD_S
        quiet = 0
        while quiet < QUIET_PASSES and time.monotonic() < ends_s:
            found = [
                int(name)
                for name in os.listdir("/proc")
                if name.isdigit() and self._is_ours(_environment(int(name)))
            ]
            quiet = 0 if found else quiet + 1
            for pid in found:
                self._kill(pid)
            time.sleep(0.05)

    # Private

    def _meet(self, pid: int, now_s: float) -> None:
        self._others.setdefault(pid, now_s)
        if not self._is_ours(_environment(pid)):
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return
        if not self._is_ours(_environment(pid)):  # after the pidfd: of this very process
            os.close(pidfd)
            return
        # The moment after it was found alive, so that "both were alive at once" is never a guess.
        seen = self._living[pid] = Seen(pid, pidfd, time.monotonic())
        self._others.pop(pid)
        self._poll.register(pidfd, select.POLLIN)
        self._classify(seen)

    def _classify(self, seen: Seen) -> None:
        environment = _environment(seen.pid)
        if not self._is_ours(environment):  # it has ended just now, or begins another program
            return
        tags = dict(item.partition(b"=")[::2] for item in environment)
        seen.instance_id = tags.get(INSTANCE_TAG, b"").decode("utf-8", "replace")
        role = tags.get(ROLE_TAG, b"").decode("utf-8", "replace")
        if role or not seen.instance_id:
            seen.kind = role or "up"
            return
        argv = _read(seen.pid, "cmdline").split(b"\0")
        is_fence = os.path.basename(argv[0]) == b"unshare" or any(
            argument.endswith(b"warden.py") for argument in argv[:6]
        )
        seen.kind = "warden" if is_fence else "engine"

    def _is_ours(self, environment: list[bytes]) -> bool:
        return self._state in environment or self._cluster in environment

    def _drop(self, seen: Seen) -> None:
        del self._living[seen.pid]
        self._poll.unregister(seen.pidfd)
        os.close(seen.pidfd)
        self._ended.append(seen.told(True))

    def _kill(self, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return
        try:
            if self._is_ours(_environment(pid)):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except OSError:
            pass
        finally:
            os.close(pidfd)


def main(state_dir: str, root: str, looks_a_second: float) -> None:
    """Look until told to end, or until the parent is gone."""
    watchman = Watchman(state_dir, root)
    lifeline = select.poll()
    lifeline.register(0, select.POLLIN)
    period_s = 1 / looks_a_second
    next_s = time.monotonic()
    while True:
        next_s = max(next_s + period_s, time.monotonic())
        watchman.look()
        while lifeline.poll(max(0.0, (next_s - time.monotonic()) * 1000)):
            asked = os.read(0, 1)
            if not asked:
                watchman.kill_all()
                shutil.rmtree(root, ignore_errors=True)
                return
            if asked in b"sq":
                watchman.look()
                os.write(1, json.dumps(watchman.take()).encode() + b"\n")
            if asked == b"q":
                return


# Private


def _environment(pid: int) -> list[bytes]:
    return _read(pid, "environ").split(b"\0")


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
