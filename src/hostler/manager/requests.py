"""Requests: the request half of the contract, over any way to reach an engine; straight, or not."""

import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from hostler.core.errors import BadRequest, HostlerError, NoReadyInstance, UpstreamError
from hostler.core.model import ModelMetadata, ModelOutput
from hostler.core.params import Params, read_params
from hostler.core.request import Body, Route, choices_of
from hostler.manager.answers import AnswerReader
from hostler.manager.base import WorkerManager
from hostler.manager.calls import Caller
from hostler.routing.router import Router


class Transport(Protocol):
    """How a request reaches an instance: straight, or through a gateway. Bodies are OpenAI's."""

    def events(self, model: str, route: Route, body: Body) -> AsyncGenerator[bytes, None]:
        """Yield the whole SSE events of a streamed answer. Closing it stops the engine."""

    async def answer(self, model: str, route: Route, body: Body) -> Mapping[str, Any]:
        """Return a whole JSON answer."""

    async def count(self, model: str, body: Body) -> int:
        """Return the tokens of a `prompt` or `messages`, without a slot."""


class Requests(WorkerManager):
    """Answers requests over its transport."""

    @property
    @abstractmethod
    def transport(self) -> Transport:
        """How its requests travel."""

    async def generate_stream(self, params: Params) -> AsyncGenerator[ModelOutput, None]:
        model, body = read_params(params)
        is_chat = body.get("messages") is not None
        if is_chat == (body.get("prompt") is not None):
            raise BadRequest(
                "generate: give either messages (chat) or prompt (completion)", param="messages"
            )
        options = {**(body.get("stream_options") or {}), "include_usage": True}
        body.update(stream=True, stream_options=options)
        reader = AnswerReader(model, time.monotonic(), choices_of(body))
        route = Route.CHAT if is_chat else Route.COMPLETIONS
        began = False
        try:
            async with aclosing(self.transport.events(model, route, body)) as events:
                async for event in events:
                    for output in reader.read(event, time.monotonic()):
                        began = True
                        yield output
            ending = reader.last(time.monotonic())
        except HostlerError as error:
            if not began:
                raise
            ending = [reader.fault(error)]
        for output in ending:
            yield output

    async def embeddings(self, params: Params) -> list[list[float]]:
        model, body = read_params(params)
        texts = body.pop("input", None)
        if texts is None:
            raise BadRequest("embeddings: give input, a text or a list of texts", param="input")
        query = body.pop("query", None)
        texts = [texts] if _is_one(texts) else list(texts)
        if not texts:
            return []
        if query is not None:
            body.update(query=query, documents=texts)
            body.pop("top_n", None)  # one score an input
            found = await self.transport.answer(model, Route.RERANK, body)
            return [[score] for score in _in_order(found, "results", "relevance_score", len(texts))]
        body.update(input=texts, encoding_format="float")
        found = await self.transport.answer(model, Route.EMBEDDINGS, body)
        return _in_order(found, "data", "embedding", len(texts))

    async def count_token(self, params: Params) -> int:
        model, body = read_params(params)
        given = {name: value for name, value in body.items() if name in _COUNTED}
        return await self.transport.count(model, given)


class DirectRequests(Requests):
    """For a manager that reaches its instances itself, by a router that it keeps up to date."""

    caller: Caller

    @property
    def transport(self) -> Transport:
        self.check_running()
        return self.caller

    @property
    @abstractmethod
    def router(self) -> Router:
        """Who serves what, as it is at this moment."""

    @abstractmethod
    def metadata_of(self, instance_id: str) -> ModelMetadata | None:
        """What an instance said of its model when it registered."""

    async def get_model_metadata(self, params: Params) -> ModelMetadata:
        self.check_running()
        model, _ = read_params(params)
        found = self.metadata_of(self.router.select(model).instance_id)
        if found is None:
            raise NoReadyInstance(f"model {model!r}: no instance has said what it is yet")
        return found


# Private

# What changes the number of a prompt's tokens; a whole request may be given.
_COUNTED_FIELDS = """
    model content prompt messages tools chat_template_kwargs add_special add_special_tokens
    add_generation_prompt parse_special"""
_COUNTED = frozenset(_COUNTED_FIELDS.split())


def _is_one(texts: object) -> bool:
    """Whether it is one input: a text, or the ids of one text's tokens."""
    if isinstance(texts, str):
        return True
    if not isinstance(texts, list | tuple):
        raise BadRequest("input: need a text or a list of texts", param="input")
    return bool(texts) and type(texts[0]) is int


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
