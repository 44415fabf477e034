"""Two controllers on one PostgreSQL, each behind a wire that can be cut, under orders all the time.

Each controller is started again when it ends, as a supervisor does. A trigger in the database writes down
who changed what while who led, so that a write of a controller that did not lead shows.
"""

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hostler.app.environment import child_environment
from hostler.app.paths import StatePaths
from hostler.app.process import sweep
from hostler.app.record import read_admin_key
from hostler.app.supervision import OWNER_VARIABLE
from hostler.core.snapshot import Endpoint
from hostler.manager.workers import ROLE_TAG, STATE_TAG
from hostler.wire.client import UpstreamLost, fetch
from tests.postgres import Postgres, until

AGAIN_S = 0.1  # from the end of a process to the next one
SETTINGS = "[life]\norphan_grace_s = 2.0\nhung_after_s = 4.0\n"

# Who wrote (by the name in its connection), and whose was the newest leadership then.
AUDIT = """
CREATE TABLE audit (writer text, leader text, what text, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION note() RETURNS trigger AS $$ BEGIN
  INSERT INTO audit (writer, leader, what) SELECT current_setting('application_name'),
    (SELECT name FROM leaderships ORDER BY number DESC LIMIT 1), TG_TABLE_NAME;
  RETURN NULL; END $$ LANGUAGE plpgsql;
"""
AUDITED = ("deployments", "launches", "keys", "events")


