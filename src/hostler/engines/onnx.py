"""OnnxWorker: embeddings and reranking with ONNX Runtime and a fast tokenizer; no torch."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from hostler.core.errors import BadRequest, EngineError
from hostler.core.fleet import WorkerSpec
from hostler.core.model import ModelMetadata, Usage, WorkerType
from hostler.engines.base import (
    Embeddings,
    Message,
    ModelWorker,
    Ranking,
    Text,
    check_parameters,
    find_engine,
)
from hostler.engines.onnx_batching import Batcher
from hostler.engines.onnx_model import Encoded, OnnxModel, Vector
from hostler.engines.parameters import OnnxParameters

_INLINE_CHARS = 4096  # fewer are tokenized in the loop: under a millisecond, cheaper than a thread


class OnnxWorker(ModelWorker):
    """One encoder model. Its methods are async: all requests share one batcher."""

    def __init__(self) -> None:
        self._model: OnnxModel | None = None
        self._batcher: Batcher[Encoded, Vector] | None = None
        self._parameters = OnnxParameters()

    async def load(self, spec: WorkerSpec) -> ModelMetadata:
        """Load the folder `spec.model_path`.

        Raises:
            ModelFormatError: its files are damaged or not of an encoder that we can run.
        """
        parameters = check_parameters(find_engine("onnx"), spec.params)
        assert isinstance(parameters, OnnxParameters)
        self._parameters = parameters
        reranks = spec.worker_type is WorkerType.RERANKER
        model = await asyncio.to_thread(OnnxModel, Path(spec.model_path), parameters, reranks)
        self._model = model
        self._batcher = Batcher(
            model.compute,
            len,
            batch_tokens=parameters.batch_tokens,
            queue_length=parameters.queue_length,
        )
        return ModelMetadata(
            model=spec.model_name,
            label=Path(spec.model_path).name,
            description=model.description,
            worker_type=spec.worker_type,
            context_length=model.max_length,
            dimensions=None if reranks else model.dimensions,
            capabilities=("rerank",) if reranks else ("embeddings", "dimensions"),
        )

    async def unload(self) -> None:
        if self._batcher is not None:
            self._batcher.close()
        self._batcher = self._model = None

    async def embeddings(self, texts: Sequence[Text]) -> Embeddings:
        """float32 vectors. Texts over the model's length are cut; usage counts what is left."""
        model, batcher = self._ready(reranks=False)
        self._check_count(len(texts), "input")
        chars = sum(len(text) for text in texts)
        if chars <= _INLINE_CHARS:
            encoded = model.encode(texts)
        else:
            encoded = await asyncio.to_thread(model.encode, texts)
        vectors = await batcher.run(encoded)
        return Embeddings(vectors=[vector.tolist() for vector in vectors], usage=_usage(encoded))

    async def rerank(self, query: str, documents: Sequence[str]) -> Ranking:
        """One logit a document."""
        model, batcher = self._ready(reranks=True)
        self._check_count(len(documents), "documents")
        chars = len(query) * len(documents) + sum(len(text) for text in documents)
        if chars <= _INLINE_CHARS:
            encoded = model.encode_pairs(query, documents)
        else:
            encoded = await asyncio.to_thread(model.encode_pairs, query, documents)
        logits = await batcher.run(encoded)
        return Ranking(scores=[float(logit[0]) for logit in logits], usage=_usage(encoded))

    async def count_token(self, prompt: str | Sequence[Message]) -> int:
        """Tokens of a text with the special ones, before any cut."""
        if not isinstance(prompt, str):
            raise BadRequest("this model takes texts, not messages", param="messages")
        if self._model is None:
            raise EngineError("the model is not loaded")
        return await asyncio.to_thread(self._model.count, prompt)

    # Private

    def _ready(self, *, reranks: bool) -> tuple[OnnxModel, Batcher[Encoded, Vector]]:
        if self._model is None or self._batcher is None:
            raise EngineError("the model is not loaded")
        if self._model.reranks != reranks:
            does = "reranks" if self._model.reranks else "makes embeddings"
            raise BadRequest(f"this model {does}; it does nothing else", param="model")
        return self._model, self._batcher

    def _check_count(self, count: int, param: str) -> None:
        most = self._parameters.max_inputs
        if count > most:
            raise BadRequest(f"{param}: at most {most} a request, got {count}", param=param)


# Private


def _usage(encoded: Sequence[Encoded]) -> Usage:
    tokens = sum(len(item) for item in encoded)
    return Usage(prompt_tokens=tokens, total_tokens=tokens)
