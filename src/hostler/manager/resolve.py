"""From what was asked to what will be: a request completed by the catalogue, checked, as a Deployment."""

from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.app.config import ModelConfig, environment
from hostler.catalog.address import parse_source
from hostler.catalog.catalog import Catalog, CatalogEntry
from hostler.core.deployment import HERE, PROCESS_FIELDS, Deployment, Wish, check_name, difference
from hostler.core.errors import AlreadyRunning, BadRequest, Conflict, ModelNotFound
from hostler.core.hosts import Offer
from hostler.core.model import WorkerType
from hostler.core.placing import read_needs
from hostler.core.runtime_env import read_runtime_env
from hostler.core.scaling import read_scaling
from hostler.core.serving import RoutingRules, read_rules
from hostler.core.worker import WorkerStartupRequest
from hostler.engines.base import (
    EngineKind,
    brought_models,
    check_parameters,
    engines,
    find_engine,
    hide_secrets,
)
from hostler.manager.servers import endpoint_of
from hostler.routing.own import find_policy

DEFAULT_ENGINES: Mapping[WorkerType, str] = {
    WorkerType.LLM: "llama.cpp",
    WorkerType.TEXT2VEC: "onnx",
    WorkerType.RERANKER: "onnx",
}


LABELS_MOST, LABEL_LENGTH = 32, 128


def request_of(model: ModelConfig) -> WorkerStartupRequest:
    """Return the startup request that a `[[models]]` table stands for."""
    values = {name: getattr(model, name) for name in model.__struct_fields__}
    values["model"] = values.pop("name")
    values["worker_type"] = values.pop("type")
    return WorkerStartupRequest(**values)


def resolve(request: WorkerStartupRequest, catalog: Catalog, *, origin: str = "api") -> Deployment:
    """Return the deployment that a request asks for.

    Raises:
        ModelNotFound: it names no engine, source or URL, and the catalogue does not know it.
        BadRequest: the engine, its parameters or their combination cannot be.
    """
    check_name(request.model)
    entry = catalog.find(request.model)
    if entry is None and request.engine is None:
        request = msgspec.structs.replace(request, engine=_engine_bringing(request))
    given = request.source is not None or bool(request.urls) or request.engine is not None
    if entry is None and not given:
        near = catalog.nearest(request.model)
        hint = f"did you mean {near!r}?" if near else "see `hostler model list --all`"
        raise ModelNotFound(
            f"model {request.model!r} is not in the catalogue, and no engine, source or urls are given; "
            f"{hint}",
            param="model",
        )
    if entry is not None and request.engine not in (None, entry.engine):
        entry = None  # another engine: the entry's parameters are not for it
    worker_type = request.worker_type or (entry.worker_type if entry else WorkerType.LLM)
    engine = request.engine or (entry.engine if entry else None)
    if engine is None:
        engine = "openai" if request.urls else DEFAULT_ENGINES.get(worker_type, "python")
    kind = find_engine(engine)
    deployment = Deployment(
        name=request.model,
        worker_type=worker_type,
        engine=engine,
        source=_source(request, entry, kind),
        replicas=1 if request.replicas is None else request.replicas,
        concurrency=kind.concurrency if request.concurrency is None else request.concurrency,
        params=_params(request.params, entry, kind),
        urls=request.urls or (),
        aliases=request.aliases or (),
        open_fields=request.open_fields or (),
        upstream_model=request.upstream_model or "",
        api_key_env=request.api_key_env or "",
        routing=check_rules(read_rules(request.routing)),
        scaling=read_scaling(request.scaling),
        host=host_of(request.host),
        labels=check_labels(request.labels or {}),
        resources=read_needs(request.resources),
        runtime_env=read_runtime_env(request.runtime_env),
        origin=origin,
    )
    _check(deployment, kind)
    return deployment


def joined(offer: Offer) -> Deployment:
    """Return the deployment of a worker that is brought by hand: nothing is started for it here.

    Raises:
        BadRequest: its name, engine, parameters or their combination cannot be.
    """
    kind = find_engine(offer.engine)
    check_parameters(kind, offer.params)
    deployment = Deployment(
        name=offer.model_name,
        worker_type=offer.worker_type,
        engine=offer.engine,
        source=offer.source,
        replicas=0,
        concurrency=offer.concurrency,
        params=offer.params,
        aliases=offer.aliases,
        origin="joined",
    )
    _check(deployment, kind)
    return deployment


def check_same(old: Deployment, new: Deployment) -> None:
    """Return when a worker that is brought by hand may serve as a model that is there already.

    Raises:
        Conflict: it is another model, or this one was stopped.
    """
    for what in ("worker_type", "source"):
        ours, theirs = getattr(old, what), getattr(new, what)
        if ours != theirs:
            raise Conflict(
                f"model {new.name!r} is there with {what} {str(ours)!r}, not {str(theirs)!r}: bring it under "
                "another name"
            )
    if old.urls:
        raise Conflict(f"model {new.name!r} is served by urls; bring this one under another name")
    if old.wish is Wish.STOPPED:
        raise Conflict(f"model {new.name!r} was stopped; `hostler model start {new.name}` first")


