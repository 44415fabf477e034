"""From OpenAI bytes to ModelOutput: chunks of a stream, usage, timings. Pure; used by every manager."""

from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.core.errors import BadRequest, HostlerError, UpstreamError, WorkerLost, all_errors
from hostler.core.model import ModelOutput, OutputMetrics, Usage
from hostler.wire.sse import parse_event

_REASONING = ("reasoning_content", "reasoning")  # llama.cpp and vLLM; OpenRouter


class AnswerReader:
    """Turns the events of one stream into outputs, and knows whether the stream ended well."""

    def __init__(self, model_name: str, started_at_s: float) -> None:
        self._model_name = model_name
        self._started_at_s = started_at_s
        self._first_at_s: float | None = None
        self._usage: Usage | None = None
        self._finish: str | None = None
        self._timings: Mapping[str, Any] = {}
        self.done = False

    def read(self, event: bytes, now_s: float) -> ModelOutput | None:
        """Return what the event adds, None when that is nothing to show.

        Raises:
            UpstreamError: the event is an error object or not JSON.
        """
        parsed = parse_event(event)
        if parsed is None or not parsed.data:
            return None
        if parsed.data == b"[DONE]":
            self.done = True
            return None
        chunk = _decode(parsed.data)
        if "error" in chunk:
            raise error_of(chunk, 502)
        self._usage = usage_of(chunk) or self._usage
        self._timings = chunk.get("timings") or self._timings
        choices = chunk.get("choices") or []
        if not choices:
            return None
        choice = choices[0]
        delta = choice.get("delta") or {}
        self._finish = choice.get("finish_reason") or self._finish
        text = delta.get("content") or choice.get("text") or ""
        thought = next((delta[name] for name in _REASONING if delta.get(name)), "")
        calls = tuple(delta.get("tool_calls") or ())
        if not (text or thought or calls):
            return None
        if self._first_at_s is None:
            self._first_at_s = now_s
        return ModelOutput(
            text=text, thinking_text=thought, tool_calls=calls, model_name=self._model_name
        )

    def last(self, now_s: float) -> ModelOutput:
        """Return the output that ends a good stream: finish reason, usage, metrics, no text.

        Raises:
            WorkerLost: the stream was not whole.
        """
        if not self.done or self._finish is None:
            raise WorkerLost(f"model {self._model_name!r}: its worker ended before the answer did")
        return ModelOutput(
            finish_reason=self._finish,
            usage=self._usage,
            metrics=self._metrics(now_s),
            model_name=self._model_name,
        )

    def fault(self, error: HostlerError) -> ModelOutput:
        """Return the terminal output of a stream that broke after its first output."""
        return ModelOutput(
            text="",
            finish_reason="error",
            usage=self._usage,
            model_name=self._model_name,
            error_code=error.http_status,
            error=error.code,
        )

    # Private

    def _metrics(self, now_s: float) -> OutputMetrics:
        first_s = None if self._first_at_s is None else self._first_at_s - self._started_at_s
        total_s = now_s - self._started_at_s
        prefill = self._timings.get("prompt_per_second")
        decode = self._timings.get("predicted_per_second")
        if decode is None and self._usage and first_s is not None and total_s > first_s:
            decode = self._usage.completion_tokens / (total_s - first_s)
        return OutputMetrics(
            first_token_s=first_s,
            total_s=total_s,
            prefill_tokens_per_s=prefill,
            decode_tokens_per_s=decode,
        )


def usage_of(answer: Mapping[str, Any]) -> Usage | None:
    """Return the usage object of an answer, if it has one."""
    found = answer.get("usage")
    if not isinstance(found, Mapping):
        return None
    prompt = int(found.get("prompt_tokens") or 0)
    completion = int(found.get("completion_tokens") or 0)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=int(found.get("total_tokens") or prompt + completion),
    )


def error_of(answer: Any, status: int) -> HostlerError:
    """Return the error that an OpenAI error object stands for, whatever of it can be read."""
    found = answer.get("error") if isinstance(answer, Mapping) else None
    if not isinstance(found, Mapping):
        return UpstreamError(f"the engine answered {status}")
    error = UpstreamError(str(found.get("message") or f"the engine answered {status}"))
    error.param = found.get("param")
    return _as_status(error, str(found.get("code") or ""), status)


def decode_answer(body: bytes) -> Mapping[str, Any]:
    """Return an answer's JSON object.

    Raises:
        UpstreamError: it is something else.
    """
    return _decode(body)


# Private


def _as_status(error: HostlerError, code: str, status: int) -> HostlerError:
    """Give an engine's error the class that has its code, else its status."""
    kinds = all_errors()
    for kind in kinds:
        if kind.code == code:
            return kind(error.message, param=error.param)
    if 400 <= status < 500:
        found = next((kind for kind in kinds if kind.http_status == status), BadRequest)
        return found(error.message, param=error.param)
    return error


def _decode(data: str | bytes) -> Mapping[str, Any]:
    try:
        answer = msgspec.json.decode(data)
    except msgspec.MsgspecError as error:
        raise UpstreamError("the engine's answer is not JSON") from error
    if not isinstance(answer, dict):
        raise UpstreamError("the engine's answer is not a JSON object")
    return answer
