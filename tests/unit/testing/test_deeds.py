"""I22: what was acknowledged is there, what was refused left no trace; and doubt is no breach."""

import json
from typing import Any

import pytest

from hostler.testing.deeds import Deeds, Write, check_keys, check_writes

MODELS = "/api/v1/models"


def deployment(name: str = "m", **changes: Any) -> dict[str, Any]:
    return {"name": name, "wish": "running", "generation": 1, "replicas": 1, **changes}


def start(at_s: float = 0.0, status: int | None = 202, **changes: Any) -> Write:
    return Write(
        method="POST",
        path=MODELS,
        body={"model": "m"},
        began_s=at_s,
        ended_s=None if status is None else at_s + 1,
        status=status,
        answer={"model": {"deployment": deployment(**changes)}},
    )


def stop(at_s: float, status: int | None = 202, query: str = "", **changes: Any) -> Write:
    write = start(at_s, status, wish="stopped", **changes)
    write.method, write.path, write.body = "DELETE", f"{MODELS}/m{query}", None
    return write


GONE = "?delete=true"


@pytest.mark.parametrize(
    ("writes", "now", "breach"),
    [
        ([start()], None, "was ordered (generation 1), and is not there"),
        ([start(generation=3)], deployment(generation=2), "was at generation 3, and is at 2"),
        ([start()], deployment(wish="stopped"), "differs from what was acknowledged in wish"),
        ([start(), stop(2, generation=2)], deployment(generation=2), "acknowledged in wish"),
        ([start(replicas=2)], deployment(), "acknowledged in replicas"),
        ([start(), stop(2, query=GONE)], deployment(), "was deleted, and is there"),
        ([stop(0, query=GONE), start(5)], None, "was ordered"),
        ([start(status=507)], deployment(), "was refused (507), and is there"),
        ([start(status=503), start(2, status=503)], deployment(), "was refused (503)"),
    ],
)
def test_I22_each_lost_or_invented_write_is_named(
    writes: list[Write], now: dict[str, Any] | None, breach: str
) -> None:
    found = check_writes(writes, {} if now is None else {"m": now}, {})
    assert len(found) == 1
    assert found[0].startswith("I22 model 'm' ")
    assert breach in found[0]


@pytest.mark.parametrize(
    ("writes", "now"),
    [
        ([start()], deployment()),
        ([start()], deployment(generation=2, wish="stopped")),  # somebody else, later
        ([start(), stop(2, query=GONE)], None),
        ([start(), stop(0.5, query=GONE)], deployment()),  # at once: nobody knows which was first
        ([start(), stop(0.5, query=GONE)], None),
        ([start(), stop(2, status=None, query=GONE)], None),  # no answer came
        ([start(), stop(2, status=None, query=GONE)], deployment()),
        ([start(status=None)], None),
        ([start(status=None)], deployment()),
        ([start(status=409)], deployment()),  # it was there
        ([start(status=507)], None),
        ([start(), stop(2, status=503, query=GONE)], deployment()),
    ],
)
def test_I22_what_is_so_or_may_be_so_is_no_breach(
    writes: list[Write], now: dict[str, Any] | None
) -> None:
    assert check_writes(writes, {} if now is None else {"m": now}, {}) == []


def test_a_name_of_the_settings_is_there_whatever_was_refused() -> None:
    assert check_writes([start(status=503)], {"m": deployment()}, {}, {"m"}) == []


def test_I22_keys_stay_and_stay_revoked() -> None:
    made = Write(method="POST", path="/api/v1/keys", began_s=0, ended_s=1, status=201)
    made.answer = {"key": "x", "info": {"key_id": "k"}}
    gone = Write(method="DELETE", path="/api/v1/keys/k", began_s=2, ended_s=3, status=200)
    assert check_keys([made], {"k": False}) == []
    assert check_keys([made], {}) == ["I22 key k was made, and is not there"]
    assert check_keys([made, gone], {"k": True}) == []
    assert check_keys([made, gone], {"k": False}) == ["I22 key k was revoked, and is not"]


def test_only_orders_are_noted_with_their_answers() -> None:
    deeds = Deeds()
    assert deeds.begin("GET", MODELS, None) is None
    assert deeds.begin("POST", "/v1/chat/completions", {"model": "m"}) is None
    write = deeds.begin("POST", MODELS, {"model": "m"})
    assert write is not None
    assert (write.model, write.is_done, write.is_refused) == ("m", False, False)
    deeds.end(write, 202, json.dumps({"model": {"deployment": deployment()}}).encode())
    assert write.is_done
    assert check_writes(deeds.writes, {"m": deployment()}, {}) == []
    unreadable = deeds.begin("DELETE", f"{MODELS}/a%2Fb?delete=true", None)
    assert unreadable is not None
    deeds.end(unreadable, 202, b"<html>")
    assert (unreadable.model, unreadable.is_deletion) == ("a/b", True)
