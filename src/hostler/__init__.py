"""Hostler: one endpoint for many AI models. These are the public names; each is imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostler.app.component import BaseComponent as BaseComponent
    from hostler.app.component import ComponentType as ComponentType
    from hostler.app.component import SystemApp as SystemApp
    from hostler.app.config import Config as Config
    from hostler.app.config import ModelConfig as ModelConfig
    from hostler.app.loading import load_config as load_config
    from hostler.app.machines_section import ControlConfig as ControlConfig
    from hostler.core.errors import HostlerError as HostlerError
    from hostler.core.fleet import WorkerSpec as WorkerSpec
    from hostler.core.hosts import CreatedToken as CreatedToken
    from hostler.core.hosts import HostView as HostView
    from hostler.core.model import ModelMetadata as ModelMetadata
    from hostler.core.model import ModelOutput as ModelOutput
    from hostler.core.model import ParameterDescription as ParameterDescription
    from hostler.core.model import Usage as Usage
    from hostler.core.model import WorkerType as WorkerType
    from hostler.core.params import EmbeddingParams as EmbeddingParams
    from hostler.core.params import GenerateParams as GenerateParams
    from hostler.core.snapshot import InstanceView as InstanceView
    from hostler.core.worker import WorkerApplyOutput as WorkerApplyOutput
    from hostler.core.worker import WorkerApplyRequest as WorkerApplyRequest
    from hostler.core.worker import WorkerApplyType as WorkerApplyType
    from hostler.core.worker import WorkerRunData as WorkerRunData
    from hostler.core.worker import WorkerShutdownRequest as WorkerShutdownRequest
    from hostler.core.worker import WorkerStartupRequest as WorkerStartupRequest
    from hostler.core.worker import WorkerSupportedModel as WorkerSupportedModel
    from hostler.engines.base import Embeddings as Embeddings
    from hostler.engines.base import EngineKind as EngineKind
    from hostler.engines.base import GenerateRequest as GenerateRequest
    from hostler.engines.base import ModelWorker as ModelWorker
    from hostler.engines.base import Ranking as Ranking
    from hostler.manager.base import WorkerManager as WorkerManager
    from hostler.manager.base import WorkerManagerFactory as WorkerManagerFactory
    from hostler.manager.factory import LocalWorkerManagerFactory as LocalWorkerManagerFactory
    from hostler.manager.local import LocalWorkerManager as LocalWorkerManager
    from hostler.manager.ray import RayWorkerManager as RayWorkerManager
    from hostler.manager.remote import RemoteWorkerManager as RemoteWorkerManager
    from hostler.routing.ask import Ask as Ask
    from hostler.routing.policies import LeastInFlight as LeastInFlight
    from hostler.routing.policies import Loads as Loads
    from hostler.routing.policy import RoutingPolicy as RoutingPolicy
    from hostler.storage.sql import SqlStore as SqlStore

_HOMES = {
    "BaseComponent": "hostler.app.component",
    "ComponentType": "hostler.app.component",
    "SystemApp": "hostler.app.component",
    "Config": "hostler.app.config",
    "ModelConfig": "hostler.app.config",
    "load_config": "hostler.app.loading",
    "ControlConfig": "hostler.app.machines_section",
    "HostlerError": "hostler.core.errors",
    "ModelMetadata": "hostler.core.model",
    "ModelOutput": "hostler.core.model",
    "ParameterDescription": "hostler.core.model",
    "Usage": "hostler.core.model",
    "WorkerSpec": "hostler.core.fleet",
    "CreatedToken": "hostler.core.hosts",
    "HostView": "hostler.core.hosts",
    "WorkerType": "hostler.core.model",
    "EmbeddingParams": "hostler.core.params",
    "GenerateParams": "hostler.core.params",
    "InstanceView": "hostler.core.snapshot",
    "WorkerApplyOutput": "hostler.core.worker",
    "WorkerApplyRequest": "hostler.core.worker",
    "WorkerApplyType": "hostler.core.worker",
    "WorkerRunData": "hostler.core.worker",
    "WorkerShutdownRequest": "hostler.core.worker",
    "WorkerStartupRequest": "hostler.core.worker",
    "WorkerSupportedModel": "hostler.core.worker",
    "Embeddings": "hostler.engines.base",
    "EngineKind": "hostler.engines.base",
    "GenerateRequest": "hostler.engines.base",
    "ModelWorker": "hostler.engines.base",
    "Ranking": "hostler.engines.base",
    "WorkerManager": "hostler.manager.base",
    "WorkerManagerFactory": "hostler.manager.base",
    "LocalWorkerManager": "hostler.manager.local",
    "LocalWorkerManagerFactory": "hostler.manager.factory",
    "RayWorkerManager": "hostler.manager.ray",
    "RemoteWorkerManager": "hostler.manager.remote",
    "Ask": "hostler.routing.ask",
    "LeastInFlight": "hostler.routing.policies",
    "Loads": "hostler.routing.policies",
    "RoutingPolicy": "hostler.routing.policy",
    "SqlStore": "hostler.storage.sql",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its room: a client of one type does not pay for a manager."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'hostler' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
