"""LaunchBook: the processes we started, as the store keeps them. Waits for a store that is locked or full."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from hostler.app.faults import CrashPoint, crash_point
from hostler.app.paths import StatePaths
from hostler.app.telemetry import logger
from hostler.core.errors import InsufficientStorage, Standby, StorageBusy, StorageFailed
from hostler.core.launch import Launch
from hostler.registry.expected import Expected
from hostler.storage.store import Store
from hostler.storage.writer import Writer, told

P = ParamSpec("P")
T = TypeVar("T")

log = logger(__name__)

_AGAIN_S = 1.0
_AT_ONCE = 16  # writes of ours that wait for the store: an operator's order waits behind no more


class LaunchBook:
    """Written before and after a process is started, so that a crash between the two shows.

    No write blocks the event loop, and none is given up: a model that is wished waits for the disk.
    """

    def __init__(self, store: Store, writer: Writer) -> None:
        self._store = store
        self._writer = writer
        self._stale: set[str] = set()  # records that could not be deleted
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def all(self) -> tuple[Launch, ...]:
        return self._store.launches()

    async def next_epoch(self, worker_key: str, replica: int) -> int:
        """Return the number of the next process of this place."""
        epoch = await self._keep(self._store.next_epoch, worker_key, replica)
        crash_point(CrashPoint.EPOCH_TAKEN)
        return epoch

    async def intend(self, launch: Launch) -> None:
        """Write down a process that is about to be started. Called off: nothing of it stays."""
        try:
            await self._keep(self._store.save_launch, launch)
        except BaseException:  # boundary: called off; what may have been written is not true
            self.drop(launch.instance_id)
            raise
        crash_point(CrashPoint.INTENT_SAVED)

    async def write_pid(self, launch: Launch) -> None:
        """Until it is written, a controller after this one would end the process and start anew."""
        await self._keep(self._store.save_launch, launch)
        crash_point(CrashPoint.PID_SAVED)

    def drop(self, instance_id: str) -> None:
        """Delete the record, a little later. One that stays goes with the next one, or is cleaned up
        by the next controller.
        """

        def dropped(error: BaseException | None) -> None:
            if isinstance(error, Standby):
                return  # whoever leads now drops it
            if error is not None:
                self._stale.add(instance_id)
                log.warning("launch.record_stays", instance_id=instance_id, why=told(error))
                return
            stale, self._stale = self._stale, set()
            for other in stale:
                self.drop(other)

        self._writer.post(dropped, self._store.delete_launch, instance_id)

    # Private

    async def _keep(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        while True:
            try:
                async with self._turns:
                    return await self._writer.do(work, *args, **kwargs)
            except (StorageBusy, StorageFailed, InsufficientStorage) as error:
                log.warning("launch.waits", why=error.message)
            await asyncio.sleep(_AGAIN_S)


def expected_of(launch: Launch) -> Expected:
    """Return what the registry should expect of a process that was started."""
    return Expected(
        worker_type=launch.spec.worker_type,
        engine=launch.spec.engine,
        secret_hash=launch.secret_hash,
        concurrency=launch.spec.concurrency,
    )


def is_of(launch: Launch, paths: StatePaths) -> bool:
    """Whether this process was started on this state folder. Where several share a store, another
    folder's workers report there, and end by themselves when nobody leads there.
    """
    return launch.spec.registry_socket == str(paths.registry_socket)
