"""Canary: the smallest request that only a working engine can answer."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hostler.core.model import WorkerType
from hostler.core.request import Route
from hostler.core.snapshot import InstanceView
from hostler.engines.dialect import find_dialect
from hostler.wire.client import Pool, UpstreamLost, fetch
from hostler.wire.identity import ClientContexts


async def owes_token(
    instance: InstanceView,
    *,
    timeout_s: float,
    headers: Sequence[tuple[bytes, bytes]] = (),
    pool: Pool | None = None,
    tls: ClientContexts | None = None,
) -> bool:
    """Ask for one token, vector or score: is there none when the time is over, or a fault instead?

    headers: credentials, for a server given by URL. pool, tls: for an instance on another host.
    A connection that breaks is nothing that is owed: probes and agents see that. A refusal (4xx) and
    `not now` (429, 503) are words of a server that may be well.
    """
    asked = _canary(instance)
    if asked is None:
        return False
    path, body = asked
    try:
        answer = await fetch(
            instance.endpoint,
            "POST",
            path,
            headers=[(b"content-type", b"application/json"), *headers],
            body=msgspec.json.encode(body),
            timeout_s=timeout_s,
            pool=pool,
            tls=tls,
        )
    except UpstreamLost as error:
        return error.timed_out
    return answer.status >= 500 and answer.status != 503


# Private

_ASKED: Mapping[WorkerType, tuple[Route, Mapping[str, Any]]] = {
    WorkerType.LLM: (Route.COMPLETIONS, {"prompt": "1", "max_tokens": 1}),
    WorkerType.TEXT2VEC: (Route.EMBEDDINGS, {"input": "1"}),
    WorkerType.RERANKER: (Route.RERANK, {"query": "1", "documents": ["1"]}),
}


def _canary(instance: InstanceView) -> tuple[str, Mapping[str, Any]] | None:
    """Path and body of the request; None: it takes none of this kind."""
    asked = _ASKED.get(instance.worker_type)
    dialect = find_dialect(instance.engine)
    if asked is None or asked[0] not in dialect.paths:
        return None
    route, fields = asked
    name = instance.upstream_model or instance.model_name
    return dialect.path(route, instance.endpoint.base_path), {**fields, "model": name}
