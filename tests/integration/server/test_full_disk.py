"""The disk of the models runs full while a server fetches one: an error that says so, and nothing else."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hostler.cli.exits import Exit
from hostler.testing.cluster import Cluster, fake_model
from tests.chaos.pressure import Pressure
from tests.disks import small_disk
from tests.integration.catalog.index import LocalIndex
from tests.models import model_path

LIFE = (
    "[life]\nbackoff_first_s = 30.0\ndrain_timeout_s = 3.0\n"  # what failed is looked at in peace
)
DISK_BYTES = 192 * 1024 * 1024
SPARE_BYTES = 20 * 1024 * 1024  # what is free: the row's small disk


def start(cluster: Cluster, name: str, source: str) -> subprocess.CompletedProcess[str]:
    words = ["start", name, "--type", "llm", "--engine", "llama.cpp", "--source", source]
    return subprocess.run(
        [sys.executable, "-m", "hostler", "model", *words, "--state-dir", str(cluster.state_dir)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.mark.slow
def test_F71_a_disk_that_runs_full_under_a_start_harms_nobody(tmp_path: Path) -> None:
    file = model_path("chat")
    (tmp_path / "m.gguf").symlink_to(file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    cluster = Cluster(LIFE + fake_model("echo", tokens=6))
    models = cluster.state_dir / "models"
    cluster.state_dir.mkdir(mode=0o700)
    with small_disk(models, DISK_BYTES), LocalIndex(tmp_path).running() as server, cluster:
        filler = models / "filler"
        with filler.open("wb") as full:
            os.posix_fallocate(full.fileno(), 0, DISK_BYTES - SPARE_BYTES)
        source = f"{server.url}/files/m.gguf#sha256={sha256}"
        with Pressure(cluster, clients=2) as pressure:
            for is_told, words in ((True, "stay in reserve"), (False, "ran full")):
                server.length_told = is_told
                fails(cluster, f"told-{is_told}".lower(), source, words)
                cluster.wait_for(lambda: kept(models) == ["filler"], 20, "nothing of it is left")
            filler.unlink()
            server.length_told = True
            again = start(cluster, "far", source)
            assert again.returncode == 0, again.stdout + again.stderr
        pressure.assert_unharmed(at_least=20)
        answer = cluster.chat("far", "Say hello.", max_tokens=4)
        assert answer[0] == 200, answer[2]
        assert list(models.rglob("*.part")) == []


def fails(cluster: Cluster, name: str, source: str, words: str) -> None:
    """`model start` says that there is no room, in these words."""
    started = start(cluster, name, source)
    told = started.stdout + started.stderr
    assert started.returncode == Exit.FAILED, told
    assert words in " ".join(told.split()), told
    assert "Traceback" not in told
    (failed,) = [i for i in cluster.instances() if i["model_name"] == name]
    assert failed["error_code"] == "insufficient_storage", failed
    cluster.json("DELETE", f"/api/v1/models/{name}?delete=true")
    cluster.wait_for(
        lambda: all(one["model_name"] != name for one in cluster.instances()), 20, "it is gone"
    )


def kept(models: Path) -> list[str]:
    """The files there, but for locks."""
    return sorted(p.name for p in models.rglob("*") if p.is_file() and p.suffix != ".lock")