class Wire:
    """A TCP relay to the server that can be cut, or go dead without a word."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.is_cut = False
        self._is_dead = threading.Event()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection, and refuse new ones."""
        self.is_cut = True
        for sock in list(self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def go_dead(self) -> None:
        """Carry nothing any more; connections stay."""
        self._is_dead.set()

    def heal(self) -> None:
        self.is_cut = False
        if self._is_dead.is_set():
            self.cut()  # what was swallowed does not come back
            self.is_cut = False
            self._is_dead.clear()

    def close(self) -> None:
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    # Private

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            try:
                there = socket.create_connection(self._target, timeout=5)
                there.settimeout(None)
            except OSError:
                here.close()
                continue
            if self.is_cut:
                here.close()
                there.close()
                continue
            self._open |= {here, there}
            for one, other in ((here, there), (there, here)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with source:
            with suppress(OSError):
                while data := source.recv(65536):
                    if not self._is_dead.is_set():
                        sink.sendall(data)
            for sock in (source, sink):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            self._open.discard(source)


class Member:
    """One controller: the process of this moment."""

    def __init__(self, root: Path, name: str, postgres: Postgres, database: str) -> None:
        self.name = name
        self.wire = Wire(postgres.port)
        self.paths = StatePaths(root / name)
        self.neighbour = StatePaths(root / {"anna": "bert", "bert": "anna"}[name])
        self.exits: list[int] = []
        self._config = root / f"{name}.toml"
        url = f"postgresql+psycopg://hostler:s3cret@127.0.0.1:{self.wire.port}/{database}"
        store = f'[store]\nurl = "{url}?application_name={name}"\nname = "{name}"\n'
        # no default models: they would be loaded
        self._config.write_text(f'{SETTINGS}{store}[[models]]\nname = "kept"\nengine = "fake"\n'
                                'type = "llm"\nreplicas = 0\n')  # fmt: skip
        self._owner = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._is_wanted = threading.Event()
        self._keeping: threading.Thread | None = None

    def start(self) -> None:
        """Keep it running from now on."""
        self._is_wanted.set()
        self._spawn()
        self._keeping = threading.Thread(target=self._keep)
        self._keeping.start()

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it for good, and everything of its folder when it is killed."""
        self._is_wanted.clear()
        self.signal(signal.SIGCONT)
        self.signal(number)
        if self._keeping is not None:
            self._keeping.join(30)
        sweep(STATE_TAG, str(self.paths.state_dir))

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, number)

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Ask its controller. Status 0: nobody answers."""
        # one that never led has no key of its own; the other's is as good, since the store is one
        key = read_admin_key(self.paths) or read_admin_key(self.neighbour) or "none"
        headers = [
            (b"authorization", f"Bearer {key}".encode()),
            (b"content-type", b"application/json"),
        ]
        data = b"" if body is None else json.dumps(body).encode()
        endpoint = Endpoint(socket=str(self.paths.admin_socket))
        try:
            answer = await fetch(endpoint, method, path, headers=headers, body=data, timeout_s=6.0)
            return answer.status, json.loads(answer.body)
        except (OSError, UpstreamLost, TimeoutError, ValueError):
            return 0, None

    def leads(self) -> bool:
        return asyncio.run(self.ask("GET", "/api/v1/status"))[0] == 200

    def log(self) -> str:
        return self.paths.state_dir.with_suffix(".log").read_text()

    # Private

    def _spawn(self) -> None:
        argv = [sys.executable, "-m", "hostler", "controller", f"--config={self._config}"]
        argv.append(f"--state-dir={self.paths.state_dir}")
        tags = {STATE_TAG: str(self.paths.state_dir), ROLE_TAG: "controller"}
        with self.paths.state_dir.with_suffix(".log").open("ab") as output:
            self._process = subprocess.Popen(
                argv,
                env=child_environment({**tags, OWNER_VARIABLE: self._owner}),
                stdout=output,
                stderr=output,
            )

    def _keep(self) -> None:
        while self._process is not None:
            self.exits.append(self._process.wait())
            if not self._is_wanted.is_set():
                return
            time.sleep(AGAIN_S)
            if self._is_wanted.is_set():
                self._spawn()


class Pair:
    """Both of them, and a client that orders all the time from whichever takes orders."""

    def __init__(self, root: Path, postgres: Postgres) -> None:
        self.postgres = postgres
        self.url = postgres.new_url()
        database = self.url.rpartition("/")[2]
        self.members = [Member(root, name, postgres, database) for name in ("anna", "bert")]
        self.accepted: dict[str, float] = {}  # name of a model → when its order was accepted
        self._over = threading.Event()
        self._ordering = threading.Thread(target=self._order)

    @contextmanager
    def running(self) -> Iterator["Pair"]:
        try:
            self.members[0].start()
            until(self.members[0].leads, 20, "the first one leads")
            for statement in AUDIT.split(";\n\n"):
                self.postgres.execute(statement, self.url)
            for table in AUDITED:
                self.postgres.execute(
                    f"CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON {table} "
                    "FOR EACH STATEMENT EXECUTE FUNCTION note()",
                    self.url,
                )
            self.members[1].start()
            self._ordering.start()
            self.accepting(time.monotonic(), 10)
            yield self
        finally:
            self._over.set()
            if self._ordering.is_alive():
                self._ordering.join(30)
            for member in self.members:
                member.stop()
                member.wire.close()

    def leader(self) -> Member:
        """The one that leads now."""
        until(lambda: any(member.leads() for member in self.members), 20, "one leads")
        return next(member for member in self.members if member.leads())

    def other(self, member: Member) -> Member:
        return next(one for one in self.members if one is not member)

    def accepting(self, since_s: float, within_s: float) -> float:
        """Wait for an order that was accepted after that; return how long after."""
        until(lambda: any(at_s > since_s for at_s in list(self.accepted.values())), within_s,
              "an order is accepted")  # fmt: skip
        return min(at_s for at_s in list(self.accepted.values()) if at_s > since_s) - since_s

    def stands_by(self, member: Member) -> None:
        """Wait until it runs and says that the other one leads."""
        said = f"{self.other(member).name} leads"
        until(lambda: said in str(asyncio.run(self.told(member))), 20, f"{member.name} stands by")

    async def told(self, member: Member) -> str:
        """What it answers to an order."""
        status, answer = await member.ask("POST", "/api/v1/models", order("told"))
        return f"{status} {answer}"

    def rows(self, text: str) -> list[tuple[Any, ...]]:
        return self.postgres.execute(text, self.url)

    # Private

    def _order(self) -> None:
        number = 0
        while not self._over.is_set():
            for member in self.members:
                number += 1
                name = f"m-{number}"
                status, _ = asyncio.run(
                    within(1.0, member.ask("POST", "/api/v1/models", order(name)))
                )
                if status == 202:
                    self.accepted[name] = time.monotonic()
                time.sleep(0.02)


async def within(seconds: float, asking: Any) -> tuple[int, Any]:
    """An answer, or status 0 when it takes longer: a controller that is stopped keeps nobody."""
    try:
        async with asyncio.timeout(seconds):
            found: tuple[int, Any] = await asking
            return found
    except TimeoutError:
        return 0, None


def order(name: str) -> dict[str, object]:
    return {"model": name, "engine": "fake", "replicas": 0}


@contextmanager
def running_pair(postgres: Postgres) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as folder:  # short: sockets
        pair = Pair(Path(folder), postgres)
        with pair.running():
            yield pair
