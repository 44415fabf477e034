"""How many tokens a prompt or a chat has, by each engine's own way of telling. Takes no slot."""

from collections.abc import Mapping
from typing import Any

from hostler.core.errors import BadRequest, NotFound, UpstreamError
from hostler.core.snapshot import InstanceView
from hostler.engines.dialect import Counting, find_dialect
from hostler.manager.calls import ask


async def count_tokens(
    instance: InstanceView, params: Mapping[str, Any], *, timeout_s: float
) -> int:
    """Return the tokens of `params["prompt"]`, or of `params["messages"]` in the chat template.

    Raises:
        BadRequest: neither or both are given. NotFound: the engine cannot tell.
    """
    messages, prompt = params.get("messages"), params.get("prompt")
    if (messages is None) == (prompt is None):
        raise BadRequest("count_token: give either prompt or messages", param="prompt")
    counting = find_dialect(instance.engine).counting
    if counting is Counting.NONE:
        raise NotFound(f"engine {instance.engine!r} does not count tokens")
    if counting is Counting.LLAMA:
        return await _llama(instance, params, timeout_s)
    body = {"prompt": prompt} if messages is None else _chat(params)
    found = await ask(instance, "/tokenize", body, timeout_s=timeout_s)
    return _number(found.get("count"))


# Private


async def _llama(instance: InstanceView, params: Mapping[str, Any], timeout_s: float) -> int:
    if params.get("messages") is not None:
        path = f"{instance.endpoint.base_path}/chat/completions/input_tokens"
        found = await ask(instance, path, _chat(params), timeout_s=timeout_s)
        return _number(found.get("input_tokens"))
    body = {"content": params["prompt"], "add_special": True}
    found = await ask(instance, "/tokenize", body, timeout_s=timeout_s)
    tokens = found.get("tokens")
    return len(tokens) if isinstance(tokens, list) else _number(None)


def _chat(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: params[name] for name in ("messages", "tools") if params.get(name) is not None}


def _number(found: Any) -> int:
    if not isinstance(found, int):
        raise UpstreamError("the engine's token count cannot be read")
    return found
