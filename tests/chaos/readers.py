"""Readers that do not read: streams that are asked for and left in the gateway, and what it holds of them."""

import json
import re
import shutil
import socket
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from hostler.testing.cluster import Cluster
from hostler.testing.load import Target, chat_body

ENDLESS = "endless"
TOKENS = 8000  # of an answer: 1.7 MB, more than all buffers on its way
TAKEN_BYTES = 4096  # that a client's kernel takes of it
_SKMEM = re.compile(r"skmem:\(r(\d+),rb\d+,t(\d+),tb\d+,f\d+,w(\d+)")


class Readers(AbstractContextManager["Readers"]):
    """So many clients that ask for a long stream and take nothing of it."""

    def __init__(self, target: Target, count: int) -> None:
        self._target, self._count = target, count
        self._lines: list[socket.socket] = []

    def __enter__(self) -> "Readers":
        body = json.dumps(chat_body(ENDLESS, "all the same", True, TOKENS)).encode()
        fields = {"host": "localhost", "content-type": "application/json", **self._target.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        request = (
            f"POST /v1/chat/completions HTTP/1.1\r\n{head}content-length: {len(body)}\r\n\r\n"
        ).encode() + body
        for _ in range(self._count):
            line = socket.socket()
            self._lines.append(line)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TAKEN_BYTES)
            line.connect((self._target.host, self._target.port))
            line.sendall(request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for line in self._lines:
            line.close()


def has_ss() -> bool:
    """Whether the kernel's memory for sockets can be seen here."""
    return shutil.which("ss") is not None


def client_bytes(port: int) -> int:
    """What the kernel holds in a gateway's sockets to its clients."""
    return sum(map(_held, _sockets("-tm", "sport", "=", f":{port}")))


def engine_bytes(cluster: Cluster) -> int:
    """What engines have sent and the gateway has not read: in their own sockets' memory."""
    folder = str(cluster.state_dir / "run")
    return sum(_held(line) for line in _sockets("-xm") if folder in line)


def rss_bytes(pid: int) -> int:
    """The memory of a process, in bytes."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


# Private


def _sockets(*words: str) -> list[str]:
    ran = subprocess.run(
        ["ss", "-nHO", *words], capture_output=True, text=True, check=True, timeout=20
    )
    return ran.stdout.splitlines()


def _held(line: str) -> int:
    """Of one socket: what was received and not read, and what was sent and not taken."""
    found = _SKMEM.search(line)
    if found is None:
        return 0
    received, sent, queued = map(int, found.groups())
    return received + max(sent, queued)
