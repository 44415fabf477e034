"""What a host does about a list, what its operator allows, and what it remembers: without any process."""

import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.app.config import Config, HostConfig
from hostler.app.paths import StatePaths
from hostler.core.errors import BadRequest, ConfigError, HostRefuses, StartupError
from hostler.core.hosts import HostFacts, HostOrders, Order, OrderWish
from hostler.core.lifecycle import Instance, State
from hostler.core.model import worker_key
from hostler.manager.controllers import Controllers
from hostler.manager.host import Host
from hostler.manager.host_kept import Kept, load_kept, save_kept
from hostler.manager.host_orders import (
    Action,
    End,
    Ended,
    Forget,
    Leave,
    Recall,
    Start,
    changed_orders,
    decide,
    rank,
)
from hostler.manager.host_rules import HostRules, accept, facts, has_changed, startable
from hostler.manager.membership import (
    Membership,
    endpoint_of,
    load_membership,
    pin,
    save_membership,
)
from hostler.manager.plan import GONE
from hostler.storage.memory import MemoryStore
from hostler.testing.clock import ManualClock
from hostler.testing.sim_controller import echo_order


def instance(order: Order, state: State) -> Instance:
    return Instance(
        instance_id=order.instance_id,
        worker_key=worker_key(order.model_name, order.worker_type),
        model_name=order.model_name,
        state=state,
        epoch=order.epoch,
    )


RUN = echo_order("a1")
DRAIN = echo_order("a1", wish=OrderWish.DRAIN, reason="it was stopped")
END = echo_order("a1", wish=OrderWish.END)
STOPPED = Ended(state=State.STOPPED, reason="it was not here")
FAILED = Ended(state=State.FAILED, reason="oom", error_code="oom_killed")


@pytest.mark.parametrize(
    ("orders", "state", "ended", "done"),
    [
        ([RUN], None, {}, [Start(order=RUN)]),
        ([RUN], State.READY, {}, []),
        ([RUN], State.DRAINING, {}, []),
        ([RUN], State.FAILED, {}, []),
        ([RUN], None, {"a1": FAILED}, [Recall(order=RUN, ended=FAILED)]),
        ([DRAIN], State.READY, {}, [Leave(instance_id="a1", reason="it was stopped")]),
        ([DRAIN], State.DRAINING, {}, []),
        ([DRAIN], State.STOPPED, {}, []),
        ([DRAIN], None, {}, [Recall(order=DRAIN, ended=STOPPED)]),
        ([END], State.STARTING, {}, [End(instance_id="a1", reason="it was ended")]),
        ([END], State.DRAINING, {}, [End(instance_id="a1", reason="it was ended")]),
        ([], State.READY, {}, [End(instance_id="a1", reason="its controller has none such")]),
        ([], State.FAILED, {}, [Forget(instance_id="a1")]),
        ([], None, {"a1": FAILED}, []),
    ],
)
def test_what_a_list_asks_of_what_is_here(
    orders: list[Order], state: State | None, ended: dict[str, Ended], done: list[Action]
) -> None:
    seen = [instance(RUN, state)] if state is not None else []
    assert decide(orders, seen, ended) == done


IDS = st.sampled_from(["a1", "a2", "a3"])
WISHES = st.dictionaries(IDS, st.sampled_from(OrderWish), max_size=3)
STATES = st.dictionaries(IDS, st.sampled_from(State), max_size=3)


