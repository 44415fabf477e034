"""Porter: a model that calls the tools it is given, and says in JSON what they gave."""

import json
from collections.abc import Iterator
from typing import Any

from hostler import GenerateRequest, ModelMetadata, ModelOutput, ModelWorker, Usage, WorkerSpec

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


class Porter(ModelWorker):
    def load(self, spec: WorkerSpec) -> ModelMetadata:
        return ModelMetadata(model=spec.model_name, context_length=1 << 20)

    def generate_stream(self, request: GenerateRequest) -> Iterator[ModelOutput]:
        results = [one for one in request.messages if one["role"] == "tool"]
        tools = request.extra.get("tools") or []
        if results:
            yield from self._say(request, results)
            reason = "stop"
        elif tools:
            yield from self._call(tools)
            reason = "tool_calls"
        else:
            yield ModelOutput(text=json.dumps({"shape": request.extra.get("response_format")}))
            reason = "stop"
        used = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
        yield ModelOutput(finish_reason=reason, usage=used)

    def _call(self, tools: list[dict[str, Any]]) -> Iterator[ModelOutput]:
        """All of them, in pieces of seven characters, one after the other's piece."""
        texts = [json.dumps({"town": "Bern", "note": HOSTILE, "n": at}) for at in range(len(tools))]
        for at, tool in enumerate(tools):
            begin = {"name": tool["function"]["name"], "arguments": ""}
            call = {"index": at, "id": f"id-{at}", "type": "function", "function": begin}
            yield ModelOutput(tool_calls=(call,))
        for start in range(0, max(map(len, texts)), 7):
            for at, text in enumerate(texts):
                piece = {"index": at, "function": {"arguments": text[start : start + 7]}}
                yield ModelOutput(tool_calls=(piece,))

    def _say(self, request: GenerateRequest, results: list[Any]) -> Iterator[ModelOutput]:
        """What came of each call: that the calls came back as they were made is part of it."""
        [asked] = [one for one in request.messages if one.get("tool_calls")]
        names = {call["id"]: call["function"]["name"] for call in asked["tool_calls"]}
        whole = all(
            json.loads(call["function"]["arguments"])["note"] == HOSTILE
            for call in asked["tool_calls"]
        )
        gave = {names[one["tool_call_id"]]: one["content"] for one in results}
        for character in json.dumps({"gave": gave, "whole": whole}):
            yield ModelOutput(text=character)
