"""The contract over llama.cpp and ONNX Runtime: the default models, in every implementation."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hostler import (
    EmbeddingParams,
    GenerateParams,
    ModelOutput,
    WorkerApplyRequest,
    WorkerApplyType,
    WorkerShutdownRequest,
    WorkerStartupRequest,
    WorkerType,
)
from hostler.catalog.catalog import Catalog
from hostler.core.errors import BadRequest, ContextLengthExceeded
from hostler.core.lifecycle import State
from tests.conformance.rigs import PYTHON, RIGS, LocalRig, Rig, rigs
from tests.models import model_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CHAT, EMBED, RANK = "smollm2-135m-instruct", "bge-small-en-v1.5", "ms-marco-minilm-l-12-v2"
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a town",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
        },
    }
]


@pytest.fixture(scope="module", params=rigs())
def real(request: pytest.FixtureRequest) -> Iterator[Rig]:
    for role in ("chat", "embedding", "reranker"):
        model_path(role)  # fetched once for all runs
    with RIGS[request.param]("") as rig:
        yield rig


def asked(**fields: Any) -> GenerateParams:
    given = {"messages": QUESTION, "temperature": 0, "max_tokens": 24, "seed": 0, **fields}
    return GenerateParams(model=CHAT, **given)


def test_a_chat_streams_and_says_the_same_as_a_whole(real: Rig) -> None:
    async def main() -> None:
        outputs = [output async for output in real.manager.generate_stream(asked())]
        *deltas, last = outputs
        whole = await real.manager.generate(asked())
        assert "Paris" in whole.text
        assert whole.text == "".join(delta.text for delta in deltas)
        assert last.finish_reason == whole.finish_reason == "stop"
        assert last.usage is not None
        assert last.usage.completion_tokens > 0
        assert last.metrics is not None
        assert last.metrics.first_token_s is not None
        assert last.metrics.prefill_tokens_per_s is not None
        assert last.metrics.decode_tokens_per_s is not None

    real.run(main)


def test_counts_equal_what_the_engine_charges_with_tools_too(real: Rig) -> None:
    async def main() -> None:
        for params in (
            asked(max_tokens=1),
            asked(max_tokens=1, tools=TOOLS),
            GenerateParams(model=CHAT, prompt="The capital of France is", max_tokens=1),
        ):
            counted = await real.manager.count_token(params)
            whole = await real.manager.generate(params)
            assert whole.usage is not None
            assert counted == whole.usage.prompt_tokens

    real.run(main)


def test_an_early_close_frees_the_engine_and_counting_never_waits_for_it(real: Rig) -> None:
    async def main() -> None:
        story = GenerateParams(
            model=CHAT,
            messages=[{"role": "user", "content": "Tell a very long story about horses."}],
            max_tokens=1500,
        )
        streams = [real.manager.generate_stream(story) for _ in range(8)]
        first: list[ModelOutput] = [await anext(streams[0])]
        began_s = time.monotonic()
        assert await real.manager.count_token({"model": CHAT, "prompt": "hello world"}) == 2
        assert time.monotonic() - began_s < 5
        assert first[0].text
        for stream in streams:
            await stream.aclose()
        async with asyncio.timeout(20):
            assert (await real.manager.generate(asked(max_tokens=2))).success

    real.run(main)


def test_a_json_schema_is_kept_to(real: Rig) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    whole = real.run(lambda: real.manager.generate(asked(response_format=wanted, max_tokens=64)))
    assert isinstance(json.loads(whole.text)["n"], int)


def test_a_stop_text_stops_and_three_prompts_get_three_answers(real: Rig) -> None:
    async def main() -> None:
        params = GenerateParams(
            model=CHAT, prompt="1, 2, 3, 4,", stop=["7"], max_tokens=32, temperature=0
        )
        whole = await real.manager.generate(params)
        assert "7" not in whole.text
        assert whole.finish_reason == "stop"
        prompts = ["The capital of France is", "The capital of Italy is", "1, 2, 3, 4,"]
        three = GenerateParams(model=CHAT, prompt=prompts, max_tokens=8, temperature=0)
        found = await real.manager.generate(three)
        assert len(found.choices) == 3
        for word, choice in zip(("Paris", "Rome", "5"), found.choices, strict=True):
            assert word in choice.text
        counted = [await real.manager.count_token({"model": CHAT, "prompt": p}) for p in prompts]
        assert found.usage is not None
        assert found.usage.prompt_tokens == sum(counted)

    real.run(main)


def test_a_prompt_that_is_too_long_is_refused_with_its_type(real: Rig) -> None:
    with pytest.raises(ContextLengthExceeded):
        real.run(
            lambda: real.manager.generate(
                GenerateParams(model=CHAT, prompt="horse " * 12000, max_tokens=1)
            )
        )


def test_embeddings_scores_and_metadata(real: Rig) -> None:
    async def main() -> None:
        texts = ["a horse in a stable", "a locomotive", "a horse in a stable"]
        vectors = await real.manager.embeddings(EmbeddingParams(model=EMBED, input=texts))
        assert [len(vector) for vector in vectors] == [384] * 3
        same, other = (
            sum(x * y for x, y in zip(vectors[0], v, strict=True)) for v in vectors[:0:-1]
        )
        assert same > 0.9999 > 0.9 > other
        documents = ["Cats eat.", "Berlin has 3.5 million inhabitants.", "Dogs bark."]
        scores = await real.manager.embeddings(
            EmbeddingParams(model=RANK, query="How many people live in Berlin?", input=documents)
        )
        assert [len(score) for score in scores] == [1, 1, 1]
        assert max(range(3), key=lambda place: scores[place][0]) == 1
        assert (await real.manager.get_model_metadata({"model": EMBED})).dimensions == 384
        chat = await real.manager.get_model_metadata({"model": CHAT})
        assert chat.context_length
        assert await real.manager.count_token({"model": EMBED, "prompt": "hello world"}) > 2
        with pytest.raises(BadRequest):
            await real.manager.generate({"model": CHAT, "messages": QUESTION, "prompt": "both"})

    real.run(main)


def source_of(model: str) -> str:
    entry = Catalog().find(model)
    assert entry is not None
    return entry.source


# Type, what it is started with, an update that works, and one that does not.
KINDS: dict[str, tuple[WorkerType, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "llama.cpp": (
        WorkerType.LLM,
        {"source": source_of(CHAT), "params": {"context_length": 1024}, "concurrency": 1},
        {"context_length": 512},
        {"context_length": 1},
    ),
    "onnx": (
        WorkerType.TEXT2VEC,
        {"source": source_of(EMBED), "params": {"threads": 1}},
        {"max_length": 64},
        {"tokenizer": "/nowhere/tokenizer.json"},
    ),
    "python": (
        WorkerType.LLM,
        {"params": {"worker_class": f"{PYTHON}:Talker"}},
        {"options": {"a": 1}},
        {"worker_class": f"{PYTHON}:Nobody"},
    ),
}


@pytest.mark.parametrize("engine", list(KINDS))
def test_orders_do_the_same_with_every_kind_of_engine(real: Rig, engine: str) -> None:
    type_, fields, good, bad = KINDS[engine]
    name = f"extra-{engine}"
    order = WorkerStartupRequest(model=name, worker_type=type_, engine=engine, **fields)

    def update(params: dict[str, Any]) -> WorkerApplyRequest:
        kind = WorkerApplyType.UPDATE_PARAMS
        return WorkerApplyRequest(model=name, apply_type=kind, params=params, timeout_s=60)

    async def pids() -> set[int | None]:
        found = await real.manager.get_model_instances(type_, name)
        assert all(data.state is State.READY for data in found)
        return {data.pid for data in found}

    async def works() -> None:
        if type_ is WorkerType.TEXT2VEC:
            assert len(await real.manager.embeddings({"model": name, "input": ["a"]})) == 1
        else:
            asked = {"model": name, "prompt": "1, 2, 3,", "max_tokens": 2}
            assert (await real.manager.generate(asked)).success

    async def main() -> None:
        manager = real.manager
        try:
            (data,) = await manager.model_startup(order)
            assert (data.state, data.engine) == (State.READY, engine)
            assert [one.pid for one in await manager.model_startup(order)] == [data.pid]
            await works()
            updated = await manager.worker_apply(update(good))
            assert updated.success, updated.message
            now = await pids()
            assert now
            assert data.pid not in now
            await works()
            if isinstance(real, LocalRig):  # the manager behind the other one is of this kind
                try:
                    refused = await manager.worker_apply(update(bad))
                    assert not refused.success
                    assert "old specification" in refused.message
                except BadRequest:  # what cannot be is refused before anything is tried
                    pass
            assert await pids() == now
            await works()
            await manager.model_shutdown(WorkerShutdownRequest(model=name))
            assert await pids() == set()
            start = WorkerApplyRequest(model=name, apply_type=WorkerApplyType.START)
            assert (await manager.worker_apply(start)).success
            await works()
        finally:
            await manager.model_shutdown(WorkerShutdownRequest(model=name, delete_after=True))

    real.run(main, 110.0)
