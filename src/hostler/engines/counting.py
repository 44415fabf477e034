"""Token counting: one question for every engine, answered in one shape. Pure: others send and receive."""

from typing import Any

import msgspec

from hostler.core.errors import BadRequest, NotFound, UpstreamError
from hostler.core.request import Body, Route
from hostler.core.snapshot import InstanceView
from hostler.engines.dialect import Counting, Dialect

LLAMA_CHAT_COUNT = "/v1/chat/completions/input_tokens"


class TokenQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is asked."""

    path: str
    body: Body


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
    return TokenQuestion(path=path, body=asked)


def read_count(answer: object) -> dict[str, Any]:
    """Return `{"count": n}`, with `tokens` when the engine gave them.

    Raises:
        UpstreamError: there is no count in it.
    """
    if isinstance(answer, dict):
        tokens = answer.get("tokens")
        count = answer.get("count", answer.get("input_tokens", answer.get("prompt_tokens")))
        if isinstance(tokens, list):
            return {"count": count if isinstance(count, int) else len(tokens), "tokens": tokens}
        if isinstance(count, int):
            return {"count": count}
    raise UpstreamError("the engine's count cannot be read")
