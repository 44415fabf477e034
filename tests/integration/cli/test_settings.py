"""`hostler settings` with a real server, and without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hostler.app.config import child_environment
from hostler.cli.exits import Exit
from hostler.testing.cluster import Cluster

CONFIG = """
models = []

[gateway]
attempts = 5

[store]
url = ""

[telemetry]
otlp_endpoint = ""
"""


def run(*words: str, state: Path) -> tuple[int, str, str]:
    env = {**child_environment(), "HOSTLER_STATE_DIR": str(state), "HOSTLER_LOG_JSON": "true"}
    for name in ("HOSTLER_URL", "HOSTLER_API_KEY", "HOSTLER_PORT"):
        env.pop(name, None)
    argv = [sys.executable, "-m", "hostler", "settings", *words]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def row(text: str, name: str) -> str:
    """One row of the table, its cells joined by ` | `."""
    [line] = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return " | ".join(cell.strip() for cell in line.split("  ") if cell.strip())


@pytest.mark.timeout(180)
def test_a_running_server_tells_what_it_uses_and_who_gave_it() -> None:
    with Cluster(CONFIG, env={"HOSTLER_LOG_JSON": "1"}) as cluster:
        state = cluster.state_dir
        code, out, err = run("--changed", state=state)
        assert (code, err) == (Exit.OK, "")
        assert out.startswith(f"config file {cluster.config}, read ")
        assert row(out, "gateway.attempts") == "gateway.attempts | 5 | config file"
        assert row(out, "server.port") == "server.port | 0 | option --port"
        assert row(out, "log_json") == "log_json | true | environment HOSTLER_LOG_JSON"
        assert row(out, "state_dir") == f"state_dir | {state} | option --state-dir"
        assert row(out, "store.url") == "store.url | not set | config file"
        assert "gateway.lost_max" not in out

        changed = CONFIG.replace("= 5", "= 6") + "[life]\nkill_grace_s = 9.0\n"
        cluster.config.write_text(changed)
        code, out, err = run("gateway.attempts", state=state)
        assert row(out, "gateway.attempts").startswith("gateway.attempts | 5 | config file")
        assert f"config file {cluster.config} has changed since it was read" in err

        cluster.json("POST", "/api/v1/gateways/restart")
        found = json.loads(run("--json", state=state)[1])
        values = {one["name"]: one["value"] for one in found["settings"]}
        assert (values["gateway.attempts"], values["life.kill_grace_s"]) == (6, 5.0)
        assert found["notes"] == [
            "life: takes effect when `hostler up` is started anew",
            "gateway.attempts: gateways use it since they were renewed; the controller goes on with 5",
        ]
        code, _, err = run("portt", state=state)
        assert (code, err) == (
            Exit.NOT_FOUND,
            "hostler: no setting has 'portt' in its name; did you mean server.port?\n",
        )


def test_without_a_server_it_is_what_would_be_read(tmp_path: Path) -> None:
    path = tmp_path / "hostler.toml"
    path.write_text("[server]\nport = 9000\n[store]\nurl = 'postgresql://me:sesame@db/x'\n")
    code, out, err = run("--config", str(path), "server.port", "store.url", state=tmp_path / "none")
    assert code == Exit.OK
    assert err == f"hostler: of no running server: what `hostler up --config {path}` would use\n"
    assert row(out, "server.port").startswith("server.port | 9000 | config file | 0: the kernel")
    assert row(out, "store.url").startswith("store.url | set | config file")
    assert "sesame" not in out
    code, out, _ = run("--changed", state=tmp_path / "none")
    assert row(out, "state_dir").endswith("environment HOSTLER_STATE_DIR")
    path.write_text("[server]\nprot = 9000\n")
    code, out, err = run("--config", str(path), state=tmp_path / "none")
    assert (code, out) == (Exit.CONFIG, "")
    assert "unknown setting server.prot; did you mean server.port?" in err
    assert os.listdir(tmp_path) == ["hostler.toml"]
