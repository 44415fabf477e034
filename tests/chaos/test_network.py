"""Networks that lose packets, and ports that change hands: servers given by URL, in namespaces."""

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hostler.core.snapshot import Endpoint
from hostler.testing.cluster import Cluster, is_root
from hostler.testing.ledger import check_answers, check_ends, tally
from hostler.testing.load import Outcome, Target, run_load
from hostler.wire.client import UpstreamLost, fetch
from tests.chaos.figures import IS_LONG, tell
from tests.chaos.pressure import Pressure
from tests.integration.gateway.rig import USER, Rig, rig
from tests.integration.gateway.test_identity import free_port, publish_urls

pytestmark = pytest.mark.slow(40)

PORT = 9000
LOSSY_S = 60.0 if IS_LONG else 3.0
LOSSES = [(0.3, ("OUTPUT",)), (0.3, ("INPUT",)), (0.1, ("INPUT", "OUTPUT"))]


class Host:
    """A network namespace with one fake engine in it, joined to ours by a veth pair."""

    def __init__(self, number: int, token: str, delay_ms: int) -> None:
        self.name = f"hst{token}{number}"
        self.address = f"10.{int(token[:2], 16)}.{int(token[2:4], 16)}.{number * 4 + 2}"
        ours = f"{self.address.rpartition('.')[0]}.{number * 4 + 1}"
        self._link = f"v{token}{number}"
        inside = f"w{token}{number}"
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self._link, "type", "veth", "peer", "name", inside)
        run("ip", "link", "set", inside, "netns", self.name)
        run("ip", "addr", "add", f"{ours}/30", "dev", self._link)
        run("ip", "link", "set", self._link, "up")
        for words in (
            ("addr", "add", f"{self.address}/30", "dev", inside),
            ("link", "set", inside, "up"),
            ("link", "set", "lo", "up"),
        ):
            run("ip", "-n", self.name, *words)
        script = f'{{"tokens": 6, "delay_ms": {delay_ms}}}'
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m"]
        command += ["hostler.testing.fake_engine", f"--port={PORT}", f"--host={self.address}"]
        source = str(Path(__file__).parents[2] / "src")
        self.engine = subprocess.Popen(
            [*command, "--model=echo", f"--script={script}"],
            env={**os.environ, "PYTHONPATH": source},
            stderr=subprocess.DEVNULL,
        )

    def drop(self, *ways: str) -> None:
        """Lose every packet that goes in or out there. ways: INPUT, OUTPUT."""
        for way in ways:
            run("ip", "netns", "exec", self.name, "iptables", "-I", way, "-j", "DROP")

    def lose(self, share: float, *ways: str) -> None:
        """Lose this share of the packets that go in or out there."""
        chance = ["-m", "statistic", "--mode", "random", "--probability", str(share)]
        for way in ways:
            run("ip", "netns", "exec", self.name, "iptables", "-I", way, *chance, "-j", "DROP")

    def heal(self) -> None:
        run("ip", "netns", "exec", self.name, "iptables", "-F")

    def close(self) -> None:
        self.engine.send_signal(signal.SIGKILL)
        self.engine.wait(10)
        for words in (("link", "del", self._link), ("netns", "del", self.name)):
            subprocess.run(["ip", *words], check=False, capture_output=True, timeout=20)


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=20)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    if not is_root() or not shutil.which("ip") or not shutil.which("iptables"):
        pytest.skip("needs root, ip and iptables: it makes network namespaces")
    token = secrets.token_hex(2)
    with ExitStack() as stack:
        made = []
        for number in range(2):
            try:
                made.append(Host(number, token, 20))
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespace can be made here: {error.stderr.decode()}")
            stack.callback(made[-1].close)
        asyncio.run(all_up(made))
        yield made


async def all_up(hosts: list[Host]) -> None:
    async with asyncio.timeout(20):
        for host in hosts:
            while True:
                try:
                    there = Endpoint(host=host.address, port=PORT)
                    await fetch(there, "GET", "/health", timeout_s=1)
                    break
                except UpstreamLost:
                    await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(hosts: list[Host]) -> Iterator[Cluster]:
    urls = ", ".join(f'"http://{host.address}:{PORT}/v1"' for host in hosts)
    model = f'[[models]]\nname = "echo"\nengine = "openai"\nconcurrency = 32\nurls = [{urls}]\n'
    with Cluster(model) as running:
        yield running


@pytest.mark.parametrize(
    "ways", [("INPUT", "OUTPUT"), ("OUTPUT",), ("INPUT",)], ids=["both", "answers", "requests"]
)
def test_F19_F20_a_server_behind_a_cut_network_costs_no_request(
    cluster: Cluster, hosts: list[Host], ways: tuple[str, ...]
) -> None:
    cluster.wait_for(lambda: len(cluster.ready("echo")) == 2, 10, "both are there")
    since = cluster.json("GET", "/api/v1/events?limit=1000")["events"][-1]["seq"]
    with Pressure(cluster, clients=20, name="-".join(ways)) as pressure:
        cluster.wait_for(lambda: len(pressure.seen) >= 50, 10, "this many are answered")
        busy_s = min(1.0, 4 * pressure.slowest_s)  # what other work of the machine adds
        hosts[0].drop(*ways)
        cut_s = time.monotonic()
        try:
            time.sleep(4.0)
        finally:
            hosts[0].heal()
        healed_s = time.monotonic()
        cluster.wait_for(lambda: len(cluster.ready("echo")) == 2, 15, "it is back")
        enough = lambda: len(pressure.seen) >= 500  # noqa: E731
        cluster.wait_for(enough, 20, "as many as on a quiet machine were asked")
        time.sleep(0.5)
    pressure.assert_survived(at_least=500)
    assert pressure.slowest_s < 4.5 + busy_s
    ends = [
        pressure.ended_at_s[one.request_id]
        for one in pressure.seen
        if one.outcome is Outcome.ERROR_EVENT
    ]
    latest_s = min(cut_s + 5.0, healed_s + 0.5) + busy_s
    assert all(cut_s <= end < latest_s for end in ends)
    moves = cluster.json("GET", f"/api/v1/events?after={since}&limit=1000")["events"]
    kinds = [event["kind"] for event in moves if event["kind"].startswith("instance.")]
    assert kinds == ["instance.suspect", "instance.ready"]  # once out, once back
    sys.stderr.write(f"{ways}: slowest {pressure.slowest_s:.2f} s, {tally(pressure.seen)}\n")


