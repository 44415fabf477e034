"""Token counting: one question for every engine, answered in one shape, without a generation slot."""

from typing import Any

import msgspec

from hostler.core.errors import BadRequest, NotFound, UpstreamError
from hostler.core.request import Body, Route, encode_body
from hostler.core.snapshot import InstanceView
from hostler.engines.dialect import Counting, Dialect
from hostler.gateway.answers import engine_error, shape_error
from hostler.gateway.lanes import credentials
from hostler.wire.client import UpstreamLost, fetch

LLAMA_CHAT_COUNT = "/v1/chat/completions/input_tokens"


class TokenQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is asked."""

    path: str
    body: bytes


def question(body: Body, dialect: Dialect, instance: InstanceView) -> TokenQuestion:
    """Translate `{model, content | prompt | messages}` for an engine.

    Raises:
        BadRequest: not exactly one of the three. NotFound: this engine does not count.
    """
    given = [name for name in ("content", "prompt", "messages") if body.get(name) is not None]
    if len(given) != 1:
        raise BadRequest("need exactly one of content, prompt and messages", param="prompt")
    if dialect.counting is Counting.NONE:
        raise NotFound(f"engine {dialect.name!r} does not count tokens")
    asked: dict[str, Any] = {k: v for k, v in body.items() if k not in given}
    asked["model"] = instance.upstream_model or instance.model_name
    path = dialect.path(Route.TOKENIZE, instance.endpoint.base_path)
    subject = body[given[0]]
    if given[0] == "messages":
        asked["messages"] = subject
        if dialect.counting is Counting.LLAMA:
            path = LLAMA_CHAT_COUNT
    elif dialect.counting is Counting.LLAMA:
        asked["content"] = subject
        asked.setdefault("add_special", True)  # as a completion would count
    else:
        asked["prompt"] = subject
    return TokenQuestion(path=path, body=encode_body(asked))


async def ask(asked: TokenQuestion, instance: InstanceView, timeout_s: float) -> tuple[int, bytes]:
    """Return status and body for the client: `{"count": n, "tokens": [...]}` or the engine's refusal.

    Raises:
        UpstreamError: no usable answer.
    """
    try:
        answer = await fetch(
            instance.endpoint,
            "POST",
            asked.path,
            headers=[(b"content-type", b"application/json"), *credentials(instance.endpoint)],
            body=asked.body,
            timeout_s=timeout_s,
        )
    except UpstreamLost as error:
        raise UpstreamError("the engine did not count the tokens") from error
    if answer.status >= 400:
        if answer.status >= 500 and engine_error(answer.body) is None:
            raise UpstreamError("the engine did not count the tokens")
        return shape_error(answer.status, answer.body)
    return 200, msgspec.json.encode(read_count(answer.body))


def read_count(body: bytes) -> dict[str, Any]:
    """Return `{"count": n}`, with `tokens` when the engine gave them.

    Raises:
        UpstreamError: there is no count in it.
    """
    try:
        data = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UpstreamError("the engine's count cannot be read") from error
    if isinstance(data, dict):
        tokens = data.get("tokens")
        count = data.get("count", data.get("input_tokens", data.get("prompt_tokens")))
        if isinstance(tokens, list):
            return {"count": count if isinstance(count, int) else len(tokens), "tokens": tokens}
        if isinstance(count, int):
            return {"count": count}
    raise UpstreamError("the engine's count cannot be read")
