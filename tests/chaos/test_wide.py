"""Faults between machines, each a network namespace with real processes: a server, two hosts, a gateway."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler.testing import netns
from hostler.testing.netns import Network
from tests.chaos.figures import IS_LONG, tell
from tests.chaos.wide import QUICK, Wide, ask_far

WHY_NOT = netns.missing()
pytestmark = [pytest.mark.slow(75), pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

HOSTS = ("hosta", "hostb")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wide]:
    with (
        Network("control", *HOSTS, "gateway") as net,
        Wide(net, tmp_path_factory.mktemp("wide"), HOSTS, ["gateway"], QUICK).running() as wide,
    ):
        wide.join_all()
        yield wide


@pytest.fixture
def wide(world: Wide) -> Iterator[Wide]:
    """Every line is whole, and no copy is there."""
    yield world
    world.net.heal()
    world.until(lambda: set(world.standings().values()) == {"alive"}, "all are heard", 40)
    world.stop_model()


def newest(wide: Wide) -> int:
    """The number of the last event."""
    return int(wide.server.json("GET", "/api/v1/events?limit=1")["next"])


def events(wide: Wide, since: int) -> list[str]:
    told = wide.server.json("GET", f"/api/v1/events?after={since}&limit=500")["events"]
    return [one["kind"] for one in told]


def test_F23_a_host_cut_from_its_controller_alone_is_not_replaced(wide: Wide) -> None:
    since = newest(wide)
    wide.start_model(1)
    ((copy, host),) = wide.where().items()
    other = next(name for name in HOSTS if name != host)
    with ask_far(list(wide.gateways.values())) as asking:
        wide.net.cut(host, "control", one_way=not IS_LONG)
        wide.until(lambda: wide.standings()[host] == "unknown", "it is known to serve")
        time.sleep(30 if IS_LONG else 10)  # more than twice lost_after_s
        assert wide.standings() == {host: "unknown", other: "alive"}
        assert wide.copies() == {copy}
        wide.net.heal()
        wide.until(lambda: wide.standings()[host] == "alive", "it is back")
    assert not asking.failed, asking.failed[:3]
    assert set(asking.served) == {copy}
    assert wide.where() == {copy: host}
    assert "host.lost" not in events(wide, since)
    tell(f"F23: {asking.served.total()} answers, the slowest in {asking.slowest_s:.1f} s")
    wide.net.cut(host, "control")
    wide.net.cut(host, "gateway")
    wide.until(lambda: list(wide.where().values()) == [other], "nobody hears it: replaced", 40)


def test_F24_a_controller_cut_from_everybody_places_nothing_anew(wide: Wide) -> None:
    wide.start_model(2)
    before = wide.where()
    assert sorted(before.values()) == list(HOSTS)
    since = newest(wide)
    with ask_far(list(wide.gateways.values())) as asking:
        for name in (*HOSTS, "gateway"):  # which may not speak for the hosts
            wide.net.cut("control", name)
        time.sleep(30 if IS_LONG else 10)  # more than twice lost_after_s
        assert wide.copies() == set(before)
        wide.net.heal()
        wide.until(lambda: set(wide.standings().values()) == {"alive"}, "they are back")
    assert not asking.failed, asking.failed[:3]
    assert set(asking.served) == set(before), "both serve"
    assert wide.where() == before
    assert not {"host.lost", "instance.failed", "instance.ordered"} & set(events(wide, since))
    tell(f"F24: {asking.served.total()} answers, the slowest in {asking.slowest_s:.1f} s")


def test_F32_a_controller_that_was_stopped_for_half_a_minute_gives_up_nobody(wide: Wide) -> None:
    wide.start_model(2)
    before = wide.where()
    workers = {name: host.workers() for name, host in wide.hosts.items()}
    local = wide.server.pids("worker")
    since = newest(wide)
    with ask_far(list(wide.gateways.values()), pause_s=0.2) as asking:
        wide.server.kill("controller", signal.SIGSTOP)
        time.sleep(30)  # many times lost_after_s
        wide.server.kill("controller", signal.SIGCONT)
        wide.until(lambda: set(wide.standings().values()) == {"alive"}, "they are heard")
        wide.until(lambda: wide.where() == before, "all are ready")
    assert not asking.failed, asking.failed[:3]
    assert {name: host.workers() for name, host in wide.hosts.items()} == workers
    assert wide.server.pids("worker") == local
    bad = [kind for kind in events(wide, since) if kind.endswith((".lost", ".failed", ".suspect"))]
    assert bad == []


def test_F40_two_hosts_behind_one_address_are_two_hosts(tmp_path: Path) -> None:
    ports = dict(zip(HOSTS, (8111, 8112), strict=True))
    with Network("control", "router", *HOSTS, "gateway") as net:
        net.put_behind("router", ports)
        with Wide(net, tmp_path, HOSTS, ["gateway"], QUICK).running() as wide:
            for name, port in ports.items():
                wide.join(name, f"--port={port}")
            wide.until(lambda: len(wide.standings()) == 2, "both have joined")
            wide.start_model(2)
            hosts = wide.server.json("GET", "/api/v1/hosts")["hosts"]
            places = {h["facts"]["name"]: (h["address"], h["port"]) for h in hosts if h["port"]}
            seen = net.address("router")
            assert places == {name: (seen, port) for name, port in ports.items()}
            where = wide.where()
            assert sorted(where.values()) == list(HOSTS)
            with ask_far(list(wide.gateways.values())) as asking:
                wide.until(lambda: set(asking.served) == set(where), "both answer")
                for name in ("control", "gateway"):
                    net.cut(name, "hosta", one_way=True)
                wide.until(lambda: wide.standings() == {"hosta": "lost", "hostb": "alive"}, "one")
                net.heal()
                wide.until(lambda: set(wide.standings().values()) == {"alive"}, "it is back")
            assert not asking.failed, asking.failed[:3]
