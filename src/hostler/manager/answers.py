"""From OpenAI bytes to ModelOutput: chunks of a stream, usage, timings. Pure; used by every manager."""

from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.core.errors import BadRequest, HostlerError, UpstreamError, WorkerLost, all_errors
from hostler.core.model import ModelOutput, OutputMetrics, Usage
from hostler.engines.dialect import code_of
from hostler.wire.sse import parse_event

_REASONING = ("reasoning_content", "reasoning")  # llama.cpp and vLLM; OpenRouter


class AnswerReader:
    """Turns the events of one stream into outputs, and knows whether the stream ended well."""

    def __init__(self, model_name: str, started_at_s: float, choices: int = 1) -> None:
        """choices: how many answers were asked for; each owes a finish reason."""
        self._model_name = model_name
        self._started_at_s = started_at_s
        self._choices = choices
        self._first_at_s: float | None = None
        self._latest_at_s = started_at_s
        self._usage: Usage | None = None
        self._usages: dict[int, Usage] = {}  # of single answers, where the engine says it so
        self._finishes: dict[int, str] = {}
        self._timings: Mapping[str, Any] = {}
        self.done = False

    def read(self, event: bytes, now_s: float) -> list[ModelOutput]:
        """Return what the event adds: nothing, or an output for each answer it carries on.

        Raises:
            UpstreamError: the event is an error object or not what it should be.
        """
        parsed = parse_event(event)
        if parsed is None or parsed.data in (b"", b"null"):  # null: see gateway/streams.py
            return []
        if parsed.data == b"[DONE]":
            self.done = True
            return []
        chunk = _decode(parsed.data)
        if chunk.get("error"):
            raise error_of(chunk, 502)
        self._timings = chunk.get("timings") or self._timings
        try:
            choices = chunk.get("choices") or ()
            self._note_usage(usage_of(chunk), [choice.get("index") or 0 for choice in choices])
            found = [self._read_choice(choice) for choice in choices]
        except (AttributeError, KeyError, TypeError) as error:
            raise UpstreamError("the engine's answer is not a stream of choices") from error
        outputs = [output for output in found if output is not None]
        if outputs:
            self._latest_at_s = now_s
            if self._first_at_s is None:
                self._first_at_s = now_s
        return outputs

    def last(self, now_s: float) -> list[ModelOutput]:
        """Return what ends a good stream: a finish reason an answer, on the last usage and metrics.

        Raises:
            WorkerLost: the stream was not whole.
        """
        if not self.done or len(self._finishes) < self._choices:
            raise WorkerLost(f"model {self._model_name!r}: its worker ended before the answer did")
        *others, (index, finish) = sorted(self._finishes.items())
        final = ModelOutput(
            finish_reason=finish,
            usage=self._usage,
            metrics=self._metrics(now_s),
            model_name=self._model_name,
            index=index,
        )
        return [
            *(
                ModelOutput(finish_reason=finish, model_name=self._model_name, index=index)
                for index, finish in others
            ),
            final,
        ]

    def fault(self, error: HostlerError) -> ModelOutput:
        """Return the terminal output of a stream that broke after its first output."""
        return ModelOutput(
            finish_reason="error",
            usage=self._usage,
            model_name=self._model_name,
            error_code=error.http_status,
            error=error.code,
            error_message=error.message,
        )

    # Private

    def _note_usage(self, usage: Usage | None, indices: list[int]) -> None:
        """Usage beside one of several answers is that one's (llama.cpp): the whole is their sum."""
        if usage is None:
            return
        if self._choices == 1 or len(indices) != 1:
            self._usage = usage
            return
        self._usages[indices[0]] = usage
        said = self._usages.values()
        self._usage = Usage(
            prompt_tokens=sum(one.prompt_tokens for one in said),
            completion_tokens=sum(one.completion_tokens for one in said),
            total_tokens=sum(one.total_tokens for one in said),
        )

    def _read_choice(self, choice: Mapping[str, Any]) -> ModelOutput | None:
        index = choice.get("index") or 0
        delta = choice.get("delta") or {}
        if choice.get("finish_reason"):
            self._finishes[index] = choice["finish_reason"]
        text = delta.get("content") or choice.get("text") or ""
        thought = next((delta[name] for name in _REASONING if delta.get(name)), "")
        calls = tuple(delta.get("tool_calls") or ())
        if not (text or thought or calls):
            return None
        return ModelOutput(
            text=text,
            thinking_text=thought,
            tool_calls=calls,
            model_name=self._model_name,
            index=index,
        )

    def _metrics(self, now_s: float) -> OutputMetrics:
        """The engine's own rates; where it gives none, what the arrival of its tokens says."""
        first_s = None if self._first_at_s is None else self._first_at_s - self._started_at_s
        prefill = self._timings.get("prompt_per_second")
        decode = self._timings.get("predicted_per_second")
        usage = self._usage
        if prefill is None and usage and first_s:
            prefill = usage.prompt_tokens / first_s
        if decode is None and usage and self._first_at_s is not None:
            took_s = self._latest_at_s - self._first_at_s
            if took_s > 0 and usage.completion_tokens > 1:
                decode = (usage.completion_tokens - 1) / took_s
        return OutputMetrics(
            first_token_s=first_s,
            total_s=now_s - self._started_at_s,
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


def error_of(answer: Any, status: int, *, retry_after_s: int | None = None) -> HostlerError:
    """Return the error that an OpenAI error object stands for, whatever of it can be read.

    Its class is the one with its code; without one of ours, the one that a client's fault of this
    status has, and UpstreamError for the rest.
    """
    found = answer.get("error") if isinstance(answer, Mapping) else None
    if not isinstance(found, Mapping):
        return UpstreamError(f"the engine answered {status}")
    message = str(found.get("message") or f"the engine answered {status}")
    kind = _BY_CODE.get(code_of(found))
    if kind is None:
        kind = _BY_STATUS.get(status, BadRequest) if 400 <= status < 500 else UpstreamError
    param = found.get("param")
    return kind(
        message, param=param if isinstance(param, str) else None, retry_after_s=retry_after_s
    )


def decode_answer(body: bytes) -> Mapping[str, Any]:
    """Return an answer's JSON object.

    Raises:
        UpstreamError: it is something else.
    """
    return _decode(body)


def json_or_none(body: bytes) -> object:
    """Return what an error's body says, None when it is not JSON."""
    try:
        found: object = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return found


# Private


# Classes of ours; others elsewhere may share their codes.
_OURS = [kind for kind in all_errors() if kind.__module__ == HostlerError.__module__]
_BY_CODE = {kind.code: kind for kind in _OURS}
# For an engine's own refusals: the broadest class of a status that blames the client.
_BY_STATUS = {
    kind.http_status: kind
    for kind in _OURS
    if kind.openai_type != HostlerError.openai_type
    and all(base.__dict__.get("http_status") != kind.http_status for base in kind.__mro__[1:])
}


def _decode(data: str | bytes) -> Mapping[str, Any]:
    try:
        answer = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UpstreamError("the engine's answer is not JSON") from error
    if not isinstance(answer, dict):
        raise UpstreamError("the engine's answer is not a JSON object")
    return answer
