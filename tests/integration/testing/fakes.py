"""A fake engine that runs, and literal bytes to and from it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostler.testing.executions import Execution, read_executions

MODEL = "m1"
Start = Callable[..., "Fake"]


class Fake:
    """A fake engine that runs, and a client of one connection a call."""

    def __init__(self, folder: Path, script: dict[str, Any], *arguments: str) -> None:
        self.socket = str(folder / "fake.sock")
        self.ledger = folder / "ledger.jsonl"
        self.tag = folder.name
        command = [sys.executable, "-m", "hostler.testing.fake_engine", f"--socket={self.socket}"]
        command += [f"--model={MODEL}", f"--script={json.dumps(script)}", f"--ledger={self.ledger}"]
        self.process = subprocess.Popen(
            [*command, *arguments],
            env={**os.environ, "FAKE_TAG": self.tag},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def wait(self) -> "Fake":
        ends_at_s = time.monotonic() + 10
        while time.monotonic() < ends_at_s and self.process.poll() is None:
            with socket.socket(socket.AF_UNIX) as client:
                if client.connect_ex(self.socket) == 0:
                    return self
            time.sleep(0.005)
        raise AssertionError(f"the fake engine does not listen; exit code {self.process.poll()}")

    def raw(self, data: bytes, timeout_s: float = 5.0) -> bytes:
        """Send bytes and return all that comes until the engine closes; b"..." + TIMEOUT if never."""
        got = b""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(timeout_s)
            client.connect(self.socket)
            client.sendall(data)
            try:
                while piece := client.recv(65536):
                    got += piece
            except TimeoutError:
                return got + b"TIMEOUT"
            except ConnectionResetError:
                return got + b"RESET"
        return got

    def post(self, path: str, body: Any, timeout_s: float = 5.0) -> tuple[bytes, bytes]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        text = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-request-id: r-7\r\nconnection: close\r\n"
        request = f"{text}content-length: {len(data)}\r\n\r\n".encode() + data
        head, _, rest = self.raw(request, timeout_s).partition(b"\r\n\r\n")
        return head, rest

    def get(self, path: str) -> tuple[bytes, bytes]:
        request = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
        head, _, rest = self.raw(request).partition(b"\r\n\r\n")
        return head, rest

    def chat(self, prompt: str = "hi", timeout_s: float = 5.0, **more: Any) -> tuple[bytes, bytes]:
        return self.post("/v1/chat/completions", body(prompt, **more), timeout_s)

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = json.loads(self.get("/_fake/ledger")[1])["counts"]
        return found

    def ended(self) -> int:
        return self.process.wait(5)

    def last(self) -> Execution:
        return read_executions([self.ledger])[-1]


def body(prompt: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **more}


def events(data: bytes) -> list[bytes]:
    """Undo chunked coding by hand; what is cut stays cut."""
    plain = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        if not size or not int(size, 16):
            break
        plain += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
    return [event for event in plain.split(b"\n\n") if event]


def streamed_text(data: bytes) -> str:
    text = ""
    for event in events(data):
        if event.startswith(b"data: {") and event.endswith(b"}"):
            for choice in json.loads(event[6:])["choices"]:
                text += choice["delta"].get("content", "")
    return text
