"""Gateways of others beside ours: HAProxy, Rust routers, LiteLLM. Each before the same two mock engines.

    apt-get install haproxy
    python -m bench.peers --install sglang-router,vllm-router,litellm   # a venv each, some minutes

A peer that is not there is left out. Rust routers run in their leanest setting (round robin, no line a
request), so the comparison is the hardest one for us.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import machine
from bench.serving import Server, free_port, wait_for_port

VENVS = Path.home() / ".cache" / "hostler-bench" / "venvs"
LITELLM_KEY = "sk-benchmark-only-0123456789"  # it does not start without one
PACKAGES = {
    "sglang-router": "sglang-router",
    "vllm-router": "vllm-router",
    "litellm": "litellm[proxy]",
}
START_S = 40.0

HAPROXY = """global
  maxconn 8192
  nbthread 1
defaults
  mode http
  option http-no-delay
  http-reuse always
  timeout connect 5s
  timeout client 300s
  timeout server 300s
frontend in
  bind 127.0.0.1:{port} backlog 4096
  default_backend mock
backend mock
  balance leastconn
  server a 127.0.0.1:{one}
  server b 127.0.0.1:{two}
"""

LITELLM = """model_list:
  - model_name: mock
    litellm_params: {{model: openai/mock, api_base: "http://127.0.0.1:{one}/v1", api_key: sk-mock}}
  - model_name: mock
    litellm_params: {{model: openai/mock, api_base: "http://127.0.0.1:{two}/v1", api_key: sk-mock}}
litellm_settings: {{telemetry: false, set_verbose: false}}
"""


def present() -> list[str]:
    """The peers that can be started here."""
    found = ["haproxy"] if shutil.which("haproxy") else []
    return found + [name for name in PACKAGES if _tool(name).exists()]


@contextmanager
def peer(name: str, ports: Sequence[int], core: int) -> Iterator[Server]:
    """One of them, answering on a port of its own."""
    folder = Path(tempfile.mkdtemp(prefix="hst-peer", dir="/tmp"))
    port = free_port()
    values = {"port": port, "one": ports[0], "two": ports[1]}
    env = {**os.environ, "NO_PROXY": "*"}
    if name == "haproxy":
        (folder / "haproxy.cfg").write_text(HAPROXY.format(**values))
        command = ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]
    elif name == "litellm":
        (folder / "litellm.yaml").write_text(LITELLM.format(**values))
        command = [str(_tool(name)), "--config", str(folder / "litellm.yaml")]
        command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        env |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        env |= {"LITELLM_MODE": "PRODUCTION", "LITELLM_MASTER_KEY": LITELLM_KEY}
    else:
        urls = [f"http://127.0.0.1:{one}" for one in ports]
        level = "warn" if name == "sglang-router" else "warning"
        command = [str(_tool(name)), *(["launch"] if name == "sglang-router" else [])]
        command += ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", *urls]
        command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
        command += ["--policy", "round_robin", "--log-level", level]
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=folder
    )
    try:
        wait_for_port(port, START_S)
        time.sleep(2.0)  # routers look at their workers first
        pids = machine.tree(process.pid)
        for pid in pids:
            machine.pin(pid, core)
        yield Server(name, port, pids, pids, LITELLM_KEY if name == "litellm" else "")
    finally:
        machine.end(process)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def install(name: str) -> None:
    """Make a venv with the newest release."""
    venv = VENVS / name
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "-q", PACKAGES[name]]
    subprocess.run(pip, check=True)


# Private


def _tool(name: str) -> Path:
    return VENVS / name / "bin" / name


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="bench.peers", description="Install peers for make bench."
    )
    parser.add_argument(
        "--install", required=True, help=f"of {', '.join(PACKAGES)}; commas between"
    )
    for wanted in parser.parse_args().install.split(","):
        print(f"installing {wanted}", flush=True)
        install(wanted)
