"""watch(): tells one who watches what is new: the steps since where it is, or everything.

`GET /watch?from=INCARNATION.VERSION` gets steps from there on, as long as they are kept; `from=0.0`, and who
is too far behind, gets a whole snapshot first. Without `from` the asker is of the protocol before and gets
whole snapshots only. Lines are made once, for whoever watches.
"""

import asyncio
from urllib.parse import parse_qs

from hostler.core.errors import ControllerUnavailable
from hostler.core.snapshot import PROTOCOLS
from hostler.registry.registry import Registry
from hostler.wire.server import Exchange

NDJSON = ((b"content-type", b"application/x-ndjson"),)
BEFORE = PROTOCOLS[0]
KEEPALIVE_S = 1.0  # an empty line on a quiet watch, so that a mirror knows the controller lives


def watch(
    registry: Registry,
    exchange: Exchange,
    tasks: asyncio.TaskGroup | None,
    relay_port: int | None = None,
) -> None:
    """Answer a watch, until the client leaves.

    relay_port: of a gateway on another machine: where the relay stands before the engines of this one.
    """
    if tasks is None:
        exchange.send_error(ControllerUnavailable(retry_after_s=1))
        return
    task = tasks.create_task(_Watch(registry, exchange, relay_port).run(), name="registry.watch")
    exchange.on_gone = task.cancel  # type: ignore[assignment]


# Private


class _Watch:
    """One of them. What it has not read yet is one write at most: one that is slow gets nothing more
    before it has read that, and then what it has missed.
    """

    def __init__(self, registry: Registry, exchange: Exchange, relay_port: int | None) -> None:
        self._registry = registry
        self._relay_port = relay_port
        self._exchange = exchange
        self._can_write = asyncio.Event()
        self._can_write.set()
        exchange.on_pause = self._can_write.clear
        exchange.on_resume = self._can_write.set

    async def run(self) -> None:
        exchange, registry = self._exchange, self._registry
        place = parse_qs(exchange.request.query).get("from")
        version = self._version(place[0]) if place else 0
        exchange.start(200, NDJSON, None)
        while True:
            try:
                async with asyncio.timeout(KEEPALIVE_S):
                    await registry.changed(version)
            except TimeoutError:
                if self._can_write.is_set():
                    exchange.write(b"\n")
                continue
            await self._can_write.wait()  # no longer than a client may stall
            if place:
                line = registry.told.line_since(version, self._relay_port)
            else:
                line = registry.told.whole_line(BEFORE, self._relay_port)
            version = registry.told.picture.version
            exchange.write(line)

    def _version(self, place: str) -> int:
        """The version it has; 0: none of ours."""
        incarnation, _, version = place.partition(".")
        if incarnation != str(self._registry.incarnation) or not version.isdecimal():
            return 0
        return int(version) if int(version) <= self._registry.told.picture.version else 0
