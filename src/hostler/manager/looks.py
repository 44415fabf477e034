"""InstanceLooks: the half of the contract that looks at one's own instances. It orders nothing."""

import asyncio
from collections.abc import Callable

from hostler.app.paths import StatePaths
from hostler.catalog.catalog import Catalog
from hostler.core.lifecycle import State
from hostler.core.model import ModelMetadata, ParameterDescription, WorkerType, describe
from hostler.core.worker import WorkerRunData, WorkerSupportedModel
from hostler.engines.base import find_engine
from hostler.manager.following import FollowingRouter
from hostler.manager.machines import Machines
from hostler.manager.requests import DirectRequests
from hostler.manager.views import engine_meant, pick, real_name, run_data, supported_models
from hostler.manager.wishes import Wishes
from hostler.manager.workers import LocalWorkers
from hostler.registry.registry import Registry
from hostler.routing.router import Router


class InstanceLooks(DirectRequests):
    """For a manager that has a registry, wishes, and hands of its own."""

    paths: StatePaths
    catalog: Catalog
    registry: Registry
    wishes: Wishes
    workers: LocalWorkers
    machines: Machines
    following: FollowingRouter
    clock: Callable[[], float]

    @property
    def router(self) -> Router:
        """Who serves what, as the registry knows it at this moment."""
        return self.following.now()

    async def get_model_instances(
        self, worker_type: WorkerType, model_name: str, healthy_only: bool = True
    ) -> list[WorkerRunData]:
        self.check_running()
        name = real_name(self.wishes, model_name)
        return [
            data
            for data in await self.get_all_model_instances(worker_type, healthy_only)
            if data.model_name == name
        ]

    async def get_all_model_instances(
        self, worker_type: WorkerType, healthy_only: bool = True
    ) -> list[WorkerRunData]:
        self.check_running()
        return [
            data
            for data in self.run_data()
            if data.worker_type is worker_type and (data.state is State.READY or not healthy_only)
        ]

    async def select_one_instance(
        self, worker_type: WorkerType, model_name: str, healthy_only: bool = True
    ) -> WorkerRunData:
        self.check_running()
        deployment = self.wishes.find(model_name, worker_type)
        return pick(self.router, deployment, self.run_data(deployment.name), healthy_only)

    def run_data(self, model_name: str | None = None) -> list[WorkerRunData]:
        """The instances known now, dead ones with their reason included."""
        return run_data(self, model_name)

    def metadata_of(self, instance_id: str) -> ModelMetadata | None:
        record = self.registry.record(instance_id)
        return record.metadata if record else None

    async def supported_models(self) -> list[WorkerSupportedModel]:
        self.check_running()
        return await asyncio.to_thread(supported_models, self.catalog, self.paths.models_dir)

    async def parameter_descriptions(
        self, worker_type: WorkerType | None, model_name: str
    ) -> list[ParameterDescription]:
        self.check_running()
        engine = engine_meant(self.wishes, self.catalog, worker_type, model_name)
        return describe(find_engine(engine).parameters)
