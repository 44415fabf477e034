"""Applier: START, STOP, RESTART and UPDATE_PARAMS on a running model, and back when it does not work."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from hostler.core.deployment import Deployment
from hostler.core.errors import EngineError, UpstreamTimeout
from hostler.core.worker import (
    InstanceResult,
    WorkerApplyOutput,
    WorkerApplyRequest,
    WorkerApplyType,
    WorkerRunData,
    WorkerShutdownRequest,
    WorkerStartupRequest,
)
from hostler.manager.progress import Progress
from hostler.manager.reconcile import Reconciler
from hostler.manager.wishes import Wishes
from hostler.registry.registry import Registry


class Applied(Protocol):
    """The manager, as far as it is needed here."""

    wishes: Wishes
    reconciler: Reconciler
    registry: Registry
    progress: Progress

    def run_data(self, model_name: str | None = None) -> list[WorkerRunData]: ...

    async def until_ready(self, deployment: Deployment, timeout_s: float) -> None: ...

    async def model_startup(self, request: WorkerStartupRequest) -> list[WorkerRunData]: ...

    async def model_shutdown(self, request: WorkerShutdownRequest) -> None: ...


class Applier:
    """Carries one WorkerApplyRequest out."""

    def __init__(self, manager: Applied) -> None:
        self._manager = manager

    async def apply(self, request: WorkerApplyRequest) -> WorkerApplyOutput:
        """Do it and say what became of every instance. A model that is not known raises."""
        began_s = time.monotonic()
        self._manager.wishes.find(request.model)
        orders: dict[WorkerApplyType, Callable[[WorkerApplyRequest], Awaitable[str]]] = {
            WorkerApplyType.START: self._start,
            WorkerApplyType.STOP: self._stop,
            WorkerApplyType.RESTART: self._renew,
            WorkerApplyType.UPDATE_PARAMS: self._renew,
        }
        success, message = True, ""
        try:
            async with asyncio.timeout(request.timeout_s):
                message = await orders[request.apply_type](request)
        except TimeoutError:
            success, message = False, f"not done after {request.timeout_s:g} s; it goes on"
        except (EngineError, UpstreamTimeout) as error:
            success, message = False, error.message
        return WorkerApplyOutput(
            success=success,
            message=message,
            took_s=round(time.monotonic() - began_s, 3),
            instances=tuple(
                InstanceResult(
                    instance_id=data.instance_id,
                    success=success,
                    state=data.state,
                    message=data.reason,
                )
                for data in self._manager.run_data(self._manager.wishes.find(request.model).name)
            ),
        )

    # Private

    async def _start(self, request: WorkerApplyRequest) -> str:
        deployment = self._manager.wishes.find(request.model)
        await self._manager.model_startup(WorkerStartupRequest(model=deployment.name))
        return "every instance is ready"

    async def _stop(self, request: WorkerApplyRequest) -> str:
        deployment = self._manager.wishes.find(request.model)
        await self._manager.model_shutdown(WorkerShutdownRequest(model=deployment.name))
        return "every instance is stopped"

    async def _renew(self, request: WorkerApplyRequest) -> str:
        """New processes one by one beside the old ones; the old specification if they fail."""
        manager = self._manager
        old, new = await manager.wishes.apply(request)
        manager.reconciler.pardon(new.worker_key)
        try:
            await self._until_renewed(new, request.timeout_s)
        except (EngineError, UpstreamTimeout) as error:
            back = await manager.wishes.take_back(old)
            manager.reconciler.pardon(back.worker_key)
            raise EngineError(
                f"{error.message}; the model goes on with its old specification"
            ) from error
        return "every instance is ready with the new specification"

    async def _until_renewed(self, new: Deployment, timeout_s: float) -> None:
        """As until_ready, but one failed try is enough, and the old processes are gone too."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self._manager.progress.check(new, tries=1)
                    living = self._manager.progress.living(new)
                    old = [i for i in living if i.generation != new.process_generation]
                    if not old and self._manager.progress.is_ready(new):
                        return
                    await self._manager.registry.news().wait()
        except TimeoutError as error:
            raise UpstreamTimeout(
                f"model {new.name!r}: not renewed after {timeout_s:g} s"
            ) from error
