"""generate, generate_stream, embeddings, count_token, metadata: the same of every implementation."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hostler import EmbeddingParams, GenerateParams, HostlerError, ModelOutput
from hostler.core.errors import (
    BadRequest,
    EngineError,
    ModelNotFound,
    NotFound,
    UnknownParameter,
)
from hostler.core.model import WorkerType
from hostler.testing.fake_text import embedding, expected_texts, relevance
from hostler.wire.client import fetch
from tests.conformance.rigs import RemoteRig, Rig

CHATS = pytest.mark.parametrize("model", ["echo", "talker"])
VECTORS = pytest.mark.parametrize("model", ["vectors", "py-vectors"])
RANKS = pytest.mark.parametrize("model", ["ranks", "py-ranks"])


def chat(model: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def stream_of(rig: Rig, params: Any) -> list[ModelOutput]:
    async def read() -> list[ModelOutput]:
        return [output async for output in rig.manager.generate_stream(params)]

    return rig.run(read)


async def engine_says(rig: Rig, model: str, path: str) -> Any:
    """Ask the fake engine behind a model itself."""
    (data,) = await rig.manager.get_model_instances(WorkerType.LLM, model)
    return json.loads((await fetch(rig.engine(data), "GET", path, timeout_s=5)).body)


@CHATS
def test_a_stream_is_deltas_and_a_last_output_with_what_is_known_then(rig: Rig, model: str) -> None:
    *deltas, last = stream_of(rig, chat(model, "one two three"))
    assert len(deltas) >= 3
    for delta in deltas:
        assert delta.text
        assert (delta.finish_reason, delta.usage, delta.error_code) == (None, None, 0)
    assert last.finish_reason == "stop"
    assert last.usage is not None
    assert last.usage.completion_tokens == len(deltas)
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    metrics = last.metrics
    assert metrics is not None
    assert metrics.first_token_s is not None
    assert metrics.total_s is not None
    assert 0 < metrics.first_token_s <= metrics.total_s
    assert metrics.prefill_tokens_per_s is not None
    assert metrics.prefill_tokens_per_s > 0
    whole = rig.run(lambda: rig.manager.generate(chat(model, "one two three")))
    assert whole.text == "".join(delta.text for delta in deltas)
    assert (whole.finish_reason, whole.usage, whole.success) == ("stop", last.usage, True)


def test_decoding_is_measured_by_the_arrival_of_tokens(rig: Rig) -> None:
    whole = rig.run(lambda: rig.manager.generate(chat("echo", "[[delay_ms=10]] [[tokens=20]]")))
    assert whole.metrics is not None
    assert whole.metrics.decode_tokens_per_s is not None
    assert 1 < whole.metrics.decode_tokens_per_s <= 110


def test_a_stream_is_incremental(rig: Rig) -> None:
    async def main() -> None:
        began_s = time.monotonic()
        stream = rig.manager.generate_stream(chat("echo", "[[delay_ms=50]] [[tokens=800]]"))
        assert (await anext(stream)).text
        assert time.monotonic() - began_s < 20, "the first delta waited for the last"
        await stream.aclose()

    rig.run(main)


def test_thoughts_and_tool_calls_come_apart_from_the_text(rig: Rig) -> None:
    thinking = rig.run(
        lambda: rig.manager.generate(chat("echo", "[[reasoning=3]] [[tokens=2]] why"))
    )
    assert thinking.thinking_text.count("~") == 3
    assert "~" not in thinking.text
    assert len(thinking.text.split()) == 2
    calling = rig.run(lambda: rig.manager.generate(chat("echo", "[[tool_calls=2]]")))
    assert calling.finish_reason == "tool_calls"
    assert [call["function"]["name"] for call in calling.tool_calls] == ["tool_0", "tool_1"]
    assert [json.loads(call["function"]["arguments"])["number"] for call in calling.tool_calls] == [
        0,
        1,
    ]
    thought = rig.run(lambda: rig.manager.generate(chat("talker", "think well")))
    assert (thought.thinking_text, thought.text) == ("hm ", "said:think said:well ")
    called = rig.run(lambda: rig.manager.generate(chat("talker", "tool")))
    assert called.finish_reason == "tool_calls"
    assert called.tool_calls[0]["function"] == {"name": "look", "arguments": '{"at": 1}'}


def test_three_prompts_get_three_answers_not_the_last_one_thrice(rig: Rig) -> None:
    body = {"model": "echo", "prompt": ["one", "two", "three"], "max_tokens": 4}
    whole = rig.run(lambda: rig.manager.generate(body))
    assert [choice.text for choice in whole.choices] == expected_texts("echo", body)
    assert whole.text == whole.choices[0].text
    assert [choice.finish_reason for choice in whole.choices] == ["length"] * 3
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 3
    outputs = stream_of(rig, {**body, "n": 2})
    assert {output.index for output in outputs} == set(range(6))
    assert [output.usage is not None for output in outputs[-2:]] == [False, True]


def test_what_a_python_class_cannot_do_is_a_typed_refusal(rig: Rig) -> None:
    with pytest.raises(BadRequest, match="prompt"):
        rig.run(lambda: rig.manager.generate({"model": "talker", "prompt": ["one", "two"]}))


def test_an_early_close_stops_the_engine(rig: Rig) -> None:
    async def main() -> None:
        for _ in range(2):  # a slot that is not given back would stop the second
            stream = rig.manager.generate_stream(chat("single", "[[delay_ms=20]] [[tokens=2000]]"))
            assert (await anext(stream)).text
            await stream.aclose()
        async with asyncio.timeout(5):
            while True:
                ledger = await engine_says(rig, "single", "/_fake/ledger")
                if ledger["counts"]["in_flight"] == 0:
                    break
                await asyncio.sleep(0.05)
        assert [one["end"] for one in ledger["executions"][-2:]] == ["aborted", "aborted"]
        talking = rig.manager.generate_stream(chat("talker", "slow"))
        assert (await anext(talking)).text
        await talking.aclose()

    rig.run(main)


def test_a_fault_before_the_first_output_is_raised_with_its_type(rig: Rig) -> None:
    with pytest.raises(HostlerError) as caught:
        stream_of(rig, chat("echo", "[[status=500]]"))
    assert caught.value.http_status >= 500
    with pytest.raises(EngineError, match="ValueError"):
        stream_of(rig, chat("talker", "fail"))
    with pytest.raises(BadRequest):
        stream_of(rig, chat("echo", "[[status=400]]"))


@pytest.mark.parametrize(
    ("model", "text"),
    [("echo", "[[crash_at=3]] [[delay_ms=5]]"), ("talker", "break it now please")],
)
def test_a_fault_after_the_first_output_is_a_last_output_with_its_code(
    rig: Rig, model: str, text: str
) -> None:
    *deltas, last = stream_of(rig, chat(model, text))
    assert len(deltas) == 3
    assert all(delta.success for delta in deltas)
    assert not last.success
    assert (last.text, last.finish_reason) == ("", "error")
    assert last.error in ("worker_lost", "engine_failed")
    assert last.error_code in (500, 502)
    assert last.error_message
    assert rig.run(lambda: rig.manager.generate(chat(model, "again"))).success


FIELDS: dict[str, Any] = {
    "temperature": 0,
    "top_p": 0,
    "presence_penalty": 0.0,
    "frequency_penalty": -0.5,
    "stop": ["END", "\n"],
    "seed": 0,
    "max_tokens": 5,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": {"type": "object", "properties": {}}},
    },
    "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
    "tool_choice": "auto",
    "logit_bias": {"5": 0},
}


@pytest.mark.parametrize("as_type", [False, True])
def test_every_field_reaches_the_engine_as_it_is_zeros_too(rig: Rig, as_type: bool) -> None:
    extra = {"top_k": 0, "engine_field": {"a": [0, None]}}
    messages = [{"role": "user", "content": "hi"}]
    params: Any = {"model": "single", "messages": messages, **FIELDS, **extra}
    if as_type:
        fields = dict(FIELDS)
        extra = {**extra, "logit_bias": fields.pop("logit_bias")}
        params = GenerateParams(model="single", messages=messages, extra=extra, **fields)

    async def main() -> Any:
        await rig.manager.generate(params)
        return (await engine_says(rig, "single", "/_fake/last"))["body"]

    seen = rig.run(main)
    for name, value in {**FIELDS, **extra}.items():
        assert seen[name] == value, name
    unsaid = {"n", "user", "prompt", "extra", "worker_type"}
    assert not unsaid & seen.keys()


def test_a_python_class_gets_every_field_as_it_is_zeros_too(rig: Rig) -> None:
    fields = {**FIELDS, "top_k": 0, "class_field": {"a": [0, None]}}
    asked = chat("talker", "fields", **fields)
    if isinstance(rig, RemoteRig):  # its gateway knows no such field, and nobody opened it
        with pytest.raises(UnknownParameter, match="class_field"):
            rig.run(lambda: rig.manager.generate(asked))
        del asked["class_field"], fields["class_field"]
    seen = json.loads(rig.run(lambda: rig.manager.generate(asked)).text)
    seen.update(seen.pop("extra"))
    for name, value in fields.items():
        assert seen[name] == value, name


def test_a_field_nobody_knows_reaches_the_engine_unless_a_gateway_stands_before_it(
    rig: Rig,
) -> None:
    def ask() -> Any:
        return rig.run(lambda: rig.manager.generate(chat("echo", "hi", odd_field=1)))

    if isinstance(rig, RemoteRig):
        with pytest.raises(UnknownParameter, match="odd_field"):
            ask()
    else:
        assert ask().success


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"model": ""},
        {"model": 5, "prompt": "a"},
        {"model": "echo"},
        {"model": "echo", "prompt": "a", "messages": []},
        ["model"],
        None,
        {"model": "echo", "prompt": "a", "temperature": object()},
    ],
)
def test_params_that_mean_nothing_are_bad_requests(rig: Rig, params: Any) -> None:
    with pytest.raises(BadRequest):
        stream_of(rig, params)


def test_an_unknown_model_is_not_found_by_every_request(rig: Rig) -> None:
    async def main() -> None:
        manager = rig.manager
        works: list[Any] = [
            manager.generate(chat("nobody", "hi")),
            manager.embeddings({"model": "nobody", "input": "a"}),
            manager.count_token({"model": "nobody", "prompt": "a"}),
            manager.get_model_metadata({"model": "nobody"}),
        ]
        for work in works:
            with pytest.raises(ModelNotFound, match="nobody"):
                await work

    rig.run(main)


@VECTORS
def test_embeddings_are_one_vector_an_input_in_their_order(rig: Rig, model: str) -> None:
    texts = ["a", "bee", "eee", "a"]
    found = rig.run(lambda: rig.manager.embeddings({"model": model, "input": texts}))
    if model == "vectors":
        assert found == [list(embedding("vectors", text)) for text in texts]
    else:
        assert found == [[1, 0], [3, 2], [3, 3], [1, 0]]
    typed = EmbeddingParams(model=model, input="bee")
    assert rig.run(lambda: rig.manager.embeddings(typed)) == [found[1]]
    assert rig.run(lambda: rig.manager.embeddings({"model": model, "input": []})) == []
    with pytest.raises(BadRequest):
        rig.run(lambda: rig.manager.embeddings({"model": model}))


@RANKS
def test_a_query_makes_it_one_score_an_input_in_their_order(rig: Rig, model: str) -> None:
    documents = ["no", "a b", "a", "no"]
    params = EmbeddingParams(model=model, query="a b", input=documents)
    found = rig.run(lambda: rig.manager.embeddings(params))
    if model == "ranks":
        assert found == [[relevance("ranks", "a b", text)] for text in documents]
    else:
        assert found == [[0], [2], [1], [0]]


def test_a_model_asked_for_what_it_cannot_do_refuses(rig: Rig) -> None:
    with pytest.raises((NotFound, BadRequest)):
        rig.run(lambda: rig.manager.embeddings({"model": "talker", "input": "a"}))


@CHATS
@pytest.mark.parametrize("as_chat", [True, False])
def test_counts_are_what_the_engine_charges(rig: Rig, model: str, as_chat: bool) -> None:
    params = chat(model, "one two three four")
    if not as_chat:
        params = {"model": model, "prompt": "one two three four"}

    async def main() -> None:
        counted = await rig.manager.count_token(params)
        whole = await rig.manager.generate(params)
        assert whole.usage is not None
        assert counted == whole.usage.prompt_tokens > 0

    rig.run(main)


@pytest.mark.parametrize("fields", [{}, {"prompt": "a", "messages": [{"role": "user"}]}])
def test_a_count_needs_one_thing_to_count(rig: Rig, fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        rig.run(lambda: rig.manager.count_token({"model": "echo", **fields}))


def test_counting_goes_on_while_every_slot_is_taken(rig: Rig) -> None:
    async def main() -> None:
        stream = rig.manager.generate_stream(chat("single", "[[delay_ms=20]] [[tokens=2000]]"))
        await anext(stream)
        async with asyncio.timeout(5):
            assert await rig.manager.count_token({"model": "single", "prompt": "a b c"}) == 3
        await stream.aclose()

    rig.run(main)


def test_a_slot_is_waited_for_and_given_back(rig: Rig) -> None:
    async def main() -> None:
        async def one() -> None:
            assert (await rig.manager.generate(chat("single", "[[tokens=3]]"))).success

        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(one())

    rig.run(main)


def test_metadata_say_what_the_model_is(rig: Rig) -> None:
    async def main() -> None:
        echo = await rig.manager.get_model_metadata({"model": "echo"})
        assert (echo.model, echo.context_length) == ("echo", 4096)
        talker = await rig.manager.get_model_metadata(GenerateParams(model="talker"))
        assert talker.capabilities == ("chat", "tools")
        vectors = await rig.manager.get_model_metadata({"model": "py-vectors"})
        assert vectors.dimensions == 2

    rig.run(main)


def test_an_alias_answers_as_the_model_it_means(rig: Rig) -> None:
    async def main() -> None:
        body = chat("parrot", "hi")
        whole = await rig.manager.generate(body)
        assert whole.text == expected_texts("echo", {**body, "model": "echo"})[0]
        assert await rig.manager.count_token({"model": "parrot", "prompt": "a b"}) == 2
        assert (await rig.manager.get_model_metadata({"model": "parrot"})).model == "echo"

    rig.run(main)


def test_a_stream_nobody_reads_costs_nothing(rig: Rig) -> None:
    async def main() -> None:
        stream: AsyncIterator[ModelOutput] = rig.manager.generate_stream(chat("nobody", "hi"))
        await stream.aclose()  # type: ignore[attr-defined]

    rig.run(main)
