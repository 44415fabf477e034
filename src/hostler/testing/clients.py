"""Clients: so many of them in a thread of their own, for as long as a block lasts."""

import asyncio
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

import uvloop

END_S = 60.0  # for the last requests to end


class Clients(ABC):
    """A subclass says what one of them does."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._over = threading.Event()
        self._thread = threading.Thread(
            target=lambda: uvloop.run(self._run()), name="clients", daemon=True
        )

    @abstractmethod
    async def client(self, number: int) -> None:
        """Ask one request after the other until `is_over`. number: from 0."""

    @property
    def is_over(self) -> bool:
        """Is the block left?"""
        return self._over.is_set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(END_S)
        if self._thread.is_alive() and error is None:
            raise TimeoutError(f"the clients have not ended after {END_S:g} s")

    # Private

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._count):
                tasks.create_task(self.client(number), name=f"client {number}")
