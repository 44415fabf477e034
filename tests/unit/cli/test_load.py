"""What a load test makes of an answer's bytes."""

import asyncio
from collections.abc import Callable

import pytest

from hostler.cli.load import Answer
from hostler.cli.measured import Sample
from hostler.wire.client import UpstreamLost

ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
PIECE = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
THOUGHT = b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def answered(
    *parts: bytes, is_stream: bool = True, status: int = 200, end: bool = True
) -> tuple[Sample, bool]:
    def feed(answer: Answer) -> None:
        answer.on_head(status, [], None)
        for part in parts:
            answer.on_data(part)
        if end:
            answer.on_end()

    return taken(feed, is_stream=is_stream)


def taken(feed: Callable[[Answer], None], *, is_stream: bool = True) -> tuple[Sample, bool]:
    """The sample of an answer, and whether it is over."""

    async def main() -> tuple[Sample, bool]:
        answer = Answer(is_stream=is_stream)
        feed(answer)
        return answer.sample(3), answer.done.done()

    return asyncio.run(main())


def test_a_whole_stream_has_its_first_piece_timed_and_the_tokens_the_server_told() -> None:
    sample, is_over = answered(ROLE, PIECE[:20], PIECE[20:] + PIECE, USAGE, DONE)
    assert (is_over, sample.error, sample.items) == (True, "", 3)
    assert sample.first_s is not None
    assert sample.began_s <= sample.first_s <= sample.ended_s
    assert (sample.usage.prompt_tokens, sample.usage.completion_tokens) == (9, 2)
    assert sample.usage.cached_tokens == 4


def test_a_thought_is_a_piece_and_a_role_is_none() -> None:
    assert answered(THOUGHT, DONE)[0].first_s is not None
    assert answered(ROLE, USAGE, DONE)[0].first_s is None


def test_a_stream_that_ends_too_early_is_an_error() -> None:
    assert answered(ROLE, PIECE)[0].error == "stream_cut"
    assert answered(ROLE, PIECE, end=False)[1] is False


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'data: {"error":{"code":"upstream_lost","message":"gone"}}\n\n', "upstream_lost"),
        (b'data: {"error":{"type":"server_error","message":"gone"}}\n\n', "server_error"),
        (b"data: nonsense\n\n", "bad_answer"),
    ],
)
def test_an_error_inside_a_stream_is_one_though_it_ends_well(data: bytes, code: str) -> None:
    assert answered(PIECE, data, DONE)[0].error == code


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b'{"error":{"code":"overloaded","message":"full"}}', "overloaded", "full"),
        (b"<html>", "http_503", "HTTP status 503"),
        (b"", "http_503", "HTTP status 503"),
        (b"{}", "http_503", "HTTP status 503"),
    ],
)
def test_a_refusal_is_told_by_its_code(body: bytes, code: str, message: str) -> None:
    sample, is_over = answered(body, status=503)
    assert (is_over, sample.error, sample.message, sample.status) == (True, code, message, 503)


def test_embeddings_count_what_was_read() -> None:
    body = b'{"data":[{"embedding":[1,2]}],"usage":{"prompt_tokens":7,"total_tokens":7}}'
    assert answered(body, is_stream=False)[0].usage.prompt_tokens == 7
    ranked = b'{"results":[{"index":0}],"usage":{"total_tokens":5}}'
    assert answered(ranked[:9], ranked[9:], is_stream=False)[0].usage.prompt_tokens == 5


@pytest.mark.parametrize(("refused", "code"), [(True, "no_connection"), (False, "connection_lost")])
def test_a_lost_connection_is_told_from_one_that_never_was(refused: bool, code: str) -> None:
    lost = UpstreamLost("reset", refused=refused)
    sample, is_over = taken(lambda answer: answer.on_lost(lost))
    assert (is_over, sample.error, sample.message) == (True, code, "reset")
