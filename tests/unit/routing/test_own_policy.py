"""A policy of an operator's own serves, and never makes a request fail."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hostler import Ask, InstanceView, Loads, RoutingPolicy
from hostler.core.errors import BadRequest
from hostler.routing.claim import Outcome
from hostler.routing.own import Guarded, find_policy
from hostler.routing.policies import LeastInFlight
from hostler.routing.router import Router
from tests.unit.routing.fleet import instance, model, snapshot

HERE = __name__


class Last(RoutingPolicy):
    """The last of them."""

    why = "last"

    def choose(self, ready: Sequence[InstanceView], loads: Loads, ask: Ask) -> InstanceView:
        return ready[-1]


class Breaks(RoutingPolicy):
    learns = True

    def choose(self, ready: Sequence[InstanceView], loads: Loads, ask: Ask) -> InstanceView:
        raise KeyError("mine")

    def taken(self, chosen: InstanceView, ask: Ask) -> None:
        raise ValueError

    def update(self, ready: Sequence[InstanceView]) -> None:
        raise RuntimeError("no update")


class Invents(RoutingPolicy):
    def choose(self, ready: Sequence[InstanceView], loads: Loads, ask: Ask) -> InstanceView:
        return instance("nobody")


class CannotBeMade(RoutingPolicy):
    def __init__(self) -> None:
        raise OSError("no file of mine")


def router(policy: str) -> Router:
    made = Router()
    made.update(snapshot(instance("a"), instance("b"), models=(model("m", policy=policy),)))
    return made


def test_a_class_named_in_the_rules_chooses() -> None:
    ours = router(f"{HERE}:Last")
    claims = [ours.claim("m") for _ in range(2)]
    assert {(c.instance.instance_id, c.policy, c.why) for c in claims} == {("b", "own", "last")}
    assert ours.claim("m").instance.instance_id == "a"  # b is full
    assert not ours.policies()["m"].problem


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (f"{HERE}:Breaks", "update raised RuntimeError: no update"),
        (f"{HERE}:Invents", "none of `ready`"),
        (f"{HERE}:CannotBeMade", "its constructor raised OSError: no file of mine"),
        (f"{HERE}:Nobody", "AttributeError"),
        ("no_such_module:Policy", "No module named 'no_such_module'"),
    ],
)
def test_one_that_fails_is_told_once_and_costs_no_request(
    name: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = router(name)
    for _ in range(20):
        claim = ours.claim("m")
        assert (claim.policy, "failed" in claim.why) == ("least-in-flight", True)
        claim.release(Outcome.OK)
    assert {ours.claim("m").instance.instance_id for _ in range(2)} == {"a", "b"}
    assert problem in ours.policies()["m"].problem


def test_find_policy_says_what_is_wrong_with_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadRequest, match="name its folder in PYTHONPATH"):
        find_policy("late_module:Late")
    with pytest.raises(BadRequest, match="not a class that derives from"):
        find_policy("hostler.app.component:BaseComponent")
    (tmp_path / "late_module.py").write_text(
        "from hostler import RoutingPolicy\nclass Late(RoutingPolicy):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_policy("late_module:Late").__name__ == "Late"
    (tmp_path / "exits_module.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(BadRequest, match="SystemExit: 3"):
        find_policy("exits_module:Late")


@pytest.fixture(autouse=True)
def clean_modules() -> Iterator[None]:
    yield
    for name in ("late_module", "exits_module"):
        sys.modules.pop(name, None)


def test_what_it_wants_is_kept_for_it() -> None:
    guarded = Guarded("hostler.routing.policies:LeastTokens", "m")
    assert guarded.wants_tokens
    assert not guarded.learns
    guarded.update([instance("a")])
    guarded.forget({"a"})
    assert isinstance(find_policy("hostler:LeastInFlight"), type)
    assert find_policy("hostler:LeastInFlight") is LeastInFlight
