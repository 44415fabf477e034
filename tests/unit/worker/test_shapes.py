"""OpenAI JSON in and out, by literal bodies."""

import base64
import math
from array import array
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.core.errors import BadRequest, InvalidJSON
from hostler.core.model import ModelOutput, Usage
from hostler.engines.base import Embeddings, Ranking
from hostler.worker import shapes


def decoded(body: bytes) -> Any:
    return msgspec.json.decode(body)


def test_a_chat_body_becomes_a_request_with_its_unknown_fields_beside() -> None:
    raw = (
        b'{"model":"m","messages":[{"role":"user","content":"hi"}],"temperature":0,'
        b'"max_tokens":9,"max_completion_tokens":5,"stop":"x","tools":[{"a":1}],"top_k":3}'
    )
    body = shapes.read(raw, shapes.ChatBody)
    request = body.as_request(shapes.extra_fields(raw, shapes.ChatBody))
    assert request.messages == ({"role": "user", "content": "hi"},)
    assert (request.max_tokens, request.temperature, request.stop) == (5, 0.0, ("x",))
    assert request.extra == {"tools": [{"a": 1}], "top_k": 3}


@pytest.mark.parametrize(
    ("raw", "kind", "error"),
    [
        (b"{", shapes.ChatBody, InvalidJSON),
        (b"\xff", shapes.ChatBody, InvalidJSON),
        (b"{}", shapes.ChatBody, BadRequest),
        (b'{"messages":"hi"}', shapes.ChatBody, BadRequest),
        (b'{"input":null}', shapes.EmbeddingsBody, BadRequest),
        (b'{"input":"x","encoding_format":"hex"}', shapes.EmbeddingsBody, BadRequest),
        (b"[" * 100_000, shapes.ChatBody, BadRequest),
    ],
)
def test_a_body_that_is_wrong_is_a_400(
    raw: bytes, kind: type[msgspec.Struct], error: type[BadRequest]
) -> None:
    with pytest.raises(error) as raised:
        shapes.read(raw, kind)
    assert raised.value.http_status == 400


@pytest.mark.parametrize(
    "fields",
    [{"n": 2}, {"max_tokens": 0}, {"stop": ["x"] * 17}, {"messages": []}],
    ids=lambda fields: next(iter(fields)),
)
def test_a_value_out_of_range_names_its_field(fields: dict[str, Any]) -> None:
    raw = msgspec.json.encode({"messages": [{"role": "user", "content": "x"}], **fields})
    with pytest.raises(BadRequest) as raised:
        shapes.read(raw, shapes.ChatBody).as_request({})
    assert raised.value.param == next(iter(fields))


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a", [1]], ["a", [1]]),
    ],
)
def test_the_four_kinds_of_embedding_input_are_told_apart(given: Any, texts: Any) -> None:
    body = shapes.read(msgspec.json.encode({"input": given}), shapes.EmbeddingsBody)
    assert body.texts() == texts


@pytest.mark.parametrize("given", [[], [1, "a"], [1, [2]]])
def test_empty_and_mixed_embedding_inputs_are_refused(given: Any) -> None:
    body = shapes.read(msgspec.json.encode({"input": given}), shapes.EmbeddingsBody)
    with pytest.raises(BadRequest):
        body.texts()


def test_a_streams_chunks_begin_with_the_role_and_end_with_the_reason() -> None:
    answer = shapes.Answer("m", chat=True)
    outputs = [
        ModelOutput(thinking_text="hm"),
        ModelOutput(text="a"),
        ModelOutput(),
        ModelOutput(tool_calls=({"index": 0, "id": "t"},)),
        ModelOutput(finish_reason="tool_calls", usage=Usage(prompt_tokens=1, completion_tokens=2)),
    ]
    deltas = [decoded(answer.first_chunk())["choices"][0]["delta"]]
    for output in outputs:
        deltas += [decoded(chunk)["choices"][0]["delta"] for chunk in answer.chunks(output)]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": "a"},
        {"tool_calls": [{"index": 0, "id": "t"}]},
    ]
    last = decoded(answer.last_chunk())["choices"][0]
    assert (last["delta"], last["finish_reason"]) == ({}, "tool_calls")
    usage = decoded(answer.usage_chunk())
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 3


def test_base64_is_little_endian_float32() -> None:
    coded = shapes.as_base64(array("f", [1.0, -2.5]))
    assert base64.b64decode(coded) == b"\x00\x00\x80\x3f\x00\x00\x20\xc0"


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=50), st.data())
def test_fewer_dimensions_are_the_first_ones_at_length_1(
    vector: list[float], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(vector) - 1))
    kept = shapes.shorten(vector, count)
    assert len(kept) == count
    length = math.sqrt(sum(value * value for value in kept))
    before = math.sqrt(sum(value * value for value in vector[:count]))
    if before > 1e-3:
        assert length == pytest.approx(1.0, abs=1e-4)
        assert [value * before for value in kept] == pytest.approx(vector[:count], abs=1e-4)


def test_embeddings_say_their_usage_and_index() -> None:
    body = shapes.read(b'{"input":["a","b"]}', shapes.EmbeddingsBody)
    found = Embeddings(vectors=[[1.0], [2.0]], usage=Usage(prompt_tokens=7))
    answer = decoded(shapes.embeddings_answer("m", body, found))
    assert answer == {
        "object": "list",
        "model": "m",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1.0]},
            {"object": "embedding", "index": 1, "embedding": [2.0]},
        ],
    }


def test_a_ranking_is_sorted_cut_and_carries_the_raw_logit() -> None:
    raw = b'{"query":"q","documents":["a",{"text":"b"},"c"],"top_n":2,"return_documents":true}'
    body = shapes.read(raw, shapes.RerankBody)
    found = Ranking(scores=[-1.0, 3.0, 0.0])
    first, second = decoded(shapes.rerank_answer("m", body, found))["results"]
    assert first == {
        "index": 1,
        "relevance_score": pytest.approx(0.9525741268),
        "logit": 3.0,
        "document": {"text": "b"},
    }
    assert (second["index"], second["relevance_score"]) == (2, 0.5)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_relevance_lies_between_0_and_1_and_grows_with_the_logit(logit: float) -> None:
    assert 0.0 <= shapes.sigmoid(logit) <= 1.0
    assert shapes.sigmoid(logit) + shapes.sigmoid(-logit) == pytest.approx(1.0)
