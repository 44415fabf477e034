"""Cluster: a real `hostler up` with all its processes, in a folder and on a port of its own.

For tests that kill things: every process can be found by its role, and none is left at the end, also when
the test process itself is killed. Every run is judged by the oracle (`truth.py`) before and after its stop.
"""

import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from hostler.app.config import child_environment
from hostler.app.process import ProcessHandle, sweep, tagged
from hostler.manager.workers import INSTANCE_TAG, ROLE_TAG, STATE_TAG
from hostler.testing.truth import CONVERGED_S, Truth
from hostler.testing.watch import CLUSTER_TAG

START_S = 60.0
STOP_S = 60.0
LOOPBACK = "127.0.0.1"
_LOOK_S = 0.05  # each look is some requests, beside processes that start

_JOINED = """
[server]
tls = true
host = "{address}"
[control]
host = "{address}"
port = 0
names = ["{address}"]
"""

Answer = tuple[int, dict[str, str], bytes]


class Cluster:
    """One server under test. Use it as a context manager."""

    def __init__(
        self,
        config: str = "",
        *,
        env: Mapping[str, str] | None = None,
        around: Callable[[list[str]], list[str]] = lambda argv: argv,
        joined_at: str = "",
    ) -> None:
        """joined_at: the address where other machines join it, with TLS of its own; "": none do.

        around: what makes its command line one of another machine (`Network.command`).

        config: TOML settings and models; the default models when it names none, none with `models = []`."""
        self.root = Path(tempfile.mkdtemp(prefix="hst", dir="/tmp"))  # short: Unix socket paths
        self.state_dir = self.root / "s"
        self.config = self.root / "hostler.toml"
        self.config.write_text((_JOINED.format(address=joined_at) if joined_at else "") + config)
        self.env = dict(env or {})
        self._around = around
        self.output = self.root / "up.log"
        # PEM file of who vouches for a server with TLS
        self.ca = str(self.state_dir / "tls" / "ca.pem") if joined_at else ""
        self.up: subprocess.Popen[bytes] | None = None
        self.truth = Truth(self.root, self.state_dir, self.request)

    def __enter__(self) -> "Cluster":
        try:
            self.start()
        except BaseException:  # boundary: nothing may be left of a start that failed
            self.clear()
            self.truth.watch.stop()
            shutil.rmtree(self.root, ignore_errors=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        breaches: list[str] = []
        try:
            if error is None and self.up is not None and self.up.poll() is None:
                self.assert_truth()
            code = self.stop()
            breaches = self.truth.judge_end(is_stopped=code == 0)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.clear()
            self.truth.watch.stop()
            if error is not None or breaches:
                sys.stderr.write(self.story())
            shutil.rmtree(self.root, ignore_errors=True)
        assert error is not None or not breaches, "\n".join(["the oracle:", *breaches])

    def assert_truth(self, within_s: float = CONVERGED_S) -> None:
        """Wait until what the server says is what is, and see that nothing forbidden has happened.

        Raises:
            AssertionError: with every breach, by the numbers of the invariants.
        """
        self.truth.judge_now(within_s)

    def close(self) -> None:
        """Stop it, and see that nothing is left."""
        self.__exit__(None, None, None)

    # Life

    def launch(self) -> None:
        """Start `hostler up` and return at once."""
        argv = [sys.executable, "-m", "hostler", "up", "--port=0"]
        argv += [f"--state-dir={self.state_dir}", f"--config={self.config}"]
        (self.state_dir / "up.json").unlink(missing_ok=True)  # of a server that was killed
        self.truth.watch.start()
        self.truth.asked_to_end_s = None
        with self.output.open("ab") as output:
            self.up = subprocess.Popen(
                self._around(argv),
                env=child_environment({**self.env, CLUSTER_TAG: str(self.root)}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def start(self) -> None:
        """Start it and wait until every wished instance is ready."""
        self.launch()
        self.wait_for(self.is_ready, START_S, "every model is ready")

    def stop(self, number: int = signal.SIGTERM) -> int | None:
        """Ask it to stop as Ctrl-C would; return its exit code, None when it does not run."""
        if self.up is None:
            return None
        if self.up.poll() is None:
            self.truth.asked_to_end_s = time.monotonic()
            self.up.send_signal(number)
            self.up.wait(STOP_S)
        code, self.up = self.up.returncode, None
        return code

    def clear(self) -> list[int]:
        """End whatever still carries this folder's tag; return what that was."""
        self.truth.asked_to_end_s = self.truth.asked_to_end_s or time.monotonic()
        if self.up is not None:
            self.up.kill()
            self.up.wait(STOP_S)
        return sweep(STATE_TAG, str(self.state_dir))

    # Processes

    def pids(self, role: str) -> list[int]:
        """The processes of a role: up, controller, gateway or worker."""
        if role == "up":
            return [self.up.pid] if self.up is not None and self.up.poll() is None else []
        ours = tagged(STATE_TAG, str(self.state_dir))
        return [pid for pid in tagged(ROLE_TAG, role) if pid in ours]

    def everything(self) -> list[int]:
        """Every process of this folder, engines included."""
        ids = {data["instance_id"] for data in self.known_instances()}
        engines = [pid for pid, value in tagged(INSTANCE_TAG).items() if value in ids]
        return sorted({*tagged(STATE_TAG, str(self.state_dir)), *engines})

    def known_instances(self) -> list[dict[str, Any]]:
        """Instances by the specifications in the run folder: known without asking anybody."""
        found = []
        for path in (self.state_dir / "run").glob("*.json"):
            data = json.loads(path.read_bytes())
            if "instance_id" in data:
                found.append(data)
        return found

    def kill(self, role: str, number: int = signal.SIGKILL) -> list[int]:
        """Send a signal to every process of a role; return their pids."""
        pids = self.pids(role)
        for pid in pids:
            self.kill_pid(pid, number)
        return pids

    def kill_pid(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one process of this cluster."""
        if (handle := ProcessHandle.of(pid)) is not None:
            self.truth.deeds.hit.add(pid)
            handle.signal(number)

    # Asking

    @property
    def url(self) -> str:
        return str(json.loads((self.state_dir / "up.json").read_bytes())["url"])

    @property
    def admin_key(self) -> str:
        return (self.state_dir / "admin.key").read_text().strip()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> Answer:
        """One request, with the admin key unless another one (or "" for none) is given."""
        shown = self.admin_key if key is None else key
        sent = {"content-type": "application/json", **(headers or {})}
        if shown:
            sent["authorization"] = f"Bearer {shown}"
        address = urlsplit(self.url)
        connection = _connection(address.hostname or "", address.port, timeout_s, self.ca)
        write = self.truth.deeds.begin(method, path, body)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            told = answer.read()
            if write is not None:
                self.truth.deeds.end(write, answer.status, told)
            return answer.status, fields, told
        finally:
            connection.close()

    def json(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """As `request`, but the answer must be good, and its JSON is returned."""
        status, _, data = self.request(method, path, body, **options)
        assert status < 400, f"{method} {path}: {status} {data!r}"
        return json.loads(data)

    def chat(self, model: str, text: str, **fields: Any) -> Answer:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        return self.request("POST", "/v1/chat/completions", body)

    def instances(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.json("GET", "/api/v1/instances")["instances"]
        return found

    def ready(self, model: str) -> list[dict[str, Any]]:
        return [i for i in self.instances() if i["model_name"] == model and i["state"] == "ready"]

    def is_ready(self) -> bool:
        if self.up is not None and self.up.poll() is not None:
            raise AssertionError(f"hostler up ended with {self.up.returncode}:\n{self.story()}")
        if not (self.answers("/ready") and self.answers("/api/v1/status")):
            return False
        models = self.json("GET", "/api/v1/models")["models"]
        return all(model["ready"] >= model["wanted"] for model in models)

    def answers(self, path: str) -> bool:
        """Whether a GET there is answered 200 now."""
        try:
            return self.request("GET", path, timeout_s=2.0)[0] == 200
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def wait_for(self, is_true: Callable[[], bool], timeout_s: float, what: str) -> float:
        """Wait until something is true; return how long it took, in seconds."""
        began_s = time.monotonic()
        while not is_true():
            if time.monotonic() - began_s > timeout_s:
                raise AssertionError(f"not within {timeout_s:g} s: {what}\n{self.story()}")
            time.sleep(_LOOK_S)
        return time.monotonic() - began_s

    def story(self) -> str:
        """What its processes wrote: for the person who reads a failure."""
        logs = [self.output, *sorted((self.state_dir / "logs").glob("*.log"))]
        parts = [
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-40:])
            for path in logs
            if path.exists()
        ]
        return "\n".join(parts) + "\n"


def discard(cluster: Cluster) -> None:
    """Stop it, unjudged: its instances exist on paper, so no oracle can find their processes."""
    try:
        cluster.stop()
    finally:
        cluster.clear()
        cluster.truth.watch.stop()
        shutil.rmtree(cluster.root, ignore_errors=True)


def fake_model(
    name: str = "echo",
    *,
    replicas: int = 1,
    concurrency: int = 8,
    worker_type: str = "llm",
    **params: object,
) -> str:
    """Return a `[[models]]` table of fake engines, for a cluster's config."""
    shown = "\n".join(f"{key} = {json.dumps(value)}" for key, value in params.items())
    return (
        f'[[models]]\nname = "{name}"\ntype = "{worker_type}"\nengine = "fake"\n'
        f"replicas = {replicas}\nconcurrency = {concurrency}\n[models.params]\n{shown}\n"
    )


def is_root() -> bool:
    """Whether this user may do what only root may; some faults need it."""
    return os.geteuid() == 0


# Private


def _connection(
    host: str, port: int | None, timeout_s: float, ca: str
) -> http.client.HTTPConnection:
    if not ca:
        return http.client.HTTPConnection(host, port, timeout=timeout_s)
    context = ssl.create_default_context(cafile=ca)
    return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
