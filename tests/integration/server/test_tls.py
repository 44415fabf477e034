"""A whole server over TLS: its URL, the commands, the official SDK, and a certificate that is renewed."""

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

from hostler.testing.cluster import Cluster, fake_model
from tests.integration.wire.test_tls import CA, issue

NAME = "ai.example.org"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cert, key = issue(tmp_path, "localhost", NAME)
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = f'[server]\nhost = "0.0.0.0"\ntls_cert = "{cert}"\ntls_key = "{key}"\n'
    made = Cluster(tls + fake_model("echo"))
    made.ca = str(tmp_path / "ca.pem")
    with made:
        yield made


def hostler(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if name != "SSL_CERT_FILE"}
    return subprocess.run(
        [sys.executable, "-m", "hostler", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=plain | (env or {}),
    )


def serial(port: int, ca: str) -> object:
    context = ssl.create_default_context(cafile=ca)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as sock,
        context.wrap_socket(sock, server_hostname=NAME) as tls,
    ):
        return (tls.getpeercert() or {})["serialNumber"]


def test_F100_everything_speaks_tls_and_a_renewed_certificate_is_shown(
    cluster: Cluster, tmp_path: Path
) -> None:
    url = cluster.url
    port = urlsplit(url).port or 0
    assert url.startswith("https://localhost:")
    assert cluster.chat("echo", "hi")[0] == 200
    assert cluster.request("GET", "/health", headers={"host": NAME})[0] == 200
    assert cluster.request("GET", "/health", headers={"host": "other.example"})[0] == 421
    # the commands: by the state folder, by a URL with a CA, and by one they cannot trust
    state, key = f"--state-dir={cluster.state_dir}", f"--key={cluster.admin_key}"
    near = hostler("model", "list", state)
    assert near.returncode == 0, near.stderr
    assert "echo" in near.stdout
    for option, env in ((f"--ca={cluster.ca}", {}), ("", {"SSL_CERT_FILE": cluster.ca})):
        far = hostler("model", "list", f"--url={url}", key, *filter(None, [option]), env=env)
        assert far.returncode == 0, far.stderr
        assert "echo" in far.stdout
    stranger = hostler("model", "list", f"--url={url}", key)
    assert stranger.returncode != 0
    assert "--ca" in stranger.stderr
    told = hostler("doctor", "--offline", state, "--json")
    assert f"good for localhost, {NAME}" in told.stdout
    # the official SDK
    trust = ssl.create_default_context(cafile=cluster.ca)
    with (
        httpx2.Client(verify=trust) as http,
        openai.OpenAI(base_url=f"{url}/v1", api_key=cluster.admin_key, http_client=http) as sdk,
    ):
        stream = sdk.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        before = serial(port, cluster.ca)
        issue(tmp_path, "localhost", NAME)
        cluster.wait_for(lambda: serial(port, cluster.ca) != before, 5, "the new certificate")
        assert sdk.models.list().data[0].id == "echo"  # on the connection from before


def test_a_certificate_that_cannot_be_used_stops_the_start_with_the_reason(tmp_path: Path) -> None:
    cert, _ = issue(tmp_path)
    config = tmp_path / "hostler.toml"
    config.write_text(f'[server]\ntls_cert = "{cert}"\ntls_key = "{tmp_path}/none.pem"\n')
    told = hostler("up", "--port=0", f"--state-dir={tmp_path / 's'}", f"--config={config}")
    assert told.returncode == 78
    assert "none.pem: cannot be read" in told.stderr
