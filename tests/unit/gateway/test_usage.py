"""Usage: the tokens of an answer, from the bytes that tell them."""

import pytest

from hostler.gateway.streams import StreamWatch
from hostler.gateway.usage import Used, find_usage

DONE = b"data: [DONE]\n\n"
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}\n\n'
)
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'


def piece(text: str) -> bytes:
    return (
        b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
        % text.encode()
    )


def numbers(used: Used | None) -> tuple[int, int, int, bool] | None:
    return None if used is None else (used.prompt, used.completion, used.cached, used.is_estimated)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}', (3, 4, 0)),
        (b'{"usage": {"prompt_tokens": 3, "completion_tokens": 4}, "x": null}', (3, 4, 0)),
        (b'{"usage":{"prompt_tokens":3,"total_tokens":3},"data":[' + b"0.5," * 9000 + b"1]}", (3, 0, 0)),
        (b'{"results":[],"usage":{"total_tokens":12}}', (12, 0, 0)),
        (b'{"usage":{"input_tokens":5,"output_tokens":6,"cache_read_input_tokens":2}}', (5, 6, 2)),
        (
            b'{"usage":{"prompt_tokens":9,"completion_tokens":1,"prompt_tokens_details":'
            b'{"cached_tokens":8,"audio":{"x":1}}},"system_fingerprint":null}',
            (9, 1, 8),
        ),
        (
            b'{"usage":{"completion_tokens":4,"prompt_tokens":32},"timings":{"cache_n":31,"prompt_n":1}}',
            (32, 4, 31),
        ),
    ],
)  # fmt: skip
def test_the_usage_of_a_whole_answer_is_found_wherever_it_stands(
    body: bytes, found: tuple[int, int, int]
) -> None:
    assert numbers(find_usage(body)) == (*found, False)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"usage":null}',
        b'{"usage":{}}',
        b'{"usage":{"prompt_tokens":"7"}}',
        b'{"usage":{"prompt_tokens":-7}}',
        b'{"usage":{"prompt_tokens":7',
        b'{"text":"\\"usage\\":{\\"prompt_tokens\\":7}"}',
        b'{"logprobs":["usage",7]}',
    ],
)
def test_what_only_looks_like_usage_is_none(body: bytes) -> None:
    assert find_usage(body) is None


def test_the_usage_that_only_we_asked_for_is_taken_out_and_nothing_else_changes() -> None:
    for cut in range(1, 4):
        watch = StreamWatch(1, hides_usage=True)
        events = [ROLE, piece("a"), piece('\\"usage\\":{'), FINISH, USAGE, DONE]
        seen = [watch.see(b"".join(events[n : n + cut])) for n in range(0, len(events), cut)]
        assert b"".join(seen) == b"".join(events).replace(USAGE, b"")
        assert numbers(watch.told() or watch.counted(0)) == (7, 2, 0, False)
        assert watch.is_complete
        assert watch.events == 2


def test_a_client_that_asked_for_usage_keeps_it() -> None:
    watch = StreamWatch(1)
    assert watch.see(ROLE + piece("a") + FINISH + USAGE + DONE).endswith(USAGE + DONE)
    assert numbers(watch.told() or watch.counted(0)) == (7, 2, 0, False)


def test_usage_in_the_last_piece_of_an_answer_stays_there() -> None:
    last = FINISH.replace(
        b'"choices"', b'"usage":{"prompt_tokens":7,"completion_tokens":2},"choices"'
    )
    watch = StreamWatch(1, hides_usage=True)
    assert watch.see(piece("a") + last + DONE) == piece("a") + last + DONE
    assert numbers(watch.told() or watch.counted(0)) == (7, 2, 0, False)


def test_hidden_usage_does_not_show_in_a_stream_without_an_end() -> None:
    watch = StreamWatch(1, hides_usage=True)
    assert watch.see(piece("a")) + watch.see(USAGE) + watch.see(DONE) == piece("a")
    assert not watch.is_complete


def test_a_cut_stream_counts_the_pieces_that_came() -> None:
    watch = StreamWatch(1)
    watch.see(ROLE)
    for word in ("a", "b"):
        watch.see(piece(word))
    watch.see(piece("c") + piece("d"))
    assert numbers(watch.told() or watch.counted(11)) == (11, 4, 0, True)


def test_an_engine_with_spaces_after_colons_is_understood() -> None:
    watch = StreamWatch(1, hides_usage=True)
    events = [e.replace(b'":', b'": ') for e in (ROLE, piece("a"), FINISH, USAGE, DONE)]
    seen = b"".join(watch.see(event) for event in events)
    assert seen == b"".join([*events[:3], DONE])
    assert watch.is_complete
    assert numbers(watch.told() or watch.counted(0)) == (7, 2, 0, False)


def test_an_engine_that_leaves_nulls_out_is_understood() -> None:
    watch = StreamWatch(1)
    bare = piece("a").replace(b',"finish_reason":null', b"")
    for event in (bare, bare, FINISH.replace(b'":', b'": '), DONE):
        watch.see(event)
    assert watch.is_complete
    assert watch.events == 2


def test_the_timings_of_llama_cpp_tell_the_tokens_of_each_choice() -> None:
    watch = StreamWatch(2, copies=2)
    for index in range(2):
        watch.see(
            b'data: {"choices":[{"index":%d,"delta":{},"finish_reason":"stop"}],'
            b'"timings":{"cache_n":30,"prompt_n":2,"predicted_n":5}}\n\n' % index
        )
    watch.see(DONE)
    assert numbers(watch.told() or watch.counted(0)) == (32, 10, 30, False)


def test_the_usage_of_each_choice_of_llama_cpp_is_one_together() -> None:
    watch = StreamWatch(2, copies=1)  # two prompts
    for index in range(2):
        watch.see(FINISH.replace(b'"index":0', b'"index":%d' % index))
        watch.see(USAGE.replace(b"}}", b'},"timings":{}}'))
    assert numbers(watch.told() or watch.counted(0)) == (14, 4, 0, False)