@given(WISHES, STATES, st.sets(IDS))
def test_F36_a_list_is_reached_whatever_is_here_and_again_nothing_is_ordered(
    wishes: dict[str, OrderWish], here: dict[str, State], over: set[str]
) -> None:
    orders = [echo_order(one, wish=wish) for one, wish in wishes.items()]
    seen = {one: instance(echo_order(one), state) for one, state in here.items()}
    ended = dict.fromkeys(over, FAILED)
    for _ in range(3):
        for action in decide(orders, list(seen.values()), ended):
            match action:
                case Start(order=order):
                    assert order.instance_id not in over, "under an id there is one process"
                    seen[order.instance_id] = instance(order, State.READY)
                case Recall(order=order, ended=how):
                    seen[order.instance_id] = instance(order, how.state)
                case Leave(instance_id=one) | End(instance_id=one):
                    seen[one] = instance(echo_order(one), State.STOPPED)
                case Forget(instance_id=one):
                    del seen[one]
    assert decide(orders, list(seen.values()), ended) == []
    assert set(seen) == set(wishes)
    for one, wish in wishes.items():
        is_gone = seen[one].state in GONE
        assert is_gone or wish is OrderWish.RUN or seen[one].state is State.DRAINING


def test_lists_are_ordered_and_a_changed_order_is_seen() -> None:
    old = HostOrders(host_id="h", incarnation=1, version=9, orders=(RUN,))
    new = HostOrders(host_id="h", incarnation=2, version=1, orders=(DRAIN,))
    assert (0, 0) == rank(None) < rank(old) < rank(new)
    assert changed_orders(old.orders, new.orders) == ()
    other = msgspec.structs.replace(RUN, params={"tokens": 3})
    assert changed_orders(old.orders, (other, echo_order("a2"))) == ("a1",)


def test_what_was_kept_is_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "orders.json"
    assert load_kept(path) == Kept()
    kept = Kept(orders=HostOrders(host_id="h", incarnation=1, version=2), ended={"a1": FAILED})
    save_kept(path, kept)
    assert load_kept(path) == kept
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(path.read_bytes()[:20])
    assert load_kept(path) == Kept()


def test_what_an_operator_does_not_allow_is_refused_with_the_words_for_it(tmp_path: Path) -> None:
    assert accept(RUN, HostRules()).name == "echo"
    with pytest.raises(HostRefuses, match="allows onnx"):
        accept(RUN, HostRules(engines=("onnx",)))
    with pytest.raises(HostRefuses, match="not known on this host"):
        accept(echo_order("a1", engine="openai"), HostRules())
    inside = echo_order("a1", engine="llama.cpp", source=str(tmp_path / "m.gguf"))
    rules = HostRules(folders=(str(tmp_path),))
    assert accept(inside, rules).source == inside.source
    up = str(tmp_path / ".." / "m.gguf")
    with pytest.raises(HostRefuses, match="alone"):
        accept(echo_order("a1", engine="llama.cpp", source=up), rules)
    with pytest.raises(BadRequest):
        accept(echo_order("a1", model_name="../etc"), HostRules())
    assert "openai" not in startable(HostRules())
    assert startable(HostRules(engines=("fake",))) == ("fake",)


def test_environments_and_variables_are_those_that_an_operator_named(tmp_path: Path) -> None:
    inside = tmp_path / "envs" / "e1" / "bin"
    inside.mkdir(parents=True)
    (inside / "python").symlink_to(sys.executable)
    (tmp_path / "other" / "bin").mkdir(parents=True)
    (tmp_path / "other" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "envs" / "away").symlink_to(tmp_path / "other")
    rules = HostRules(environments=(str(tmp_path / "envs"),), variables=("HF_*", "MINE"))

    def held(**chosen: object) -> Order:
        return echo_order("a1", held=chosen)

    good = held(
        python=str(inside / "python"), folder=str(inside), env_vars={"HF_HOME": "x", "MINE": "1"}
    )
    assert accept(good, rules).name == "echo"
    for chosen in (
        {"python": sys.executable},
        {"python": str(tmp_path / "other" / "bin" / "python")},
        {"python": str(tmp_path / "envs" / "away" / "bin" / "python")},
        {"python": str(inside / "gone")},
        {"python": "python"},
        {"folder": "/"},
        {"folder": str(inside / ".." / ".." / ".." / "other")},
        {"env_vars": {"OTHER": "x"}},
    ):
        with pytest.raises(HostRefuses):
            accept(held(**chosen), rules)
    for chosen in ({"python": str(inside / "python")}, {"env_vars": {"MINE": "x"}}):
        with pytest.raises(HostRefuses, match="none"):
            accept(held(**chosen), HostRules())
    everything = HostRules(variables=("*",))
    for name in ("LD_PRELOAD", "PATH", "PYTHONPATH", "HOSTLER_STATE_DIR", "RAY_ADDRESS", "A=B"):
        with pytest.raises(HostRefuses, match="cannot be"):
            accept(held(env_vars={name: "x"}), everything)
    with pytest.raises(HostRefuses, match="placement group"):
        accept(held(group="../../x"), everything)


