"""What routing learns of a body: where it begins, how long it is, whose session it is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.core.request import Route, encode_body
from hostler.gateway.prompts import chat_head, prompt_head, prompt_tokens, session_of


def chat(*texts: str, **fields: Any) -> dict[str, Any]:
    roles = ("system", "user", "assistant")
    messages = [{"role": roles[n % 3], "content": text} for n, text in enumerate(texts)]
    return {"model": "m", "messages": messages, **fields}


def test_a_conversation_that_goes_on_begins_as_it_did() -> None:
    first = prompt_head(Route.CHAT, chat("be kind", "hello"), 1000)
    longer = prompt_head(Route.CHAT, chat("be kind", "hello", "hi!", "and now?"), 1000)
    assert longer.startswith(first)
    assert not prompt_head(Route.CHAT, chat("be rude", "hello"), 1000).startswith(first)


def test_tools_are_read_before_messages_and_other_parameters_do_not_matter() -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    plain = prompt_head(Route.CHAT, chat("a"), 300)
    assert prompt_head(Route.CHAT, chat("a", temperature=1, user="x"), 300) == plain
    with_tools = prompt_head(Route.CHAT, chat("a", tools=tools), 300)
    assert with_tools.startswith(b'[{"type":"function"')
    assert with_tools.endswith(plain)


@given(st.integers(1, 300), st.lists(st.text(max_size=100), max_size=5))
def test_a_head_is_no_longer_than_asked_and_a_beginning_of_the_longer_one(
    limit: int, texts: list[str]
) -> None:
    body = chat(*texts)
    head = prompt_head(Route.CHAT, body, limit)
    assert len(head) <= limit
    assert prompt_head(Route.CHAT, body, 10_000).startswith(head[: limit // 4])


AFTER = ("temperature", "user", "stop", "stream", "stream_options", "n")
MEANT = ('],"temperature":1', '"messages":[', '\\"],\\"user\\":"', "]}", "[{")


@given(
    st.lists(st.text(max_size=80) | st.sampled_from(MEANT), min_size=1, max_size=5),
    st.permutations(("model", "messages", *AFTER)),
    st.integers(0, 7),
    st.integers(1, 400),
    st.booleans(),
)
def test_the_head_of_a_chat_is_the_same_cut_out_of_its_encoded_body(
    texts: list[str], order: list[str], most: int, limit: int, is_longer: bool
) -> None:
    values = {"temperature": 0.5, "user": '],"stop":', "stop": ["]}", "x"], "stream": True, "n": 1}
    whole = {**chat(*texts), **values, "stream_options": {"include_usage": False}}
    names = ["messages", *(name for name in order[:most] if name != "messages")]
    body = {name: whole[name] for name in order if name in names}
    encoded = encode_body(body)
    if is_longer:  # as it goes to an engine that is asked for its usage
        encoded = encode_body({**body, "stream_options": {"include_usage": True}})
    assert chat_head(body, encoded, limit) == prompt_head(Route.CHAT, body, limit)


def test_the_head_of_a_chat_with_tools_or_not_encoded_yet_is_read_from_its_parts() -> None:
    body = chat("a", tools=[{"type": "function", "function": {"name": "look"}}], temperature=1)
    assert chat_head(body, encode_body(body), 300) == prompt_head(Route.CHAT, body, 300)
    assert chat_head(chat("a"), b"", 300) == prompt_head(Route.CHAT, chat("a"), 300)


@pytest.mark.parametrize(
    ("prompt", "head", "tokens"),
    [
        ("some text here", b'"some text here', 3),
        (["first one", "second"], b'"first one', 3),
        ([5, 6, 7], b"[5,6,7", 3),
        ([[5, 6], [7]], b"[5,6", 3),
        (None, b"", 0),
    ],
)
def test_every_form_of_prompt_has_a_head_and_a_length(
    prompt: Any, head: bytes, tokens: int
) -> None:
    body = {"prompt": prompt}
    assert prompt_head(Route.COMPLETIONS, body, 100) == head
    assert prompt_tokens(Route.COMPLETIONS, body) == tokens


def test_lengths_are_about_right_and_pictures_are_not_text() -> None:
    assert prompt_tokens(Route.EMBEDDINGS, {"input": ["x" * 40, "y" * 40]}) == 20
    assert prompt_tokens(Route.RERANK, {"query": "x" * 40, "documents": [{"text": "y" * 40}]}) == 21
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    body = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "x" * 400}]}]}
    assert 100 <= prompt_tokens(Route.CHAT, body) <= 130
    assert prompt_head(Route.EMBEDDINGS, {"input": "x"}, 100) == b""


def test_a_session_is_named_by_header_first_then_by_the_body() -> None:
    body = {"user": "u", "prompt_cache_key": "p", "safety_identifier": "s"}
    assert session_of({b"x-session-id": b"1", b"x-hostler-session": b"2"}, body) == b"1"
    assert session_of({b"x-hostler-session": b"2"}, body) == b"2"
    for name in ("user", "prompt_cache_key", "safety_identifier"):
        assert session_of({}, body) == str(body.pop(name)).encode()
    assert session_of({}, {"user": ""}) == b""
    assert len(session_of({b"x-session-id": b"x" * 9000}, {})) == 512
