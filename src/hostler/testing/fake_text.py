"""What the fake engine answers: pure functions of (model, request), so a test can say every byte beforehand.

Each token reads `model‖digest‖n`: a wrong model, a foreign prompt, a lost, doubled or reordered token and a
cut answer all show in the text itself. Nothing here serves HTTP.
"""

import hashlib
import re
import struct
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

TOKENS = 16  # of an answer, when nobody says
DIMENSIONS = 8
BAR = "‖"  # three bytes in UTF-8: a cut inside a character shows too

# Request fields that change the answer, so that a gateway which drops one is seen.
PARAMS = ("seed", "temperature", "top_p", "stop", "tools", "response_format")

_MAGIC = re.compile(r"\[\[([a-z_]+)(?:=([^\]\s\"\\]*))?\]\]")


def magic_words(prompt: str) -> dict[str, str]:
    """Return the orders in a prompt: `[[tokens=3]]` gives `{"tokens": "3"}`, `[[die]]` `{"die": ""}`."""
    if "[[" not in prompt:
        return {}
    return {name: value for name, value in _MAGIC.findall(prompt)}


def canonical(value: Any) -> str:
    """Return JSON with sorted keys: equal for two equal values, whatever the order they came in."""
    return msgspec.json.encode(value, order="deterministic").decode()


def prompts_of(body: Mapping[str, Any]) -> list[str]:
    """Return the prompts of a chat or completion request, as one text each.

    Chat messages give their canonical JSON. A `prompt` may be a text, texts, token ids, or lists of these.
    """
    if "messages" in body:
        return [canonical(body["messages"])]
    prompt = body.get("prompt", "")
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [canonical(prompt)]
    return [item if isinstance(item, str) else canonical(item) for item in prompt]


def digest(prompt: str, body: Mapping[str, Any] | None = None) -> str:
    """Return 8 hex digits for a prompt and those of `PARAMS` that are in the request's body."""
    params = {name: body[name] for name in PARAMS if name in body} if body else {}
    text = f"{prompt}\0{canonical(params)}" if params else prompt
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def token(model: str, mark: str, n: int, choice: int = 0) -> str:
    """Return token n (from 0) of a choice. mark: the request's `digest`."""
    return f"{model}{BAR}{mark}{f'.{choice}' if choice else ''}{BAR}{n} "


@lru_cache(maxsize=4096)
def answer(model: str, mark: str, tokens: int = TOKENS, choice: int = 0) -> str:
    """Return a whole answer."""
    return "".join(token(model, mark, n, choice) for n in range(tokens))


def thought(model: str, mark: str, tokens: int, choice: int = 0) -> list[str]:
    """Return the tokens of thought before an answer: as its own, and marked as thought."""
    return [f"~{token(model, mark, n, choice)}" for n in range(tokens)]


def tool_call(mark: str, number: int) -> dict[str, Any]:
    """Return one whole tool call."""
    arguments = canonical({"mark": mark, "number": number})
    function = {"name": f"tool_{number}", "arguments": arguments}
    return {"id": f"call-{mark}-{number}", "type": "function", "function": function}


def token_limit(body: Mapping[str, Any], tokens: int = TOKENS, said: int = 0) -> tuple[int, str]:
    """Return how many tokens a request gets and its finish_reason. said: of the answer, before.

    tokens: what the engine would say unasked. A `[[tokens=n]]` in a prompt replaces it.
    """
    for prompt in prompts_of(body):
        tokens = int(magic_words(prompt).get("tokens", tokens))
    tokens = max(0, tokens - said)
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if isinstance(limit, int) and limit < tokens:
        return max(limit, 0), "length"
    return tokens, "stop"


def expected_texts(model: str, body: Mapping[str, Any], tokens: int = TOKENS) -> list[str]:
    """Return the text of each choice that a healthy fake engine gives to this request."""
    count, _ = token_limit(body, tokens)
    copies = body.get("n") or 1
    prompts = prompts_of(body)
    return [
        answer(model, digest(prompt, body), count, number * copies + copy)
        for number, prompt in enumerate(prompts)
        for copy in range(copies)
    ]


def begun(model: str, body: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
    """Return the request without the beginning of its own answer that it may end in, and that one's tokens.

    A chat may end in a message of the assistant, a text prompt in tokens of this model.
    """
    messages, prompt = body.get("messages"), body.get("prompt")
    if isinstance(messages, list) and messages and messages[-1].get("role") == "assistant":
        rest, said = {**body, "messages": messages[:-1]}, messages[-1].get("content")
    elif isinstance(prompt, str) and (start := prompt.find(f"{model}{BAR}")) > 0:
        rest, said = {**body, "prompt": prompt[:start]}, prompt[start:]
    else:
        return body, 0
    count = len(said.split()) if isinstance(said, str) else 0
    if count and said == answer(model, digest(prompts_of(rest)[0], rest), count):
        return rest, count
    return body, 0


def difference(expected: str, got: str) -> str:
    """Say in words how an answer differs from the expected one; "" when it does not."""
    if expected == got:
        return ""
    want, have = expected.split(), got.split()
    for n, (right, found) in enumerate(zip(want, have, strict=False)):
        if right == found:
            continue
        parts, ours = found.split(BAR), right.split(BAR)
        if len(parts) != 3:
            return f"token {n} is broken: {found!r}, expected {right!r}"
        if parts[0] != ours[0]:
            return f"token {n} is of model {parts[0]!r}, expected {ours[0]!r}"
        if parts[1] != ours[1]:
            return f"token {n} answers another request: {parts[1]}, expected {ours[1]}"
        return f"token {n} is out of order: {found!r}, expected {right!r}"
    if len(have) < len(want):
        return f"cut: {len(have)} of {len(want)} tokens"
    if len(have) > len(want):
        return f"too long: {len(have)} tokens, expected {len(want)}"
    return "white space differs"


def count_tokens(text: str) -> int:
    """Return how many tokens a prompt has here: its words."""
    return len(text.split())


def prompt_tokens(body: Mapping[str, Any]) -> int:
    return sum(count_tokens(prompt) for prompt in prompts_of(body))


def inputs_of(value: Any) -> list[str]:
    """Return the texts of an embedding request's `input`, token ids as their canonical JSON."""
    return prompts_of({"prompt": value})


@lru_cache(maxsize=4096)
def embedding(model: str, text: str, dimensions: int = DIMENSIONS) -> tuple[float, ...]:
    """Return the vector of a text. Its values are exact in float32 (so base64 and JSON agree)."""
    seed = f"{model}\0{text}".encode("utf-8", "surrogatepass")
    data = hashlib.shake_128(seed).digest(dimensions)
    return tuple((byte - 128) / 128 for byte in data)


def base64_vector(vector: Sequence[float]) -> str:
    """Return a vector as OpenAI's `encoding_format: base64` gives it: little-endian float32."""
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def relevance(model: str, query: str, document: str) -> float:
    """Return the score of a document, in [0, 1)."""
    seed = f"{model}\0{query}\0{document}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(seed).digest()[:4], "big") / 2**32


def document_text(document: Any) -> str:
    """Return the text of a rerank document: a text, or an object with `text`."""
    if isinstance(document, str):
        return document
    return str(document.get("text", "")) if isinstance(document, Mapping) else canonical(document)


def ranking(model: str, query: str, documents: Sequence[Any]) -> list[tuple[int, float]]:
    """Return (index, score) of every document, best first."""
    scores = [
        (index, relevance(model, query, document_text(document)))
        for index, document in enumerate(documents)
    ]
    return sorted(scores, key=lambda pair: (-pair[1], pair[0]))