def test_facts_are_told_again_when_they_are_news(tmp_path: Path) -> None:
    rules = HostRules(memory_bytes=1 << 30, labels={"zone": "a"})
    said = facts("b", rules, tmp_path, engines_here=("fake",), promised_bytes=1 << 29)
    assert said.memory_bytes is not None
    assert said.memory_bytes <= 1 << 30
    assert said.memory_free_bytes is not None
    assert said.memory_free_bytes <= 1 << 29
    one = HostFacts(name="b", memory_free_bytes=1 << 30, disk_free_bytes=1 << 30, load_1m=0.1)
    assert has_changed(None, one)
    assert not has_changed(one, msgspec.structs.replace(one, memory_free_bytes=(1 << 30) - 4096))
    assert not has_changed(one, msgspec.structs.replace(one, load_1m=0.2))
    assert has_changed(one, msgspec.structs.replace(one, load_1m=1.5))
    assert has_changed(one, msgspec.structs.replace(one, memory_free_bytes=1 << 29))
    assert has_changed(one, msgspec.structs.replace(one, memory_free_bytes=None))
    assert has_changed(one, msgspec.structs.replace(one, engines=("fake",)))


def test_F39_a_controller_is_pinned_to_its_address() -> None:
    assert pin("https://10.0.0.5:8101/") == "https://10.0.0.5:8101"
    assert pin("https://[::1]:8101") == "https://[::1]:8101"
    assert pin("https://localhost:8101") in ("https://127.0.0.1:8101", "https://[::1]:8101")
    for wrong in ("http://10.0.0.5:8101", "https://10.0.0.5", "10.0.0.5:8101", "https://a:b"):
        with pytest.raises(ConfigError, match="need https://HOST:PORT"):
            pin(wrong)
    with pytest.raises(ConfigError, match="give its IP address"):
        pin("https://no-such-name.invalid:8101")
    found = endpoint_of("https://[::1]:8101")
    assert (found.host, found.port, found.host_id) == ("::1", 8101, "controller")
    assert endpoint_of("unix:/run/c.sock").socket == "/run/c.sock"


def test_a_membership_is_its_owners_alone_and_a_broken_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    assert load_membership(path) is None
    one = Membership(host_id="h", name="b", controllers=("https://10.0.0.5:8101",))
    save_membership(path, one)
    assert load_membership(path) == one
    assert path.stat().st_mode & 0o077 == 0
    path.write_text("{")
    with pytest.raises(StartupError, match="join again"):
        load_membership(path)


def test_a_host_that_hears_nobody_is_fenced_only_where_that_is_asked_for(tmp_path: Path) -> None:
    clock = ManualClock()

    def host(fence_after_s: float) -> Host:
        config = Config(host=HostConfig(fence_after_s=fence_after_s))
        member = Membership(host_id="h", name="b", controllers=("unix:/nobody",))
        ways = Controllers([endpoint_of("unix:/nobody")], lambda endpoint: None)  # type: ignore[arg-type, return-value]
        return Host(StatePaths(tmp_path), config, MemoryStore(), member, ways, clock=clock)

    never, soon = host(0.0), host(10.0)
    clock.advance(11)
    assert not never.is_fenced
    assert soon.is_fenced
    assert soon.sockets("a1") is None
    soon.link.asked()
    assert not soon.is_fenced, "a controller came and asked"
