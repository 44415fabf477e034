"""The rules of a model's routing: what an operator may say, and what is said of a mistake."""

from typing import Any

import msgspec
import pytest

from hostler.core.deployment import Deployment, Wish, detour_notes
from hostler.core.errors import BadRequest
from hostler.core.model import WorkerType
from hostler.core.serving import FallbackCause, RoutingRules, read_rules


def test_what_is_not_given_stays_and_none_is_the_default() -> None:
    old = RoutingRules(policy="session", split={"b": 10}, queue_length=3)
    new = read_rules({"split": None, "queue_wait_s": 2}, old)
    assert new == RoutingRules(policy="session", queue_length=3, queue_wait_s=2.0)
    assert read_rules(None, old) is old
    assert read_rules({}) == RoutingRules()


def test_rules_survive_a_store() -> None:
    rules = read_rules({"policy": "my.module:Mine", "fallbacks": {"overloaded": ["b", "c"]}})
    assert msgspec.json.decode(msgspec.json.encode(rules), type=RoutingRules) == rules
    assert rules.fallbacks == {FallbackCause.OVERLOADED: ("b", "c")}
    assert msgspec.json.decode(b"{}", type=RoutingRules) == RoutingRules()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"polcy": "prefix"}, "did you mean 'policy'?"),
        ({"policy": "prefx"}, "did you mean 'prefix'?"),
        ({"policy": "no such thing"}, "known: auto"),
        ({"policy": 3}, "routing.policy: expected `str`"),
        ({"split": {"b": 60, "c": 50}}, "100 at most"),
        ({"split": {"b": 0}}, "above 0 percent"),
        ({"fallbacks": {"sometimes": ["b"]}}, "'sometimes'; known: unavailable"),
        ({"fallbacks": {"unavailabel": ["b"]}}, "did you mean 'unavailable'?"),
        ({"fallbacks": {"overloaded": "b"}}, "routing.fallbacks: expected a list, like"),
        ({"queue_length": "many"}, "routing.queue_length: expected `int | null`"),
        ({"policy": "weighted", "weights": [0]}, "1 or more"),
        ({"weights": [2, 1]}, "count with policy 'weighted' alone"),
        ({"fallbacks": {"overloaded": ["b", "c", "d", "e", "f"]}}, "4 models a cause at most"),
        ({"queue_length": -1}, "0 or more"),
        ({"stall_s": 0}, "more than 0 seconds"),
    ],
)
def test_a_mistake_is_named(given: dict[str, object], told: str) -> None:
    with pytest.raises(BadRequest, match=r"routing") as caught:
        read_rules(given)
    assert told in caught.value.message
    assert caught.value.facts.get("param", "routing") == "routing"


def test_a_model_is_not_its_own_fallback() -> None:
    with pytest.raises(BadRequest, match="this model itself"):
        Deployment(
            name="a",
            worker_type=WorkerType.LLM,
            engine="fake",
            routing=RoutingRules(split={"a": 10}),
        )


def test_there_is_no_weight_for_a_url_that_is_not_there() -> None:
    urls = ("http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1")
    with pytest.raises(BadRequest, match="3 given for 2 urls"):
        Deployment(
            name="a",
            worker_type=WorkerType.LLM,
            engine="openai",
            urls=urls,
            routing=RoutingRules(policy="weighted", weights=(1, 2, 3)),
        )


def test_who_should_answer_and_cannot_is_told_with_the_nearest_name() -> None:
    def model(name: str, type_: WorkerType = WorkerType.LLM, **fields: Any) -> Deployment:
        return Deployment(name=name, worker_type=type_, engine="fake", **fields)

    rules = read_rules(
        {
            "split": {"chat-nwe": 10, "vectors": 5},
            "fallbacks": {"overloaded": ["chat-nwe", "other", "tiny", "spare"]},
        }
    )
    chat = model("chat", routing=rules)
    known = [
        chat,
        model("chat-new"),
        model("small", aliases=("tiny",)),
        model("spare", wish=Wish.STOPPED),
        model("vectors", WorkerType.TEXT2VEC),
    ]
    typo, stranger, misfit = detour_notes(chat, known)
    assert "model 'chat-nwe' does not exist yet" in typo
    assert "did you mean 'chat-new'?" in typo
    assert "model 'other' does not exist yet" in stranger
    assert "hostler model list" in stranger
    assert misfit == (
        "routing: model 'vectors' is of type text2vec, and never answers for one of type llm"
    )
    assert detour_notes(model("chat"), known) == ()
