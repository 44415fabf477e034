"""What an engine on another host costs: gateway → TLS → relay → engine, beside an engine here.

A mock engine on a Unix socket and the load share one core; gateway and relay have the other. The gateways
are `hostler gateway run` as shipped; they are told their one instance by a kept snapshot.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from bench import machine
from bench.figures import Part, median, spread
from bench.gateway import run_loads, wrk_command
from bench.serving import HERE, Server, free_port, run_pinned, wait_for_port
from hostler.app.auth import new_key
from hostler.app.paths import StatePaths
from hostler.core.lifecycle import State
from hostler.core.model import WorkerType
from hostler.core.snapshot import Endpoint, InstanceView, ModelView, Snapshot
from hostler.registry.kept import KeptSnapshot
from hostler.wire.authority import Authority
from hostler.wire.csr import make_request
from hostler.wire.identity import CA_FILE, CERT_FILE, CONTROLLER, KEY_FILE, Identity, Peer

INSTANCE = secrets.token_hex(6)


def measure(part: Part, *, rounds: int = 3, seconds: float = 3.0) -> None:
    """Add the figures of this part."""
    if shutil.which("wrk") is None:
        part.add("CPU a request", None, "µs", note="apt-get install wrk")
        return
    with ExitStack() as stack:
        load_core, core = machine.cores()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        _, near, far = (stack.enter_context(one) for one in _processes(folder, load_core, core))
        noise: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            for server in (near, far) if number % 2 else (far, near):
                run_loads(server, load_core, seconds if number else 1.0, noise)
            if number == 0:  # a warm-up
                for server in (near, far):
                    server.costs, server.whole, server.rates = {}, {}, {}
        _report(part, near, far, noise)
        _delay(part, near, far, load_core, rounds, seconds)


# Private


def _report(part: Part, near: Server, far: Server, noise: dict[str, list[float]]) -> None:
    """`whole` of the far one is gateway and relay together."""
    for name, what in (
        ("request", "CPU a request, 64 connections"),
        ("fast", "CPU a chunk, 100 fast streams"),
        ("paced", "CPU a chunk, 500 paced streams"),
    ):
        others = median(noise[name])
        for told, costs in (
            ("engine here", near.costs[name]),
            ("engine on a host, gateway", far.costs[name]),
            ("engine on a host, gateway and relay", far.whole[name]),
        ):
            part.add(f"{what}, {told}", median(costs), "µs", noise=others, note=spread(costs, 1))
    for server in (near, far):
        part.add(
            f"failed requests and streams, {server.name}", server.errors, "", at_most=0,
            note=server.failure,
        )  # fmt: skip


def _delay(part: Part, near: Server, far: Server, core: int, rounds: int, seconds: float) -> None:
    """One connection, one request after the other."""
    seen: dict[str, list[float]] = {"near": [], "far": []}
    for number in range(rounds + 1):
        for which, server in (("near", near), ("far", far)):
            command = wrk_command(server, seconds if number else 1.0, connections=1)
            found = run_pinned(command, core, {"BENCH_KEY": server.key})
            if number:
                seen[which].append(found["p50_us"])
    for which, told in (("near", "engine here"), ("far", "engine on a host")):
        name = f"p50 of a lone request, {told}"
        part.add(name, median(seen[which]), "µs", note=spread(seen[which], 0))


def _processes(folder: Path, load_core: int, core: int) -> Iterator[AbstractContextManager[Server]]:
    """The relay with its engine, a gateway whose engine is here, one whose engine is on a host."""
    host, port = StatePaths(folder / "host"), free_port()
    key = new_key(["inference"])
    model = ModelView(name="mock", worker_type=WorkerType.LLM, engine="openai")
    socket = host.engine_socket(INSTANCE)

    def instance(endpoint: Endpoint) -> InstanceView:
        return InstanceView(
            instance_id=INSTANCE, epoch=1, model_name="mock", worker_type=WorkerType.LLM,
            engine="openai", state=State.READY, endpoint=endpoint, concurrency=1024,
            upstream_model="mock",
        )  # fmt: skip

    authority = Authority.open(host.tls_dir, ["localhost"])
    far = Endpoint(host="127.0.0.1", port=port, host_id=CONTROLLER.role, prefix=f"/i/{INSTANCE}")
    yield _relay(host, port, load_core, core)
    for name, endpoint in (("near", Endpoint(socket=str(socket))), ("far", far)):
        paths = StatePaths(folder / name)
        paths.create()
        _certificate(authority, paths.tls_dir)
        snapshot = Snapshot(
            version=1, models=(model,), instances=(instance(endpoint),), keys=(key.view,)
        )
        KeptSnapshot(paths.kept_snapshot).save(snapshot)
        yield _gateway(name, paths, key.plain, core, folder / "host" / "relay.pid")


@contextmanager
def _relay(paths: StatePaths, port: int, load_core: int, core: int) -> Iterator[Server]:
    paths.create()
    engine = subprocess.Popen(
        [sys.executable, "-m", "bench.mock", f"--socket={paths.engine_socket(INSTANCE)}"],
        cwd=HERE.parent,
    )
    argv = [sys.executable, "-m", "hostler", "relay", f"--state-dir={paths.state_dir}"]
    relay = subprocess.Popen([*argv, f"--port={port}"], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        machine.pin(engine.pid, load_core)
        machine.pin(relay.pid, core)
        (paths.state_dir / "relay.pid").write_text(str(relay.pid))
        yield Server("relay", port, [relay.pid], [relay.pid])
    finally:
        machine.end(relay)
        machine.end(engine)


@contextmanager
def _gateway(
    name: str, paths: StatePaths, key: str, core: int, relay_pid: Path
) -> Iterator[Server]:
    port = free_port()
    settings = paths.state_dir / "hostler.toml"
    settings.write_text(f"[server]\nport = {port}\n")
    argv = [sys.executable, "-m", "hostler", "gateway", "run", f"--state-dir={paths.state_dir}"]
    process = subprocess.Popen(
        [*argv, f"--config={settings}"], stderr=subprocess.DEVNULL, env=dict(os.environ)
    )
    try:
        wait_for_port(port)
        time.sleep(1.0)  # until it has gone back to the snapshot that was kept
        machine.pin(process.pid, core)
        yield Server(name, port, [process.pid], [process.pid, int(relay_pid.read_text())], key)
    finally:
        machine.end(process)


def _certificate(authority: Authority, folder: Path) -> None:
    """The tls folder of a gateway."""
    folder.mkdir(mode=0o700, exist_ok=True)
    key, csr = make_request()
    signed = authority.sign(csr, Identity(Peer.GATEWAY, "gate1"))
    (folder / KEY_FILE).write_text(key)
    (folder / CERT_FILE).write_text(signed.certificate)
    (folder / CA_FILE).write_text(authority.certificate)
