"""Real embedding and reranking models in a worker process."""

import asyncio
import base64
import math
from array import array
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from hostler.core.model import WorkerType
from tests.integration.worker.launch import Controller, Worker, controller
from tests.models import model_path

pytestmark = pytest.mark.slow

TEXTS = [
    "A hostler readies the engines at a roundhouse.",
    "short",
    "Embeddings of the same text must not depend on the texts beside it. " * 8,
    "Berlin is the capital of Germany.",
]


def cosine(left: list[float], right: list[float]) -> float:
    dot = sum(a * b for a, b in zip(left, right, strict=True))
    return dot / math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))


async def start(fleet: Controller, role: str, path: Path, **params: Any) -> Worker:
    kind = WorkerType.TEXT2VEC if role == "embedding" else WorkerType.RERANKER
    spec = fleet.spec(
        engine="onnx", model_path=str(path), worker_type=kind, params=params, concurrency=32
    )
    worker = await fleet.launch(spec)
    await fleet.ready(worker)
    return worker


async def embed(worker: Worker, inputs: Any, **fields: Any) -> tuple[list[list[float]], int]:
    status, body = await worker.call("POST", "/v1/embeddings", {"input": inputs, **fields})
    assert status == 200, body
    assert [item["index"] for item in body["data"]] == list(range(len(body["data"])))
    return [item["embedding"] for item in body["data"]], body["usage"]["prompt_tokens"]


def test_a_text_has_the_same_embedding_alone_and_in_a_batch() -> None:
    path = model_path("embedding")

    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, "embedding", path)
            together, _ = await embed(worker, TEXTS)
            alone = [(await embed(worker, text))[0][0] for text in TEXTS]
            at_once = await asyncio.gather(*(embed(worker, text) for text in TEXTS * 4))
            for number, vector in enumerate(alone):
                assert len(vector) == 384
                assert math.isclose(sum(value * value for value in vector), 1.0, abs_tol=1e-5)
                assert cosine(vector, together[number]) > 0.9999
                assert all(cosine(vector, at_once[n][0][0]) > 0.9999 for n in range(number, 16, 4))
            assert cosine(alone[0], alone[3]) < 0.95

    asyncio.run(main())


def test_usage_counts_the_tokens_that_were_computed() -> None:
    path = model_path("embedding")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))

    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, "embedding", path)
            _, tokens = await embed(worker, TEXTS)
            assert tokens == sum(len(tokenizer.encode(text).ids) for text in TEXTS)
            _, cut = await embed(worker, "word " * 2000)
            assert cut == 512
            _, counted = await worker.call("POST", "/tokenize", {"content": "word " * 2000})
            assert counted == {"count": 2002}

    asyncio.run(main())


def test_base64_token_ids_and_dimensions_say_the_same_as_floats() -> None:
    path = model_path("embedding")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))

    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, "embedding", path)
            (floats,), _ = await embed(worker, TEXTS[0])
            (coded,), _ = await embed(worker, TEXTS[0], encoding_format="base64")
            decoded = array("f", base64.b64decode(str(coded))).tolist()
            assert cosine(floats, decoded) > 0.99999
            ids = tokenizer.encode(TEXTS[0], add_special_tokens=False).ids
            (from_ids,), _ = await embed(worker, ids)
            assert cosine(floats, from_ids) > 0.9999
            (short,), _ = await embed(worker, TEXTS[0], dimensions=64)
            assert len(short) == 64
            assert cosine(short, floats[:64]) > 0.9999
            wrongs: list[dict[str, Any]] = [{"dimensions": 385}, {"dimensions": 0}, {"input": []}]
            for wrong in (*wrongs, {"input": [1 << 40]}):
                fields = {"input": "x", **wrong}
                status, body = await worker.call("POST", "/v1/embeddings", fields)
                assert (status, body["error"]["code"]) == (400, "invalid_value"), wrong

    asyncio.run(main())


def test_documents_are_ranked_by_how_well_they_answer() -> None:
    path = model_path("reranker")
    documents = [
        "Paris is full of museums.",
        "Berlin has a population of 3,520,031 registered inhabitants.",
        "A recipe for potato soup with leeks.",
        "Many people live in cities.",
    ]
    question = {"query": "How many people live in Berlin?", "documents": documents}

    async def main() -> None:
        async with controller() as fleet:
            worker = await start(fleet, "reranker", path)
            status, body = await worker.call("POST", "/v1/rerank", question)
            assert status == 200, body
            best, *others = body["results"]
            assert best["index"] == 1
            assert 8.0 < best["logit"] < 10.0
            assert all(item["logit"] < 0 for item in others)
            scores = [item["relevance_score"] for item in body["results"]]
            assert scores == sorted(scores, reverse=True)
            assert best["relevance_score"] == pytest.approx(1 / (1 + math.exp(-best["logit"])))
            assert "document" not in best
            more = {"top_n": 2, "return_documents": True}
            _, body = await worker.call("POST", "/v1/rerank", {**question, **more})
            assert body["results"][0]["index"] == 1
            assert len(body["results"]) == 2
            assert body["results"][0]["document"] == {"text": documents[1]}
            status, body = await worker.call("POST", "/v1/embeddings", {"input": "x"})
            assert status == 400
            assert "reranks" in body["error"]["message"]

    asyncio.run(main())


def test_a_damaged_model_ends_the_worker_with_one_clear_line(tmp_path: Path) -> None:
    path = model_path("embedding")
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_bytes((path / name).read_bytes())
    (tmp_path / "model.onnx").write_bytes((path / "model.onnx").read_bytes()[:1_000_000])

    async def main() -> None:
        async with controller() as fleet:
            spec = fleet.spec(
                engine="onnx", model_path=str(tmp_path), worker_type=WorkerType.TEXT2VEC
            )
            worker = await fleet.launch(spec)
            assert await worker.ended() == 3
            lines = [line for line in worker.stderr.splitlines() if "hostler-error" in line]
            assert len(lines) == 1
            assert '"code":"model_corrupt"' in lines[0]
            record = fleet.registry.record(spec.instance_id)
            assert record is not None
            assert record.error_code == "model_corrupt"

    asyncio.run(main())
