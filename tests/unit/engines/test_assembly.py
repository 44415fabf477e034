"""Assembly: recorded chunks of llama.cpp become the answer it gives unstreamed."""

from typing import Any

import msgspec
import pytest

from hostler.core.errors import UpstreamError
from hostler.core.request import Route
from hostler.engines.assembly import (
    Assembly,
    wants_progress,
    with_progress,
    without_progress,
)

HEAD = {"created": 1795884271, "id": "chatcmpl-q6ME", "model": "m", "system_fingerprint": "b0"}
CHUNK = {**HEAD, "object": "chat.completion.chunk"}
USAGE = {"completion_tokens": 3, "prompt_tokens": 37, "total_tokens": 40}
ASKED = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def event(data: Any) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(data)


def delta(index: int = 0, finish: str | None = None, **said: Any) -> bytes:
    choice = {"finish_reason": finish, "index": index, "delta": said}
    return event({"choices": [choice], **CHUNK})


def progress(done: int) -> bytes:
    first = {"finish_reason": None, "index": 0, "delta": {"role": "assistant", "content": None}}
    told = {"total": 37, "cache": 36, "processed": done, "time_ms": 24}
    return event({"choices": [first], **CHUNK, "prompt_progress": told})


def usage(**timings: Any) -> bytes:
    return event({"choices": [], **CHUNK, "usage": USAGE, "timings": timings or {"prompt_n": 1}})


DONE = b"data: [DONE]\n\n"


def assemble(*events: bytes, asked: dict[str, Any] | None = None) -> dict[str, Any]:
    assembly = Assembly(Route.CHAT, asked or ASKED)
    for piece in events:
        assembly.take(piece)
    assert assembly.is_complete
    found: dict[str, Any] = msgspec.json.decode(assembly.body())
    return found


def test_text_and_thought_are_joined_and_usage_and_timings_kept() -> None:
    found = assemble(
        progress(36) + progress(37),
        delta(role="assistant", content=None),
        delta(reasoning_content="Hm"),
        delta(reasoning_content="m."),
        delta(content="L"),
        delta(content="'É"),
        delta(finish="length"),
        usage(predicted_n=3),
        DONE,
    )
    message = {"role": "assistant", "content": "L'É", "reasoning_content": "Hmm."}
    assert found == {
        "choices": [{"finish_reason": "length", "index": 0, "message": message}],
        **HEAD,
        "object": "chat.completion",
        "usage": USAGE,
        "timings": {"predicted_n": 3},
    }


def test_tool_calls_are_merged_by_their_index() -> None:
    def call(index: int, **part: Any) -> bytes:
        return delta(tool_calls=[{"index": index, **part}])

    found = assemble(
        delta(role="assistant", content=None),
        call(0, id="a", type="function", function={"name": "weather", "arguments": ""}),
        call(0, function={"arguments": '{"city"'}),
        call(1, id="b", type="function", function={"name": "temp", "arguments": "{"}),
        call(0, function={"arguments": ':"Paris"}'}),
        call(1, function={"arguments": "}"}),
        delta(finish="tool_calls"),
        DONE,
    )
    (choice,) = found["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "a",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city":"Paris"}'},
            },
            {"id": "b", "type": "function", "function": {"name": "temp", "arguments": "{}"}},
        ],
    }


def test_choices_that_came_mixed_are_in_order_and_the_first_s_usage_counts() -> None:
    other = {**USAGE, "completion_tokens": 9}
    found = assemble(
        delta(1, content="b"),
        delta(0, content="a"),
        delta(1, finish="stop"),
        event({"choices": [], **CHUNK, "usage": other, "timings": {"n": 1}}),
        delta(0, content="A"),
        delta(0, finish="length"),
        usage(n=0),
        DONE,
        asked={**ASKED, "n": 2},
    )
    texts = [(c["index"], c["message"]["content"], c["finish_reason"]) for c in found["choices"]]
    assert texts == [(0, "aA", "length"), (1, "b", "stop")]
    assert found["usage"] == USAGE
    assert found["timings"] == {"n": 0}


def test_logprobs_are_those_of_all_tokens() -> None:
    def token(text: str) -> bytes:
        told = {"content": [{"token": text, "logprob": -1.0}]}
        choice = {"finish_reason": None, "index": 0, "delta": {"content": text}, "logprobs": told}
        return event({"choices": [choice], **CHUNK})

    found = assemble(token("a"), token("b"), delta(finish="stop"), DONE)
    assert [t["token"] for t in found["choices"][0]["logprobs"]["content"]] == ["a", "b"]


def test_a_completion_has_its_own_shape() -> None:
    assembly = Assembly(Route.COMPLETIONS, {"prompt": ["x", "y"]})
    base = {**HEAD, "object": "text_completion"}
    for index, text, finish in ((1, "b", None), (0, "a", "stop"), (1, "", "length")):
        choice = {"text": text, "index": index, "logprobs": None, "finish_reason": finish}
        assembly.take(event({"choices": [choice], **base}))
    assert not assembly.is_complete
    assembly.take(DONE)
    assert assembly.is_complete
    found = msgspec.json.decode(assembly.body())
    assert found["object"] == "text_completion"
    assert found["choices"] == [
        {"text": "a", "index": 0, "logprobs": None, "finish_reason": "stop"},
        {"text": "b", "index": 1, "logprobs": None, "finish_reason": "length"},
    ]


def test_an_answer_without_its_end_is_not_complete_and_an_error_is_one() -> None:
    assembly = Assembly(Route.CHAT, ASKED)
    assembly.take(delta(content="a") + DONE)
    assert not assembly.is_complete
    assembly.take(event({"error": {"code": 500, "message": "no", "type": "server_error"}}))
    assert assembly.status == 500
    assert msgspec.json.decode(assembly.error_body())["error"]["message"] == "no"
    for nonsense in (b"data: {\n\n", b"data: [1]\n\n", b'data: {"choices":[3]}\n\n'):
        with pytest.raises(UpstreamError):
            Assembly(Route.CHAT, ASKED).take(nonsense)


def test_what_wants_no_stream_is_asked_as_one_where_that_can_be() -> None:
    asked = with_progress(Route.CHAT, {**ASKED, "stream_options": None})
    assert asked["stream"] is asked["return_progress"] is True
    assert asked["stream_options"] == {"include_usage": True}
    assert with_progress(Route.TOKENIZE, ASKED) == ASKED
    parts = {"messages": [{"role": "assistant", "content": [{"type": "text", "text": "x"}]}]}
    assert with_progress(Route.CHAT, parts) == parts
    stream = with_progress(Route.CHAT, {**ASKED, "stream": True})
    assert stream == {**ASKED, "stream": True, "return_progress": True}


def test_progress_is_taken_out_of_a_stream() -> None:
    assert not wants_progress({"stream": True})
    assert wants_progress({"return_progress": True})
    said = delta(content='"prompt_progress":{')
    assert without_progress(progress(1) + said + progress(2)) == said
    assert without_progress(progress(1)) == b""
