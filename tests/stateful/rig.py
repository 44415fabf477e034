"""Rig: one real server for many sequences of orders and faults, and the raw hands that disturb it.

Looks go to the controller's own socket, so a dead gateway hides nothing; orders go through the gateway, as
an operator's do. Nothing here judges: tests/stateful/truth.py does.
"""

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from hostler.app.process import tagged
from hostler.manager.workers import INSTANCE_TAG, STATE_TAG
from hostler.testing.cluster import Cluster, fake_model
from hostler.testing.executions import Execution, read_executions
from hostler.testing.load import Seen, Target, ask, chat_body
from tests.chaos.pressure import is_engine

BYSTANDER = "bystander"  # nobody harms it, so nothing may happen to it
TOKENS = 6
# Quick, so that a test sees what follows after minutes; patient where a slow machine must not be taken
# for a fault.
CONFIG = """
[heartbeat]
interval_s = 0.3
suspect_after_s = 1.5
lost_after_s = 6.0
[life]
backoff_first_s = 0.1
backoff_last_s = 0.3
crash_limit = 100000
drain_timeout_s = 2.0
kill_grace_s = 1.0
start_timeout_s = 30.0
orphan_grace_s = 60.0
[gateway]
queue_wait_s = 3.0
"""
_ORDER_S = 60.0  # a controller may be on its way back
_AWAY = frozenset({502, 503, 504})
_INSTANCE_ID = re.compile(r"[0-9a-f]{12}")

T = TypeVar("T")
Json = dict[str, Any]


