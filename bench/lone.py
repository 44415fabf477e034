"""What a gateway adds to a lone request, beside nginx, and what a stream holds that says nothing for a while.

Placement as in bench/gateway.py: engines and load on one core, the gateway, or nginx, on the other.
"""

import shutil
import subprocess
import sys
import time
from contextlib import ExitStack

from bench import machine
from bench.figures import Part, median, spread
from bench.gateway import hostler_up, mock_engine, nginx, wrk_command
from bench.serving import HERE, Server, run_pinned

STREAMS = 1000
PAUSE_MS = 6000
WARM_STREAMS = 20


def measure(part: Part, *, rounds: int = 3, seconds: float = 3.0) -> None:
    """Add the figures of this part."""
    with ExitStack() as stack:
        load_core, gateway_core = machine.cores()
        ports = [stack.enter_context(mock_engine(load_core)) for _ in range(2)]
        hostler = stack.enter_context(hostler_up(ports, gateway_core))
        if shutil.which("wrk") and shutil.which("nginx"):
            servers = [
                Server("the engine itself", ports[0], [], []),
                stack.enter_context(nginx(ports, gateway_core)),
                hostler,
            ]
            measure_delay(part, servers, load_core, rounds, seconds)
        else:
            part.add("added delay", None, "µs", note="apt-get install wrk nginx-light")
        measure_idle_streams(part, hostler, load_core)


def measure_delay(
    part: Part, servers: list[Server], core: int, rounds: int, seconds: float
) -> None:
    """One connection, one request after the other: what lies between the engine and its client."""
    seen: dict[tuple[str, str], list[float]] = {}
    with machine.watch_noise() as noise:
        for number in range(rounds + 1):
            for server in servers if number % 2 else servers[::-1]:
                command = wrk_command(server, seconds if number else 1.0, connections=1)
                found = run_pinned(command, core, {"BENCH_KEY": server.key})
                for which in ("p50_us", "p99_us"):
                    if number:  # the first was a warm-up
                        seen.setdefault((server.name, which), []).append(found[which])
    for which in ("p50_us", "p99_us"):
        direct, theirs, ours = (seen[server.name, which] for server in servers)
        added = [one - two for one, two in zip(ours, direct, strict=True)]
        beside = [one - two for one, two in zip(theirs, direct, strict=True)]
        name = f"added to the {which[:3]} of a lone request"
        part.add(name, median(added), "µs", noise=noise.others_cores, note=spread(added, 0))
        part.add(f"{name}, nginx", median(beside), "µs", note=spread(beside, 0))
        part.add(
            f"{name} ÷ nginx", median(added) / max(1.0, median(beside)), "x", at_most=2.0,
            note=f"the engine itself: {median(direct):.0f} µs",
        )  # fmt: skip


def measure_idle_streams(part: Part, server: Server, core: int) -> None:
    """Memory of the gateway's process with so many open streams that wait for their next chunk."""
    run_pinned(_streams(server, WARM_STREAMS, 10), core, {})
    time.sleep(1.0)
    before = machine.memory_mb(server.pids)
    process = subprocess.Popen(
        _streams(server, STREAMS, PAUSE_MS), cwd=HERE.parent, stdout=subprocess.PIPE
    )
    try:
        machine.pin(process.pid, core)
        time.sleep(PAUSE_MS / 1000 * 0.8)
        after = machine.memory_mb(server.pids)
        told, _ = process.communicate(timeout=60)
    finally:
        machine.end(process)
    errors = b'"errors": 0,' not in told
    part.add(
        f"{STREAMS} open idle streams over idle, RSS", after[0] - before[0], "MB", at_most=60,
        note=f"{(after[0] - before[0]) * 1e3 / STREAMS:.1f} KB each; before: {before[0]:.0f} MB",
    )  # fmt: skip
    part.add("errors of these streams", float(errors), "", at_most=0, note=told.decode()[:80])


# Private


def _streams(server: Server, slots: int, pause_ms: int) -> list[str]:
    command = [sys.executable, "-m", "bench.streams", f"--port={server.port}"]
    command += [f"--key={server.key}", f"--slots={slots}", "--chunks=2", f"--pause-ms={pause_ms}"]
    return [*command, "--ramp=1", "--seconds=1"]
