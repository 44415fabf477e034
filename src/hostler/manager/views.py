"""What a manager shows of its instances and of what it could start. Reads only."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from hostler.catalog.catalog import Catalog
from hostler.catalog.needs import supported
from hostler.core.deployment import Deployment
from hostler.core.errors import ModelNotFound, NoReadyInstance
from hostler.core.lifecycle import State
from hostler.core.model import WorkerType, describe
from hostler.core.snapshot import Endpoint
from hostler.core.worker import WorkerRunData, WorkerSupportedModel
from hostler.engines.base import brought_models, engines, hide_secrets
from hostler.manager.machines import Machines
from hostler.manager.wishes import Wishes
from hostler.manager.workers import LocalWorkers
from hostler.registry.record import Record
from hostler.registry.registry import Registry
from hostler.routing.router import Router


class Shown(Protocol):
    """A manager, as far as its instances are shown."""

    registry: Registry
    wishes: Wishes
    workers: LocalWorkers
    machines: Machines
    clock: Callable[[], float]


def run_data(manager: Shown, model_name: str | None = None) -> list[WorkerRunData]:
    """Return the known instances, of one model if named, by model and replica."""
    by_key = {deployment.worker_key: deployment for deployment in manager.wishes.all()}
    now_s, registry = manager.clock(), manager.registry
    records = registry.records() if model_name is None else registry.of_model(model_name)
    found = [
        _one(manager, record, by_key.get(record.instance.worker_key), now_s) for record in records
    ]
    return sorted(found, key=lambda data: (data.model_name, data.replica, data.epoch))


def pick(
    router: Router, deployment: Deployment, known: list[WorkerRunData], healthy_only: bool
) -> WorkerRunData:
    """Return the instance the router would use now: usable and with the fewest requests.

    Raises:
        NoReadyInstance: with how many there are in each state.
    """
    load = router.load
    usable = {view.instance_id for view in router.usable(deployment.name)}
    able = [data for data in known if data.instance_id in usable and data.state is State.READY] or (
        [] if healthy_only else [data for data in known if not data.stopped]
    )
    if not able:
        states = ", ".join(f"{data.instance_id} {data.state}" for data in known) or "none started"
        raise NoReadyInstance(f"model {deployment.name!r}: no instance is ready ({states})")
    # a manager behind gateways lends no slots itself: there the workers' own reports decide
    return min(able, key=lambda data: (load.get(data.instance_id, 0), data.in_flight, data.replica))


def real_name(wishes: Wishes, name: str) -> str:
    """Return the name of the model that has this alias, or the name itself."""
    return next((one.name for one in wishes.all() if name in one.aliases), name)


def engine_meant(
    wishes: Wishes, catalog: Catalog, worker_type: WorkerType | None, name: str
) -> str:
    """Return the engine of a model that is wished, or could be.

    Raises:
        ModelNotFound: neither.
    """
    known = [one for one in wishes.all() if name in (one.name, *one.aliases)]
    if known:
        return known[0].engine
    entry = catalog.find(name)
    if entry is not None and worker_type in (None, entry.worker_type):
        return entry.engine
    return wishes.find(name, worker_type).engine


def check_own_name(deployment: Deployment, name: str) -> None:
    """Return when a deployment was meant by its own name, as an order must.

    Raises:
        ModelNotFound: by an alias.
    """
    if deployment.name != name:
        raise ModelNotFound(
            f"{name!r} is an alias of model {deployment.name!r}: an order names the model itself",
            param="model",
        )


def supported_models(catalog: Catalog, models_dir: Path) -> list[WorkerSupportedModel]:
    """Return what could be started here, each with the parameters of its engine."""
    kinds = engines()
    known = list(supported(models_dir, catalog))
    named = {model.model for model in known}
    for kind in kinds.values():
        known += [model for model in brought_models(kind) if model.model not in named]
    return [
        msgspec.structs.replace(model, params=tuple(describe(kinds[model.engine].parameters)))
        if model.engine in kinds
        else model
        for model in known
    ]


# Private


def _one(
    manager: Shown, record: Record, deployment: Deployment | None, now_s: float
) -> WorkerRunData:
    instance, expected, workers = record.instance, record.expected, manager.workers
    endpoint = expected.endpoint
    return WorkerRunData(
        worker_key=instance.worker_key,
        worker_type=expected.worker_type,
        model_name=instance.model_name,
        instance_id=instance.instance_id,
        host=endpoint.host or "127.0.0.1",
        port=endpoint.port,
        address=_address(endpoint),
        engine=expected.engine,
        state=instance.state,
        reason=instance.reason,
        error_code=record.error_code,
        replica=instance.replica,
        epoch=instance.epoch,
        pid=record.pid or workers.pid(instance.instance_id),
        worker_params={} if deployment is None else {"source": deployment.source},
        model_params={}
        if deployment is None
        else hide_secrets(deployment.engine, deployment.params),
        command_args=workers.command_args(instance.instance_id) or record.command_args,
        limit_model_concurrency=expected.concurrency,
        in_flight=record.in_flight,
        last_heartbeat_s=None if record.heard_at_s is None else now_s - record.heard_at_s,
        state_for_s=now_s - instance.since_s,
        memory_bytes=record.memory_bytes,
        stopped=instance.state in (State.STOPPED, State.FAILED),
        host_id=endpoint.host_id,
        host_name=manager.machines.host_name(endpoint.host_id) if endpoint.host_id else "",
        placement=manager.machines.hands.placement(instance.instance_id),
    )


def _address(endpoint: Endpoint) -> str:
    if endpoint.socket:
        return f"unix:{endpoint.socket}"
    return f"{endpoint.host}:{endpoint.port}" if endpoint.host else ""