@pytest.mark.parametrize(("share", "ways"), LOSSES if IS_LONG else LOSSES[:1])
def test_F21_packets_that_get_lost_put_no_server_out_for_good_and_cost_no_request(
    cluster: Cluster, hosts: list[Host], share: float, ways: tuple[str, ...]
) -> None:
    cluster.wait_for(lambda: len(cluster.ready("echo")) == 2, 15, "both are there")
    with Pressure(cluster, clients=20, name=f"loss-{'-'.join(ways)}") as pressure:
        try:
            for host in hosts:
                try:
                    host.lose(share, *ways)
                except subprocess.CalledProcessError as error:
                    pytest.skip(f"iptables cannot lose packets here: {error.stderr.decode()}")
            seen = watched(cluster, LOSSY_S)
        finally:
            for host in hosts:
                host.heal()
        cluster.wait_for(lambda: len(cluster.ready("echo")) == 2, 15, "both are back")
    judge_loss(f"F21 {share:.0%} of {'+'.join(ways)}", pressure, seen)


def test_F21_a_network_that_delays_puts_no_server_out(tmp_path: Path) -> None:
    """By a proxy of ours: 0 to 200 ms each way, and now and then 600."""
    source = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    null = subprocess.DEVNULL
    with ExitStack() as stack:

        def start(*argv: str) -> None:
            argv = (sys.executable, "-m", *argv)
            process = subprocess.Popen(argv, env=source, stderr=null, cwd=Path(__file__).parents[2])
            stack.callback(process.wait, 10)
            stack.callback(process.kill)

        ports = [free_port() for _ in range(4)]
        for number, (near, far) in enumerate(zip(ports[:2], ports[2:], strict=True)):
            script = '{"tokens": 6, "delay_ms": 5}'
            start(
                "hostler.testing.fake_engine", f"--port={far}", "--model=echo", "--script", script
            )
            start(
                "tests.chaos.jitter", f"--port={near}", f"--to=127.0.0.1:{far}", f"--seed={number}"
            )
        urls = ", ".join(f'"http://127.0.0.1:{port}/v1"' for port in ports[:2])
        model = f'[[models]]\nname = "echo"\nengine = "openai"\nconcurrency = 32\nurls = [{urls}]\n'
        running = stack.enter_context(Cluster(model))
        with Pressure(running, clients=12, name="jitter") as pressure:
            seen = watched(running, LOSSY_S)
        judge_loss("F21 jitter", pressure, seen)


def watched(cluster: Cluster, seconds: float) -> list[int]:
    """Look ten times a second how many servers may be asked."""
    found, end_s = [], time.monotonic() + seconds
    while time.monotonic() < end_s:
        _, _, data = cluster.request("GET", "/status")
        found.append(sum(row["routable"] for row in json.loads(data)["instances"]))
        time.sleep(0.1)
    return found


def judge_loss(name: str, pressure: Pressure, routable: list[int]) -> None:
    pressure.assert_true(at_least=50)
    failed = [one for one in pressure.seen if one.outcome is not Outcome.OK]
    worst = f"{sum(count < 2 for count in routable)} of {len(routable)} looks saw one server out"
    told = f"{len(failed)} of {len(pressure.seen)} failed, slowest {pressure.slowest_s:.2f} s"
    tell(f"{name}: {told}, {worst}")
    assert min(routable) >= 1, "all servers were put out"
    assert len(failed) <= len(pressure.seen) / 1000, pressure.failed[:5]


def test_F27_two_thousand_requests_while_a_port_changes_hands(tmp_path: Path) -> None:
    """Busy: the clients never stop. Quiet: nobody asks while it happens."""

    async def asked(ours: Rig, count: int, prefix: str) -> dict[str, int]:
        target = Target(port=ours.port, headers={"authorization": f"Bearer {USER.plain}"})
        seen = await run_load(
            target, models=["m"], clients=16, requests=count, streams=0.3, prefix=prefix
        )
        wrong = [*check_answers(seen, {}), *check_ends(seen)]
        assert wrong == [], wrong[:3]
        return tally(seen)

    async def main() -> None:
        async with rig() as ours:
            ports = {"a": free_port(), "b": free_port()}
            for name, port in ports.items():
                await ours.start_engine(name, port=port)
            publish_urls(ours, ports)
            async with asyncio.TaskGroup() as tasks:
                busy = tasks.create_task(asked(ours, 2000, "busy"))
                await asyncio.sleep(0.3)
                ours.engines["a"].kill()
                thief = await ours.start_engine("x", "another-model", port=ports["a"])
            told = busy.result()
            assert told["ok"] >= 1980, told
            assert set(told) <= {"ok", "error_event"}
            ours.engines["b"].kill()
            other = await ours.start_engine("y", "another-model", port=ports["b"])
            quiet = await asked(ours, 2000, "quiet")
            assert quiet == {"http_error": 2000}
            for one in (thief, other):
                assert (await one.ledger())["executions"] == []

    asyncio.run(main())
