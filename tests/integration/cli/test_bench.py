"""`hostler bench` against a whole server with fake engines."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler.cli.exits import Exit
from hostler.testing.cluster import Cluster, fake_model
from tests.integration.cli.program import begun, run

pytestmark = pytest.mark.slow

MODELS = (
    fake_model("talker", tokens=6, delay_ms=5)
    + fake_model("slow", tokens=400, delay_ms=50)
    + fake_model("vectors", worker_type="text2vec")
    + fake_model("ranks", worker_type="reranker")
    + fake_model("moody", tokens=2, script='{"status": 400, "status_rate": 0.5}')
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(MODELS) as running:
        yield running


def bench(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(cluster, "bench", *arguments)


def test_a_chat_model_is_measured_shown_and_plotted(cluster: Cluster, tmp_path: Path) -> None:
    drawing = tmp_path / "load.svg"
    done = bench(
        cluster, "talker", "--concurrency", "1,4", "--requests", "8", "--plot", str(drawing)
    )
    assert done.returncode == Exit.OK, done.stderr
    assert "warmed up" in done.stderr
    assert "4 at once: 8 requests in" in done.stderr
    assert "TTFT P50" in done.stdout
    assert "output tokens/s" in done.stdout
    assert "█" in done.stdout
    assert drawing.read_text().startswith("<svg")


def test_json_tells_each_level_with_the_tokens_of_the_server(cluster: Cluster) -> None:
    done = bench(cluster, "talker", "--concurrency", "2", "--requests", "10", "--json")
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    told = json.loads(done.stdout)
    level = told["levels"][0]
    assert (level["concurrency"], level["requests"], level["errors"]) == (2, 10, {})
    assert level["completion_tokens"] == 6
    assert level["tokens_per_s"] == pytest.approx(6 * level["requests_per_s"])
    assert 0.004 < level["inter_token"]["p50_s"] < 1
    assert level["ttft"]["p50_s"] <= level["ttft"]["p99_s"] < level["took"]["p99_s"]


@pytest.mark.parametrize(("model", "items"), [("vectors", "TEXTS/S"), ("ranks", "DOCUMENTS/S")])
def test_embeddings_and_ranks_are_measured_by_their_texts(
    cluster: Cluster, model: str, items: str
) -> None:
    done = bench(cluster, model, "--concurrency", "2", "--seconds", "0.5", "--batch", "4")
    assert done.returncode == Exit.OK, done.stderr
    assert items in done.stdout
    told = json.loads(
        bench(cluster, model, "--concurrency=2", "--requests=4", "--batch=4", "--json").stdout
    )
    level = told["levels"][0]
    assert level["items_per_s"] == pytest.approx(4 * level["requests_per_s"])


def test_errors_are_counted_by_code_and_all_of_them_are_a_failure(cluster: Cluster) -> None:
    late = bench(cluster, "slow", "--timeout", "0.5", "--requests", "2")
    assert late.returncode == Exit.TRY_AGAIN
    assert "the first request failed: timeout" in late.stderr
    broken = bench(cluster, "talker", "--prompt", "please [[half]]", "--requests", "2")
    assert broken.returncode != Exit.OK
    assert "the first request failed:" in broken.stderr
    cluster.wait_for(lambda: len(cluster.ready("talker")) == 1, 20, "talker is back")


def test_a_model_that_refuses_some_is_measured_and_its_errors_are_shown(cluster: Cluster) -> None:
    told = bench(cluster, "moody", "--concurrency", "1", "--requests", "8")
    if told.returncode:  # the first one was refused; every second one is
        told = bench(cluster, "moody", "--concurrency", "1", "--requests", "8")
    assert told.returncode == Exit.OK, told.stderr
    assert "4 failed" in told.stderr
    assert "note: 1 at once: 4 x " in told.stdout


def test_it_is_a_failure_when_every_request_failed(cluster: Cluster) -> None:
    for _ in range(2):  # every second request is refused: the first one must not be
        told = bench(cluster, "moody", "--concurrency", "1", "--requests", "1")
        if "warmed up" in told.stderr:
            break
    assert told.returncode == Exit.FAILED
    assert "hostler: every request failed" in told.stderr
    assert "note: 1 at once: 1 x " in told.stdout


def test_ctrl_c_shows_what_was_measured_until_then(cluster: Cluster) -> None:
    command = ["bench", "talker", "--concurrency", "2,4", "--seconds", "30"]
    with begun(cluster, *command) as process:
        assert process.stderr is not None
        assert "warmed up" in process.stderr.readline()
        time.sleep(1)
        os.kill(process.pid, signal.SIGINT)
        shown, told = process.communicate(timeout=15)
    assert process.returncode == Exit.INTERRUPTED, told
    assert "note: interrupted" in shown
    rows = [line for line in shown.splitlines() if line.startswith(("2 ", "4 "))]
    assert len(rows) == 1
    assert "Traceback" not in told
    cluster.wait_for(
        lambda: all(one["in_flight"] == 0 for one in cluster.ready("talker")), 5, "it is idle"
    )


def test_what_cannot_be_measured_is_told(cluster: Cluster) -> None:
    wrong = bench(cluster, "talkr")
    assert wrong.returncode == Exit.NOT_FOUND
    assert "did you mean talker?" in wrong.stderr
    assert bench(cluster, "talker", "--key", "hst_no_no").returncode == Exit.AUTH
    assert bench(cluster, "talker", "--plot", "a.gif").returncode == Exit.USAGE
    gone = bench(cluster, "talker", "--url", "http://127.0.0.1:9")
    assert gone.returncode == Exit.UNREACHABLE
