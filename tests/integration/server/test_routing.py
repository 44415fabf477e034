"""Who answers is changed while a real server runs, by the commands that the how-to page shows."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler.app.config import child_environment
from hostler.testing.cluster import Cluster, fake_model

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "routing.md"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("policies")
    (code,) = re.findall(r"```py\n# mine\.py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (folder / "mine.py").write_text(code)
    models = fake_model("chat", replicas=2) + fake_model("chat-new") + fake_model("chat-small")
    with Cluster(models, env={"PYTHONPATH": str(folder)}) as made:
        made.wait_for(made.is_ready, 60.0, "the models")
        yield made


def update(cluster: Cluster, *options: str) -> tuple[int, str]:
    """Run `hostler model update chat` with these options."""
    argv = [sys.executable, "-m", "hostler", "model", "update", "chat", *options]
    ran = subprocess.run(
        [*argv, f"--state-dir={cluster.state_dir}"],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return ran.returncode, ran.stdout + ran.stderr


def ask(cluster: Cluster, session: str = "") -> dict[str, str]:
    """One chat; return the headers of its answer."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
    status, headers, answer = cluster.request(
        "POST",
        "/v1/chat/completions",
        body,
        headers={"x-session-id": session} if session else {},
    )
    assert status == 200, answer
    return headers


def changed(cluster: Cluster, policy: str, **rules: object) -> None:
    """Update by the API, and wait until the gateway goes by it."""
    order = {"model": "chat", "apply_type": "update_params"}
    cluster.json("POST", "/api/v1/apply", order | {"routing": {"policy": policy, **rules}})
    shown = {"auto": "prefix", "mine:Nearest": "own"}.get(policy, policy)
    cluster.wait_for(lambda: ask(cluster)["x-hostler-policy"] == shown, 10.0, policy)


def test_policies_are_changed_live_and_no_process_notices(cluster: Cluster) -> None:
    before = {one["instance_id"]: one["pid"] for one in cluster.ready("chat")}
    assert ask(cluster)["x-hostler-policy"] == "prefix"
    code, told = update(cluster, "--policy", "session")
    assert code == 0, told
    cluster.wait_for(lambda: ask(cluster)["x-hostler-policy"] == "session", 10.0, "session")
    for session in ("one", "two", "three"):
        assert len({ask(cluster, session)["x-hostler-instance"] for _ in range(5)}) == 1
    changed(cluster, "weighted", weights=[3, 1])
    counted = Counter(ask(cluster)["x-hostler-instance"] for _ in range(16))
    assert sorted(counted.values()) == [4, 12]
    replicas = {one["instance_id"]: one["replica"] for one in cluster.ready("chat")}
    assert replicas[counted.most_common(1)[0][0]] == 0
    code, told = update(cluster, "--policy", "round-robin")
    assert code != 0
    assert "--rule weights=null" in told
    changed(cluster, "round-robin", weights=None)
    assert Counter(ask(cluster)["x-hostler-instance"] for _ in range(8)) == dict.fromkeys(before, 4)
    assert before == {one["instance_id"]: one["pid"] for one in cluster.ready("chat")}


def test_a_policy_of_one_s_own_serves_and_one_that_is_none_is_refused(cluster: Cluster) -> None:
    changed(cluster, "mine:Nearest", weights=None)
    assert len({ask(cluster)["x-hostler-instance"] for _ in range(4)}) == 1
    code, told = update(cluster, "--policy", "nobody:Knows")
    assert code != 0
    assert "No module named 'nobody'" in told
    assert "PYTHONPATH" in told
    assert ask(cluster)["x-hostler-policy"] == "own"
    (row,) = [r for r in cluster.json("GET", "/status")["policies"] if r["model"] == "chat"]
    assert row == {"model": "chat", "policy": "own", "problem": ""}
    changed(cluster, "auto")


def test_a_canary_gets_its_share_and_a_fallback_serves_for_a_stopped_model(
    cluster: Cluster,
) -> None:
    def models(count: int) -> Counter[str]:
        return Counter(ask(cluster)["x-hostler-model"] for _ in range(count))

    assert update(cluster, "--split", "chat-new=50")[0] == 0
    cluster.wait_for(lambda: models(2)["chat-new"] > 0, 10.0, "the split")
    assert 9 <= models(20)["chat-new"] <= 11
    assert update(cluster, "--split", "none", "--fallback", "unavailable=chat-small")[0] == 0
    cluster.wait_for(lambda: models(8) == {"chat": 8}, 10.0, "the end of the split")
    cluster.json("POST", "/api/v1/apply", {"model": "chat", "apply_type": "stop"})
    assert set(models(4)) == {"chat-small"}
    cluster.json("POST", "/api/v1/apply", {"model": "chat", "apply_type": "start"})
    cluster.wait_for(lambda: models(1) == {"chat": 1}, 30.0, "the model itself")
    code, told = update(cluster, "--fallback", "unavailable=chat-smal")
    assert code == 0, told
    assert "model 'chat-smal' does not exist yet" in told
    assert "did you mean 'chat-small'?" in told
    assert "model.note" in (cluster.state_dir / "logs" / "controller.log").read_text()
