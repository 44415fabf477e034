"""A real server whose store is locked or whose disk is full: the data plane notices nothing of it."""

import asyncio
import http.client
import os
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvloop

from hostler.testing.cluster import Answer, Cluster, fake_model
from hostler.testing.load import Outcome, Seen, Target, run_load
from tests.chaos.figures import IS_LONG, tell
from tests.disks import small_disk

LIFE = "log_json = true\n[life]\ndrain_timeout_s = 5.0\nkill_grace_s = 1.0\nbackoff_first_s = 0.2\n"
ORDER = {"model": "other", "engine": "fake"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(LIFE + fake_model("echo", replicas=2, tokens=6)) as cluster:
        yield cluster


async def load(cluster: Cluster, until: asyncio.Event) -> list[Seen]:
    """Keep four clients busy until told to stop."""
    address = urlsplit(cluster.url)
    target = Target(
        host=address.hostname or "",
        port=address.port or 0,
        headers={"authorization": f"Bearer {cluster.admin_key}"},
    )
    seen: list[Seen] = []
    number = 0
    while not until.is_set():
        number += 1
        some = {"models": ["echo"], "clients": 4, "requests": 40, "seed": number}
        seen += await run_load(target, pause_s=0.02, **some)  # type: ignore[arg-type]
    return seen


def timed(cluster: Cluster, method: str, path: str, body: object = None) -> tuple[Answer, float]:
    began_s = time.monotonic()
    return cluster.request(method, path, body), time.monotonic() - began_s


@pytest.mark.slow
def test_F79_a_locked_store_stops_orders_and_nothing_else(cluster: Cluster) -> None:
    async def main() -> None:
        until = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(load(cluster, until))
            try:
                await asyncio.to_thread(under_lock, cluster)
            finally:
                until.set()
        outcomes = Counter(one.outcome for one in asking.result())
        assert outcomes.total() > 20
        assert set(outcomes) == {Outcome.OK}

    uvloop.run(main())
    status = cluster.request("POST", "/api/v1/models", ORDER)[0]
    assert status == 202
    cluster.wait_for(lambda: len(cluster.ready("other")) == 1, 20, "orders work again")


def under_lock(cluster: Cluster) -> None:
    """Hold the store, order three things at once, and look how everybody is meanwhile.

    `HOSTLER_LONG=1`: for the row's own 20 s; else until the orders are answered, some 5 s.
    """
    looks: list[float] = []
    lags = {name: Lag(cluster, name, path) for name, path in PROBED.items()}
    until_s = time.monotonic() + (20.0 if IS_LONG else 0.0)
    with (
        ExitStack() as stack,
        closing(sqlite3.connect(cluster.state_dir / "hostler.db", isolation_level=None)) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        for lag in lags.values():
            stack.enter_context(lag)
        (victim, _) = cluster.ready("echo")
        cluster.kill_pid(victim["pid"])  # its moves are events, its successor a launch
        orders = [
            ("POST", "/api/v1/models", ORDER),
            ("POST", "/api/v1/keys", {"name": "app", "scopes": ["inference"]}),
            ("DELETE", "/api/v1/models/echo", None),
        ]
        answers = asyncio.run(at_once(cluster, orders, looks))
        while time.monotonic() < until_s:
            answers += asyncio.run(at_once(cluster, orders[:1], looks))
        still = cluster.json("GET", "/api/v1/models")["models"]
        assert [(one["name"], one["wanted"]) for one in still] == [("echo", 2)]
        (well,) = cluster.ready("echo")  # the other one serves, and is not suspect
        assert well["last_heartbeat_s"] < 2.5  # a beat a second goes on
        other.execute("ROLLBACK")
    for (status, headers, body), took_s in answers:
        assert (status, b'"storage_busy"' in body) == (503, True), body
        assert int(headers["retry-after"]) >= 1
        assert took_s < 6.0
    slowest_s = max(took_s for _, took_s in answers)
    tell(f"F79: {len(answers)} orders refused, the last after {slowest_s:.2f} s")
    for lag in lags.values():
        lag.assert_small()
    assert len(looks) > 20
    cluster.wait_for(lambda: len(cluster.ready("echo")) == 2, 20, "the killed worker is replaced")


PROBED = {"gateway": "/health", "admin": "/api/v1/status"}


class Lag:
    """Asks a process on its Unix socket a hundred times a second: how long its loop stood still."""

    def __init__(self, cluster: Cluster, name: str, path: str) -> None:
        self._name, self._path = name, path
        self._socket = cluster.state_dir / "run" / f"{name}.sock"
        self._headers = {"authorization": f"Bearer {cluster.admin_key}"}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.took_s: list[float] = []

    def __enter__(self) -> "Lag":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(20)

    def _run(self) -> None:
        connection = http.client.HTTPConnection("localhost", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(10)
        connection.sock.connect(str(self._socket))
        with closing(connection):
            while not self._over.wait(0.01):
                began_s = time.monotonic()
                connection.request("GET", self._path, headers=self._headers)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200
                self.took_s.append(time.monotonic() - began_s)

    def assert_small(self) -> None:
        """The bound is 0.2 s for a stall of the loop; an answer is two processes' turn as well."""
        took_s = sorted(self.took_s)
        assert len(took_s) > 20, self._name
        middle, most = took_s[len(took_s) // 2], took_s[-1]
        tell(
            f"F79: {self._name} answered {len(took_s)} times, median {middle:.4f} s, most {most:.3f} s"
        )
        assert middle < 0.2
        assert most < 1.0, took_s[-5:]


async def at_once(
    cluster: Cluster, orders: list[tuple[str, str, object]], looks: list[float]
) -> list[tuple[Answer, float]]:
    """Send the orders side by side; look at the status all the while."""
    async with asyncio.TaskGroup() as tasks:
        sent = [tasks.create_task(asyncio.to_thread(timed, cluster, *one)) for one in orders]
        while not all(one.done() for one in sent):
            (status, _, _), took_s = await asyncio.to_thread(
                timed, cluster, "GET", "/api/v1/status"
            )
            assert status == 200
            looks.append(took_s)
            await asyncio.sleep(0.02)
    return [one.result() for one in sent]


@pytest.mark.slow
def test_F80_F87_a_full_disk_refuses_orders_and_heals_without_a_restart() -> None:
    cluster = Cluster(LIFE + fake_model("echo", tokens=6))
    with small_disk(cluster.state_dir, 4 << 20), cluster:
        (controller,) = cluster.pids("controller")
        key = cluster.json("POST", "/api/v1/keys", {"name": "app", "scopes": ["inference"]})["key"]
        filler = cluster.state_dir / "filler"
        fill(filler)
        refused = 0
        for number in range(40):  # the log's last free page takes a few
            order = {
                "model": f"m{number}",
                "engine": "fake",
                "params": {"script": "{}" + " " * 4000},
            }
            status, _, body = cluster.request("POST", "/api/v1/models", {**order, "replicas": 0})
            if status == 507:
                assert b'"insufficient_storage"' in body
                refused += 1
            else:
                assert status == 202, body
            if refused >= 5:
                break
        assert refused >= 5
        names = {one["name"] for one in cluster.json("GET", "/api/v1/models")["models"]}
        asked = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
        for _ in range(20):
            assert cluster.request("POST", "/v1/chat/completions", asked, key=key)[0] == 200
        assert cluster.request("POST", "/v1/chat/completions", asked, key="hst_no")[0] == 401
        filler.unlink()
        status = cluster.request("POST", "/api/v1/models", {"model": "later", "engine": "fake"})[0]
        assert status == 202
        cluster.wait_for(lambda: len(cluster.ready("later")) == 1, 20, "it heals by itself")
        assert cluster.pids("controller") == [controller]
        now = {one["name"] for one in cluster.json("GET", "/api/v1/models")["models"]}
        assert now == names | {"later"}  # a refused order left no trace
        cluster.stop()


def fill(path: Path) -> None:
    """Write until the disk has no byte left."""
    with path.open("ab", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            while True:
                try:
                    file.write(b"x" * size)
                except OSError:
                    break


CANARIES = {"prompt": "canary-prompt-7f3a", "provider": "canary-provider-9c1e"}


@pytest.mark.slow
def test_F84_planted_secrets_are_nowhere_after_a_busy_run() -> None:
    config = LIFE + fake_model("echo", replicas=2, tokens=6)
    config += (
        '[[models]]\nname = "far"\ntype = "llm"\nurls = ["http://127.0.0.1:9/v1"]\n'
        'api_key_env = "CANARY_KEY"\n'
    )
    cluster = Cluster(config, env={"CANARY_KEY": CANARIES["provider"]})
    cluster.launch()
    with closing(cluster):
        cluster.wait_for(
            lambda: cluster.answers("/api/v1/status") and len(cluster.ready("echo")) == 2,
            30,
            "echo is ready",
        )
        made = cluster.json("POST", "/api/v1/keys", {"name": "app", "scopes": ["inference"]})
        secrets = [*CANARIES.values()]
        secrets += [made["key"].split("_")[2], cluster.admin_key.split("_")[2]]
        told = busy(cluster, made["key"])
        cluster.assert_truth()  # the dead ones are known as dead, and replaced
        cluster.wait_for(lambda: len(cluster.ready("echo")) == 2, 30, "the dead ones are replaced")
        told.append(cluster.request("GET", "/metrics")[2])
        for path in ("status", "models", "instances", "keys", "events"):
            told.append(cluster.request("GET", f"/api/v1/{path}")[2])
        for one in cluster.ready("echo"):
            told.append(Path(f"/proc/{one['pid']}/cmdline").read_bytes())
        for pid in cluster.everything():
            told.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        engines = set(cluster.everything())
        for role in ("controller", "gateway", "worker"):
            engines -= set(cluster.pids(role))
        assert len(engines) >= 2
        told += [Path(f"/proc/{pid}/environ").read_bytes() for pid in engines]
        kept = {path: path.read_bytes() for path in files(cluster.state_dir)}
        cluster.stop()
        kept.update({path: path.read_bytes() for path in files(cluster.state_dir)})
        kept[cluster.output] = cluster.output.read_bytes()
        for secret in secrets:
            for body in told:
                assert secret.encode() not in body, body[:300]
            for place, text in kept.items():
                # the administrator's key is meant to be read there, by its owner alone
                if secret == secrets[-1] and place.name in ("admin.key", cluster.output.name):
                    continue
                assert secret.encode() not in text, place


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_socket()]


def busy(cluster: Cluster, key: str) -> list[bytes]:
    """Good requests, refused ones, broken ones, crashes; return what errors said."""
    prompt = CANARIES["prompt"]
    errors: list[bytes] = []
    texts = [prompt, f"{prompt} [[status=500]]", f"{prompt} [[die]]", f"{prompt} [[crash_at=2]]"]
    for text in texts:
        for stream in (False, True):
            body = {
                "model": "echo",
                "messages": [{"role": "user", "content": text}],
                "user": prompt,
            }
            try:
                answer = cluster.request(
                    "POST", "/v1/chat/completions", {**body, "stream": stream}, key=key
                )
            except (OSError, http.client.HTTPException):
                continue
            if answer[0] != 200:
                errors.append(answer[2])
    body = {"model": "far", "messages": [{"role": "user", "content": prompt}]}
    errors.append(cluster.request("POST", "/v1/chat/completions", body, key=key)[2])
    broken = {"model": "echo", "messages": [{"role": "nobody", "content": prompt}]}
    errors.append(cluster.request("POST", "/v1/chat/completions", broken, key=key)[2])
    errors.append(cluster.request("GET", "/api/v1/models", key=key)[2])
    return errors


@pytest.mark.slow
def test_F85_strangers_cannot_grow_the_metrics(cluster: Cluster) -> None:
    cluster.chat("echo", "hi")
    before = series(cluster)[0]
    address = urlsplit(cluster.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    good = cluster.admin_key
    body = b'{"model":"%s","messages":[{"role":"user","content":"hi"}]}'
    with closing(connection):
        for number in range(10_000):
            chance = os.urandom(6).hex()
            key = good if number % 3 else f"hst_{chance}_{chance * 4}"
            path = f"/{chance}/{number}" if number % 2 else "/v1/chat/completions"
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            connection.request("POST", path, body % chance.encode(), headers)
            answer = connection.getresponse()
            answer.read()
            assert 400 <= answer.status < 500
            if answer.will_close:
                connection.close()
    after, size, took_s = series(cluster)
    assert after - before <= 20
    assert size <= 200 * 1024
    assert took_s < 0.3  # the bound is 0.1 s, on a quiet machine


def series(cluster: Cluster) -> tuple[int, int, float]:
    (_, _, text), took_s = timed(cluster, "GET", "/metrics")
    lines = [line for line in text.splitlines() if line and not line.startswith(b"#")]
    return len(lines), len(text), took_s
