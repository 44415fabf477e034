"""LocalWorkerManagerFactory: how an application keeps and finds its one manager on this machine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hostler.app.config import Config
from hostler.manager.base import WorkerManager, WorkerManagerFactory
from hostler.manager.local import LocalWorkerManager


class LocalWorkerManagerFactory(WorkerManagerFactory):
    """Keeps one LocalWorkerManager for an application."""

    def __init__(self, config: Config | None = None) -> None:
        self._manager = LocalWorkerManager(config)

    def create(self) -> WorkerManager:
        return self._manager

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._manager:
            yield
