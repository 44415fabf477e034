"""Handlers for models: list, show, start, stop, apply; and what could be started."""

import asyncio
from collections import Counter
from urllib.parse import quote

import msgspec

from hostler.admin.control import ControlPlane
from hostler.admin.messages import (
    InstanceAccepted,
    InstanceList,
    ModelAccepted,
    ModelList,
    ModelStatus,
    ParameterList,
    SupportedModelList,
)
from hostler.admin.operation import Call
from hostler.core.deployment import Deployment, detour_notes
from hostler.core.errors import BadRequest, ModelNotFound
from hostler.core.lifecycle import State
from hostler.core.model import WorkerType, describe
from hostler.core.worker import (
    WorkerApplyOutput,
    WorkerRunData,
    WorkerShutdownRequest,
)
from hostler.engines.base import engine_problems, find_engine, hide_secrets


async def list_models(call: Call) -> ModelList:
    control = call.services.control
    wishes = control.deployments()
    by_key: dict[str, list[WorkerRunData]] = {}
    for one in control.run_data(None):
        by_key.setdefault(one.worker_key, []).append(one)
    return ModelList(
        models=tuple(model_status(one, by_key.get(one.worker_key, []), wishes) for one in wishes)
    )


async def show_model(call: Call) -> ModelStatus:
    control = call.services.control
    name = call.path_value("name")
    found = find_deployment(control, name, call.query.worker_type)
    return _whole(control, found)


async def start_model(call: Call) -> ModelAccepted:
    control = call.services.control
    before = await asyncio.to_thread(control.last_event_seq)
    deployment, created = await control.start_model(call.body)
    return _accepted(control, deployment, before, created)


async def stop_model(call: Call) -> ModelAccepted:
    """With `delete`, the answer is the last that is heard of the deployment."""
    control = call.services.control
    found = find_deployment(control, call.path_value("name"), call.query.worker_type)
    order = WorkerShutdownRequest(
        model=found.name, worker_type=found.worker_type, delete_after=call.query.delete
    )
    before = await asyncio.to_thread(control.last_event_seq)
    stopped = await control.stop_model(order)
    return _accepted(control, stopped, before, created=False)


async def apply(call: Call) -> WorkerApplyOutput:
    return await call.services.control.worker_apply(call.body)


async def list_instances(call: Call) -> InstanceList:
    control, name = call.services.control, call.query.model
    if name is not None:
        name = real_name(control, name)
    return InstanceList(instances=tuple(control.run_data(name)))


async def restart_instance(call: Call) -> InstanceAccepted:
    control = call.services.control
    before = await asyncio.to_thread(control.last_event_seq)
    found = await control.restart_instance(call.path_value("instance_id"))
    return InstanceAccepted(instance=found, events=_events(before, found.model_name))


async def supported_models(call: Call) -> SupportedModelList:
    found = await call.services.control.supported_models()
    return SupportedModelList(models=tuple(found), problems=engine_problems())


async def parameters(call: Call) -> ParameterList:
    engine, model = call.query.engine, call.query.model
    if (engine is None) == (model is None):
        raise BadRequest("say either engine or model: ?engine=NAME or ?model=NAME", param="engine")
    if engine is not None:
        return ParameterList(parameters=tuple(describe(find_engine(engine).parameters)))
    control = call.services.control
    found = await control.parameter_descriptions(call.query.worker_type, model)
    return ParameterList(parameters=tuple(found))


def real_name(control: ControlPlane, name: str) -> str:
    """Return the name of the model that has this alias, or the name itself."""
    return next((one.name for one in control.deployments() if name in one.aliases), name)


def find_deployment(
    control: ControlPlane, name: str, worker_type: WorkerType | None = None
) -> Deployment:
    """Return the one deployment meant. Aliases are not looked at: an order names the model itself.

    Raises:
        ModelNotFound: none of this name and type; BadRequest: several types share the name.
    """
    known = control.deployments()
    found = [
        one
        for one in known
        if one.name == name and (worker_type is None or one.worker_type == worker_type)
    ]
    if len(found) > 1:
        types = ", ".join(one.worker_type for one in found)
        raise BadRequest(
            f"model {name!r} is there as {types}: say which with worker_type", param="worker_type"
        )
    if not found:
        names = ", ".join(one.name for one in known[:20]) or "none"
        raise ModelNotFound(f"no model {name[:96]!r} here (there are: {names})", param="model")
    return found[0]


def model_status(
    deployment: Deployment, instances: list[WorkerRunData], wishes: list[Deployment]
) -> ModelStatus:
    """Put a wish beside its instances, in numbers. instances: its own, at least. wishes: all there are."""
    mine = [one for one in instances if one.worker_key == deployment.worker_key]
    states = Counter(one.state.value for one in mine)
    reasons = [one.reason for one in sorted(mine, key=lambda one: one.epoch) if one.reason]
    return ModelStatus(
        name=deployment.name,
        worker_type=deployment.worker_type,
        worker_key=deployment.worker_key,
        wanted=deployment.shown_instances,
        ready=states[State.READY.value],
        states=dict(states),
        reason=reasons[-1] if reasons else "",
        notes=detour_notes(deployment, wishes),
        deployment=msgspec.structs.replace(
            deployment,
            params=hide_secrets(deployment.engine, deployment.params),
            fallback=None,  # its parameters may be secret, too
        ),
    )


# Private


def _whole(control: ControlPlane, deployment: Deployment) -> ModelStatus:
    """The status of one model, with its instances."""
    known = control.run_data(deployment.name)
    return msgspec.structs.replace(
        model_status(deployment, known, control.deployments()),
        instances=tuple(one for one in known if one.worker_key == deployment.worker_key),
        start_limit_s=control.start_limit_s(deployment),
    )


def _accepted(
    control: ControlPlane, deployment: Deployment, before: int, created: bool
) -> ModelAccepted:
    """before: the newest event when the order came; what comes of it has a higher number."""
    return ModelAccepted(
        created=created,
        model=_whole(control, deployment),
        events=_events(before, deployment.name),
    )


def _events(before: int, name: str) -> str:
    """Where the events of a model are told, from this number on."""
    return f"/api/v1/events?follow=true&after={before}&model={quote(name, safe='')}"
