"""SIGKILL of a controller while orders are acknowledged: what was answered is there afterwards."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostler.app.config import child_environment
from hostler.app.process import sweep
from hostler.core.snapshot import Endpoint
from hostler.manager.workers import ROLE_TAG, STATE_TAG
from hostler.testing.cluster import fake_model
from hostler.wire.client import UpstreamLost, fetch

KILLS = int(os.environ.get("HOSTLER_KILLS", "10"))  # a long run takes 100 and more


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as name:
        try:
            yield Path(name)
        finally:
            sweep(STATE_TAG, f"{name}/s")


async def ask(folder: Path, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    key = (folder / "s" / "admin.key").read_text().strip()
    answer = await fetch(
        Endpoint(socket=str(folder / "s" / "run" / "admin.sock")),
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


def start(folder: Path) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "hostler", "controller", f"--config={folder}/c.toml"]
    with (folder / "log").open("ab") as output:
        return subprocess.Popen(
            [*argv, f"--state-dir={folder}/s"],
            env=child_environment({STATE_TAG: f"{folder}/s", ROLE_TAG: "controller"}),
            stdout=output,
            stderr=output,
        )


async def answering(folder: Path) -> None:
    end_s = time.monotonic() + 30
    while True:
        try:
            if (await ask(folder, "GET", "/api/v1/status"))[0] == 200:
                return
        except (OSError, UpstreamLost, TimeoutError):
            assert time.monotonic() < end_s, (folder / "log").read_text()[-3000:]
        await asyncio.sleep(0.02)


async def write(folder: Path, turn: int, worker: int, ledger: dict[str, tuple[str, bool]]) -> None:
    """Order and order until nobody answers; the ledger holds what was acknowledged."""
    number = 0
    while True:
        number += 1
        name = f"m-{turn}-{worker}-{number}"
        ledger[name] = ("", False)  # sent; either is right until it is answered
        order = {"model": name, "engine": "fake", "replicas": 0}
        try:
            status, _ = await ask(folder, "POST", "/api/v1/models", order)
            if status == 202:
                ledger[name] = ("there", True)
            status, made = await ask(
                folder, "POST", "/api/v1/keys", {"name": name, "scopes": ["inference"]}
            )
            if status < 300:
                ledger[made["info"]["key_id"]] = ("key", True)
            if number % 3 == 0:
                ledger[name] = ("", False)
                status, _ = await ask(folder, "DELETE", f"/api/v1/models/{name}?delete=true")
                if status == 202:
                    ledger[name] = ("gone", True)
        except (OSError, UpstreamLost, TimeoutError):
            return


@pytest.mark.slow
def test_F81_no_acknowledged_order_is_lost_when_the_controller_is_killed(folder: Path) -> None:
    seed = random.randrange(10**9)
    chance = random.Random(seed)
    (folder / "c.toml").write_text(fake_model("kept"))
    ledger: dict[str, tuple[str, bool]] = {}

    async def main() -> None:
        for turn in range(KILLS):
            controller = start(folder)
            try:
                await answering(folder)
                async with asyncio.TaskGroup() as tasks:
                    for worker in range(4):
                        tasks.create_task(write(folder, turn, worker, ledger))
                    await asyncio.sleep(chance.uniform(0.02, 0.3))
                    controller.send_signal(signal.SIGKILL)
            finally:
                controller.kill()
                controller.wait(10)
        controller = start(folder)
        try:
            await answering(folder)
            models = {m["name"] for m in (await ask(folder, "GET", "/api/v1/models"))[1]["models"]}
            keys = {k["key_id"] for k in (await ask(folder, "GET", "/api/v1/keys"))[1]["keys"]}
        finally:
            controller.kill()
            controller.wait(10)
        judge(models, keys)

    def judge(models: set[str], keys: set[str]) -> None:
        acknowledged = {name: what for name, (what, is_sure) in ledger.items() if is_sure}
        lost = [n for n, what in acknowledged.items() if what == "there" and n not in models]
        lost += [n for n, what in acknowledged.items() if what == "key" and n not in keys]
        lost += [n for n, what in acknowledged.items() if what == "gone" and n in models]
        assert lost == [], f"seed {seed}: {len(lost)} of {len(acknowledged)}"
        assert models <= {*ledger, "kept"}, f"seed {seed}: something nobody ordered"
        assert len(acknowledged) >= KILLS

    asyncio.run(main())
