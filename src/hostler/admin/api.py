"""/api/v1: what operators can order and ask. One table of operations; each names its key's scope.

A model's name may hold slashes; what follows `/models/` is the whole of it, but for a last `/logs`,
which no name may end in. Not here: HTTP framing and its limits (wire), what the orders do (manager).
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from hostler.admin import contract, events, gateways, hosts, keys, logs, models, tokens
from hostler.admin.control import ControlPlane, Status
from hostler.admin.door import Door, Resource, not_found
from hostler.admin.messages import (
    DrainOrder,
    EventList,
    EventQuery,
    HostList,
    HostStatus,
    InstanceList,
    InstanceQuery,
    KeyCreated,
    KeyInfo,
    KeyList,
    KeyOrder,
    LogAnswer,
    LogQuery,
    MetadataQuery,
    ModelAccepted,
    ModelList,
    ModelLogQuery,
    ModelQuery,
    ModelStatus,
    ParameterList,
    ParameterQuery,
    RemoveQuery,
    SelectQuery,
    StopQuery,
    SupportedModelList,
    TokenCreated,
    TokenInfo,
    TokenList,
    TokenOrder,
    UsageList,
    UsageQuery,
    WaitQuery,
)
from hostler.admin.openapi import openapi_document
from hostler.admin.operation import Call, Followers, Operation, Services
from hostler.admin.tokens import TokenDesk
from hostler.admin.usage import show_usage
from hostler.app.auth import KeyRing, KeyStore, Scope
from hostler.app.supervision import Gateways, Wish
from hostler.core.errors import StartupError
from hostler.core.hosts import HostView
from hostler.core.model import ModelMetadata
from hostler.core.worker import (
    WorkerApplyOutput,
    WorkerApplyRequest,
    WorkerRunData,
    WorkerStartupRequest,
)
from hostler.storage.writer import Writer

FOLLOWERS = 64  # streams of events and logs open at once


async def show_status(call: Call) -> Status:
    return call.services.control.status()


async def show_openapi(call: Call) -> Response:
    return Response(openapi_document(OPERATIONS), media_type="application/json")


_admin = partial(Operation, scope=Scope.ADMIN)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="GET",
        path="/api/v1/status",
        scope=Scope.METRICS,
        summary="The controller in numbers",
        response=Status,
        handler=show_status,
    ),
    _admin(
        method="GET",
        path="/api/v1/models",
        summary="Every deployment and how it stands",
        response=ModelList,
        handler=models.list_models,
    ),
    _admin(
        method="POST",
        path="/api/v1/models",
        summary="Start a model: the wish is written down, the events tell what comes of it",
        request=WorkerStartupRequest,
        response=ModelAccepted,
        status=202,
        handler=models.start_model,
    ),
    _admin(
        method="GET",
        path="/api/v1/models/{name:path}/logs",
        summary="The last log lines of every instance of a model; with follow, new ones too",
        query=ModelLogQuery,
        response=LogAnswer,
        streams="text/event-stream",
        handler=logs.model_logs,
    ),
    _admin(
        method="GET",
        path="/api/v1/models/{name:path}",
        summary="One deployment and its instances",
        query=ModelQuery,
        response=ModelStatus,
        handler=models.show_model,
    ),
    _admin(
        method="DELETE",
        path="/api/v1/models/{name:path}",
        summary="Drain and stop a model; with delete, forget it",
        query=StopQuery,
        response=ModelAccepted,
        status=202,
        handler=models.stop_model,
    ),
    _admin(
        method="POST",
        path="/api/v1/apply",
        summary="Start, stop, restart or update every instance of a model, and wait",
        request=WorkerApplyRequest,
        response=WorkerApplyOutput,
        handler=models.apply,
    ),
    _admin(
        method="GET",
        path="/api/v1/instances",
        summary="Every instance, also those that failed",
        query=InstanceQuery,
        response=InstanceList,
        handler=models.list_instances,
    ),
    _admin(
        method="GET",
        path="/api/v1/instances/{instance_id}/logs",
        summary="The last log lines of one instance; with follow, new ones too",
        query=LogQuery,
        response=LogAnswer,
        streams="text/event-stream",
        handler=logs.instance_logs,
    ),
    _admin(
        method="GET",
        path="/api/v1/select",
        summary="The instance of a model that a request would get now",
        query=SelectQuery,
        response=WorkerRunData,
        handler=contract.select_instance,
    ),
    Operation(
        method="GET",
        path="/api/v1/metadata",
        scope=Scope.INFERENCE,
        summary="What a running model is and can do",
        query=MetadataQuery,
        response=ModelMetadata,
        handler=contract.show_metadata,
    ),
    _admin(
        method="GET",
        path="/api/v1/wait",
        summary="Answer when a model is ready, or gone; 504 when it takes longer than timeout_s",
        query=WaitQuery,
        response=InstanceList,
        handler=contract.wait_model,
    ),
    _admin(
        method="GET",
        path="/api/v1/supported-models",
        summary="What could be started here, and whether it fits",
        response=SupportedModelList,
        handler=models.supported_models,
    ),
    _admin(
        method="GET",
        path="/api/v1/parameters",
        summary="What can be set for an engine or a model",
        query=ParameterQuery,
        response=ParameterList,
        handler=models.parameters,
    ),
    _admin(
        method="GET",
        path="/api/v1/events",
        summary="What happened; as a stream, what happens",
        query=EventQuery,
        response=EventList,
        streams="text/event-stream",
        handler=events.events,
    ),
    _admin(
        method="GET",
        path="/api/v1/gateways",
        summary="The gateway processes, and those that finish what they have",
        response=Gateways,
        handler=gateways.list_gateways,
    ),
    _admin(
        method="POST",
        path="/api/v1/gateways/restart",
        summary="Put a fresh process in the place of each gateway; no connection is lost",
        response=Gateways,
        handler=gateways.restart_gateways,
    ),
    _admin(
        method="GET",
        path="/api/v1/hosts",
        summary="The machines that joined, and how they are",
        response=HostList,
        handler=hosts.list_hosts,
    ),
    _admin(
        method="GET",
        path="/api/v1/hosts/{host}",
        summary="One machine, by its id or name, and its instances",
        response=HostStatus,
        handler=hosts.show_host,
    ),
    _admin(
        method="POST",
        path="/api/v1/hosts/{host}/drain",
        summary="Move what a machine has elsewhere, one by one; or let it take instances again",
        request=DrainOrder,
        response=HostView,
        handler=hosts.drain_host,
    ),
    _admin(
        method="DELETE",
        path="/api/v1/hosts/{host}",
        summary="Let a machine work here no more; with force, also when it has instances",
        query=RemoveQuery,
        response=HostView,
        handler=hosts.remove_host,
    ),
    _admin(
        method="GET",
        path="/api/v1/usage",
        summary="Requests and tokens by hour, day, key or model, or by key and model",
        query=UsageQuery,
        response=UsageList,
        handler=show_usage,
    ),
    _admin(
        method="GET",
        path="/api/v1/keys",
        summary="Every key, without its secret",
        response=KeyList,
        handler=keys.list_keys,
    ),
    _admin(
        method="POST",
        path="/api/v1/keys",
        summary="Make a key; its plain text is in this answer and nowhere else",
        request=KeyOrder,
        response=KeyCreated,
        status=201,
        handler=keys.create_key,
    ),
    _admin(
        method="DELETE",
        path="/api/v1/keys/{key_id}",
        summary="Revoke a key, at once and for good",
        response=KeyInfo,
        handler=keys.revoke_key,
    ),
    _admin(
        method="GET",
        path="/api/v1/tokens",
        summary="Every join token, without its secret",
        response=TokenList,
        handler=tokens.list_tokens,
    ),
    _admin(
        method="POST",
        path="/api/v1/tokens",
        summary="Make a join token for another machine; its plain text is in this answer and nowhere else",
        request=TokenOrder,
        response=TokenCreated,
        status=201,
        handler=tokens.create_token,
    ),
    _admin(
        method="DELETE",
        path="/api/v1/tokens/{token_id}",
        summary="Revoke a join token; machines that joined with it stay",
        response=TokenInfo,
        handler=tokens.revoke_token,
    ),
    _admin(
        method="GET",
        path="/api/v1/openapi.json",
        summary="This description",
        handler=show_openapi,
    ),
)


def admin_app(
    control: ControlPlane,
    store: KeyStore,
    keyring: Callable[[], KeyRing],
    *,
    on_keys_changed: Callable[[], None],
    writer: Writer | None = None,
    clock: Callable[[], float] = time.time,
    keep_alive_s: float = 15.0,
    followers: int = FOLLOWERS,
    operations: Sequence[Operation] = OPERATIONS,
    supervisor: Callable[[Wish], Awaitable[Gateways]] | None = None,
    desk: TokenDesk | None = None,
) -> ASGIApp:
    """Return the admin API as an ASGI application.

    keyring: gives the keys of this moment. on_keys_changed: called in the event loop after a key
        was made or revoked; the caller builds a new ring and publishes a snapshot.
    writer: takes what is written to the store; one of its own when left out.
    desk: keeps join tokens. supervisor: asks who starts the gateways; None when nobody does.
    keep_alive_s: silence of an event stream after which a comment is sent.

    Raises:
        StartupError: an operation is there twice.
    """
    services = Services(
        control=control,
        keys=store,
        writer=writer or Writer("keys"),
        keyring=keyring,
        on_keys_changed=on_keys_changed,
        clock=clock,
        keep_alive_s=keep_alive_s,
        followers=Followers(followers),
        supervisor=supervisor,
        tokens=desk,
    )
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        methods = by_path.setdefault(operation.path, {})
        if operation.method in methods:
            raise StartupError(f"{operation.method} {operation.path}: declared twice")
        methods[operation.method] = operation
    routes = [
        Route(path, endpoint=Resource(methods, services)) for path, methods in by_path.items()
    ]
    return Door(Router(routes, redirect_slashes=False, default=not_found))
