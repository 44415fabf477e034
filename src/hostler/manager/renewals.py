"""Renewals: every RESTART and UPDATE_PARAMS is seen through to its end, or taken back when it fails.
Those of a single instance are in replacing.py.

What to go back to stands in the wish (`Deployment.fallback`), so a change goes on when the one who
ordered it has left, and under the next controller when this one was killed.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial

import msgspec

from hostler.app.telemetry import logger
from hostler.core.deployment import Deployment
from hostler.core.errors import (
    Conflict,
    EngineError,
    HostlerError,
    InsufficientStorage,
    StartupError,
    StorageBusy,
    StorageFailed,
)
from hostler.core.lifecycle import Instance
from hostler.core.worker import OperatorEvent
from hostler.manager.files import Tell
from hostler.manager.progress import Progress
from hostler.manager.replacing import Replacements
from hostler.manager.wishes import Wishes

log = logger(__name__)

_AGAIN_S = 1.0  # after the end of a change could not be written down


Ending = asyncio.Task[HostlerError | None]


class Renewals:
    """The changes under way. Orders nothing: the plan does, by the wish."""

    def __init__(
        self,
        wishes: Wishes,
        progress: Progress,
        tell: Tell,
        pinned: Callable[[], Collection[str]] = lambda: (),
    ) -> None:
        """tell: takes the event of a change that was taken back. pinned: instances brought by hand."""
        self._wishes = wishes
        self._registry = progress.registry
        self._progress = progress
        self._reconciler = progress.reconciler
        self._tell = tell
        self.single = Replacements(wishes, self._registry, self._reconciler, tell, pinned)
        self._tasks: asyncio.TaskGroup | None = None
        self._under_way: dict[tuple[str, int], Ending] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """See changes through while the block lasts, first those that another controller began."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self.look()
            try:
                yield
            finally:
                self._tasks = None
                self.single.stop(StartupError(_STOPPED))
                for task in self._under_way.values():
                    task.cancel()

    def look(self) -> None:
        """Begin with every change that was written down and that nobody sees through yet."""
        self.single.wished()
        if self._tasks is None:
            return
        for one in self._wishes.all():
            if one.fallback is not None and _key(one) not in self._under_way:
                self._begin(self._tasks, one)

    def moved(self, after: Instance) -> None:
        """An instance is in another state."""
        self.single.moved(after)

    async def done(self, new: Deployment) -> None:
        """Return when a change that was written down is done. Who stops waiting stops nothing.

        Raises:
            EngineError: it failed and was taken back; the message says why.
            Conflict: another order for the model came meanwhile, which holds.
            StartupError: the manager was stopped; the next one on this store goes on with it.
        """
        if self._tasks is None:
            raise StartupError(_STOPPED)
        task = self._under_way.get(_key(new)) or self._begin(self._tasks, new)
        try:
            error = await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise StartupError(_STOPPED) from None
            raise
        if error is not None:
            raise error

    # Private

    def _begin(self, tasks: asyncio.TaskGroup, new: Deployment) -> Ending:
        self._reconciler.pardon(new.worker_key)
        key = _key(new)
        task = tasks.create_task(self._guarded(new), name=f"renewal.{new.name}")
        self._under_way[key] = task
        task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return task

    async def _guarded(self, new: Deployment) -> HostlerError | None:
        try:
            return await self._see_through(new)
        except Exception as error:  # boundary: one change; the plan goes on with it, unwatched
            log.error("renewal.unwatched", model=new.name, error=error)
            return HostlerError()

    async def _see_through(self, new: Deployment) -> HostlerError | None:
        """Return None when every process is of the new specification; else why it is not."""
        try:
            while not self._is_done(new):
                await self._registry.news().wait()
        except Conflict as error:
            return error
        except EngineError as error:
            return await self._take_back(new, error)
        await self._conclude(new, works=True)
        return None

    def _is_done(self, new: Deployment) -> bool:
        """One failed try is enough; and the old processes must be gone, too."""
        now = next((one for one in self._wishes.all() if one.name == new.name), None)
        if now is None or now.generation != new.generation:
            raise Conflict(f"model {new.name!r}: another order came before this change was done")
        self._progress.check(new, tries=1)
        old = [
            one for one in self._progress.living(new) if one.generation != new.process_generation
        ]
        return not old and self._progress.is_ready(new)

    async def _take_back(self, new: Deployment, why: EngineError) -> HostlerError:
        back = await self._conclude(new, works=False)
        if back is None:
            return why
        self._reconciler.pardon(back.worker_key)
        told = EngineError(f"{why.message}; the model goes on with its old specification")
        first = told.message.splitlines()[0]
        self._tell(OperatorEvent(kind="model.taken_back", model=new.name, message=first))
        return told

    async def _conclude(self, new: Deployment, *, works: bool) -> Deployment | None:
        while True:
            try:
                return await self._wishes.change(new.name, partial(_concluded, new, works))
            except (StorageBusy, StorageFailed, InsufficientStorage) as error:
                log.warning("renewal.waits", model=new.name, why=error.message)
            await asyncio.sleep(_AGAIN_S)


# Private


def _key(deployment: Deployment) -> tuple[str, int]:
    return deployment.name, deployment.generation


_STOPPED = "the worker manager is stopping; the next one on this store goes on with the change"


def _concluded(new: Deployment, works: bool, now: Deployment) -> Deployment | None:
    """How a change ends: it stays, or what was before it is wished again. None: it was changed, stopped
    or forgotten meanwhile.
    """
    if now.generation != new.generation or now.fallback is None:
        return None
    if works:
        return msgspec.structs.replace(now, fallback=None)
    return msgspec.structs.replace(now.fallback, generation=now.generation + 1)
