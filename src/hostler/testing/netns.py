"""Network: several machines on this one, as network namespaces on a bridge, whose lines can be cut.

For tests of more than one machine. Files are shared, and with them Unix sockets: only TCP is apart. Needs
root, `ip` and `iptables`. Names carry the pid of the test, so two tests never meet, and what a killed
one left is removed by the next.
"""

import ctypes
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

CLONE_NEWNET = 0x40000000
GONE_S = 5.0  # how long killed processes of a machine may take to be gone
_FOLDER = Path("/run/netns")
_OURS = re.compile(r"hst-(\d+)-[0-9a-f]{4}-[a-z0-9]+")
_BRIDGE = re.compile(r"hb(\d+)x[0-9a-f]{2}")


def missing() -> str:
    """Say why there can be no Network here; empty when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [name for name in ("ip", "iptables") if shutil.which(name) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    name = f"hst-{os.getpid()}-{secrets.token_hex(2)}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode != 0:
        return f"no network namespaces: {made.stderr.decode(errors='replace').strip()}"
    _run("ip", "netns", "del", name)
    return ""


class Network:
    """Machines by name (letters and digits), each with one address. Use it as a context manager.

    here: the address of the test itself, which is on the same bridge.
    """

    def __init__(self, *names: str) -> None:
        token = secrets.token_hex(2)
        self._pid = os.getpid()
        self._names = {name: f"hst-{self._pid}-{token}-{name}" for name in names}
        self._bridge = f"hb{self._pid}x{token[:2]}"
        net = f"10.{100 + int(token[:2], 16) % 100}.{int(token[2:], 16)}"
        self.here = f"{net}.1"
        self._addresses = {name: f"{net}.{n}" for n, name in enumerate(names, 2)}
        self._links = {name: f"h{token}{n}" for n, name in enumerate(names)}

    def __enter__(self) -> "Network":
        _sweep()
        try:
            self._make()
        except BaseException:  # boundary: nothing may be left of a network that was not made
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def address(self, name: str) -> str:
        return self._addresses[name]

    def put_behind(self, router: str, ports: Mapping[str, int]) -> None:
        """Let machines be reached by another one's address alone, each at one port, and seem to be there.

        ports: by name of a machine; its own port is the same.
        """
        public, inner = self._addresses[router], self._addresses[router].rpartition(".")[2]
        net = f"192.168.{inner}"
        self._ip(router, "addr", "add", f"{net}.1/24", "dev", "eth0")
        for where in ("all", "eth0"):
            self._inside(router, "sysctl", "-qw", f"net.ipv4.conf.{where}.send_redirects=0")
        self._inside(router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        nat = ("iptables", "-t", "nat", "-A")
        seems = ("-j", "SNAT", "--to-source", public)
        self._inside(router, *nat, "POSTROUTING", "-s", f"{net}.0/24", *seems)
        for number, (name, port) in enumerate(ports.items(), 2):
            self._ip(name, "addr", "flush", "dev", "eth0")
            self._addresses[name] = f"{net}.{number}"
            self._ip(name, "addr", "add", f"{net}.{number}/24", "dev", "eth0")
            self._ip(name, "route", "add", "default", "via", f"{net}.1")
            leads = ("-j", "DNAT", "--to-destination", f"{net}.{number}:{port}")
            at = ("-d", public, "-p", "tcp", "--dport", str(port))
            self._inside(router, *nat, "PREROUTING", *at, *leads)

    # Work there

    def command(self, name: str, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` on a machine; the process is the one that is started."""
        return ["ip", "netns", "exec", self._names[name], *argv]

    def popen(self, name: str, argv: Sequence[str], **given: Any) -> "subprocess.Popen[bytes]":
        """Start a process on a machine. It is killed with the network, if it still runs then."""
        return subprocess.Popen(self.command(name, argv), **given)

    def pids(self, name: str) -> list[int]:
        """The processes on a machine."""
        return [int(pid) for pid in _quietly("ip", "netns", "pids", self._names[name]).split()]

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Let this thread be on a machine: sockets made meanwhile are there for as long as they live."""
        libc = ctypes.CDLL(None, use_errno=True)
        with (
            open("/proc/thread-self/ns/net", "rb") as home,
            (_FOLDER / self._names[name]).open("rb") as there,
        ):
            _set_namespace(libc, there.fileno())
            try:
                yield
            finally:
                _set_namespace(libc, home.fileno())

    # Faults

    def cut(self, one: str, other: str, *, one_way: bool = False) -> None:
        """Lose every packet between two machines. one_way: only those from `one` to `other`."""
        self._drop(one, other)
        if not one_way:
            self._drop(other, one)

    def lose(self, percent: float, one: str, other: str, *, one_way: bool = False) -> None:
        """Lose this share of the packets between two machines, by chance. one_way: as for `cut`."""
        chance = ("-m", "statistic", "--mode", "random", "--probability", str(percent / 100))
        self._drop(one, other, *chance)
        if not one_way:
            self._drop(other, one, *chance)

    def heal(self, *names: str) -> None:
        """Let everything pass again that goes to these machines; without names: to all."""
        for name in names or tuple(self._names):
            self._inside(name, "iptables", "-F", "INPUT")

    def close(self) -> None:
        """Kill what runs on the machines, and remove them."""
        for name in self._names.values():
            _remove(name)
        _quietly("ip", "link", "del", self._bridge)

    # Private

    def _make(self) -> None:
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{self.here}/24", "dev", self._bridge)
        _run("ip", "link", "set", self._bridge, "up")
        for name, full in self._names.items():
            link = self._links[name]
            _run("ip", "netns", "add", full)
            _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", full)
            _run("ip", "link", "set", link, "master", self._bridge, "up")
            _run("ip", "-n", full, "addr", "add", f"{self._addresses[name]}/24", "dev", "eth0")
            _run("ip", "-n", full, "link", "set", "eth0", "up")
            _run("ip", "-n", full, "link", "set", "lo", "up")

    def _drop(self, source: str, target: str, *how: str) -> None:
        """Lose what comes from `source` at `target`."""
        address = self._addresses[source]
        self._inside(target, "iptables", "-A", "INPUT", "-s", address, *how, "-j", "DROP")

    def _ip(self, name: str, *argv: str) -> None:
        _run("ip", "-n", self._names[name], *argv)

    def _inside(self, name: str, *argv: str) -> None:
        _run(*self.command(name, argv))


# Private


def _set_namespace(libc: ctypes.CDLL, fileno: int) -> None:
    if libc.setns(fileno, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _remove(full: str) -> None:
    """Kill what runs in a namespace, by its pids, and remove it."""
    ends_s = time.monotonic() + GONE_S
    while (pids := _quietly("ip", "netns", "pids", full).split()) and time.monotonic() < ends_s:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.01)
    _quietly("ip", "netns", "del", full)


def _sweep() -> None:
    """Remove what a test left that was killed: its pid is in the names."""
    for path in _FOLDER.glob("hst-*"):
        match = _OURS.fullmatch(path.name)
        if match is not None and not Path(f"/proc/{match[1]}").exists():
            _remove(path.name)
    for path in Path("/sys/class/net").glob("hb*"):
        match = _BRIDGE.fullmatch(path.name)
        if match is not None and not Path(f"/proc/{match[1]}").exists():
            _quietly("ip", "link", "del", path.name)


def _run(*argv: str) -> None:
    """Run a command to its end.

    Raises:
        OSError: it failed; with what it said.
    """
    done = subprocess.run(argv, capture_output=True, check=False, timeout=20)
    if done.returncode != 0:
        raise OSError(f"{' '.join(argv)}: {done.stderr.decode(errors='replace').strip()}")


def _quietly(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, check=False, timeout=20)
    return done.stdout.decode(errors="replace")
