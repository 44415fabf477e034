"""Durability: SIGKILL of a controller while orders are acknowledged; what was answered is there afterwards.

Used by a test (a few kills) and by `make soak ARGS=--durability` (B32: at least 100). A new state folder
every BATCH kills, so that the last ones do not only wait for a long table.
"""

import asyncio
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from hostler.app.config import child_environment
from hostler.app.paths import StatePaths
from hostler.app.process import sweep
from hostler.core.snapshot import Endpoint
from hostler.manager.workers import ROLE_TAG, STATE_TAG
from hostler.testing.cluster import fake_model
from hostler.wire.client import UpstreamLost, fetch

BATCH = 20
WRITERS = 4
KEPT = "kept"  # a model of the config; all others are orders
_START_S = 60.0
_END_S = 10.0


class Durability(msgspec.Struct, frozen=True, kw_only=True):
    """What so many kills left. lost: acknowledged and not so; strangers: there, and nobody's order."""

    kills: int
    acknowledged: int
    lost: tuple[str, ...]
    strangers: tuple[str, ...]
    corrupt: tuple[str, ...]


def run_kills(
    kills: int, seed: int, tell: Callable[[Durability], None] = lambda so_far: None
) -> Durability:
    """Kill a controller so often in the middle of acknowledged writes. tell: called after each batch."""
    chance = random.Random(seed)
    total = Durability(kills=0, acknowledged=0, lost=(), strangers=(), corrupt=())
    while total.kills < kills:
        with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as name:  # short: sockets
            try:
                batch = _Batch(Path(name), chance)
                found = asyncio.run(batch.run(min(BATCH, kills - total.kills)))
            finally:
                sweep(STATE_TAG, f"{name}/s")
        total = Durability(
            kills=total.kills + found.kills,
            acknowledged=total.acknowledged + found.acknowledged,
            lost=total.lost + found.lost,
            strangers=total.strangers + found.strangers,
            corrupt=total.corrupt + found.corrupt,
        )
        tell(total)
    return total


# Private


class _Batch:
    """One state folder, and the controllers that come and go on it."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self._folder = folder
        self._paths = StatePaths(folder / "s")
        self._chance = chance
        self._ledger: dict[
            str, str
        ] = {}  # name or key id: "there", "key", "gone", "" while either is right
        self._corrupt: list[str] = []
        (folder / "c.toml").write_text(fake_model(KEPT))

    async def run(self, kills: int) -> Durability:
        for turn in range(kills):
            controller = self._start()
            try:
                await self._answering()
                async with asyncio.TaskGroup() as tasks:
                    for writer in range(WRITERS):
                        tasks.create_task(self._write(f"m-{turn}-{writer}"))
                    await asyncio.sleep(self._chance.uniform(0.02, 0.3))
                    controller.kill()
            finally:
                controller.kill()
                controller.wait(_END_S)
            self._check_file(turn)
        controller = self._start()
        try:
            await self._answering()
            models = {m["name"] for m in (await self._ask("GET", "/api/v1/models"))[1]["models"]}
            keys = {k["key_id"] for k in (await self._ask("GET", "/api/v1/keys"))[1]["keys"]}
        finally:
            controller.kill()
            controller.wait(_END_S)
        return self._judge(kills, models, keys)

    def _judge(self, kills: int, models: set[str], keys: set[str]) -> Durability:
        lost = [
            f"{name}: {what}"
            for name, what in self._ledger.items()
            if (what == "there" and name not in models)
            or (what == "key" and name not in keys)
            or (what == "gone" and name in models)
        ]
        return Durability(
            kills=kills,
            acknowledged=sum(bool(what) for what in self._ledger.values()),
            lost=tuple(lost),
            strangers=tuple(sorted(models - self._ledger.keys() - {KEPT})),
            corrupt=tuple(self._corrupt),
        )

    async def _write(self, prefix: str) -> None:
        """Order and order until nobody answers; the ledger holds what was acknowledged."""
        number = 0
        while True:
            number += 1
            name = f"{prefix}-{number}"
            self._ledger[name] = ""
            order = {"model": name, "engine": "fake", "replicas": 0}
            try:
                status, _ = await self._ask("POST", "/api/v1/models", order)
                if status == 202:
                    self._ledger[name] = "there"
                key = {"name": name, "scopes": ["inference"]}
                status, made = await self._ask("POST", "/api/v1/keys", key)
                if status < 300:
                    self._ledger[made["info"]["key_id"]] = "key"
                if number % 3 == 0:
                    self._ledger[name] = ""
                    path = f"/api/v1/models/{name}?delete=true"
                    status, _ = await self._ask("DELETE", path)
                    if status == 202:
                        self._ledger[name] = "gone"
            except (OSError, UpstreamLost, TimeoutError):
                return

    async def _ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        key = self._paths.admin_key.read_text().strip()
        answer = await fetch(
            Endpoint(socket=str(self._paths.admin_socket)),
            method,
            path,
            headers=[
                (b"authorization", f"Bearer {key}".encode()),
                (b"content-type", b"application/json"),
            ],
            body=b"" if body is None else json.dumps(body).encode(),
            timeout_s=10.0,
        )
        return answer.status, json.loads(answer.body)

    def _start(self) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "hostler", "controller", f"--config={self._folder}/c.toml"]
        state_dir = str(self._paths.state_dir)
        with (self._folder / "log").open("ab") as output:
            return subprocess.Popen(
                [*argv, f"--state-dir={state_dir}"],
                env=child_environment({STATE_TAG: state_dir, ROLE_TAG: "controller"}),
                stdout=output,
                stderr=output,
            )

    async def _answering(self) -> None:
        end_s = time.monotonic() + _START_S
        while True:
            try:
                if (await self._ask("GET", "/api/v1/status"))[0] == 200:
                    return
            except (OSError, UpstreamLost, TimeoutError):
                told = (self._folder / "log").read_text()[-3000:]
                assert time.monotonic() < end_s, f"no controller: {told}"
            await asyncio.sleep(0.02)

    def _check_file(self, turn: int) -> None:
        """Look at a copy: the next controller must find what the killed one left."""
        copies = self._folder / "copy"
        copies.mkdir()
        for path in self._paths.state_dir.glob(f"{self._paths.database.name}*"):
            shutil.copy(path, copies)
        with closing(sqlite3.connect(copies / self._paths.database.name)) as database:
            told = [row[0] for row in database.execute("PRAGMA integrity_check")]
        if told != ["ok"]:
            self._corrupt += [f"after kill {turn}: {line}" for line in told]
        shutil.rmtree(copies)
