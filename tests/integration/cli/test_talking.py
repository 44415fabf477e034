"""Commands that talk with models, against a whole server with fake engines."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from hostler.cli.exits import Exit
from hostler.testing.cluster import Cluster, fake_model
from tests.integration.cli.program import begun, environment, run

pytestmark = pytest.mark.slow(40)

MODELS = (
    fake_model("talker", tokens=6)
    + fake_model("slow", tokens=400, delay_ms=50)
    + fake_model("vectors", worker_type="text2vec")
    + fake_model("ranks", worker_type="reranker")
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(MODELS) as running:
        yield running


def test_an_answer_streams_and_is_the_same_from_an_argument_and_from_stdin(
    cluster: Cluster,
) -> None:
    asked = run(cluster, "chat", "talker", "good morning")
    assert (asked.returncode, asked.stderr) == (Exit.OK, "")
    assert "talker" in asked.stdout
    piped = run(cluster, "chat", "talker", text="good morning")
    assert piped.stdout == asked.stdout
    other = run(cluster, "chat", "talker", "good evening")
    assert other.stdout != asked.stdout


def test_json_is_the_whole_completion(cluster: Cluster) -> None:
    done = run(cluster, "chat", "-m", "talker", "good morning", "--json")
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] == 6


def test_several_chat_models_must_be_told_apart_and_a_typo_is_explained(cluster: Cluster) -> None:
    unclear = run(cluster, "chat", "how are you")
    assert unclear.returncode == Exit.USAGE
    assert "talker" in unclear.stderr
    wrong = run(cluster, "chat", "talkr", "hi")
    assert (wrong.returncode, wrong.stdout) == (Exit.NOT_FOUND, "")
    assert "did you mean talker?" in wrong.stderr


def test_an_empty_prompt_is_refused(cluster: Cluster) -> None:
    assert run(cluster, "chat", "talker", text=" \n").returncode == Exit.USAGE


def test_ctrl_c_stops_the_answer_and_the_engine_with_it(cluster: Cluster) -> None:
    with begun(cluster, "chat", "slow", "tell me a story") as process:
        assert process.stdout is not None
        assert process.stdout.read(1)  # the answer has begun
        began_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=10)
    assert process.returncode == Exit.INTERRUPTED
    assert "Traceback" not in told
    assert time.monotonic() - began_s < 3

    def is_idle() -> bool:
        return all(one["in_flight"] == 0 for one in cluster.ready("slow"))

    cluster.wait_for(is_idle, 5, "the slot is given back")


def test_an_answer_that_breaks_is_a_failure_with_what_came(cluster: Cluster) -> None:
    broken = run(cluster, "chat", "talker", "please crash [[half]]")
    assert broken.returncode != Exit.OK
    assert "hostler:" in broken.stderr
    assert "Traceback" not in broken.stderr


def test_texts_become_vectors(cluster: Cluster) -> None:
    shown = run(cluster, "embed", "one", "two")
    assert shown.returncode == Exit.OK
    assert len(shown.stdout.splitlines()) == 3
    answer = json.loads(run(cluster, "embed", "--json", text="one\n\ntwo\n").stdout)
    assert [one["index"] for one in answer["data"]] == [0, 1]


def test_documents_are_ranked(cluster: Cluster) -> None:
    done = run(cluster, "rerank", "which?", "first", "second", "third", "--top", "2", "--json")
    answer = json.loads(done.stdout)
    scores = [one["relevance_score"] for one in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    shown = run(cluster, "rerank", "which?", text="first\nsecond\n")
    assert shown.returncode == Exit.OK
    assert "first" in shown.stdout


def test_tokens_are_counted(cluster: Cluster) -> None:
    # A test above has crashed its engine.
    cluster.wait_for(lambda: len(cluster.ready("talker")) == 1, 20, "talker is back")
    done = run(cluster, "tokens", "one two three", "-m", "talker")
    assert done.returncode == Exit.OK, done.stderr
    assert int(done.stdout) > 0


def test_a_model_that_cannot_start_ends_with_the_reason(cluster: Cluster) -> None:
    script = '{"exit_at_start": 3}'
    failed = run(
        cluster, "model", "start", "bad", "--type", "llm", "--engine", "fake",
        "--param", f"script={json.dumps(script)}",
    )  # fmt: skip
    assert failed.returncode == Exit.FAILED
    assert "bad@llm: 0 of 1 instances ready" in failed.stderr
    # whether it waits for its next try or makes it just now
    mended = run(cluster, "model", "start", "bad", "--type", "llm", "--engine", "fake")
    assert mended.returncode == Exit.OK, mended.stderr
    assert len(cluster.ready("bad")) == 1
    assert run(cluster, "model", "stop", "bad", "--delete").returncode == Exit.OK


def test_a_running_model_is_updated_and_restarted(cluster: Cluster) -> None:
    empty = run(cluster, "model", "update", "vectors")
    assert empty.returncode == Exit.USAGE
    updated = run(cluster, "model", "update", "vectors", "--replicas", "2")
    assert updated.returncode == Exit.OK, updated.stderr
    before = {one["pid"] for one in cluster.ready("vectors")}
    assert len(before) == 2
    restarted = run(cluster, "model", "restart", "vectors", "--json")
    assert json.loads(restarted.stdout)["success"] is True
    cluster.wait_for(
        lambda: len({one["pid"] for one in cluster.ready("vectors")} - before) == 2,
        10,
        "both have new processes",
    )


def test_events_are_followed_until_ctrl_c(cluster: Cluster) -> None:
    with begun(cluster, "events", "--follow", "--model", "ranks") as process:
        assert process.stdout is not None
        assert "ranks" in process.stdout.readline()  # what was
        assert run(cluster, "model", "restart", "ranks").returncode == Exit.OK
        while "instance.ready" not in process.stdout.readline():  # what comes
            pass
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=10)
    assert (process.returncode, told) == (Exit.INTERRUPTED, "")


def test_requests_are_followed_each_once_when_it_has_ended(cluster: Cluster) -> None:
    name = "talker"
    before = cluster.chat(name, "before")[1]["x-request-id"]
    with begun(cluster, "requests", "-f", "--model", name, "--limit=1", "--json") as process:
        assert process.stdout is not None
        seen = [json.loads(process.stdout.readline())["request_id"]]
        asked = [before, *(cluster.chat(name, f"{n}")[1]["x-request-id"] for n in range(3))]
        seen += [json.loads(process.stdout.readline())["request_id"] for _ in range(3)]
        time.sleep(1.2)  # two looks more
        process.send_signal(signal.SIGINT)
        rest, told = process.communicate(timeout=10)
    assert (seen, rest) == (asked, "")
    assert (process.returncode, told) == (Exit.INTERRUPTED, "")


def test_ps_tells_the_truth_when_the_supervisor_was_killed() -> None:
    with Cluster("[life]\norphan_grace_s = 8\n" + fake_model("echo")) as cluster:
        workers = set(cluster.pids("worker"))
        assert cluster.up is not None
        for pid in (cluster.up.pid, *cluster.pids("gateway"), *cluster.pids("controller")):
            os.kill(pid, signal.SIGKILL)
        cluster.up.wait(10)
        told = run(cluster, "ps", "--json")
        assert told.returncode == Exit.UNREACHABLE
        seen = {one["pid"] for one in json.loads(told.stdout)["processes"]}
        assert workers <= seen
        cluster.wait_for(lambda: not cluster.everything(), 40, "orphans end by themselves")
        told = run(cluster, "ps", "--json")
        assert json.loads(told.stdout)["processes"] == []


def test_a_program_of_the_operator_that_names_the_state_folder_survives_the_stop() -> None:
    with Cluster(fake_model("echo")) as cluster:
        bystander = subprocess.Popen(["sleep", "60"], env=environment(cluster))
        try:
            assert cluster.stop() == Exit.OK
            assert bystander.poll() is None
            assert cluster.pids("worker") == []
        finally:
            bystander.kill()
            bystander.wait()
