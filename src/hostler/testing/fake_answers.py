"""The fake engine's answers as bytes, made before anything is sent: from a path, a body and a script."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from hostler.testing import fake_http, fake_text
from hostler.testing.fake_memory import blocks_of
from hostler.testing.fake_script import Script, script_for

CREATED = 1_700_000_000  # answers are pure functions of the request, so is their time
DONE = b"data: [DONE]\n\n"

JSON = Mapping[str, Any]


class Refused(Exception):
    """The request gets an error answer."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Answer:
    """An answer, ready to be sent, and what the ledger says of it."""

    __slots__ = (
        "asked",
        "blocks",
        "body_keys",
        "digest",
        "events",
        "path",
        "prompt_tokens",
        "quick",
        "script",
        "skipped",
        "stream",
        "tail",
        "tokens",
        "whole",
    )

    def __init__(self, path: str, asked: str, keys: tuple[str, ...], script: Script) -> None:
        self.path = path
        self.asked = asked
        self.body_keys = keys
        self.script = script
        self.digest = ""
        self.blocks: tuple[int, ...] = ()  # of the prompt, where reading it takes time
        self.prompt_tokens = 0
        self.tokens = 0
        self.skipped = 0  # tokens that were said before, in another answer
        self.whole = b""  # with its head, for an answer that is not streamed
        self.stream = False
        self.events: list[bytes] = []  # one an answer token and choice, unframed
        self.tail: list[bytes] = []  # what ends the stream
        self.quick = not needs_task(script)


def needs_task(script: Script) -> bool:
    """True when an answer by this script takes time or goes wrong half-way."""
    return bool(
        script.first_delay_ms
        or script.delay_ms
        or script.read_ms
        or script.half_alive
        or script.drip_bytes
        or script.stdout_mb
        or script.allocate_mb
        or script.ending in ("cut", "reset", "open")
        or script.spoil
        or (script.crash_at, script.hang_at, script.half_at) != (None, None, None)
    )


def make_answer(path: str, raw: bytes, model: str, script: Script) -> Answer:
    """Return the answer to a request of one of `MAKERS`' paths.

    Raises:
        Refused: the body is not a JSON object, lacks something, or names another model (strict_model).
    """
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, "the body is not JSON", "invalid_json") from error
    if not isinstance(body, dict):
        raise Refused(400, "the body is not an object", "invalid_value")
    claimed = script.lie_model or model
    asked = str(body.get("model", ""))
    if script.strict_model and asked != claimed:
        raise Refused(404, f"The model `{asked}` does not exist.", "model_not_found")
    try:
        body, skipped = fake_text.begun(model, body)
        prompts = _texts(path, body)
        script = script_for(script, prompts)
        answer = Answer(path, asked, tuple(sorted(body)), script)
        answer.skipped = skipped
        answer.digest = fake_text.digest(prompts[0] if prompts else "", body)
        if script.read_ms and prompts:
            answer.blocks = blocks_of(prompts[0])
        MAKERS[path](answer, body, model, claimed)
    except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
        raise Refused(400, f"bad request: {type(error).__name__}", "invalid_value") from error
    return answer


# Private


def _texts(path: str, body: JSON) -> list[str]:
    if path.endswith("rerank"):
        return [str(body["query"])]
    if path.endswith("embeddings"):
        return fake_text.inputs_of(body["input"])
    if path.endswith("chat/completions") and not isinstance(body["messages"], list):
        raise TypeError("messages")
    return fake_text.prompts_of(body)


def _close_whole(answer: Answer, data: JSON) -> None:
    body = msgspec.json.encode(data)
    script = answer.script
    length = len(body) + script.length_delta
    kind = script.content_type or "application/json"
    answer.whole = fake_http.head(200, "", kind, length) + body


def _generate(answer: Answer, body: JSON, model: str, claimed: str) -> None:
    """Chat and text completions, whole or streamed, any number of prompts and choices."""
    chat = "messages" in body
    skip = answer.skipped
    count, reason = fake_text.token_limit(body, answer.script.tokens, skip)
    thoughts, calls = (answer.script.reasoning, answer.script.tool_calls) if chat else (0, 0)
    if calls:
        count, reason = 0, "tool_calls"
    prompts, copies = fake_text.prompts_of(body), int(body.get("n") or 1)
    marks = [fake_text.digest(p, body) for p in prompts for _ in range(copies)]
    answer.tokens = (count + thoughts + 2 * calls) * len(marks)
    read = answer.prompt_tokens = fake_text.prompt_tokens(body) + skip
    usage = {
        "prompt_tokens": read,
        "completion_tokens": answer.tokens,
        "total_tokens": read + answer.tokens,
    }
    base = {"id": f"fake-{answer.digest}", "created": CREATED, "model": claimed}
    if body.get("stream"):
        _stream(answer, base, body, model, marks, count, reason, usage, chat)
        return
    choices: list[JSON] = []
    for choice, mark in enumerate(marks):
        text = fake_text.answer(model, mark, skip + count, choice)
        said: JSON = {"text": text}
        if chat:
            said = {"message": _message(model, mark, text, choice, answer.script)}
        choices.append({"index": choice, **said, "logprobs": None, "finish_reason": reason})
    kind = "chat.completion" if chat else "text_completion"
    _close_whole(answer, {**base, "object": kind, "choices": choices, "usage": usage})


