"""What an engine says and what of it reaches a client: errors, streams, counts."""

from itertools import pairwise

import msgspec
import pytest

from hostler.core.errors import UpstreamError, WorkerLost
from hostler.engines.counting import read_count
from hostler.gateway.answers import AnswerHead, engine_error, own_error, shape_error
from hostler.gateway.metrics import BUCKETS_S, Spread
from hostler.gateway.streams import StreamWatch


def chunk(finish: str | None = None, index: int = 0, text: str = "x", **more: object) -> bytes:
    data = {
        "choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}],
        **more,
    }
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def test_F61_a_stream_is_complete_when_every_choice_has_finished_and_done_has_come() -> None:
    watch = StreamWatch(2)
    assert watch.see(chunk()) == chunk()
    assert watch.see(chunk("stop", 1)) == chunk("stop", 1)
    assert not watch.is_finished
    watch.see(chunk("stop", 1))
    assert not watch.is_finished
    watch.see(chunk("length", 0))
    assert watch.see(DONE) == DONE
    assert watch.is_complete


def test_F61_a_done_that_comes_too_early_is_held_back() -> None:
    watch = StreamWatch(1)
    assert watch.see(chunk() + DONE) == chunk()
    assert not watch.is_complete


@pytest.mark.parametrize(
    "done", [b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n", b"data: [DONE]\n\n\n"]
)
def test_done_is_known_in_all_its_spellings(done: bytes) -> None:
    watch = StreamWatch(1)
    watch.see(chunk("stop"))
    assert watch.see(done) == done
    assert watch.is_complete


def test_text_that_looks_like_a_mark_is_text() -> None:
    watch = StreamWatch(1)
    for text in ("[DONE]", "data: [DONE]\n\n", '"finish_reason":"stop"', '"error":{}'):
        assert watch.see(chunk(text=text)) == chunk(text=text)
    assert (watch.is_done, watch.is_finished, watch.is_failed) == (False, False, False)


def test_spaces_after_colons_change_nothing() -> None:
    watch = StreamWatch(1)
    watch.see(b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n')
    assert watch.is_finished


def test_an_error_inside_a_stream_takes_its_done_away() -> None:
    watch = StreamWatch(1)
    watch.see(chunk("stop"))
    assert watch.see(b'data: {"error":{"message":"x","code":500}}\n\n')
    assert watch.is_failed
    assert watch.see(DONE) == b""
    assert not watch.is_complete


def test_engine_errors_get_the_one_shape() -> None:
    llama = b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}'
    status, body = shape_error(400, llama)
    assert status == 400
    assert msgspec.json.decode(body)["error"] == {
        "message": "too long",
        "type": "invalid_request_error",
        "param": None,
        "code": "context_length_exceeded",
    }
    good = b'{"error":{"message":"m","type":"t","param":null,"code":"c"}}'
    assert shape_error(422, good) == (422, good)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>/srv/secret</html>", b'{"detail":"/srv"}', b'{"error":"x"}', b"\xff", b"[1]"],
)
def test_F62_what_is_no_error_object_shows_nothing_of_itself(body: bytes) -> None:
    assert engine_error(body) is None
    status, shaped = shape_error(500, body)
    assert status == 502
    assert b"srv" not in shaped
    status, shaped = shape_error(418, body)
    assert status == 418
    assert set(msgspec.json.decode(shaped)["error"]) == {"message", "type", "param", "code"}
    assert b"srv" not in shaped


def test_errors_that_a_retry_cannot_help_say_so() -> None:
    status, body, headers = own_error(WorkerLost())
    assert status == 502
    assert (b"x-should-retry", b"false") in headers
    assert msgspec.json.decode(body)["error"]["code"] == "worker_lost"


def test_an_answers_head_is_read_for_what_matters() -> None:
    head = AnswerHead(
        [
            (b"content-type", b"Application/JSON; charset=utf-8"),
            (b"x", b"y"),
        ]
    )
    assert head.is_json
    assert head.is_plain
    assert not AnswerHead([(b"content-encoding", b"gzip")]).is_plain


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (b'{"tokens":[1,2,3]}', {"count": 3, "tokens": [1, 2, 3]}),
        (b'{"count":5}', {"count": 5}),
        (b'{"object":"x","input_tokens":7}', {"count": 7}),
        (b'{"count":2,"max_model_len":9,"tokens":[4,5]}', {"count": 2, "tokens": [4, 5]}),
    ],
)
def test_counts_of_all_engines_read_the_same(body: bytes, count: dict[str, object]) -> None:
    assert read_count(msgspec.json.decode(body)) == count


@pytest.mark.parametrize("answer", [None, [], {}, {"count": "x"}, "text"])
def test_what_is_no_count_is_an_error(answer: object) -> None:
    with pytest.raises(UpstreamError):
        read_count(answer)


def test_a_spread_counts_every_value_once() -> None:
    spread = Spread()
    for value in (0.0, 0.005, 0.0051, 299.0, 1e9):
        spread.add(value)
    buckets = spread.buckets()
    assert buckets[-1] == ("+Inf", 5.0)
    assert buckets[0] == ("0.005", 2.0)
    assert all(a[1] <= b[1] for a, b in pairwise(buckets))
    assert len(buckets) == len(BUCKETS_S) + 1
