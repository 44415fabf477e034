"""Python ModelWorkers for the conformance suite."""

import time
from collections.abc import Iterator, Sequence

import msgspec

from hostler.core.fleet import WorkerSpec
from hostler.core.model import ModelMetadata, ModelOutput, Usage
from hostler.engines.base import Embeddings, GenerateRequest, Message, ModelWorker, Ranking, Text


def words_of(prompt: str | Sequence[Message]) -> list[str]:
    if isinstance(prompt, str):
        return prompt.split()
    return [word for message in prompt for word in str(message["content"]).split()]


class Talker(ModelWorker):
    """Says `said:WORD` for each word it was told, 5 ms apart; `slow` says a thousand instead.

    A prompt with `think` has a thought first, one with `tool` calls one instead of an answer, and one with
    `fields` answers with the request as it came.
    """

    def load(self, spec: WorkerSpec) -> ModelMetadata:
        return ModelMetadata(
            model=spec.model_name, context_length=4096, capabilities=("chat", "tools")
        )

    def generate_stream(self, request: GenerateRequest) -> Iterator[ModelOutput]:
        words = words_of(request.messages or request.prompt)
        usage = Usage(prompt_tokens=len(words), completion_tokens=len(words))
        if "fields" in words:
            yield ModelOutput(text=msgspec.json.encode(request).decode())
            yield ModelOutput(finish_reason="stop", usage=usage)
            return
        if "fail" in words:
            raise ValueError("told to fail")
        if "think" in words:
            yield ModelOutput(thinking_text="hm ")
        if "tool" in words:
            function = {"name": "look", "arguments": '{"at": 1}'}
            call = {"index": 0, "id": "c1", "type": "function", "function": function}
            yield ModelOutput(tool_calls=(call,))
            yield ModelOutput(finish_reason="tool_calls", usage=usage)
            return
        for place, word in enumerate(words * 1000 if "slow" in words else words):
            if "break" in words and place == 3:
                raise ValueError("told to break")
            yield ModelOutput(text=f"said:{word} ")
            time.sleep(0.005)
        yield ModelOutput(finish_reason="stop", usage=usage)

    def count_token(self, prompt: str | Sequence[Message]) -> int:
        return len(words_of(prompt))


class Vectors(ModelWorker):
    """The length of a text, and its number of e's."""

    def load(self, spec: WorkerSpec) -> ModelMetadata:
        return ModelMetadata(model=spec.model_name, dimensions=2)

    def embeddings(self, texts: Sequence[Text]) -> Embeddings:
        return Embeddings(vectors=[[float(len(text)), float(text.count("e"))] for text in texts])

    def rerank(self, query: str, documents: Sequence[str]) -> Ranking:
        wanted = set(query.split())
        return Ranking(
            scores=[float(len(wanted & set(d.split()))) for d in documents], logits=False
        )
