"""How a server starts, and what it says when it cannot."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler.app.config import Config, child_environment
from hostler.catalog.catalog import Catalog
from hostler.core.errors import StartupError
from hostler.core.model import WorkerType
from hostler.manager.local import LocalWorkerManager
from hostler.testing.cluster import Cluster, fake_model


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as name:
        yield Path(name)


def up(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "hostler", "up", "--port=0", f"--state-dir={folder}", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_F82_a_damaged_store_ends_the_start_with_the_reason(folder: Path) -> None:
    damaged = os.urandom(20_000)
    (folder / "hostler.db").write_bytes(damaged)
    told = up(folder)
    assert told.returncode == 1
    assert "is damaged" in told.stderr
    assert "Traceback" not in told.stderr
    assert (folder / "hostler.db").read_bytes() == damaged


def test_a_model_that_cannot_start_is_named_and_the_others_serve() -> None:
    broken = (
        f'[[models]]\nname = "broken"\ntype = "llm"\nengine = "llama.cpp"\nsource = "{__file__}"\n'
    )
    cluster = Cluster(fake_model("echo") + broken)
    cluster.launch()
    try:
        cluster.wait_for(lambda: "Ctrl-C stops" in cluster.output.read_text(), 30, "the banner")
        told = cluster.output.read_text()
        assert "serves 1 of 2 models" in told
        assert "broken failed: " in told
        assert ".gguf" in told
        assert cluster.chat("echo", "hi")[0] == 200
    finally:
        cluster.close()


def test_F103_what_lies_in_the_folder_it_is_started_in_is_never_imported(folder: Path) -> None:
    for name in ("attr", "json", "random", "hostler"):
        (folder / f"{name}.py").write_text('raise SystemExit("a file of this folder was run")\n')

    def as_the_command(argv: list[str]) -> list[str]:  # `hostler` imports nothing from there either
        return ["env", "-C", str(folder), argv[0], "-P", *argv[1:]]

    with Cluster(fake_model("echo"), around=as_the_command) as cluster:
        assert cluster.chat("echo", "hi")[0] == 200


def test_a_key_is_told_by_its_place_to_what_is_no_terminal_and_a_wish_survives() -> None:
    with Cluster(fake_model("echo")) as cluster:
        cluster.wait_for(lambda: "Ctrl-C stops" in cluster.output.read_text(), 10, "the banner")
        key, told = cluster.admin_key, cluster.output.read_text()
        assert f"Key: in {cluster.state_dir / 'admin.key'}" in told
        assert key not in told  # it is no terminal
        cluster.json("POST", "/api/v1/models", {"model": "mine", "engine": "fake"})
        cluster.wait_for(lambda: len(cluster.ready("mine")) == 1, 20, "mine is ready")
        cluster.json("DELETE", "/api/v1/models/echo")
        assert cluster.stop() == 0
        cluster.output.write_text("")
        cluster.start()
        cluster.wait_for(lambda: "Ctrl-C stops" in cluster.output.read_text(), 10, "the banner")
        assert key not in cluster.output.read_text()
        assert cluster.admin_key == key
        # What the config names is wished again at each start; what the API wished is as it was.
        assert [len(cluster.ready(name)) for name in ("mine", "echo")] == [1, 1]


def test_a_config_of_no_models_starts_none_and_the_banner_says_how() -> None:
    with Cluster("models = []\n") as cluster:
        cluster.wait_for(lambda: "Ctrl-C stops" in cluster.output.read_text(), 10, "the banner")
        assert cluster.json("GET", "/api/v1/models")["models"] == []
        told = cluster.output.read_text()
        chat = Catalog().default_for(WorkerType.LLM)
        assert chat is not None
        assert f"hostler model start --state-dir {cluster.state_dir} {chat.name}" in told
        cluster.json("POST", "/api/v1/models", {"model": "mine", "engine": "fake"})
        cluster.wait_for(lambda: len(cluster.ready("mine")) == 1, 20, "mine is ready")
        assert cluster.stop() == 0
        cluster.start()
        cluster.wait_for(lambda: len(cluster.ready("mine")) == 1, 20, "mine is ready again")


def test_health_is_answered_before_any_model_is_ready() -> None:
    cluster = Cluster(fake_model("echo", script='{"load_s": 3}'))
    cluster.launch()
    try:
        took_s = cluster.wait_for(lambda: cluster.answers("/health"), 15, "health is answered")
        assert not cluster.answers("/ready")
        cluster.wait_for(cluster.is_ready, 20, "the model is ready")
        assert took_s < 15
    finally:
        cluster.close()


def test_with_json_every_line_is_one_and_the_key_is_in_none() -> None:
    cluster = Cluster("log_json = true\n" + fake_model("echo"))
    with cluster:
        cluster.wait_for(lambda: "up.ready" in cluster.output.read_text(), 20, "it says ready")
        assert cluster.stop() == 0
        told = [json.loads(line) for line in cluster.output.read_text().splitlines()]
        assert cluster.admin_key not in cluster.output.read_text()
    (ready,) = [line for line in told if line["event"] == "up.ready"]
    assert (ready["ready"], ready["wanted"]) == (1, 1)
    assert "instance.ready" in {line["event"] for line in told}


def test_a_second_process_of_a_state_folder_is_refused_and_harms_nothing() -> None:
    with Cluster(fake_model("echo")) as cluster:
        before = cluster.ready("echo")[0]["instance_id"]
        for role in ("controller", "gateway"):
            told = subprocess.run(
                [sys.executable, "-m", "hostler", role, f"--state-dir={cluster.state_dir}"],
                env=child_environment(),
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert told.returncode != 0
            assert "serves" in told.stderr.splitlines()[-1]
            assert "Traceback" not in told.stderr

        async def main() -> None:
            manager = LocalWorkerManager(Config(state_dir=str(cluster.state_dir)), models=())
            with pytest.raises(StartupError, match="serves it now"):
                await manager.start()

        asyncio.run(main())
        assert cluster.chat("echo", "hi")[1]["x-hostler-instance"] == before
