"""`make soak ARGS=--readers`: clients that do not read (B20) and clients that leave (B07, B08)."""

import asyncio
import os
import random
import statistics
import time
from collections.abc import Sequence

import uvloop
from tests.chaos.pressure import Pressure, target_of
from tests.chaos.readers import (
    ENDLESS,
    TOKENS,
    Readers,
    client_bytes,
    engine_bytes,
    has_ss,
    rss_bytes,
)

from bench.figures import Part
from hostler.testing.access import in_flight
from hostler.testing.cluster import Cluster, fake_model
from hostler.testing.load import Seen, Target, ask, chat_body

READERS, CANCELS, AT_ONCE = 500, 10_000, 100
STALL_S, BESIDE_S = 20.0, 6.0
MIB = 2**20
SETTINGS = f"[limits]\nwrite_stall_s = {STALL_S}\n"


def run_readers(part: Part, seed: int) -> None:
    """Add what stalled readers hold and cost the others, and what clients leave behind."""
    models = fake_model(ENDLESS, concurrency=READERS, tokens=TOKENS)
    models += fake_model("echo", replicas=2, concurrency=16, tokens=6, delay_ms=3)
    models += fake_model("slow", replicas=2, concurrency=AT_ONCE, tokens=40, delay_ms=50)
    with Cluster(SETTINGS + models) as cluster:
        _stall(part, cluster)
        _cancel(part, cluster, seed)


# Private


def _stall(part: Part, cluster: Cluster) -> None:
    (gateway,) = cluster.pids("gateway")
    target = target_of(cluster)
    alone = _loaded(cluster, "alone", BESIDE_S)
    before = rss_bytes(gateway)
    with Readers(target, READERS):
        filling = Pressure(cluster, clients=8, name="filling")
        with filling:
            cluster.wait_for(lambda: in_flight(cluster) >= READERS, 60, "all have begun")
            time.sleep(3.0)
        beside = _loaded(cluster, "beside", BESIDE_S)
        grown = rss_bytes(gateway) - before
        kernel = client_bytes(target.port) if has_ss() else 0
        queued = engine_bytes(cluster) if has_ss() else 0
        cut_s = cluster.wait_for(lambda: in_flight(cluster) == 0, 90, "all are cut")
    note = f"{grown / MIB:.0f} of the process, {kernel / MIB:.0f} of its sockets to clients"
    held = (grown + kernel) / MIB
    part.add(f"B20 {READERS} stalled readers", held, "MiB", at_most=150, note=note)
    part.add("B20 beside it, in sockets of the engine", queued / MIB, "MiB")
    then_ms, alone_ms, first_ms = map(_p99_ms, (beside, alone, filling.seen))
    note = f"{then_ms:.0f} and {alone_ms:.0f} ms; {first_ms:.0f} ms while all begin"
    part.add("B20 others' p99 ÷ alone", then_ms / alone_ms, "", at_most=2.0, note=note)
    part.add("B20 all cut, after the others were measured", cut_s, "s", at_most=STALL_S + 4)


def _loaded(cluster: Cluster, name: str, seconds: float) -> list[Seen]:
    with Pressure(cluster, clients=8, name=name) as pressure:
        time.sleep(seconds)
    pressure.assert_unharmed(at_least=50)
    return pressure.seen


def _cancel(part: Part, cluster: Cluster, seed: int) -> None:
    (gateway,) = cluster.pids("gateway")
    target = target_of(cluster)
    uvloop.run(_leave(target, 500, seed))  # what grows once has grown
    cluster.wait_for(lambda: in_flight(cluster) == 0, 10, "nothing is in flight")
    before, files = rss_bytes(gateway), _files(gateway)
    began_s = time.monotonic()
    uvloop.run(_leave(target, CANCELS, seed + 1))
    took_s = time.monotonic() - began_s
    idle_s = cluster.wait_for(lambda: in_flight(cluster) == 0, 10, "nothing is in flight")
    engines_s = cluster.wait_for(lambda: _busy(cluster) == 0, 10, "the engines are idle")
    note = f"{CANCELS / took_s:.0f} a second; the engines idle after {engines_s:.2f} s more"
    part.add(f"B08 {CANCELS} left: in flight 0 after", idle_s, "s", at_most=1.0, note=note)
    grown = (rss_bytes(gateway) - before) / MIB
    part.add("B08 memory of the gateway, grown", grown, "MiB", at_most=20)
    more = _files(gateway) - files
    part.add("B08 files of the gateway, more", more, "", at_most=5)
    good = [seen.outcome.value for seen in _loaded(cluster, "after", 2.0)]
    part.add("B08 requests that fail afterwards", len(good) - good.count("ok"), "", at_most=0)


async def _leave(target: Target, count: int, seed: int) -> None:
    """Let so many requests go out and be left: before the head, in it, in a stream, in a whole answer."""
    chance = random.Random(seed)
    plans = iter([(chance.random() < 0.7, chance.uniform(0, 0.3)) for _ in range(count)])

    async def client(name: int) -> None:
        for number, (is_stream, after_s) in enumerate(plans):
            body = chat_body("slow", f"{seed} {name} {number}", is_stream, 40)
            await ask(target, body, request_id=f"left-{seed}-{name}-{number}", timeout_s=after_s)

    async with asyncio.TaskGroup() as tasks:
        for name in range(AT_ONCE):
            tasks.create_task(client(name))


def _busy(cluster: Cluster) -> int:
    return sum(one["in_flight"] for one in cluster.instances())


def _files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _p99_ms(seen: Sequence[Seen]) -> float:
    return statistics.quantiles([one.seconds for one in seen], n=100)[98] * 1000
