"""A real server and all that a client or an operator may get wrong: status, code, text."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hostler.app.config import child_environment
from hostler.manager.workers import ROLE_TAG
from hostler.testing.cluster import Answer, Cluster, fake_model, is_root


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    config = (
        "[limits]\nbody_bytes = 20000\n"
        + fake_model("echo", tokens=3)
        + fake_model("slowly", script=json.dumps({"never_ready": True}))
    )
    with closing(Cluster(config)) as cluster:
        cluster.launch()
        cluster.wait_for(
            lambda: cluster.answers("/api/v1/status") and len(cluster.ready("echo")) == 1,
            30,
            "echo is ready",
        )
        yield cluster


def error_of(answer: Answer) -> dict[str, Any]:
    status, headers, body = answer
    found: dict[str, Any] = json.loads(body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert headers["x-request-id"]
    if status in (429, 503):
        assert int(headers["retry-after"]) >= 1
    return found


CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]


def test_an_unknown_model_is_404_and_the_known_ones_are_named(cluster: Cluster) -> None:
    answer = cluster.chat("ecco", "hi")
    assert answer[0] == 404
    error = error_of(answer)
    assert error["code"] == "model_not_found"
    assert "echo" in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": NaN}', b'"text"', b"\xff\xfe{}"])
def test_a_body_that_is_no_JSON_object_is_400(cluster: Cluster, body: bytes) -> None:
    connection = _raw(cluster, body)
    assert connection.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"invalid_' in connection


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": "hi"}, "messages"),
        ({"messages": HELLO, "temperature": "hot"}, "temperature"),
        ({"messages": HELLO, "max_tokens": -1}, "max_tokens"),
        ({"messages": HELLO, "n": 99}, "n"),
        ({"messages": HELLO, "stream": "yes"}, "stream"),
        ({}, "messages"),
    ],
)
def test_a_wrong_field_is_400_and_named(
    cluster: Cluster, fields: dict[str, Any], param: str
) -> None:
    answer = cluster.request("POST", CHAT, {"model": "echo", **fields})
    assert answer[0] == 400
    assert error_of(answer)["param"] == param


def test_an_unknown_field_is_400_with_what_to_do(cluster: Cluster) -> None:
    answer = cluster.chat("echo", "hi", temprature=0.1)
    error = error_of(answer)
    assert (answer[0], error["code"]) == (400, "unknown_parameter")
    assert "temperature" in error["message"]


def test_a_url_that_is_none_is_400(cluster: Cluster) -> None:
    order = {"model": "given", "engine": "openai", "urls": ["nonsense"]}
    answer = cluster.request("POST", "/api/v1/models", order)
    assert answer[0] == 400
    assert error_of(answer)["param"] == "urls"


def test_a_body_over_the_limit_is_413(cluster: Cluster) -> None:
    answer = cluster.chat("echo", "x" * 30_000)
    assert answer[0] == 413
    assert error_of(answer)["code"] == "request_too_large"


@pytest.mark.parametrize("key", ["", "hst_wrong", "hst_" + "0" * 10 + "_" + "0" * 49])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/api/v1/models")],
)
def test_without_a_valid_key_it_is_401_everywhere(
    cluster: Cluster, key: str, method: str, path: str
) -> None:
    answer = cluster.request(method, path, {} if method == "POST" else None, key=key)
    assert answer[0] == 401
    assert error_of(answer)["code"] == "invalid_api_key"


def test_health_and_readiness_need_no_key_and_say_nothing_else(cluster: Cluster) -> None:
    assert cluster.request("GET", "/health", key="")[0] == 200
    status, headers, body = cluster.request("GET", "/ready", key="")
    assert status == 503  # one wished model never becomes ready
    assert int(headers["retry-after"]) >= 1
    assert json.loads(body) == {"status": "not ready"}


def test_a_key_for_inference_may_not_administer_nor_leave_its_models(cluster: Cluster) -> None:
    order = {"scopes": ["inference"], "models": ["echo"]}
    made = cluster.json("POST", "/api/v1/keys", order)
    key = made["key"]
    body = {"model": "echo", "messages": HELLO}
    assert cluster.request("POST", CHAT, body, key=key)[0] == 200
    answer = cluster.request("GET", "/api/v1/models", key=key)
    assert (answer[0], error_of(answer)["code"]) == (403, "insufficient_scope")
    answer = cluster.request("GET", "/metrics", key=key)
    assert answer[0] == 403
    answer = cluster.request("POST", CHAT, {**body, "model": "slowly"}, key=key)
    assert answer[0] in (403, 404)
    listed = cluster.json("GET", "/v1/models", key=key)["data"]
    assert [model["id"] for model in listed] == ["echo"]
    cluster.json("DELETE", f"/api/v1/keys/{made['info']['key_id']}")
    cluster.wait_for(
        lambda: cluster.request("POST", CHAT, body, key=key)[0] == 401, 2, "the key is revoked"
    )


def test_a_model_that_is_not_ready_is_503_with_retry_after(cluster: Cluster) -> None:
    answer = cluster.chat("slowly", "hi")
    assert answer[0] == 503
    error = error_of(answer)
    assert error["code"] == "model_loading"
    assert "starting" in error["message"]


def test_the_same_start_again_changes_nothing_and_another_is_409(cluster: Cluster) -> None:
    same = {"model": "echo"}
    status, _, _ = cluster.request("POST", "/api/v1/models", same)
    assert status == 200
    other = {"model": "echo", "engine": "fake", "replicas": 3}
    answer = cluster.request("POST", "/api/v1/models", other)
    error = error_of(answer)
    assert (answer[0], error["code"]) == (409, "already_running")
    assert "replicas" in error["message"]


def test_a_second_up_on_the_same_state_folder_says_who_holds_it(cluster: Cluster) -> None:
    told = _up(f"--state-dir={cluster.state_dir}", "--port=0")
    assert told.returncode == 1
    assert str(cluster.pids("up")[0]) in told.stderr
    assert cluster.chat("echo", "hi")[0] == 200


def test_a_gateway_that_dies_at_each_start_ends_the_start_and_says_why() -> None:
    with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as name:  # short: see StatePaths
        folder = Path(name)
        (folder / "run" / "gateway.sock").mkdir(parents=True)  # where it wants to listen
        config = folder / "hostler.toml"
        config.write_text(fake_model("echo"))
        told = _up(f"--state-dir={folder}", "--port=0", f"--config={config}")
    assert told.returncode == 1
    assert "the gateway does not start: " in told.stderr
    assert "Traceback" not in told.stderr


def test_a_controller_that_dies_by_a_bug_ends_the_start_with_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"if os.environ.get({ROLE_TAG!r}) == 'controller':\n"
        "    sys.stderr.write('Traceback (most recent call last):\\nOddError: a wheel came off\\n')\n"
        "    sys.stderr.flush()\n"
        "    os._exit(1)\n"
    )
    state = tmp_path / "state"
    told = _up(f"--state-dir={state}", "--port=0", env={"PYTHONPATH": str(tmp_path)})
    assert told.returncode == 1
    assert "the controller does not start: the end of " in told.stderr
    assert "OddError: a wheel came off" in told.stderr


def test_a_port_in_use_is_one_clear_sentence(cluster: Cluster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = _up(f"--state-dir={cluster.root / 'other'}", f"--port={port}")
    assert told.returncode == 1
    assert f"port {port}" in told.stderr
    assert "--port" in told.stderr
    assert "Traceback" not in told.stderr


def test_F100_an_address_of_the_network_is_refused_with_the_reason(cluster: Cluster) -> None:
    told = _up(f"--state-dir={cluster.root / 'open'}", "--host=0.0.0.0", "--port=0")
    assert told.returncode == 78
    assert "--allow-remote" in told.stderr


def test_a_state_folder_that_cannot_be_made_is_one_clear_sentence(cluster: Cluster) -> None:
    blocked = cluster.root / "a-file"
    blocked.write_text("")
    told = _up(f"--state-dir={blocked}/state", "--port=0")
    assert told.returncode == 1
    assert "--state-dir" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.skipif(is_root(), reason="root may write everywhere")
def test_a_state_folder_that_is_not_writable_is_one_clear_sentence(cluster: Cluster) -> None:
    folder = cluster.root / "fixed"
    folder.mkdir()
    os.chmod(folder, 0o500)
    told = _up(f"--state-dir={folder}", "--port=0")
    assert told.returncode == 1
    assert "writable" in told.stderr or "cannot be made" in told.stderr


def test_an_unknown_setting_is_refused_with_the_nearest_one(cluster: Cluster) -> None:
    config = cluster.root / "wrong.toml"
    config.write_text("[server]\nprot = 8100\n")
    told = _up(f"--config={config}", f"--state-dir={cluster.root / 'x'}")
    assert told.returncode == 78
    assert "server.port" in told.stderr


def test_F110_the_admin_key_is_nowhere_but_in_its_file(cluster: Cluster) -> None:
    key = cluster.admin_key
    assert (cluster.state_dir / "admin.key").stat().st_mode & 0o777 == 0o600
    secret = key.rpartition("_")[2].encode()
    for path in cluster.state_dir.rglob("*"):
        if path.is_file() and path.name != "admin.key":
            assert secret not in path.read_bytes(), path
    assert secret not in cluster.output.read_bytes()


# Private


def _up(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "hostler", "up", *arguments]
    environment = child_environment(env)
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=40, check=False, env=environment
    )


def _raw(cluster: Cluster, body: bytes) -> bytes:
    from urllib.parse import urlsplit

    address = urlsplit(cluster.url)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {cluster.admin_key}\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection((address.hostname, address.port), 10) as connection:
        connection.sendall(head + body)
        received = b""
        while data := connection.recv(65536):
            received += data
    return received
