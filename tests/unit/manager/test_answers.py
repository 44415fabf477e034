"""AnswerReader and Whole: from an engine's events to outputs; errors back to their classes."""

from typing import Any

import msgspec
import pytest

from hostler.core import errors
from hostler.core.errors import BadRequest, HostlerError, UpstreamError, WorkerLost
from hostler.core.model import ModelOutput, Usage
from hostler.manager.answers import AnswerReader, error_of
from hostler.manager.whole import Whole

DONE = b"data: [DONE]\n\n"


def event(*choices: dict[str, Any], **fields: Any) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode({"choices": choices, **fields})


def used(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion}


def end(index: int = 0, reason: str = "stop") -> dict[str, Any]:
    return {"index": index, "delta": {}, "finish_reason": reason}


def test_rates_come_from_the_arrival_of_tokens_where_the_engine_gives_none() -> None:
    reader = AnswerReader("m", 100.0)
    for n in range(5):
        reader.read(event({"delta": {"content": "a"}}), 102.0 + n)
    reader.read(event(end(), usage=used(10, 5)), 108.0)
    reader.read(DONE, 108.0)
    (last,) = reader.last(109.0)
    assert last.metrics is not None
    assert (last.metrics.first_token_s, last.metrics.total_s) == (2.0, 9.0)
    assert (last.metrics.prefill_tokens_per_s, last.metrics.decode_tokens_per_s) == (5.0, 1.0)


def test_usage_beside_each_answer_is_summed_and_a_total_is_not() -> None:
    reader = AnswerReader("m", 0.0, 2)
    reader.read(event(end(0), usage=used(3, 4)), 1.0)
    reader.read(b"data: null\n\n", 1.0)
    reader.read(event(end(1, "length"), usage=used(5, 6)), 1.0)
    reader.read(DONE, 1.0)
    first, last = reader.last(1.0)
    assert (first.index, first.finish_reason, first.usage) == (0, "stop", None)
    assert (last.index, last.finish_reason) == (1, "length")
    assert last.usage == Usage(prompt_tokens=8, completion_tokens=10, total_tokens=18)
    reader.read(event(usage=used(1, 2)), 1.0)
    assert reader.last(1.0)[-1].usage == Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)


@pytest.mark.parametrize(
    "events", [[DONE], [event(end())], [event(end()), DONE], [event(end(0), end(0)), DONE]]
)
def test_a_stream_that_owes_an_answer_is_lost(events: list[bytes]) -> None:
    reader = AnswerReader("m", 0.0, 2)
    for one in events:
        reader.read(one, 1.0)
    with pytest.raises(WorkerLost):
        reader.last(1.0)


@pytest.mark.parametrize("data", [b"[]", b"{", b"5", b'{"choices":[5]}', b'{"choices":5}', b"\xff"])
def test_events_that_are_no_answer_are_upstream_errors(data: bytes) -> None:
    with pytest.raises(UpstreamError):
        AnswerReader("m", 0.0).read(b"data: " + data + b"\n\n", 1.0)


def test_pieces_of_tool_calls_become_whole_ones() -> None:
    whole = Whole()
    begin = {
        "index": 0,
        "id": "c",
        "type": "function",
        "function": {"name": "f", "arguments": '{"'},
    }
    whole.add(ModelOutput(tool_calls=(begin,)))
    rest = {"index": 0, "id": None, "function": {"name": None, "arguments": 'a":1}'}}
    whole.add(ModelOutput(tool_calls=(rest,)))
    whole.add(ModelOutput(finish_reason="tool_calls"))
    answer = whole.answer()
    assert answer.tool_calls == (
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
    )
    assert (answer.finish_reason, answer.choices) == ("tool_calls", ())


@pytest.mark.parametrize(
    "kind", [kind for kind in errors.all_errors() if kind.__module__ == errors.__name__]
)
def test_every_error_comes_back_as_its_own_class(kind: type[HostlerError]) -> None:
    sent = msgspec.json.decode(errors.envelope(kind("why", param="x")))
    back = error_of(sent, kind.http_status, retry_after_s=3)
    assert type(back) is kind
    assert (back.message, back.param, back.retry_after_s) == ("why", "x", 3)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequest), (404, errors.NotFound), (418, BadRequest), (422, BadRequest),
     (429, errors.RateLimitExceeded), (500, UpstreamError), (503, UpstreamError)],
)  # fmt: skip
def test_an_engines_own_refusal_is_told_by_its_status(
    status: int, kind: type[HostlerError]
) -> None:
    assert type(error_of({"error": {"message": "no", "code": status}}, status)) is kind
    too_long = {"error": {"message": "no", "code": 400, "type": "exceed_context_size_error"}}
    assert type(error_of(too_long, 400)) is errors.ContextLengthExceeded
