"""The OpenAI requests and answers of a model served from Python: JSON in, JSON out."""

import base64
import math
import sys
import time
import uuid
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from hostler.core.errors import BadRequest, InvalidJSON
from hostler.core.model import ModelMetadata, ModelOutput, Usage
from hostler.engines.base import Embeddings, GenerateRequest, Message, Ranking, Text

B = TypeVar("B", bound=msgspec.Struct)

_MAX_STOPS = 16


def read(body: bytes, kind: type[B]) -> B:
    """Decode a request.

    Raises:
        InvalidJSON: not JSON. BadRequest: a field is missing or of the wrong type.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise BadRequest(str(error)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidJSON(f"the body is not valid JSON: {error}") from error


def extra_fields(body: bytes, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the fields of a request that its type does not know, as they came."""
    fields = msgspec.json.decode(body, type=dict[str, Any])
    for known in kind.__struct_fields__:
        fields.pop(known, None)
    fields.pop("model", None)
    return fields


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Body(msgspec.Struct):
    """What a chat and a completion share."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def _common(self) -> dict[str, Any]:
        if self.n not in (None, 1):
            raise BadRequest("n: this model gives one answer a request", param="n")
        limit = (
            self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        )
        if limit is not None and limit < 1:
            raise BadRequest(f"max_tokens: need 1 or more, got {limit}", param="max_tokens")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > _MAX_STOPS:
            raise BadRequest(f"stop: at most {_MAX_STOPS}, got {len(stop)}", param="stop")
        return {
            "max_tokens": limit,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": tuple(stop),
            "seed": self.seed,
        }


class ChatBody(Body, kw_only=True):
    messages: list[dict[str, Any]]

    def as_request(self, extra: Mapping[str, Any]) -> GenerateRequest:
        if not self.messages:
            raise BadRequest("messages: need at least one", param="messages")
        return GenerateRequest(messages=tuple(self.messages), extra=extra, **self._common())


class CompletionBody(Body, kw_only=True):
    prompt: str | list[str]

    def as_request(self, extra: Mapping[str, Any]) -> GenerateRequest:
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(prompts) != 1:
            raise BadRequest(f"prompt: this model takes one, got {len(prompts)}", param="prompt")
        return GenerateRequest(prompt=prompts[0], extra=extra, **self._common())


class EmbeddingsBody(msgspec.Struct):
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None

    def texts(self) -> list[Text]:
        """Return the inputs as a list: texts, or lists of token ids."""
        if isinstance(self.input, str):
            return [self.input]
        if not self.input:
            raise BadRequest("input: need at least one text", param="input")
        if all(isinstance(item, int) for item in self.input):
            return [self.input]  # type: ignore[list-item]
        if any(isinstance(item, int) for item in self.input):
            raise BadRequest("input: texts and token ids are mixed", param="input")
        return list(self.input)  # type: ignore[arg-type]


class Document(msgspec.Struct):
    text: str


class RerankBody(msgspec.Struct):
    query: str
    documents: list[str | Document]
    top_n: int | None = None
    return_documents: bool = False

    def texts(self) -> list[str]:
        if not self.documents:
            raise BadRequest("documents: need at least one", param="documents")
        if self.top_n is not None and self.top_n < 1:
            raise BadRequest(f"top_n: need 1 or more, got {self.top_n}", param="top_n")
        return [item if isinstance(item, str) else item.text for item in self.documents]


class TokenizeBody(msgspec.Struct):
    content: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None

    def subject(self) -> str | Sequence[Message]:
        for found in (self.messages, self.content, self.prompt):
            if found is not None:
                return found
        raise BadRequest("need `content`, `prompt` or `messages`", param="content")


class Answer:
    """One chat or completion: collects the model's outputs, makes chunks or the whole."""

    def __init__(self, model_name: str, *, chat: bool) -> None:
        self._chat = chat
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._tool_calls: list[Mapping[str, Any]] = []
        self._finish_reason: str | None = None
        self._usage = Usage()
        prefix, kind = ("chatcmpl", "chat.completion") if chat else ("cmpl", "text_completion")
        self._head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model_name,
        }
        self._kind = kind

    def add(self, output: ModelOutput) -> None:
        """Take one output in."""
        self._text.append(output.text)
        self._thinking.append(output.thinking_text)
        self._tool_calls.extend(output.tool_calls)
        self._note(output)

    def whole(self) -> bytes:
        text = "".join(self._text)
        choice: dict[str, Any] = {"index": 0, "finish_reason": self._reason(), "logprobs": None}
        if self._chat:
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if thinking := "".join(self._thinking):
                message["reasoning_content"] = thinking
            if self._tool_calls:
                message["tool_calls"] = self._tool_calls
            choice["message"] = message
        else:
            choice["text"] = text
        return self._encode(self._kind, choices=[choice], usage=self._full_usage())

    def chunks(self, output: ModelOutput) -> Iterator[bytes]:
        """The chunk of one output, if it says anything a chunk carries."""
        self._note(output)
        if self._chat:
            delta: dict[str, Any] = {}
            if output.text:
                delta["content"] = output.text
            if output.thinking_text:
                delta["reasoning_content"] = output.thinking_text
            if output.tool_calls:
                delta["tool_calls"] = list(output.tool_calls)
            if delta:
                yield self._chunk(delta=delta)
        elif output.text:
            yield self._chunk(text=output.text)

    def first_chunk(self) -> bytes:
        """The one with the role (chat), or an empty text."""
        if self._chat:
            return self._chunk(delta={"role": "assistant", "content": ""})
        return self._chunk(text="")

    def last_chunk(self) -> bytes:
        """The one with the finish reason."""
        body: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        return self._chunk(finish_reason=self._reason(), **body)

    def usage_chunk(self) -> bytes:
        return self._encode(self._chunk_kind, choices=[], usage=self._full_usage())

    # Private

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._chat else self._kind

    def _note(self, output: ModelOutput) -> None:
        self._finish_reason = output.finish_reason or self._finish_reason
        self._usage = output.usage or self._usage

    def _reason(self) -> str:
        return self._finish_reason or "stop"

    def _full_usage(self) -> Usage:
        counted = self._usage
        total = counted.prompt_tokens + counted.completion_tokens
        return msgspec.structs.replace(counted, total_tokens=counted.total_tokens or total)

    def _chunk(self, finish_reason: str | None = None, **body: Any) -> bytes:
        choice = {"index": 0, **body, "logprobs": None, "finish_reason": finish_reason}
        return self._encode(self._chunk_kind, choices=[choice])

    def _encode(self, kind: str, **body: Any) -> bytes:
        return msgspec.json.encode({"object": kind, **self._head, **body})


