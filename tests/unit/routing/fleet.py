"""Snapshots by hand for tests of routing and gateway."""

from typing import Any

from hostler.core.lifecycle import State
from hostler.core.model import PrefixReach, WorkerType
from hostler.core.serving import Priority, RoutingRules
from hostler.core.snapshot import Endpoint, InstanceView, ModelView, Snapshot
from hostler.routing.ask import Ask


class KeyAsk(Ask):
    """A request of a key."""

    def __init__(
        self,
        key_id: str,
        *,
        weight: float = 1.0,
        priority: Priority = Priority.NORMAL,
        prompt_tokens: int = 0,
    ) -> None:
        self._told = (key_id, weight, priority, prompt_tokens)

    @property
    def key_id(self) -> str:
        return self._told[0]

    @property
    def weight(self) -> float:
        return self._told[1]

    @property
    def priority(self) -> Priority:
        return self._told[2]

    @property
    def prompt_tokens(self) -> int:
        return self._told[3]


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
    prefix_reach: PrefixReach = PrefixReach.SLOT,
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
        prefix_reach=prefix_reach,
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
