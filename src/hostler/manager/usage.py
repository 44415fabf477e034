"""UsageBook: what gateways have counted, on its way into the store and out of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hostler.core.usage import UsageBatch, UsageQuestion, UsageRow
from hostler.storage.store import UsageStore
from hostler.storage.writer import Writer


class UsageBook:
    """Has a writing thread of its own: no order waits for counts, and a locked file stops nobody."""

    def __init__(self, store: UsageStore) -> None:
        self._store = store
        self._writer = Writer("usage", patience_s=PATIENCE_S, most_waiting=MOST_WAITING)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take batches while the block lasts; every one that was taken is kept before it ends."""
        async with self._writer.running():
            yield

    async def take(self, batch: UsageBatch) -> None:
        """Keep a batch, once however often it is sent.

        Raises:
            StorageBusy, InsufficientStorage, StorageFailed: not now. Its gateway sends it again.
        """
        await self._writer.do(self._store.add_usage, batch)

    async def read(self, question: UsageQuestion) -> tuple[UsageRow, ...]:
        """Return what was used. Raises StorageBusy, StorageFailed."""
        return await asyncio.to_thread(self._store.usage, question)


# Private

PATIENCE_S = 1.0  # for a locked file; then the gateway keeps the batch for a while
MOST_WAITING = 32  # batches: more than gateways have one under way each
