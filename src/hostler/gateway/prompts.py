"""What routing wants to know of a request's body: its prompt's beginning, its length, its session.

Computed when a policy asks, at most once a request. Nothing of it is kept or logged.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from msgspec.json import encode

from hostler.core.request import Body, Route

SESSION_FIELDS = (b"x-session-id", b"x-hostler-session")  # headers, the first one that is there
SESSION_NAMES = ("user", "prompt_cache_key", "safety_identifier")  # of the body, else
SESSION_BYTES = 512  # of a session that count

BYTES_PER_TOKEN = 4  # roughly, of English text


def prompt_head(route: Route, body: Body, limit: int) -> bytes:
    """Return the first `limit` bytes of what the model will read, in its order.

    Equal prompts give equal bytes, as far as they are equal; it is no rendering of a chat template.
    Empty for what has no prompt that an engine keeps.
    """
    if route is Route.CHAT:  # templates put the tools first
        tools = body.get("tools") or body.get("functions")
        messages = body.get("messages")
        told = encode(messages)[1:-1] if messages else b""
        return (encode(tools) + told if tools else told)[:limit]
    if route is not Route.COMPLETIONS:
        return b""
    prompt = body.get("prompt")
    if type(prompt) is list and prompt and type(prompt[0]) is not int:
        prompt = prompt[0]  # of several prompts the first counts
    return encode(prompt)[:-1][:limit] if prompt else b""


def chat_head(body: Body, encoded: bytes, limit: int) -> bytes:
    """Return what `prompt_head` does of a chat, cut out of its encoded body where that is possible.

    encoded: the body as it goes to an engine, perhaps with more members. A quote inside a text is
    escaped there, so no text looks like the beginning of the messages, or of the member after them.
    """
    _, mark, rest = encoded.partition(_MESSAGES)
    if not mark or "tools" in body or "functions" in body:
        return prompt_head(Route.CHAT, body, limit)
    after = ""
    is_next = False
    for name in body:
        if is_next:
            after = name
            break
        is_next = name == "messages"
    if after:
        told, mark, _ = rest.rpartition(b'],"%b":' % after.encode())
        if not mark:
            return prompt_head(Route.CHAT, body, limit)
        return told[:limit]
    if not rest.endswith(b"]}"):
        return prompt_head(Route.CHAT, body, limit)
    return rest[: min(limit, len(rest) - 2)]


def prompt_tokens(route: Route, body: Body) -> int:
    """Return about how many tokens there are to read: the texts' length, and token ids as they are."""
    total = 0
    for name in _PROMPTS.get(route, ()):
        for item in _strings(body.get(name)):
            total += len(item) if not item.startswith("data:") else 0
        total += BYTES_PER_TOKEN * _count_ids(body.get(name))
    return total // BYTES_PER_TOKEN


def session_of(fields: Mapping[bytes, bytes], body: Body) -> bytes:
    """Return what names the session of a request, b"" when nothing does."""
    for field in SESSION_FIELDS:
        if found := fields.get(field):
            return found[:SESSION_BYTES]
    for name in SESSION_NAMES:
        value = body.get(name)
        if type(value) is str and value:
            return value.encode("utf-8", "surrogatepass")[:SESSION_BYTES]
    return b""


# Private

_MESSAGES: Final = b'"messages":['
_PROMPTS: Mapping[Route, tuple[str, ...]] = {
    Route.CHAT: ("tools", "functions", "messages"),
    Route.COMPLETIONS: ("prompt",),
    Route.EMBEDDINGS: ("input",),
    Route.RERANK: ("query", "documents"),
}


def _strings(value: Any) -> Iterator[str]:
    """Yield every text in a value, keys of objects included, in order."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        kind = type(item)
        if kind is str:
            yield item
        elif kind is list:
            waiting.extend(reversed(item))
        elif kind is dict:
            for key, inner in reversed(item.items()):
                waiting += (inner, key)


def _count_ids(value: Any) -> int:
    """How many token ids a prompt holds."""
    if type(value) is not list or not value:
        return 0
    if type(value[0]) is int:
        return len(value)
    return sum(len(item) for item in value if type(item) is list and item and type(item[0]) is int)
