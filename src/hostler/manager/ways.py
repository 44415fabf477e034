"""Ways: how straight calls reach an engine: here on a connection of their own, elsewhere on a kept one."""

import asyncio
from collections.abc import Callable

from hostler.app.config import GatewayConfig
from hostler.core.snapshot import Endpoint
from hostler.wire.client import Pool
from hostler.wire.distant import PATIENCE, RELAY_IDLE_S
from hostler.wire.identity import ClientContexts

Relay = tuple[str, str, int]  # whose, and where


class Ways:
    """Connections to the relays of other machines, over mutual TLS. Used by one event loop."""

    def __init__(self, config: GatewayConfig, tls: Callable[[], ClientContexts | None]) -> None:
        """tls: who we are, for other machines; None: nobody, and none there can be reached."""
        self._connect_s = config.connect_timeout_s * PATIENCE
        self._tls = tls
        self._pools: dict[Relay, Pool] = {}

    def pool(self, endpoint: Endpoint) -> Pool | None:
        """What a call to this endpoint goes through; None: a connection of its own."""
        if not endpoint.host_id:
            return None
        relay = endpoint.host_id, endpoint.host, endpoint.port
        pool = self._pools.get(relay)
        if pool is None:
            tls = self._tls()
            pool = Pool(endpoint, connect_timeout_s=self._connect_s, idle_s=RELAY_IDLE_S, tls=tls)
            if tls is None:
                return pool  # it says why nothing goes through it
            self._forget_unused()
            self._pools[relay] = pool
        return pool

    async def close(self) -> None:
        """Cut every connection; calls under way are told they are lost."""
        pools, self._pools = self._pools, {}
        await asyncio.gather(*(pool.close() for pool in pools.values()))

    # Private

    def _forget_unused(self) -> None:
        """What has no connection is a machine that is gone, or is made anew in no time."""
        for relay, pool in tuple(self._pools.items()):
            if not pool.connection_count and not pool.busy_count:
                del self._pools[relay]