class Rig:
    """The server, its processes and its clients. Use it as a context manager."""

    def __init__(self, done: Counter[str]) -> None:
        """done: counts what was done, beyond this one server."""
        self.done = done
        self.cluster = Cluster()
        self.ledger = self.cluster.root / "ledger.jsonl"
        self.cluster.config.write_text(
            CONFIG + fake_model(BYSTANDER, tokens=TOKENS, ledger=str(self.ledger))
        )
        self.gateway_killed_at_s: list[float] = []
        self.stopped: set[int] = set()  # pids under SIGSTOP
        self._later: list[Future[Any]] = []
        self._asked = 0
        self._owners: dict[str, bool] = {}  # instance ids, and whether they are of this server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._orders = ThreadPoolExecutor(8)

    def __enter__(self) -> "Rig":
        self._thread.start()
        self.cluster.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.resume()
        try:
            self.cluster.__exit__(*error)
        finally:
            self._end()

    def give_up(self) -> None:
        """End everything at once: this server is beyond judging."""
        try:
            self.cluster.clear()
            self.cluster.truth.watch.stop()
            shutil.rmtree(self.cluster.root, ignore_errors=True)
        finally:
            self._end()

    # Orders

    def order(self, method: str, path: str, body: Any = None) -> tuple[int, Json]:
        """Give an order until somebody says yes or no; return the answer."""
        end_s = time.monotonic() + _ORDER_S
        while True:
            try:
                status, _, data = self.cluster.request(method, path, body, timeout_s=_ORDER_S)
                if status not in _AWAY:
                    return status, json.loads(data)
                told = data.decode()
            except (OSError, http.client.HTTPException, ValueError) as error:
                told = repr(error)
            assert time.monotonic() < end_s, f"no answer to {method} {path}: {told}"
            time.sleep(0.05)

    def at_once(self, *orders: Callable[[], T]) -> list[T]:
        """Give several orders at the same time; return their answers."""
        return [one.result(_ORDER_S * 2) for one in [self._orders.submit(o) for o in orders]]

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        return self._orders.submit(work)

    def later(self, name: str, order: Json) -> None:
        """Give an apply order whose end is not waited for. Once: who is cut off does not ask again.

        Returns when it was written down, or refused: what is ordered next comes after it.
        """
        before = self._generation(name)
        giving = self._orders.submit(self._apply_once, order)
        self._later.append(giving)
        end_s = time.monotonic() + _ORDER_S
        while not giving.done() and self._generation(name) in (None, before):
            assert time.monotonic() < end_s, f"neither accepted nor refused: {order}"
            time.sleep(0.01)

    def finish_later(self) -> None:
        """Wait for the ends of the orders that nobody waited for."""
        while self._later:
            self._later.pop().result(_ORDER_S * 2)

    # Clients

    def ask(self, model: str, stream: bool) -> "Future[tuple[float, Seen]]":
        """Ask without waiting. The future holds when the request began and what its client saw."""
        self._asked += 1
        request_id = f"stateful-{os.getpid()}-{self._asked}"
        body = chat_body(model, f"{request_id} [[tokens={TOKENS}]] [[delay_ms=30]]", stream, TOKENS)
        return asyncio.run_coroutine_threadsafe(self._ask(request_id, body), self._loop)

    def executions(self) -> list[Execution]:
        """What the engines did since `forget_executions`. Read it when they are idle."""
        return read_executions([self.ledger]) if self.ledger.exists() else []

    def forget_executions(self) -> None:
        if self.ledger.exists():
            os.truncate(self.ledger, 0)  # engines append

    # Looking

    def table(self) -> list[Json] | None:
        """The controller's instances; None while there is no controller."""
        found = self._look("/api/v1/instances")
        return None if found is None else found["instances"]

    def models(self) -> dict[str, Json] | None:
        """The controller's models by name; None while there is no controller."""
        found = self._look("/api/v1/models")
        return None if found is None else {one["name"]: one for one in found["models"]}

    def processes(self) -> dict[str, set[int]]:
        """Living workers and engines of this server by instance id."""
        found: dict[str, set[int]] = {}
        for pid, instance_id in tagged(INSTANCE_TAG).items():
            if self._is_ours(pid, instance_id):
                found.setdefault(instance_id, set()).add(pid)
        return found

    def specs(self) -> dict[str, Json]:
        """What workers were started with, secrets included, by instance id."""
        found = {}
        for path in (self.cluster.state_dir / "run").glob("*.json"):
            try:
                data = json.loads(path.read_bytes())
            except (OSError, ValueError):
                continue  # just written, or just gone
            if "instance_id" in data:
                found[str(data["instance_id"])] = data
        return found

    def sockets(self) -> set[str]:
        """Instance ids whose engine sockets lie in the run folder."""
        names = {path.stem for path in (self.cluster.state_dir / "run").glob("*.sock")}
        return {name for name in names if _INSTANCE_ID.fullmatch(name)}

    # Faults

    def report(self, route: str, message: Json) -> int | None:
        """Send a worker's message to the registry; its status, None when nobody listens there."""
        path = self.cluster.state_dir / "run" / "registry.sock"
        answer = _unix(path, "POST", route, message, {})
        return None if answer is None else answer[0]

    def send(self, pids: set[int], number: signal.Signals) -> None:
        """Signal processes; those under SIGSTOP are remembered."""
        for pid in sorted(pids):
            self.cluster.kill_pid(pid, number)
            if number is signal.SIGSTOP:
                self.stopped.add(pid)

    def resume(self) -> None:
        """SIGCONT to everything that was stopped and still runs as ours."""
        stopped, self.stopped = self.stopped, set()
        ours = set(tagged(STATE_TAG, str(self.cluster.state_dir)))
        self.send(stopped & ours, signal.SIGCONT)

    def kill(self, role: str) -> list[int]:
        """SIGKILL to the controller or the gateway."""
        killed = self.cluster.kill(role)
        if role == "gateway":
            self.gateway_killed_at_s.append(time.monotonic())
        return killed

    def victims(self, name: str, number: int, what: str) -> set[int]:
        """Processes of one instance of a model: its worker, engine, warden, or all; none if none lives."""
        processes, specs = self.processes(), self.specs()
        ids = sorted(id_ for id_ in processes if specs.get(id_, {}).get("model_name") == name)
        if not ids:
            return set()
        pids = processes[ids[number % len(ids)]]
        return {pid for pid in pids if what == "all" or what == kind_of(pid)}

    # Private

    def _is_ours(self, pid: int, instance_id: str) -> bool:
        """Ids are random: whose one is, is read once."""
        if instance_id not in self._owners:
            with suppress(OSError):
                told = Path(f"/proc/{pid}/environ").read_bytes()
                ours = f"{STATE_TAG}={self.cluster.state_dir}\0".encode()
                self._owners[instance_id] = ours in told
        return self._owners.get(instance_id, False)

    def _end(self) -> None:
        self._orders.shutdown(wait=True, cancel_futures=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _generation(self, name: str) -> int | None:
        model = (self.models() or {}).get(name)
        return None if model is None else int(model["deployment"]["generation"])

    def _apply_once(self, order: Json) -> None:
        with suppress(OSError, http.client.HTTPException):
            self.cluster.request("POST", "/api/v1/apply", order, timeout_s=_ORDER_S)

    async def _ask(self, request_id: str, body: Json) -> tuple[float, Seen]:
        began_s = time.monotonic()
        address = urlsplit(self.cluster.url)
        target = Target(
            host=address.hostname or "",
            port=address.port or 0,
            headers={"authorization": f"Bearer {self.cluster.admin_key}"},
        )
        return began_s, await ask(target, body, request_id=request_id, timeout_s=60.0)

    def _look(self, path: str) -> Json | None:
        sock = self.cluster.state_dir / "run" / "admin.sock"
        fields = {"authorization": f"Bearer {self.cluster.admin_key}", "host": "localhost"}
        answer = _unix(sock, "GET", path, None, fields)
        return json.loads(answer[1]) if answer is not None and answer[0] == 200 else None


def kind_of(pid: int) -> str:
    """worker, warden, engine, or "" for what stands between them."""
    if is_engine(pid):
        return "engine"
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    if b"worker" in words:
        return "worker"
    return "warden" if any(b"warden" in word for word in words) else ""


def _unix(
    path: Path, method: str, route: str, body: Json | None, fields: dict[str, str]
) -> tuple[int, bytes] | None:
    """One request on a Unix socket; None when nobody answers there."""
    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(10)
    try:
        connection.sock.connect(str(path))
        data = None if body is None else json.dumps(body)
        connection.request(method, route, data, {"content-type": "application/json", **fields})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
