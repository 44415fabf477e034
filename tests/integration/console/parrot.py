"""Parrot: a model that says what it was told, a character at a time, and logs it."""

import sys
from collections.abc import Iterator

from hostler import GenerateRequest, ModelMetadata, ModelOutput, ModelWorker, Usage, WorkerSpec


class Parrot(ModelWorker):
    def load(self, spec: WorkerSpec) -> ModelMetadata:
        return ModelMetadata(model=spec.model_name, context_length=1 << 20)

    def generate_stream(self, request: GenerateRequest) -> Iterator[ModelOutput]:
        text = str(request.messages[-1]["content"])
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        for character in text:
            yield ModelOutput(text=character)
        used = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
        yield ModelOutput(finish_reason="stop", usage=used)
