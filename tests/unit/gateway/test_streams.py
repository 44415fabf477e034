"""StreamWatch: what of an engine's events a client gets."""

from hostler.gateway.streams import StreamWatch

ENDS = b"".join(
    b'data: {"choices":[{"index":%d,"text":"","finish_reason":"stop"}]}\n\n' % n for n in range(2)
)


def test_the_nulls_of_a_stream_of_several_answers_are_left_out() -> None:
    watch = StreamWatch(2)
    assert watch.see(b"data: null\n\n") == b""
    events = b'data: {"choices":[{"index":0,"text":"data: null","finish_reason":null}]}\n\n'
    assert watch.see(b"data: null\n\n" + events) == events
    ends_so = b"id: 1\ndata: null\n\n"  # the last line of an event is no event
    assert watch.see(ends_so + events) == ends_so + events
    assert watch.see(ENDS + b"data: [DONE]\n\n") == ENDS + b"data: [DONE]\n\n"
    assert watch.is_complete


def test_a_done_before_every_answer_has_ended_is_held_back() -> None:
    watch = StreamWatch(3)
    assert watch.see(ENDS + b"data: [DONE]\n\n") == ENDS
    assert not watch.is_complete
