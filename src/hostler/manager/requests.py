"""DirectRequests: the request half of the contract for a manager that reaches its instances itself."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from hostler.core.errors import (
    BadRequest,
    HostlerError,
    ModelNotFound,
    NoReadyInstance,
    UpstreamError,
)
from hostler.core.model import ModelMetadata, ModelOutput
from hostler.core.request import Route
from hostler.core.snapshot import InstanceView
from hostler.manager.answers import AnswerReader
from hostler.manager.base import Params, WorkerManager
from hostler.manager.calls import Caller
from hostler.manager.counting import count_tokens
from hostler.routing.router import Router

COUNT_TIMEOUT_S = 30.0


class DirectRequests(WorkerManager):
    """Answers requests over a router that subclasses keep up to date."""

    router: Router
    caller: Caller

    def metadata_of(self, instance_id: str) -> ModelMetadata | None:
        """What an instance said of its model when it registered."""
        raise NotImplementedError

    async def generate_stream(self, params: Params) -> AsyncIterator[ModelOutput]:
        model, body = _body(params)
        route = Route.CHAT if "messages" in body else Route.COMPLETIONS
        if route is Route.COMPLETIONS and "prompt" not in body:
            raise BadRequest(
                "generate: give messages (chat) or prompt (completion)", param="messages"
            )
        options = {"include_usage": True, **(body.get("stream_options") or {})}
        body.update(stream=True, stream_options=options)
        reader = AnswerReader(model, time.monotonic())
        began = False
        try:
            async with aclosing(self.caller.events(model, route, body)) as events:
                async for event in events:
                    output = reader.read(event, time.monotonic())
                    if output is not None:
                        began = True
                        yield output
            last = reader.last(time.monotonic())
        except HostlerError as error:
            if not began:
                raise
            last = reader.fault(error)
        yield last

    async def embeddings(self, params: Params) -> list[list[float]]:
        model, body = _body(params)
        texts = body.pop("input", None)
        if texts is None:
            raise BadRequest("embeddings: give input, a text or a list of texts", param="input")
        texts = [texts] if isinstance(texts, str) else list(texts)
        query = body.pop("query", None)
        if not texts:
            return []
        if query is not None:
            body.update(query=query, documents=texts)
            found = await self.caller.answer(model, Route.RERANK, body)
            return [[score] for score in _in_order(found, "results", "relevance_score", len(texts))]
        body.update(input=texts, encoding_format="float")
        found = await self.caller.answer(model, Route.EMBEDDINGS, body)
        return _in_order(found, "data", "embedding", len(texts))

    async def count_token(self, params: Params) -> int:
        model, body = _body(params)
        return await count_tokens(self._any(model), body, timeout_s=COUNT_TIMEOUT_S)

    async def get_model_metadata(self, params: Params) -> ModelMetadata:
        model, _ = _body(params)
        found = self.metadata_of(self._any(model).instance_id)
        if found is None:
            raise NoReadyInstance(f"model {model!r}: no instance has said what it is yet")
        return found

    # Private

    def _any(self, model: str) -> InstanceView:
        """An instance that answers, for what takes no slot.

        Raises:
            ModelNotFound, NoReadyInstance.
        """
        if self.router.model(model) is None:
            raise ModelNotFound(f"model {model!r} is not known", param="model")
        usable = self.router.usable(model)
        if not usable:
            raise NoReadyInstance(f"model {model!r}: no instance is ready", retry_after_s=1)
        load = self.router.load
        return min(usable, key=lambda view: load.get(view.instance_id, 0))


# Private


def _body(params: Params | object) -> tuple[str, dict[str, Any]]:
    """Return the model's name and the body; both WorkerType-free and ours to change."""
    if not isinstance(params, Mapping):
        raise BadRequest("params: need a mapping with `model` in it", param="params")
    body = dict(params)
    body.pop("worker_type", None)
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("params: `model` must name a model", param="model")
    return model, body


def _in_order(found: Mapping[str, Any], listed: str, value: str, count: int) -> list[Any]:
    """Return one value an input, by the answer's own indices."""
    values: list[Any] = [None] * count
    try:
        for item in found[listed]:
            values[item["index"]] = item[value]
    except (KeyError, IndexError, TypeError) as error:
        raise UpstreamError(f"the engine's {listed} cannot be read") from error
    if any(item is None for item in values):
        raise UpstreamError(f"the engine answered fewer {listed} than there were inputs")
    return values