def embeddings_answer(model_name: str, body: EmbeddingsBody, found: Embeddings) -> bytes:
    """An OpenAI embedding list, floats or base64 of little-endian float32, as asked."""
    data = []
    for index, vector in enumerate(found.vectors):
        floats = shorten(vector, body.dimensions)
        value = as_base64(floats) if body.encoding_format == "base64" else floats.tolist()
        data.append({"object": "embedding", "index": index, "embedding": value})
    usage = {
        "prompt_tokens": found.usage.prompt_tokens,
        "total_tokens": found.usage.total_tokens or found.usage.prompt_tokens,
    }
    return msgspec.json.encode(
        {"object": "list", "data": data, "model": model_name, "usage": usage}
    )


def shorten(vector: Sequence[float], dimensions: int | None) -> "array[float]":
    """Keep the first dimensions, at length 1 again; all of them when nobody asks for fewer.

    Raises:
        BadRequest: more dimensions than there are, or none.
    """
    floats = array("f", vector)
    if dimensions is None or dimensions == len(floats):
        return floats
    if not 0 < dimensions < len(floats):
        raise BadRequest(
            f"dimensions: this model has {len(floats)}, asked for {dimensions}", param="dimensions"
        )
    kept = floats[:dimensions]
    length = math.sqrt(sum(value * value for value in kept)) or 1.0
    return array("f", (value / length for value in kept))


def as_base64(floats: "array[float]") -> str:
    """Return little-endian float32 bytes in base64: what the OpenAI SDK asks for by default."""
    if sys.byteorder == "big":
        floats = array("f", floats)
        floats.byteswap()
    return base64.b64encode(floats.tobytes()).decode()


def rerank_answer(model_name: str, body: RerankBody, found: Ranking) -> bytes:
    """Documents from the most to the least relevant, `top_n` at most.

    relevance_score is the sigmoid of a logit; the raw logit stands beside it.
    """
    order = sorted(range(len(found.scores)), key=lambda index: (-found.scores[index], index))
    results = []
    for index in order[: body.top_n]:
        score = float(found.scores[index])
        result: dict[str, Any] = {"index": index, "relevance_score": score}
        if found.logits:
            result |= {"relevance_score": sigmoid(score), "logit": score}
        if body.return_documents:
            document = body.documents[index]
            result["document"] = {"text": document if isinstance(document, str) else document.text}
        results.append(result)
    usage = {
        "prompt_tokens": found.usage.prompt_tokens,
        "total_tokens": found.usage.total_tokens or found.usage.prompt_tokens,
    }
    return msgspec.json.encode(
        {
            "id": f"rerank-{uuid.uuid4().hex}",
            "object": "list",
            "model": model_name,
            "results": results,
            "usage": usage,
        }
    )


def sigmoid(logit: float) -> float:
    """Return 1 / (1 + e^-logit) without overflow at either end."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1.0 + power)


def models_answer(metadata: ModelMetadata, created_at_s: int) -> bytes:
    """An OpenAI model list with the one model."""
    model = {
        "id": metadata.model,
        "object": "model",
        "created": created_at_s,
        "owned_by": "hostler",
        "meta": metadata,
    }
    return msgspec.json.encode({"object": "list", "data": [model]})
