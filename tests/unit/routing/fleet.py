"""Snapshots by hand for tests of routing and gateway."""

from typing import Any

from hostler.core.lifecycle import State
from hostler.core.model import WorkerType
from hostler.core.serving import RoutingRules
from hostler.core.snapshot import Endpoint, InstanceView, ModelView, Snapshot


def instance(
    instance_id: str,
    model: str = "m",
    *,
    state: State = State.READY,
    concurrency: int = 2,
    endpoint: Endpoint | None = None,
    engine: str = "fake",
    replica: int = 0,
    epoch: int = 1,
) -> InstanceView:
    return InstanceView(
        instance_id=instance_id,
        epoch=epoch,
        replica=replica,
        model_name=model,
        worker_type=WorkerType.LLM,
        engine=engine,
        state=state,
        endpoint=endpoint or Endpoint(socket=f"/nowhere/{instance_id}.sock"),
        concurrency=concurrency,
    )


def model(
    name: str = "m",
    *,
    aliases: tuple[str, ...] = (),
    loading: bool = False,
    open_fields: tuple[str, ...] = (),
    engine: str = "fake",
    wanted: int = 1,
    worker_type: WorkerType = WorkerType.LLM,
    **rules: Any,
) -> ModelView:
    """rules: of `RoutingRules`."""
    return ModelView(
        name=name,
        worker_type=worker_type,
        engine=engine,
        aliases=aliases,
        loading=loading,
        open_fields=open_fields,
        wanted=wanted,
        routing=RoutingRules(**rules),
        states=(("starting", 1),) if loading else (),
    )


def snapshot(*instances: InstanceView, models: tuple[ModelView, ...] | None = None) -> Snapshot:
    names = dict.fromkeys(i.model_name for i in instances)
    return Snapshot(
        version=1,
        models=models if models is not None else tuple(model(name) for name in names),
        instances=instances,
    )
