"""Applier: START, STOP, RESTART and UPDATE_PARAMS on a running model, and back when it does not work."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from hostler.core.errors import BadRequest, Conflict, EngineError, UpstreamTimeout
from hostler.core.worker import (
    InstanceResult,
    WorkerApplyOutput,
    WorkerApplyRequest,
    WorkerApplyType,
    WorkerRunData,
    WorkerShutdownRequest,
    WorkerStartupRequest,
)
from hostler.manager.renewals import Renewals
from hostler.manager.replacing import Replacement
from hostler.manager.views import check_own_name
from hostler.manager.wishes import Wishes


class Applied(Protocol):
    """The manager, as far as it is needed here."""

    wishes: Wishes
    renewals: Renewals

    def run_data(self, model_name: str | None = None) -> list[WorkerRunData]: ...

    async def model_startup(self, request: WorkerStartupRequest) -> list[WorkerRunData]: ...

    async def model_shutdown(self, request: WorkerShutdownRequest) -> None: ...


class Applier:
    """Carries one WorkerApplyRequest out."""

    def __init__(self, manager: Applied) -> None:
        self._manager = manager

    async def apply(self, request: WorkerApplyRequest) -> WorkerApplyOutput:
        """Do it and say what became of every instance. A model that is not known raises."""
        began_s = time.monotonic()
        manager = self._manager
        found = manager.wishes.find(request.model, request.worker_type)
        check_own_name(found, request.model)
        name = found.name
        if request.instance_id is not None and request.apply_type is not WorkerApplyType.RESTART:
            raise BadRequest(
                f"instance_id: one instance can only be restarted, not {request.apply_type.value}",
                param="instance_id",
            )
        one: Replacement | None = None
        restart: Callable[[WorkerApplyRequest], Awaitable[str]] = self._renew
        if request.instance_id is not None:
            one = manager.renewals.single.order(request.instance_id, name)
            restart = partial(self._replace, one)
        orders: dict[WorkerApplyType, Callable[[WorkerApplyRequest], Awaitable[str]]] = {
            WorkerApplyType.START: self._start,
            WorkerApplyType.STOP: self._stop,
            WorkerApplyType.RESTART: restart,
            WorkerApplyType.UPDATE_PARAMS: self._renew,
        }
        success, message = True, ""
        try:
            async with asyncio.timeout(request.timeout_s):
                message = await orders[request.apply_type](request)
        except TimeoutError:
            success, message = False, f"not done after {request.timeout_s:g} s; it goes on"
        except (EngineError, Conflict, UpstreamTimeout) as error:
            success, message = False, error.message
        return WorkerApplyOutput(
            success=success,
            message=message,
            notes=manager.wishes.notes(name) if request.routing is not None else (),
            took_s=round(time.monotonic() - began_s, 3),
            instances=tuple(
                InstanceResult(
                    instance_id=data.instance_id,
                    success=success,
                    state=data.state,
                    message=data.reason,
                )
                for data in manager.run_data(name)
                if one is None or data.replica == one.old.replica
            ),
        )

    # Private

    async def _start(self, request: WorkerApplyRequest) -> str:
        deployment = self._manager.wishes.find(request.model, request.worker_type)
        await self._manager.model_startup(WorkerStartupRequest(model=deployment.name))
        return "every instance is ready"

    async def _stop(self, request: WorkerApplyRequest) -> str:
        deployment = self._manager.wishes.find(request.model, request.worker_type)
        await self._manager.model_shutdown(WorkerShutdownRequest(model=deployment.name))
        return "every instance is stopped"

    async def _replace(self, order: Replacement, request: WorkerApplyRequest) -> str:
        """A new process in the place of one; the old one goes on if it fails."""
        if (error := await asyncio.shield(order.outcome)) is not None:
            raise error
        return f"another process has the place of {request.instance_id}"

    async def _renew(self, request: WorkerApplyRequest) -> str:
        """New processes one by one beside the old ones; the old specification if they fail."""
        manager = self._manager
        new = await manager.wishes.apply(request)
        await manager.renewals.done(new)
        return "every instance is ready with the new specification"
