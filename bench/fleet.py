"""Fleet: a controller's registry and a gateway with up to 10,000 simulated instances.

Three processes: one serves a real registry on registry.sock, one is a real gateway behind a mirror, this
one plays the workers (`hostler.testing.fleet`) and watches beside the gateway, to count what is told.
Workers beat when they are told to, so the whole fleet sends `heartbeat.most_per_s` a second at most.

    python -m bench.fleet controller|gateway FOLDER COUNT MODELS    # the other two processes
"""

import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from bench import machine
from bench.figures import Part, median
from hostler.app.config import Config, HeartbeatConfig
from hostler.core.change import Change
from hostler.core.snapshot import Endpoint
from hostler.gateway.gateway import Gateway
from hostler.registry.mirror import SnapshotMirror
from hostler.registry.registry import Registry
from hostler.registry.server import RegistryServer
from hostler.routing.claim import Outcome
from hostler.testing.fleet import Fleet, expect_fleet, most_in_a_second
from hostler.wire.client import UpstreamLost, stream

COUNTS = (10, 100, 1000, 10_000)
REST_S = 10.0
LOSSES = 20
CLAIMS = 500


def measure(part: Part, counts: tuple[int, ...] = COUNTS, *, rest_s: float = REST_S) -> None:
    """Add the figures of this part: the largest fleet's, with how they grow in the note."""
    found: dict[int, dict[str, float]] = {}
    with machine.watch_noise() as noise:
        for count in counts:
            found[count] = asyncio.run(_one(count, rest_s))
    part.add_growth(_FIGURES, found, "instances", noise.others_cores)


# Private

_FIGURES = (
    ("controller at rest", "cores", 1.0),
    ("controller while they register", "cores", 1.0),
    ("controller's memory", "MB", None),
    ("gateway's memory", "MB", None),
    ("gateway at rest", "cores", None),
    ("registrations in the fullest second", "", None),
    ("until all have registered", "s", None),
    ("a beat, median", "ms", None),
    ("a beat, p99", "ms", 250.0),
    ("beats a second", "", None),
    ("whole snapshot", "kB", None),
    ("told while they register, an instance", "kB", None),
    ("told of one loss", "bytes", None),
    ("from a loss until the gateway has it, median", "ms", 1000.0),
    ("from a loss until the gateway has it, longest", "ms", 1000.0),
    ("claim and release in that gateway", "µs", 20.0),
    ("registrations in the fullest second, controller restarted", "", None),
    ("instances that the gateway lost by the restart", "", 0.0),
)


