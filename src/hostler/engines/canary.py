"""Canary: the smallest request that only a working engine can answer."""

from collections.abc import Mapping
from typing import Any

from hostler.core.model import WorkerType
from hostler.core.request import Route
from hostler.core.snapshot import InstanceView
from hostler.engines.dialect import find_dialect

_ASKED: Mapping[WorkerType, tuple[Route, Mapping[str, Any]]] = {
    WorkerType.LLM: (Route.COMPLETIONS, {"prompt": "1", "max_tokens": 1}),
    WorkerType.TEXT2VEC: (Route.EMBEDDINGS, {"input": "1"}),
    WorkerType.RERANKER: (Route.RERANK, {"query": "1", "documents": ["1"]}),
}


def canary(instance: InstanceView) -> tuple[str, Mapping[str, Any]] | None:
    """Return path and body of a request for one token, vector or score; None: it takes none."""
    asked = _ASKED.get(instance.worker_type)
    dialect = find_dialect(instance.engine)
    if asked is None or asked[0] not in dialect.paths:
        return None
    route, fields = asked
    name = instance.upstream_model or instance.model_name
    return dialect.path(route, instance.endpoint.base_path), {**fields, "model": name}


def is_answer(status: int) -> bool:
    """Does an answer of this status show that the engine works, or is at least no sign against it?

    A refusal (4xx) and `not now` (429, 503) are words of a server that may be well.
    """
    return status < 500 or status == 503