def _stream(
    answer: Answer,
    base: JSON,
    body: JSON,
    model: str,
    marks: list[str],
    count: int,
    reason: str,
    usage: JSON,
    chat: bool,
) -> None:
    answer.stream = True
    base = {**base, "object": "chat.completion.chunk" if chat else "text_completion"}

    def event(choice: int, text: str, finish: str | None, first: bool = False) -> bytes:
        role = {"role": "assistant"} if first else {}
        delta = {**role, "content": text} if finish is None else {}
        said: JSON = {"delta": delta} if chat else {"text": text}
        choices = [{"index": choice, **said, "logprobs": None, "finish_reason": finish}]
        return _event({**base, "choices": choices})

    if chat:
        answer.events = [
            _event({**base, "choices": [{"index": choice, "delta": delta, "finish_reason": None}]})
            for choice, mark in enumerate(marks)
            for delta in _deltas(model, mark, choice, answer.script)
        ]
    answer.events += [
        event(choice, fake_text.token(model, mark, answer.skipped + n, choice), None, n == 0)
        for n in range(count)
        for choice, mark in enumerate(marks)
    ]
    ending = answer.script.ending
    if ending != "no_finish":
        answer.tail.extend(event(choice, "", reason) for choice in range(len(marks)))
    if (body.get("stream_options") or {}).get("include_usage"):
        answer.tail.append(_event({**base, "choices": [], "usage": usage}))
    if ending != "no_done":
        answer.tail.append(DONE)


def _message(model: str, mark: str, text: str, choice: int, script: Script) -> JSON:
    """The message of a whole chat answer."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if script.reasoning:
        thoughts = fake_text.thought(model, mark, script.reasoning, choice)
        message["reasoning_content"] = "".join(thoughts)
    if script.tool_calls:
        message["content"] = None
        calls = [fake_text.tool_call(mark, number) for number in range(script.tool_calls)]
        message["tool_calls"] = calls
    return message


def _deltas(model: str, mark: str, choice: int, script: Script) -> list[JSON]:
    """The thoughts of a streamed chat, one each, and its tool calls, two pieces each."""
    deltas: list[JSON] = [
        {"reasoning_content": token}
        for token in fake_text.thought(model, mark, script.reasoning, choice)
    ]
    for number in range(script.tool_calls):
        call = fake_text.tool_call(mark, number)
        arguments = call["function"]["arguments"]
        half = len(arguments) // 2
        begin = {**call, "function": {**call["function"], "arguments": arguments[:half]}}
        deltas.append({"tool_calls": [{"index": number, **begin}]})
        rest = {"index": number, "function": {"arguments": arguments[half:]}}
        deltas.append({"tool_calls": [rest]})
    return deltas


def _event(data: JSON) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(data)


def _embed(answer: Answer, body: JSON, model: str, claimed: str) -> None:
    dimensions = int(body.get("dimensions") or answer.script.dimensions)
    as_text = body.get("encoding_format") == "base64"
    texts = fake_text.inputs_of(body["input"])
    vectors = [fake_text.embedding(model, text, dimensions) for text in texts]
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": fake_text.base64_vector(vector) if as_text else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    read = answer.prompt_tokens = sum(fake_text.count_tokens(text) for text in texts)
    usage = {"prompt_tokens": read, "total_tokens": read}
    _close_whole(answer, {"object": "list", "model": claimed, "data": data, "usage": usage})


def _rerank(answer: Answer, body: JSON, model: str, claimed: str) -> None:
    query, documents = str(body["query"]), list(body["documents"])
    ranked = fake_text.ranking(model, query, documents)[: body.get("top_n") or None]
    results: list[dict[str, Any]] = [{"index": n, "relevance_score": score} for n, score in ranked]
    if body.get("return_documents"):
        for result in results:
            result["document"] = {"text": fake_text.document_text(documents[result["index"]])}
    read = fake_text.count_tokens(query) * len(documents)
    read += sum(fake_text.count_tokens(fake_text.document_text(item)) for item in documents)
    answer.prompt_tokens = read
    usage = {"prompt_tokens": read, "total_tokens": read}
    _close_whole(
        answer,
        {"id": f"fake-{answer.digest}", "model": claimed, "results": results, "usage": usage},
    )


Maker = Callable[[Answer, JSON, str, str], None]

MAKERS: Mapping[str, Maker] = {
    "/v1/chat/completions": _generate,
    "/v1/completions": _generate,
    "/v1/embeddings": _embed,
    "/v1/rerank": _rerank,
    "/rerank": _rerank,
}
