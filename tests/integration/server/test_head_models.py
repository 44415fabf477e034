"""A model whose file lies at the controller alone runs on another machine: `hostler up --tls` and a host."""

import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator

import httpx2
import pytest

from hostler.app.config import child_environment
from hostler.catalog.store import list_files
from hostler.testing.cluster import LOOPBACK, Cluster, fake_model
from hostler.testing.host_run import HostRun
from tests.integration.server.test_two_machines import CONFIG, Pair
from tests.models import model_path

SOURCE = "~/models/chat.gguf"  # each machine has a home of its own


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    home = tmp_path_factory.mktemp("home")
    (home / "models").mkdir()
    os.link(model_path("chat"), home / "models" / "chat.gguf")
    cluster = Cluster(CONFIG + fake_model("echo"), env={"HOME": str(home)}, joined_at=LOOPBACK)
    with cluster, HostRun() as host:
        host.env["HOME"] = str(tmp_path_factory.mktemp("other"))
        made = Pair(cluster, host)
        made.join()
        yield made
        assert host.stop() == 0
        host.wait_gone()


def test_the_host_fetches_it_from_the_controller_and_serves(pair: Pair) -> None:
    pair.command(
        "model", "start", "far", "--type=llm", "--engine=llama.cpp", f"--source={SOURCE}",
        "--label=gpu=a100", "--param=context_length=256",
    )  # fmt: skip
    assert pair.where() == ["b"]
    assert pair.asks()
    (kept,) = list_files(pair.host.paths.models_dir)
    assert kept.source == SOURCE
    assert [one.name for one in kept.files] == ["chat.gguf"]
    events = pair.command("events", "--json", "--model=far")
    assert "fetch.progress" in events or '"fetching"' in events
    pair.command("model", "stop", "far", "--delete")


def test_what_is_nowhere_says_so(pair: Pair) -> None:
    told = {**child_environment(), "HOSTLER_STATE_DIR": str(pair.cluster.state_dir)}
    argv = [sys.executable, "-m", "hostler", "model", "start", "gone", "--type=llm"]
    argv += ["--engine=llama.cpp", "--source=~/gone.gguf", "--label=gpu=a100", "--timeout=30"]
    done = subprocess.run(argv, env=told, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "not on the controller's machine either" in done.stderr + done.stdout
    pair.command("model", "stop", "gone", "--delete")


def test_the_controller_hands_out_nothing_to_who_is_not_a_host(pair: Pair) -> None:
    record = json.loads((pair.cluster.state_dir / "up.json").read_bytes())
    trust = ssl.create_default_context(cafile=pair.cluster.ca)
    answer = httpx2.get(f"{record['control_url']}/host/files/abc", verify=trust)
    assert answer.status_code == 401
