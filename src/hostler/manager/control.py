"""LocalControl: a LocalWorkerManager as the admin API needs it."""

import time

from hostler.core.deployment import Deployment
from hostler.core.hosts import HostView
from hostler.core.model import ModelMetadata, ParameterDescription, WorkerType
from hostler.core.usage import UsageQuestion, UsageRow
from hostler.core.worker import (
    OperatorEvent,
    Until,
    WorkerApplyOutput,
    WorkerApplyRequest,
    WorkerRunData,
    WorkerShutdownRequest,
    WorkerStartupRequest,
    WorkerSupportedModel,
)
from hostler.manager.host_logs import DistantLog
from hostler.manager.local import LocalWorkerManager
from hostler.manager.logs import LocalLog


class LocalHosts:
    """The machines of a LocalWorkerManager, and orders for single instances."""

    manager: LocalWorkerManager

    def hosts(self) -> list[HostView]:
        return self.manager.machines.views()

    def host(self, name: str) -> HostView:
        return self.manager.machines.view(name)

    async def drain_host(self, name: str, *, is_draining: bool) -> HostView:
        return await self.manager.machines.drain(name, is_draining=is_draining)

    async def remove_host(self, name: str, *, force: bool) -> HostView:
        return await self.manager.machines.remove(name, force=force)

    async def restart_instance(self, instance_id: str) -> WorkerRunData:
        order = self.manager.renewals.single.order(instance_id)
        known = self.manager.run_data(order.old.model_name)
        return next(one for one in known if one.instance_id == instance_id)


class LocalControl(LocalHosts):
    """Wishes are written down and answered at once; what comes of them is in the events."""

    def __init__(self, manager: LocalWorkerManager) -> None:
        self.manager = manager
        self._began_at_s = time.monotonic()

    async def start_model(self, request: WorkerStartupRequest) -> tuple[Deployment, bool]:
        deployment, is_news = await self.manager.order_start(request)
        if is_news:
            self._tell("model.start", deployment)
        return deployment, is_news

    async def stop_model(self, request: WorkerShutdownRequest) -> Deployment:
        deployment = await self.manager.shut(request)
        self._tell("model.stop", deployment)
        return deployment

    async def worker_apply(self, request: WorkerApplyRequest) -> WorkerApplyOutput:
        return await self.manager.worker_apply(request)

    def start_limit_s(self, deployment: Deployment) -> float:
        return self.manager.waiting.start_limit_s(deployment)

    def deployments(self) -> list[Deployment]:
        return sorted(self.manager.wishes.all(), key=lambda deployment: deployment.name)

    def run_data(self, model: str | None) -> list[WorkerRunData]:
        return self.manager.run_data(model)

    async def select_one_instance(
        self, worker_type: WorkerType | None, model_name: str, healthy_only: bool
    ) -> WorkerRunData:
        found = self.manager.wishes.find(model_name, worker_type)
        return await self.manager.select_one_instance(found.worker_type, found.name, healthy_only)

    async def get_model_metadata(self, model_name: str) -> ModelMetadata:
        return await self.manager.get_model_metadata({"model": model_name})

    async def wait_model(
        self, worker_type: WorkerType | None, model_name: str, until: Until, timeout_s: float
    ) -> list[WorkerRunData]:
        if until is Until.READY:
            deployment = self.manager.wishes.find(model_name, worker_type)
            await self.manager.until_ready(deployment, timeout_s)
            return self.run_data(deployment.name)
        await self.manager.until_gone(model_name, timeout_s)
        return self.run_data(model_name)

    async def supported_models(self) -> list[WorkerSupportedModel]:
        return await self.manager.supported_models()

    async def parameter_descriptions(
        self, worker_type: WorkerType | None, model_name: str
    ) -> list[ParameterDescription]:
        return await self.manager.parameter_descriptions(worker_type, model_name)

    def events_after(self, seq: int, limit: int, model: str | None) -> list[OperatorEvent]:
        return self.manager.journal.after(seq, limit, model)

    def last_event_seq(self) -> int:
        return self.manager.journal.last_seq()

    async def wait_events(self, seq: int, timeout_s: float) -> None:
        await self.manager.journal.wait(seq, timeout_s)

    async def usage(self, question: UsageQuestion) -> tuple[UsageRow, ...]:
        return await self.manager.usage.read(question)

    def log_of(self, instance_id: str) -> LocalLog | DistantLog | None:
        record = self.manager.registry.record(instance_id)
        if record is None:
            return None
        if host_id := record.expected.endpoint.host_id:
            machines = self.manager.machines
            return DistantLog(instance_id, lambda: machines.book.known(host_id), machines.tls)
        return LocalLog(self.manager.paths.worker_log(instance_id))

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._began_at_s

    # Private

    def _tell(self, kind: str, deployment: Deployment) -> None:
        self.manager.journal.tell(
            OperatorEvent(
                kind=kind,
                model=deployment.name,
                message=f"wished {deployment.wish.value}, {deployment.wanted_instances} instance(s)",
                fields={"generation": deployment.generation, "engine": deployment.engine},
            )
        )
