"""What the gateway costs beside nginx: CPU a request and a streamed chunk, in one run, turn about.

Two mock engines and the load share one core; the gateway, or nginx, has the other. The gateway is that of
a real `hostler up`: keys, admission, routing, metrics and access log as shipped.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from bench import machine
from bench.figures import Part, median, spread
from bench.peers import peer, present
from bench.serving import HERE, Server, free_port, run_pinned, wait_for_port
from hostler.testing.cluster import Cluster

CONNECTIONS = 64
REQUEST_AIM, CHUNK_AIM = 2.0, 1.3  # times nginx

# name, slots, chunks, pause in ms, ramp in s
STREAMS = (("fast", 100, 200, 0, 0.0), ("paced", 500, 50, 20, 1.0))


def measure(part: Part, *, rounds: int = 3, seconds: float = 3.0) -> None:
    """Add the figures of this part."""
    with ExitStack() as stack:
        load_core, gateway_core = machine.cores()
        ports = [stack.enter_context(mock_engine(load_core)) for _ in range(2)]
        hostler = stack.enter_context(hostler_up(ports, gateway_core))
        servers: list[Server] = []
        for name in present():
            try:
                servers.append(stack.enter_context(peer(name, ports, gateway_core)))
            except TimeoutError as error:
                part.add(f"{name} did not start", None, "", note=str(error))
        if shutil.which("nginx") is not None:
            servers.insert(0, stack.enter_context(nginx(ports, gateway_core)))
        servers.append(hostler)
        noise: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            for server in servers if number % 2 else servers[::-1]:
                with stopped(one for one in servers[:-1] if one is not server):
                    run_loads(server, load_core, seconds if number else 1.0, noise)
                if number == 0:  # a warm-up
                    server.costs, server.whole, server.rates = {}, {}, {}
        report(part, servers, noise)


@contextmanager
def stopped(servers: Iterable[Server]) -> Iterator[None]:
    """Those that wait for their turn: their timers and health checks would share the core, and its caches."""
    pids = [pid for server in servers for pid in server.all_pids]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def run_loads(server: Server, core: int, seconds: float, noise: dict[str, list[float]]) -> None:
    """Put each load on one server."""
    loads = [("request", wrk_command(server, seconds))] if shutil.which("wrk") is not None else []
    loads += [(name, streams_command(server, shape, seconds)) for name, *shape in STREAMS]
    for name, command in loads:
        with machine.watch_noise() as seen:
            before, whole = machine.cpu_s(server.pids), machine.cpu_s(server.all_pids)
            found = run_pinned(command, core, {"BENCH_KEY": server.key})
            used = machine.cpu_s(server.pids) - before
            used_whole = machine.cpu_s(server.all_pids) - whole
        count = max(1, int(found["requests"] if name == "request" else found["chunks"]))
        server.costs.setdefault(name, []).append(used * 1e6 / count)
        server.whole.setdefault(name, []).append(used_whole * 1e6 / count)
        server.rates.setdefault(name, []).append(count / float(found["seconds"]))
        server.errors += int(found["errors"])
        server.failure = server.failure or str(found.get("first_error", ""))
        noise.setdefault(name, []).append(seen.others_cores)


def report(part: Part, servers: Sequence[Server], noise: dict[str, list[float]]) -> None:
    """Turn what was counted into figures."""
    hostler = servers[-1]
    first = servers[0] if servers[0].name == "nginx" else None
    for name, aim in (("request", REQUEST_AIM), ("fast", CHUNK_AIM), ("paced", CHUNK_AIM)):
        what = {
            "request": f"CPU a request, {CONNECTIONS} connections",
            "fast": "CPU a chunk, 100 fast streams of 200",
            "paced": "CPU a chunk, 500 streams paced 20 ms",
        }[name]
        if name not in hostler.costs:
            part.add(what, None, "µs", note="no wrk here: apt-get install wrk")
            continue
        costs, others = hostler.costs[name], median(noise[name])
        rate = f"{median(hostler.rates[name]):.0f}/s"
        part.add(
            what, median(costs), "µs", noise=others, note=f"gateway; {spread(costs, 1)}; {rate}"
        )
        part.add(f"{what}, whole control plane", median(hostler.whole[name]), "µs", noise=others)
        if first is None:
            part.add(
                f"{what} ÷ nginx",
                None,
                "x",
                at_most=aim,
                note="no nginx: apt-get install nginx-light",
            )
            continue
        theirs = first.costs[name]
        rate = f"{median(first.rates[name]):.0f}/s"
        part.add(
            f"{what}, nginx",
            median(theirs),
            "µs",
            noise=others,
            note=f"{spread(theirs, 1)}; {rate}",
        )
        ratios = [one / other for one, other in zip(costs, theirs, strict=True)]
        part.add(
            f"{what} ÷ nginx", median(ratios), "x", at_most=aim, noise=others, note=spread(ratios)
        )
        for other in servers[1:-1]:
            told = median(other.costs[name])
            rate = f"{median(other.rates[name]):.0f}/s, ours ÷ it {median(costs) / told:.2f}"
            part.add(f"{what}, {other.name}", told, "µs", noise=others, note=rate)
    for server in servers:
        part.add(
            f"failed requests and streams, {server.name}",
            server.errors,
            "",
            at_most=0,
            note=server.failure,
        )


# What is started


@contextmanager
def mock_engine(core: int) -> Iterator[int]:
    """A mock engine on a free port."""
    port = free_port()
    command = [sys.executable, "-m", "bench.mock", f"--port={port}"]
    process = subprocess.Popen(command, cwd=HERE.parent, stdin=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        machine.pin(process.pid, core)
        yield port
    finally:
        machine.end(process)


@contextmanager
def hostler_up(ports: Sequence[int], core: int) -> Iterator[Server]:
    """A whole Hostler before the mock engines."""
    urls = json.dumps([f"http://127.0.0.1:{port}/v1" for port in ports])
    config = '[[models]]\nname = "mock"\ntype = "llm"\nengine = "openai"\nconcurrency = 1024\n'
    config += f"urls = {urls}\n"
    with Cluster(config) as cluster:
        gateway, everybody = cluster.pids("gateway"), cluster.everything()
        for pid in everybody:
            machine.pin(pid, core)
        yield Server(
            "hostler", urlsplit(cluster.url).port or 0, gateway, everybody, cluster.admin_key
        )


@contextmanager
def nginx(ports: Sequence[int], core: int) -> Iterator[Server]:
    """nginx before the same engines, one worker process."""
    folder = Path(tempfile.mkdtemp(prefix="hst-nginx", dir="/tmp"))
    port = free_port()
    text = (HERE / "nginx.conf").read_text()
    for name, value in (("PORT", port), ("ONE", ports[0]), ("TWO", ports[1]), ("FOLDER", folder)):
        text = text.replace(f"@{name}@", str(value))
    (folder / "nginx.conf").write_text(text)
    command = ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        while len(pids := machine.tree(process.pid)) < 2 and process.poll() is None:
            time.sleep(0.02)  # master and worker
        for pid in pids:
            machine.pin(pid, core)
        yield Server("nginx", port, pids, pids)
    finally:
        machine.end(process)
        shutil.rmtree(folder, ignore_errors=True)


def wrk_command(server: Server, seconds: float, connections: int = CONNECTIONS) -> list[str]:
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    shape = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "20s"]
    return ["wrk", *shape, "-s", str(HERE / "chat.lua"), url]


def streams_command(server: Server, shape: Sequence[float], seconds: float) -> list[str]:
    slots, chunks, pause_ms, ramp = shape
    command = [
        sys.executable,
        "-m",
        "bench.streams",
        f"--port={server.port}",
        f"--key={server.key}",
    ]
    command += [f"--slots={slots:.0f}", f"--chunks={chunks:.0f}", f"--pause-ms={pause_ms:.0f}"]
    return [*command, f"--ramp={ramp}", f"--seconds={seconds}"]
