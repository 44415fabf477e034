"""What a second gateway process costs and brings: CPU a request, and throughput, at one and at two.

The gateways lend the same slots, so each claim looks at the board. With two cores the load and the engines
need one of them, so throughput at two gateways is what is left. What a second core would bring is seen with
small ones: each gateway has a quarter of a core to itself, and load and engines have the rest.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

from bench import machine
from bench.figures import Part, median, spread
from bench.gateway import CONNECTIONS as GATEWAY_CONNECTIONS
from bench.gateway import mock_engine, wrk_command
from bench.serving import Server, run_pinned
from hostler.testing.cluster import Cluster

SECONDS = 3.0
MORE_AIM = 1.15  # CPU a request at two, over that at one
SHARE = 0.25  # of a core that each gateway has
CONNECTIONS = 256  # then: the kernel deals them out unevenly
FASTER_AIM = 1.7


def measure(part: Part, *, rounds: int = 3) -> None:
    """Add the figures of this part."""
    if shutil.which("wrk") is None:
        part.add("CPU a request", None, "µs", note="no wrk here: apt-get install wrk")
        return
    with ExitStack() as stack:
        load_core, gateway_core = machine.cores()
        ports = [stack.enter_context(mock_engine(load_core)) for _ in range(2)]
        servers = [stack.enter_context(hostler_of(count, ports)) for count in (1, 2)]
        with machine.watch_noise() as noise:
            for number in range(rounds + 1):
                for server in servers if number % 2 else servers[::-1]:
                    for pid in server.all_pids:
                        machine.pin(pid, gateway_core)
                    run_once(server, "pinned", load_core, SECONDS if number else 1.0)
                    for pid in server.pids:
                        machine.free(pid)
                    run_once(server, "free", load_core, SECONDS if number else 1.0)
                    with suppress(OSError), machine.share_of_a_core(server.pids, SHARE):
                        run_once(server, "share", load_core, SECONDS, CONNECTIONS)
                    if number == 0:
                        server.costs, server.rates = {}, {}
        one, two = servers
        for server in servers:
            part.add(
                f"CPU a request, {server.name}, gateways on one core",
                median(server.costs["pinned"]),
                "µs",
                noise=noise.others_cores,
                note=f"{spread(server.costs['pinned'], 1)}; {median(server.rates['pinned']):.0f}/s",
            )
        ratios = [b / a for a, b in zip(one.costs["pinned"], two.costs["pinned"], strict=True)]
        part.add(
            "CPU a request, two ÷ one", median(ratios), "x", at_most=MORE_AIM, note=spread(ratios)
        )
        rates = [b / a for a, b in zip(one.rates["free"], two.rates["free"], strict=True)]
        part.add(
            "requests a second, two ÷ one, load on one of the two cores",
            median(rates),
            "x",
            noise=noise.others_cores,
            note=f"{spread(rates)}; {median(one.rates['free']):.0f}/s, {median(two.rates['free']):.0f}/s",
        )
        if "share" in one.rates:
            rates = [b / a for a, b in zip(one.rates["share"], two.rates["share"], strict=True)]
            told = [f"{median(server.rates['share']):.0f}/s" for server in servers]
            part.add(
                f"requests a second, two ÷ one, each with {SHARE} of a core",
                median(rates),
                "x",
                at_least=FASTER_AIM,
                noise=noise.others_cores,
                note=f"{spread(rates)}; {', '.join(told)}",
            )
        part.add("failed requests", sum(server.errors for server in servers), "", at_most=0)


def run_once(
    server: Server, name: str, core: int, seconds: float, connections: int = GATEWAY_CONNECTIONS
) -> None:
    before = machine.cpu_s(server.pids)
    command = wrk_command(server, seconds, connections)
    found = run_pinned(command, core, {"BENCH_KEY": server.key})
    count = max(1, int(found["requests"]))
    used = machine.cpu_s(server.pids) - before
    server.costs.setdefault(name, []).append(used * 1e6 / count)
    server.rates.setdefault(name, []).append(count / float(found["seconds"]))
    server.errors += int(found["errors"])


@contextmanager
def hostler_of(gateways: int, ports: Sequence[int]) -> Iterator[Server]:
    """A whole Hostler with so many gateways before the mock engines."""
    urls = json.dumps([f"http://127.0.0.1:{port}/v1" for port in ports])
    config = f"[gateway]\nprocesses = {gateways}\n"
    config += '[[models]]\nname = "mock"\ntype = "llm"\nengine = "openai"\nconcurrency = 1024\n'
    with Cluster(f"{config}urls = {urls}\n") as cluster:
        port = urlsplit(cluster.url).port or 0
        name = "one gateway" if gateways == 1 else f"{gateways} gateways"
        yield Server(name, port, cluster.pids("gateway"), cluster.everything(), cluster.admin_key)
