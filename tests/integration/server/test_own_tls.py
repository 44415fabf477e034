"""`hostler up --tls`: our own authority on both ports, and machines that join."""

import asyncio
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from hostler.app.config import child_environment
from hostler.core.errors import ConfigError, HostlerError
from hostler.core.hosts import HostFacts, JoinAnswer, Role
from hostler.core.model import WorkerType
from hostler.core.worker import WorkerShutdownRequest, WorkerStartupRequest
from hostler.manager.remote import RemoteWorkerManager
from hostler.registry.joining import join, renew
from hostler.testing.cluster import Cluster, fake_model
from hostler.wire.identity import client_context

CONFIG = """
[server]
tls = true
[control]
host = "127.0.0.1"
port = 0
names = ["127.0.0.1", "ai.example.org"]
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(CONFIG + fake_model("echo"))
    made.ca = str(made.state_dir / "tls" / "ca.pem")
    with made:
        yield made


def run(cluster: Cluster, *arguments: str, **env: str) -> tuple[int, str, str]:
    """One command as a person runs it on this machine, with no word about certificates."""
    told = {**child_environment(), "HOSTLER_STATE_DIR": str(cluster.state_dir), **env}
    told.pop("SSL_CERT_FILE", None)
    done = subprocess.run(
        [sys.executable, "-m", "hostler", *arguments],
        env=told, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def control_url(cluster: Cluster) -> str:
    record: dict[str, Any] = json.loads((cluster.state_dir / "up.json").read_bytes())
    return str(record["control_url"])


def come(cluster: Cluster, token: str, folder: Path, role: Role = Role.HOST) -> JoinAnswer:
    facts = HostFacts(name="machine-b")
    return asyncio.run(join(control_url(cluster), token, role, facts, "", 8102, folder))


def events(cluster: Cluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster.json("GET", "/api/v1/events?limit=1000")["events"]
    return found


def test_the_openai_sdk_speaks_to_it_with_our_authority_alone(cluster: Cluster) -> None:
    trust = ssl.create_default_context(cafile=cluster.ca)
    with httpx2.Client(verify=trust) as http:
        client = openai.OpenAI(
            base_url=f"{cluster.url}/v1", api_key=cluster.admin_key, http_client=http
        )
        messages: Any = [{"role": "user", "content": "hello"}]
        answer = client.chat.completions.create(model="echo", messages=messages)
        assert answer.choices[0].message.content
        stream = client.chat.completions.create(model="echo", messages=messages, stream=True)
        assert sum(len(chunk.choices) for chunk in stream) > 1
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{cluster.url}/health", verify=ssl.create_default_context(), trust_env=False)


def test_a_program_on_the_machine_itself_needs_only_the_state_folder(cluster: Cluster) -> None:
    async def main() -> str:
        async with RemoteWorkerManager.of_state_dir(cluster.state_dir) as manager:
            order = WorkerStartupRequest(model="more", worker_type=WorkerType.LLM, engine="fake")
            (ready,) = await manager.model_startup(order)
            assert ready.command_args
            forget = WorkerShutdownRequest(model="more", delete_after=True)
            await manager.model_shutdown(forget, wait=False)
            messages = [{"role": "user", "content": "hello"}]
            return (await manager.generate({"model": "echo", "messages": messages})).text

    assert asyncio.run(main())
    with pytest.raises(ConfigError, match="cannot be used as a PEM file"):
        asyncio.run(RemoteWorkerManager(cluster.url, "k", ca="/dev/null").start())


def test_commands_on_the_machine_itself_need_no_word_about_certificates(cluster: Cluster) -> None:
    for options in ((), ("--url", cluster.url)):
        code, out, told = run(cluster, "model", "list", *options)
        assert code == 0, told
        assert "echo" in out
    wrong = str(Path(__file__).parents[3] / "pyproject.toml")
    code, _, told = run(cluster, "model", "list", "--url", cluster.url, SSL_CERT_FILE=wrong)
    assert code == 0, told
    banner = cluster.output.read_text()
    assert f"SSL_CERT_FILE={cluster.ca}" in banner
    assert f"Other machines join at {control_url(cluster)}" in banner


def test_a_machine_joins_by_a_token_and_a_killed_controller_still_knows_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    code, out, told = run(cluster, "token", "create", "--role", "host", "--name", "rack 1")
    assert code == 0, told
    command, token = out.strip(), out.split()[-1]
    assert command == f"hostler host join --controller {control_url(cluster)} --token {token}"
    answer = come(cluster, token, tmp_path / "host")
    assert answer.expires_at_s > time.time() + 29 * 86400
    with pytest.raises(HostlerError, match="does not take this token"):
        come(cluster, token, tmp_path / "other")
    cluster.kill("controller")
    again = asyncio.run(renew(control_url(cluster), tmp_path / "host", timeout_s=20))
    assert again.host_id == answer.host_id
    cluster.wait_for(lambda: cluster.answers("/api/v1/status"), 20, "the controller is back")
    kinds = [one["kind"] for one in events(cluster)]
    assert [kinds.count(kind) for kind in ("token.created", "host.joined", "join.refused")] == [
        1
    ] * 3
    code, out, _ = run(cluster, "token", "list", "--all")
    assert code == 0
    assert "used up" in out
    assert token not in out
    assert token not in cluster.story()
    assert "hstj_" not in json.dumps(events(cluster))


def test_a_revoked_token_lets_nobody_in(cluster: Cluster, tmp_path: Path) -> None:
    code, out, _ = run(cluster, "token", "create", "--role", "host", "--uses", "0", "--json")
    made = json.loads(out)
    assert (code, made["info"]["uses_left"]) == (0, None)
    first = come(cluster, made["token"], tmp_path / "one")
    second = come(cluster, made["token"], tmp_path / "two")
    assert first.host_id != second.host_id
    code, out, _ = run(cluster, "token", "revoke", made["info"]["token_id"])
    assert (code, "is revoked" in out) == (0, True)
    with pytest.raises(HostlerError, match="does not take this token"):
        come(cluster, made["token"], tmp_path / "three")


def test_F31_nobody_reaches_the_control_plane_through_the_control_port(
    cluster: Cluster, tmp_path: Path
) -> None:
    code, out, _ = run(cluster, "token", "create", "--role", "gateway")
    assert code == 0
    come(cluster, out.split()[-1], tmp_path / "gateway", Role.GATEWAY)
    nobody = ssl.create_default_context(cafile=cluster.ca)
    member = client_context(tmp_path / "gateway")
    member.check_hostname = False
    before = cluster.json("GET", "/api/v1/models")
    bearer = {"authorization": f"Bearer {cluster.admin_key}"}
    for context, status in ((nobody, 401), (member, 404)):
        with httpx2.Client(verify=context, trust_env=False) as http:
            for path in ("/api/v1/models", "/v1/models", "/host/beat", "/register", "/beat"):
                body = {"model": "mine", "engine": "fake"}
                answer = http.post(control_url(cluster) + path, json=body, headers=bearer)
                assert answer.status_code == status, (path, answer.text)
    assert cluster.json("GET", "/api/v1/models") == before
