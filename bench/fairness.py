"""Fairness and overload, through a real gateway with fake engines: B18, B19 and the share of two keys.

The clients run in a thread of this process and need CPU of their own, so the times they see are upper bounds.
"""

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import uvloop

from bench import machine
from bench.figures import Part
from hostler.testing.cluster import Cluster, fake_model

TOKENS, DELAY_MS = 4, 15.0  # of an answer, and before each token: about 65 ms
HEAD_END = b"\r\n\r\n"


@dataclass
class Group:
    """Clients of one key. pause_s: between requests of one client; 0 asks again at once.

    patience_s: after a refusal it comes back when it was told to, but within this.
    """

    key: str
    clients: int
    pause_s: float = 0.0
    patience_s: float = 0.3
    statuses: dict[int, int] = field(default_factory=dict)
    took_s: list[float] = field(default_factory=list)  # of good answers
    refused_s: list[float] = field(default_factory=list)  # of those refused at once
    no_retry_after: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def good(self) -> int:
        return self.statuses.get(200, 0)


class Load:
    """Groups of clients for some seconds, and a monitor that asks whether the gateway lives."""

    def __init__(self, port: int, groups: Sequence[Group], seconds: float) -> None:
        self.alive_s: list[float] = []
        self._port = port
        self._groups = groups
        self._seconds = seconds

    def run(self) -> None:
        thread = threading.Thread(target=lambda: uvloop.run(self._run()))
        thread.start()
        thread.join()

    async def _run(self) -> None:
        ends_s = time.monotonic() + self._seconds
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._monitor(ends_s), name="monitor")
            for group in self._groups:
                for number in range(group.clients):
                    tasks.create_task(self._client(group, number, ends_s), name="client")

    async def _monitor(self, ends_s: float) -> None:
        while time.monotonic() < ends_s:
            began_s = time.monotonic()
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            await reader.read(-1)
            writer.close()
            self.alive_s.append(time.monotonic() - began_s)
            await asyncio.sleep(0.05)

    async def _client(self, group: Group, number: int, ends_s: float) -> None:
        await asyncio.sleep(number % 100 / 400)  # not all connections in one moment
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        count = 0
        try:
            while time.monotonic() < ends_s:
                count += 1
                began_s = time.monotonic()
                writer.write(request(group.key, f"{number}.{count}"))
                head = await reader.readuntil(HEAD_END)
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                took_s = time.monotonic() - began_s
                status = int(head.split(b" ", 2)[1])
                group.statuses[status] = group.statuses.get(status, 0) + 1
                if status == 200:
                    group.took_s.append(took_s)
                    await asyncio.sleep(group.pause_s)
                    continue
                if b"wait already" in body:
                    group.refused_s.append(took_s)
                has_time = b"retry-after:" in head.lower()
                group.no_retry_after += not has_time
                await asyncio.sleep(group.patience_s)
        except (OSError, EOFError, ValueError, IndexError) as error:
            group.errors.append(repr(error))
        finally:
            writer.close()


def request(key: str, text: str) -> bytes:
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": text}]}).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer %b\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (key.encode(), len(body), body)
    )


def measure(part: Part, *, seconds: float = 8.0) -> None:
    """Add the figures of this part."""
    model = fake_model(replicas=2, concurrency=8, tokens=TOKENS, delay_ms=DELAY_MS)
    with Cluster(model) as cluster:
        keys = [new_key(cluster, name) for name in ("a", "b")]
        port = urlsplit(cluster.url).port or 0
        measure_share(part, port, keys, seconds)
        measure_neighbour(part, port, keys, seconds)
        measure_overload(part, port, keys[0], seconds)


def measure_share(part: Part, port: int, keys: Sequence[str], seconds: float) -> None:
    """Two keys of equal weight at 1:10 load, both always waiting."""
    few, many = Group(keys[1], 24), Group(keys[0], 240)
    with machine.watch_noise() as noise:
        Load(port, [many, few], seconds).run()
    share = few.good / max(1, few.good + many.good)
    part.add(
        "share of the key with a tenth of the load, off its half by",
        abs(share - 0.5) / 0.5 * 100,
        "%",
        at_most=10,
        noise=noise.others_cores,
        note=f"{few.good} of {few.good + many.good} answers; aim 5 %; {errors(few, many)}",
    )


def measure_neighbour(part: Part, port: int, keys: Sequence[str], seconds: float) -> None:
    """One key asks now and then, alone and beside one that floods (B19)."""
    alone = Group(keys[1], 4, pause_s=0.5)
    with machine.watch_noise() as noise:
        Load(port, [alone], seconds).run()
        beside, flood = Group(keys[1], 4, pause_s=0.5), Group(keys[0], 200)
        Load(port, [beside, flood], seconds).run()
    ratio = quantile(beside.took_s, 0.95) / quantile(alone.took_s, 0.95)
    part.add(
        "p95 of a modest key beside a flood ÷ alone",
        ratio,
        "x",
        at_most=2.5,
        noise=noise.others_cores,
        note=f"{quantile(beside.took_s, 0.95) * 1e3:.0f} ms, {quantile(alone.took_s, 0.95) * 1e3:.0f} ms; "
        f"flood: {flood.good} answers; {errors(beside, flood)}",
    )


def measure_overload(part: Part, port: int, key: str, seconds: float) -> None:
    """200 and 1,000 clients at 16 slots (B18), beside what 24 clients get through."""
    capacity = Group(key, 24)
    Load(port, [capacity], seconds).run()
    for clients in (200, 1000):
        group = Group(key, clients, patience_s=1.0)
        load = Load(port, [group], seconds)
        with machine.watch_noise() as noise:
            load.run()
        what = f"{clients} clients at 8+8 slots"
        others = noise.others_cores
        strange = {status for status in group.statuses if status not in (200, 429, 503)}
        part.add(
            f"{what}: answers that are none of 200, 429, 503, or without Retry-After",
            sum(group.statuses[one] for one in strange) + group.no_retry_after + len(group.errors),
            "",
            at_most=0,
            noise=others,
            note=f"{group.statuses}; {errors(group)}",
        )
        part.add(
            f"{what}: good answers ÷ capacity",
            group.good / max(1, capacity.good),
            "x",
            at_least=0.9,
            noise=others,
            note=f"{group.good / seconds:.0f}/s of {capacity.good / seconds:.0f}/s",
        )
        for name, found, aim in (
            ("/health, p99", load.alive_s, 250),
            ("a refusal at a full queue, p50", group.refused_s, 50),
        ):
            level = 0.99 if "p99" in name else 0.5
            value = quantile(found, level) * 1e3 if found else None
            part.add(
                f"{what}: {name}",
                value,
                "ms",
                at_most=aim,
                noise=others,
                note=f"of {len(found)}"
                + (f"; p99 {quantile(found, 0.99) * 1e3:.0f}" if found else ""),
            )


def new_key(cluster: Cluster, name: str) -> str:
    made = cluster.json("POST", "/api/v1/keys", {"name": name, "scopes": ["inference"]})
    return str(made["key"])


def quantile(values: Sequence[float], level: float) -> float:
    found = sorted(values)
    return found[min(len(found) - 1, int(level * len(found)))] if found else float("nan")


def errors(*groups: Group) -> str:
    found = [error for group in groups for error in group.errors]
    return f"{len(found)} errors" + (f": {found[0]}" if found else "")
