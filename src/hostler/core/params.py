"""Params: what a worker manager's requests take, as a type or as a mapping; both become one body.

Not here: what a field may be (core/request.py), and which fields an engine knows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hostler.core.errors import BadRequest
from hostler.core.request import Body


class GenerateParams(msgspec.Struct, frozen=True, kw_only=True):
    """A chat (`messages`) or a completion (`prompt`).

    None means: not said, so not sent. Everything else is sent as it is, zeros and empty lists too.
    prompt: a text, the ids of its tokens, or a list of either: one answer each.
    extra: any other field the engine knows.
    """

    model: str
    messages: Sequence[Mapping[str, Any]] | None = None
    prompt: Any = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | Sequence[str] | None = None
    seed: int | None = None
    n: int | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: str | Mapping[str, Any] | None = None
    response_format: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = {}


class EmbeddingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Texts to embed, or, with `query`, documents to score. extra: any other field the engine knows."""

    model: str
    input: str | Sequence[Any]
    query: str | None = None
    dimensions: int | None = None
    extra: Mapping[str, Any] = {}


Params = Mapping[str, Any] | GenerateParams | EmbeddingParams


def read_params(params: object) -> tuple[str, Body]:
    """Return the name of the model and the request's body, which is the caller's to change.

    A mapping is a body already; a `worker_type` in it is dropped, as the name alone says who answers.

    Raises:
        BadRequest: neither a mapping nor one of the types above, or it names no model.
    """
    if isinstance(params, GenerateParams | EmbeddingParams):
        given = msgspec.structs.asdict(params)
        extra = given.pop("extra")
        body = {**extra, **{name: value for name, value in given.items() if value is not None}}
    elif isinstance(params, Mapping):
        body = dict(params)
    else:
        raise BadRequest(
            f"params: need a mapping, GenerateParams or EmbeddingParams, got {type(params).__name__}",
            param="params",
        )
    body.pop("worker_type", None)
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("params: `model` must name a model", param="model")
    return model, body