def settle(
    old: Deployment | None, new: Deployment, *, has_failed: bool = False
) -> tuple[Deployment, bool]:
    """Return the deployment to keep when `new` is asked for, and whether it changes anything.

    has_failed: `old` was given up: nothing is lost when `new` takes its place.

    Raises:
        AlreadyRunning: `old` runs with another specification.
    """
    if old is None:
        return new, True
    differences = difference(old, new)
    if old.wish is Wish.RUNNING:
        if not differences:
            return old, False
        if has_failed:
            return changed(old, new), True
        shown = {
            name: (getattr(_shown(old), name), getattr(_shown(new), name)) for name in differences
        }
        told = "; ".join(f"{name}: {a!r} now, {b!r} asked" for name, (a, b) in shown.items())
        raise AlreadyRunning(
            f"model {new.name!r} already runs with another specification ({told}); "
            f"stop it first, or update it with `hostler model update {new.name}`",
            differences=shown,
        )
    return changed(old, new), True


def check_source(kind: EngineKind, source: str) -> None:
    """Return when an engine's files can come from there, as far as that can be said by looking.

    Raises:
        BadRequest: it has no files, or the source is empty, or none.
    """
    if not kind.needs_files or not source:
        why = "need wheel:, hf:, https: or a path" if kind.needs_files else "it has no files"
        raise BadRequest(f"source {source!r} for engine {kind.name!r}: {why}", param="source")
    parse_source(source)


def host_of(given: str | None) -> str:
    """Return a host as it is written down."""
    return HERE if given == "127.0.0.1" else (given or "")


def check_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Return the labels that a machine must have, when they can be.

    Raises:
        BadRequest: too many, or one is too long.
    """
    if len(labels) > LABELS_MOST or any(
        not key or len(key) > LABEL_LENGTH or len(value) > LABEL_LENGTH
        for key, value in labels.items()
    ):
        raise BadRequest(
            f"labels: need up to {LABELS_MOST} of up to {LABEL_LENGTH} characters each",
            param="labels",
        )
    return labels


def check_rules(rules: RoutingRules) -> RoutingRules:
    """Return the rules when a policy of the operator's own can be imported here, as gateways will.

    Raises:
        BadRequest: why it cannot.
    """
    if rules.is_own:
        find_policy(rules.policy)
    return rules


def changed(old: Deployment, new: Deployment) -> Deployment:
    """Return `new` as the next generation of `old`."""
    differences = difference(old, new)
    generation = max(old.generation + 1, new.generation)
    renewed = any(name in PROCESS_FIELDS for name in differences)
    return msgspec.structs.replace(
        new,
        generation=generation,
        process_generation=generation if renewed else old.process_generation,
    )


# Private


def _shown(deployment: Deployment) -> Deployment:
    return msgspec.structs.replace(
        deployment, params=hide_secrets(deployment.engine, deployment.params)
    )


def _engine_bringing(request: WorkerStartupRequest) -> str | None:
    """The engine of another package that lists this model among its own."""
    if request.source is not None or request.urls:
        return None
    return next(
        (
            kind.name
            for kind in engines().values()
            if any(model.model == request.model for model in brought_models(kind))
        ),
        None,
    )


def _source(request: WorkerStartupRequest, entry: CatalogEntry | None, kind: EngineKind) -> str:
    if request.source is not None:
        return request.source
    if not kind.needs_files:
        return ""
    return entry.source if entry else ""


def _params(
    given: Mapping[str, Any] | None, entry: CatalogEntry | None, kind: EngineKind
) -> Mapping[str, Any]:
    params = {**(entry.params if entry else {}), **(given or {})}
    check_parameters(kind, params)
    return params


def _check(deployment: Deployment, kind: EngineKind) -> None:
    name = deployment.name
    if deployment.worker_type not in kind.worker_types:
        able = ", ".join(kind.worker_types)
        raise BadRequest(
            f"model {name!r}: engine {kind.name!r} does {able}, not {deployment.worker_type.value}",
            param="worker_type",
        )
    if kind.needs_files and not deployment.source:
        raise BadRequest(
            f"model {name!r}: engine {kind.name!r} needs a source (wheel:, hf:, https: or a path)",
            param="source",
        )
    if kind.needs_files:
        parse_source(deployment.source)
    if kind.name == "openai" and not deployment.urls:
        raise BadRequest(f"model {name!r}: engine 'openai' needs urls", param="urls")
    for url in deployment.urls:
        endpoint_of(url)
    variable = deployment.api_key_env
    if variable and not environment(variable):
        raise BadRequest(
            f"model {name!r}: this server's environment has no variable {variable!r} with the key of "
            "its urls; set it where `hostler up` is started",
            param="api_key_env",
        )
    if kind.name != "openai" and deployment.urls:
        raise BadRequest(f"model {name!r}: only engine 'openai' takes urls", param="urls")
