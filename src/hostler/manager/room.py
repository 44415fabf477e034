"""Room: whether a model's next process fits in memory beside the one it replaces. Reserves nothing."""

from collections.abc import Callable

from hostler.catalog.needs import estimate_memory_bytes, fits, free_memory_bytes
from hostler.core.deployment import Deployment
from hostler.core.errors import HostlerError
from hostler.engines.base import find_engine
from hostler.manager.files import ModelFiles
from hostler.manager.memory import Memory
from hostler.registry.registry import Registry


class Room:
    """Asked while a model's processes are renewed.

    free_bytes: says what memory is free; may be replaced.
    """

    def __init__(self, registry: Registry, files: ModelFiles, memory: Memory) -> None:
        self.free_bytes: Callable[[], int | None] = free_memory_bytes
        self._registry = registry
        self._files = files
        self._memory = memory

    def has_room(self, deployment: Deployment) -> bool:
        """True also when the need or the free memory is not known."""
        if deployment.urls:
            return True
        need = self.need_bytes(deployment)
        if need is None:
            return True
        return fits(need, self.free_bytes()) is not False and self._memory.fits(need)

    def need_bytes(self, deployment: Deployment) -> int | None:
        """By the files and the new parameters; without files, what the old process takes."""
        if find_engine(deployment.engine).needs_files:
            path = self._files.present(deployment)
            try:
                if path is None:
                    return None
                return estimate_memory_bytes(
                    path, deployment.engine, deployment.params, slots=deployment.concurrency
                )
            except (HostlerError, OSError):
                return None
        taken = [
            record.memory_bytes or 0
            for record in self._registry.of_model(deployment.name)
            if record.instance.worker_key == deployment.worker_key
        ]
        return max(taken, default=0) or None

    def left_bytes(self) -> int | None:
        """What one process more may take on this machine; None: not known, or not asked for."""
        return self._memory.left_bytes(self.free_bytes())
