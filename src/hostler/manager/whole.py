"""Whole: the pieces of a stream put together again. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from hostler.core.model import ModelOutput

ToolCall = Mapping[str, Any]


class Whole:
    """Collects the outputs of one stream and makes the whole answer of them."""

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}
        self._last = ModelOutput()

    def add(self, output: ModelOutput) -> None:
        """Take the next output of the stream."""
        self._choices.setdefault(output.index, _Choice()).add(output)
        self._last = output

    def answer(self) -> ModelOutput:
        """Return what came: the first choice, all of them when there are several, and the last
        output's usage, metrics or error.
        """
        last = self._last
        ended = {
            "usage": last.usage,
            "metrics": last.metrics,
            "model_name": last.model_name,
            "error_code": last.error_code,
            "error": last.error,
            "error_message": last.error_message,
        }
        several = tuple(
            choice.answer(index, last.model_name) for index, choice in sorted(self._choices.items())
        )
        if not several:
            return ModelOutput(**ended)  # type: ignore[arg-type]
        choices = several if len(several) > 1 else ()
        return msgspec.structs.replace(several[0], choices=choices, **ended)


# Private


class _Choice:
    """One answer."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._finish: str | None = None

    def add(self, output: ModelOutput) -> None:
        self._texts.append(output.text)
        self._thoughts.append(output.thinking_text)
        self._finish = output.finish_reason or self._finish
        _merge(self._calls, output.tool_calls)

    def answer(self, index: int, model_name: str) -> ModelOutput:
        return ModelOutput(
            text="".join(self._texts),
            thinking_text="".join(self._thoughts),
            tool_calls=tuple(self._calls[place] for place in sorted(self._calls)),
            finish_reason=self._finish,
            model_name=model_name,
            index=index,
        )


def _merge(calls: dict[int, dict[str, Any]], deltas: Iterable[ToolCall]) -> None:
    """Put OpenAI tool call deltas together: fields once, arguments appended."""
    for position, delta in enumerate(deltas):
        call = calls.setdefault(delta.get("index", position), {"type": "function", "function": {}})
        function = call["function"]
        for key, value in delta.items():
            if key not in ("function", "index") and value is not None:
                call[key] = value
        for key, value in (delta.get("function") or {}).items():
            if value is not None:
                function[key] = function.get(key, "") + value if key == "arguments" else value
