"""Handlers for what a remote worker manager asks beyond the models' own: choose, describe, wait."""

from hostler.admin.messages import InstanceList
from hostler.admin.models import real_name
from hostler.admin.operation import Call
from hostler.app.auth import Scope, require
from hostler.core.model import ModelMetadata
from hostler.core.worker import WorkerRunData


async def select_instance(call: Call) -> WorkerRunData:
    query = call.query
    return await call.services.control.select_one_instance(
        query.worker_type, query.model, query.healthy_only
    )


async def show_metadata(call: Call) -> ModelMetadata:
    """As the data plane does: a key limited to some models learns nothing of others."""
    control, name = call.services.control, call.query.model
    asked = name if name in call.key.models else real_name(control, name)
    require(call.key, Scope.INFERENCE, asked)
    return await control.get_model_metadata(name)


async def wait_model(call: Call) -> InstanceList:
    """Bounded: who wants to wait longer asks again."""
    query = call.query
    found = await call.services.control.wait_model(
        query.worker_type, query.model, query.until, query.timeout_s
    )
    return InstanceList(instances=tuple(found))
