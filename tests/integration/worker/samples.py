"""ModelWorkers for tests: what a person might write, good and bad."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence

from hostler.core.fleet import WorkerSpec
from hostler.core.model import ModelMetadata, ModelOutput, Usage
from hostler.engines.base import Embeddings, GenerateRequest, Message, ModelWorker, Ranking, Text


def words_of(request: GenerateRequest) -> list[str]:
    text = str(request.messages[-1]["content"]) if request.messages else request.prompt
    return text.split()


class SyncEcho(ModelWorker):
    """Says the last message again, a word at a time. `die`: raises. `sleep`: blocks its thread."""

    def load(self, spec: WorkerSpec) -> ModelMetadata:
        return ModelMetadata(model=spec.model_name, context_length=100, capabilities=("chat",))

    def generate_stream(self, request: GenerateRequest) -> Iterator[ModelOutput]:
        words = words_of(request)
        given = words[: request.max_tokens]
        for word in given:
            if word == "die":
                raise RuntimeError("secret words of the prompt")
            if word == "sleep":
                time.sleep(0.2)
            yield ModelOutput(text=f"{word} ")
        yield ModelOutput(
            finish_reason="stop" if given == words else "length",
            usage=Usage(prompt_tokens=len(words), completion_tokens=len(given)),
        )

    def embeddings(self, texts: Sequence[Text]) -> Embeddings:
        tokens = sum(len(text) for text in texts)
        vectors = [[float(len(text)), 1.0, 0.0, 0.0] for text in texts]
        return Embeddings(vectors=vectors, usage=Usage(prompt_tokens=tokens))

    def rerank(self, query: str, documents: Sequence[str]) -> Ranking:
        scores = [float(len(set(query.split()) & set(text.split()))) for text in documents]
        return Ranking(scores=scores, logits=False)

    def count_token(self, prompt: str | Sequence[Message]) -> int:
        if isinstance(prompt, str):
            return len(prompt.split())
        return sum(len(str(message["content"]).split()) for message in prompt)


class AsyncDrip(ModelWorker):
    """Streams numbers, one each 20 ms, for ever; counts how many streams were closed early."""

    def __init__(self) -> None:
        self.closed = 0

    async def load(self, spec: WorkerSpec) -> ModelMetadata:
        return ModelMetadata(model=spec.model_name)

    async def generate_stream(self, request: GenerateRequest) -> AsyncIterator[ModelOutput]:
        try:
            for number in range(100_000):
                yield ModelOutput(text=f"{number} ")
                await asyncio.sleep(0.02)
        finally:
            self.closed += 1

    async def count_token(self, prompt: str | Sequence[Message]) -> int:
        return self.closed


class LoadsNever(ModelWorker):
    """Its load raises."""

    def load(self, spec: WorkerSpec) -> ModelMetadata:
        raise ValueError("no such weights")


class LoadsStuck(ModelWorker):
    """Its load blocks a thread that nobody can stop."""

    def load(self, spec: WorkerSpec) -> ModelMetadata:
        time.sleep(3600)
        raise AssertionError


class LoadsSlowly(ModelWorker):
    """Its load outlasts every patience."""

    async def load(self, spec: WorkerSpec) -> ModelMetadata:
        await asyncio.sleep(3600)
        raise AssertionError
