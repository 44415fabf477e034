"""What a request may hold, field by field, for each dialect."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.core.errors import BadRequest, HostlerError, InvalidJSON, UnknownParameter
from hostler.core.request import (
    DANGEROUS,
    Route,
    Rules,
    as_object,
    check_fields,
    encode_body,
    read_model,
)
from hostler.engines.dialect import DIALECTS, find_dialect, open_rules

MESSAGES = [{"role": "user", "content": "hello"}]


def check(body: dict[str, Any], route: Route = Route.CHAT, engine: str = "llama.cpp") -> None:
    check_fields(body, find_dialect(engine).rules[route], engine=engine, model="m")


def refusal(
    body: dict[str, Any], route: Route = Route.CHAT, engine: str = "llama.cpp"
) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        check(body, route, engine)
    assert caught.value.http_status == 400
    return caught.value


GOOD: dict[str, Any] = {
    "model": "m",
    "messages": MESSAGES,
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 0,
    "top_p": 1.0,
    "n": 8,
    "stop": ["a", "b", "c", "d"],
    "max_tokens": 1,
    "max_completion_tokens": 2**31 - 1,
    "seed": -1,
    "logprobs": True,
    "top_logprobs": 20,
    "logit_bias": {"1": -100, "2": 3.5},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"base_url": {}}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
    "reasoning_effort": "low",
    "metadata": {"a": "b"},
    "user": None,
    "store": False,
}


def test_every_standard_field_passes_and_is_sent_as_it_came() -> None:
    for engine in ("llama.cpp", "openai", "fake", "python"):
        check(GOOD, engine=engine)
    assert msgspec.json.decode(encode_body(GOOD)) == GOOD


@pytest.mark.parametrize(
    ("engine", "field", "value"),
    [
        ("llama.cpp", "top_k", 0),
        ("llama.cpp", "repeat_penalty", 1.1),
        ("llama.cpp", "dry_sequence_breakers", ["\n"]),
        ("llama.cpp", "logit_bias", [[15, False], ["x", 2.0]]),
        ("llama.cpp", "mirostat", 2),
        ("llama.cpp", "cache_prompt", False),
        ("openai", "repetition_penalty", 1.2),
        ("openai", "guided_choice", ["a", "b"]),
        ("openai", "structured_outputs", {"json": {"type": "object"}}),
        ("openai", "stop_token_ids", [1, 2]),
        ("openai", "min_tokens", 0),
    ],
)
def test_an_engines_own_fields_pass_for_it(engine: str, field: str, value: Any) -> None:
    check({"messages": MESSAGES, field: value}, engine=engine)
    if field not in ("top_k", "logit_bias"):
        assert isinstance(refusal({field: value}, engine="python"), UnknownParameter)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 9), ("n", 0), ("n", -1), ("n", True), ("n", 1.5), ("n", "1"),
        ("max_tokens", 0), ("max_tokens", -5), ("max_tokens", 2**40), ("max_tokens", 1.0),
        ("temperature", -0.1), ("temperature", "hot"), ("temperature", False), ("temperature", 6),
        ("top_p", 1.01), ("stop", ["a"] * 5), ("stop", "x" * 257), ("stop", [1]), ("stop", {}),
        ("logit_bias", {str(i): 1 for i in range(1025)}), ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": "x"}), ("logit_bias", [[1]]),
        ("tools", [{}] * 129), ("tools", [1]), ("tools", {}),
        ("top_logprobs", 21), ("seed", 2**64), ("seed", 0.5), ("stream", "true"), ("stream", 1),
        ("stream_options", {"x": 1}), ("metadata", {"a": 1}), ("messages", []), ("messages", "x"),
        ("messages", [{"content": "x"}]), ("messages", [{"role": "user", "content": 5}]),
        ("response_format", "json"), ("response_format", {"a": "x" * 70_000}),
        ("grammar", "x" * 5000), ("user", "x" * 600),
    ],
)  # fmt: skip
def test_F94_values_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    error = refusal({field: value})
    assert error.param is not None
    assert error.param.startswith(field)
    assert error.code in ("invalid_value", "unknown_parameter")


def test_F94_deep_schemas_are_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(20):
        schema = {"a": schema}
    assert refusal({"response_format": schema}).param == "response_format"


def test_not_a_number_is_refused_wherever_it_comes_from() -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        refusal({"temperature": value})


def test_F95_unknown_fields_are_refused_with_the_nearest_known_one() -> None:
    error = refusal({"max_token": 5})
    assert isinstance(error, UnknownParameter)
    assert error.param == "max_token"
    assert "'max_tokens'" in error.message
    assert "open_fields" in error.message
    assert "id_slot" in refusal({"id_slot": 0}).message


@pytest.mark.parametrize("name", sorted(DANGEROUS))
@pytest.mark.parametrize("engine", sorted(DIALECTS))
def test_F95_dangerous_names_are_refused_at_every_depth_of_a_message(
    name: str, engine: str
) -> None:
    refusal({name: "x"}, engine=engine)
    nested: Any = {"type": "text", "text": "x", name: "x"}
    for _ in range(3):
        message = {"role": "user", "content": [nested]}
        assert isinstance(refusal({"messages": [message]}, engine=engine), UnknownParameter)
        nested = {"type": "x", "inner": nested}
    refusal({"messages": [{"role": "user", "content": "x", name: 1}]}, engine=engine)


@pytest.mark.parametrize(
    "url",
    [
        "http://a/x",
        "https://a/x",
        "file:///etc/passwd",
        "HTTP://a",
        " file:///x",
        "ftp://a",
        "/etc",
    ],
)
def test_F95_media_come_as_data_only(url: str) -> None:
    for part in (
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url},
        {"type": "video_url", "video_url": {"url": url}},
    ):
        refusal({"messages": [{"role": "user", "content": [part]}]})
    data = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    check({"messages": [{"role": "user", "content": [data, {"type": "text", "text": url}]}]})


def test_an_operator_can_open_a_field_for_a_model() -> None:
    dialect = find_dialect("llama.cpp")
    rules = open_rules(dialect, ("chat_template_kwargs",))
    body = {"messages": MESSAGES, "chat_template_kwargs": {"x": 1}}
    check_fields(body, rules[Route.CHAT], engine="llama.cpp", model="m")
    assert open_rules(dialect, ()) is dialect.rules


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (Route.COMPLETIONS, {"prompt": "x"}),
        (Route.COMPLETIONS, {"prompt": ["x", "y"], "echo": True, "logprobs": 5}),
        (Route.COMPLETIONS, {"prompt": [1, 2, 3]}),
        (Route.EMBEDDINGS, {"input": [[1], [2]], "encoding_format": "base64", "dimensions": 64}),
        (Route.RERANK, {"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}),
        (Route.TOKENIZE, {"content": "x", "add_special": True}),
    ],
)
def test_the_other_routes_take_their_fields(route: Route, body: dict[str, Any]) -> None:
    check({"model": "m", **body}, route)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (Route.COMPLETIONS, {"prompt": []}),
        (Route.COMPLETIONS, {"prompt": ["x", 1]}),
        (Route.COMPLETIONS, {"prompt": [1, -2]}),
        (Route.EMBEDDINGS, {"input": {}}),
        (Route.EMBEDDINGS, {"input": ["x"] * 2049}),
        (Route.RERANK, {"documents": []}),
        (Route.RERANK, {"query": 5}),
    ],
)
def test_the_other_routes_refuse_what_makes_no_sense(route: Route, body: dict[str, Any]) -> None:
    refusal(body, route)


def test_a_body_is_an_object_with_a_model() -> None:
    values: list[Any] = [[], "x", 1, None]
    for value in values:
        with pytest.raises(InvalidJSON):
            as_object(value)
    for model in (None, 5, "", "x" * 300):
        with pytest.raises(BadRequest) as caught:
            read_model({"model": model})
        assert caught.value.param == "model"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)
NAMES = sorted({name for d in DIALECTS.values() for rules in d.rules.values() for name in rules})


@given(body=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), JSON, max_size=4))
def test_F94_no_value_of_any_field_is_more_than_a_refusal(body: dict[str, Any]) -> None:
    for dialect in DIALECTS.values():
        for rules in dialect.rules.values():
            error = verdict(body, rules)
            assert error is None or (error.http_status == 400 and error.param is not None)


def verdict(body: dict[str, Any], rules: Rules) -> HostlerError | None:
    try:
        check_fields(body, rules, engine="e", model="m")
    except HostlerError as error:
        return error
    return None