async def _one(count: int, rest_s: float) -> dict[str, float]:
    models = max(1, count // 10)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="hsf", dir="/tmp") as name:
        folder = Path(name)
        with _process("gateway", folder, count, models) as gateway:
            with _process("controller", folder, count, models) as controller:
                ask(controller)
                fleet = Fleet(folder / "registry.sock", count, models, folder)
                async with _playing(fleet), watching(folder / "registry.sock") as told:
                    await _registering(fleet, count, controller, told, found)
                    await _resting(fleet, rest_s, controller, gateway, found)
                    await _losing(fleet, count, gateway, told, found)
            # The controller is gone; the next one adopts them all.
            with _process("controller", folder, count, models, "adopt") as controller:
                ask(controller)
                fleet = Fleet(folder / "registry.sock", count, models, folder)
                async with _playing(fleet):
                    await _until(lambda: len(fleet.registered_s) >= count, 300.0)
                    await asyncio.sleep(1.0)
                most = most_in_a_second(fleet.registered_s)
                found["registrations in the fullest second, controller restarted"] = most
                found["instances that the gateway lost by the restart"] = max(
                    0, count - LOSSES - ask(gateway, "least")["least"]
                )
    return found


async def _registering(
    fleet: Fleet,
    count: int,
    controller: "subprocess.Popen[str]",
    told: list[int],
    found: dict[str, float],
) -> None:
    began_s, cpu_s, bytes_before = time.monotonic(), machine.cpu_s([controller.pid]), sum(told)
    await _until(lambda: len(fleet.registered_s) >= count, 300.0)
    took_s = time.monotonic() - began_s
    found["controller while they register"] = (machine.cpu_s([controller.pid]) - cpu_s) / took_s
    found["registrations in the fullest second"] = most_in_a_second(fleet.registered_s)
    found["until all have registered"] = took_s
    await asyncio.sleep(0.5)
    found["told while they register, an instance"] = (sum(told) - bytes_before) / count / 1000


async def _resting(
    fleet: Fleet,
    rest_s: float,
    controller: "subprocess.Popen[str]",
    gateway: "subprocess.Popen[str]",
    found: dict[str, float],
) -> None:
    await asyncio.sleep(1.0)
    fleet.beats_s.clear()
    pids = ("controller", controller.pid), ("gateway", gateway.pid)
    before, began_s = {name: machine.cpu_s([pid]) for name, pid in pids}, time.monotonic()
    await asyncio.sleep(rest_s)
    took_s = time.monotonic() - began_s
    for name, pid in pids:
        found[f"{name} at rest"] = (machine.cpu_s([pid]) - before[name]) / took_s
        found[f"{name}'s memory"] = machine.memory_mb([pid])[0]
    beats = sorted(fleet.beats_s) or [0.0]
    found["a beat, median"] = 1000 * median(beats)
    found["a beat, p99"] = 1000 * beats[int(0.99 * (len(beats) - 1))]
    found["beats a second"] = len(beats) / took_s


async def _losing(
    fleet: Fleet,
    count: int,
    gateway: "subprocess.Popen[str]",
    told: list[int],
    found: dict[str, float],
) -> None:
    losses = min(LOSSES, count // 2)
    before, times = sum(told), []
    for number in range(losses):
        began_s = time.monotonic()
        await fleet.leave(number)
        gone = await asyncio.to_thread(ask, gateway, f"gone {number + 1}")
        times.append(gone["at_s"] - began_s)
        await asyncio.sleep(0.02)
    found["told of one loss"] = (sum(told) - before) / losses
    found["from a loss until the gateway has it, median"] = 1000 * median(times)
    found["from a loss until the gateway has it, longest"] = 1000 * max(times)
    found["whole snapshot"] = told[0] / 1000
    asked = await asyncio.to_thread(ask, gateway, "claims")
    found["claim and release in that gateway"] = asked["claim_us"]


@asynccontextmanager
async def _playing(fleet: Fleet) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        playing = tasks.create_task(fleet.run())
        yield
        playing.cancel()


@asynccontextmanager
async def watching(socket: Path) -> AsyncIterator[list[int]]:
    """Watch beside the gateway; the sizes of what came, the first whole snapshot's first."""
    told: list[int] = []

    async def watch() -> None:
        is_in_line = False
        with contextlib.suppress(UpstreamLost):
            endpoint = Endpoint(socket=str(socket))
            async for data in stream(
                endpoint, "GET", "/watch?from=0.0", timeout_s=5.0, idle_s=60.0
            ):
                if data == b"\n":
                    continue
                if is_in_line:  # the rest of a long one
                    told[-1] += len(data)
                else:
                    told.append(len(data))
                is_in_line = not data.endswith(b"\n")

    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch())
        yield told
        watching.cancel()


async def _until(is_true: Any, timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_true():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@contextmanager
def _process(what: str, folder: Path, *words: object) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-m", "bench.fleet", what, str(folder), *map(str, words)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def ask(process: "subprocess.Popen[str]", question: str = "") -> dict[str, Any]:
    """Send a line, if there is one to send, and read a line."""
    assert process.stdin is not None
    assert process.stdout is not None
    if question:
        process.stdin.write(question + "\n")
        process.stdin.flush()
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


# The other processes


async def _controller(folder: Path, count: int, models: int, *, adopts: bool) -> None:
    registry = Registry(HeartbeatConfig(), time.monotonic, incarnation=2 if adopts else 1)
    expect_fleet(registry, count, models, adopted=adopts)
    server = RegistryServer(registry, folder / "registry.sock")
    async with registry.running(), server.running():
        _say({"up": True})
        await asyncio.sleep(3600)


async def _gateway(folder: Path, models: int) -> None:
    mirror = SnapshotMirror(folder / "registry.sock", time.monotonic)
    gateway = Gateway(Config(), mirror, folder / "admin.sock")
    gone_s: list[float] = []
    fewest = sys.maxsize
    asked = asyncio.Event()

    def take(change: Change) -> None:
        nonlocal fewest
        gone_s.extend(time.monotonic() for _ in change.gone)
        if gone_s:
            fewest = min(
                fewest, sum(gateway.router.known.count_usable(f"m{n}") for n in range(models))
            )
        asked.set()

    loop = asyncio.get_running_loop()
    async with gateway.running(), mirror.running():
        mirror.listen(take)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            match line.split():
                case ["gone", number]:
                    while len(gone_s) < int(number):
                        asked.clear()
                        await asyncio.wait_for(asked.wait(), 30.0)
                    _say({"at_s": gone_s[int(number) - 1]})
                case ["claims"]:
                    _say({"claim_us": _claim_us(gateway, models)})
                case ["least"]:
                    _say({"least": fewest})


def _claim_us(gateway: Gateway, models: int) -> float:
    began_s = time.perf_counter()
    for number in range(CLAIMS):
        gateway.router.claim(f"m{number % models}").release(Outcome.OK)
    return (time.perf_counter() - began_s) * 1e6 / CLAIMS


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _main(what: str, folder: str, count: str, models: str, *more: str) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    if what == "controller":
        asyncio.run(_controller(Path(folder), int(count), int(models), adopts="adopt" in more))
    else:
        asyncio.run(_gateway(Path(folder), int(models)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
