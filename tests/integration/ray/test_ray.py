"""`hostler up --ray` on three machines: placing, the loss of a node, of the controller, and of Ray itself.

Each test brings the machines to their start by itself, so that none depends on the one before.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from hostler.testing import rays
from hostler.testing.netns import Network
from hostler.testing.ray_up import RayUp
from hostler.testing.rays import RayMachines
from tests.integration.ray.rig import BOXES, NODES, Load, Town, config

pytestmark = [
    pytest.mark.slow(170, busy=True),
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(rays.missing()), reason=rays.missing()),
]


@pytest.fixture(scope="module")
def place() -> Iterator[Town]:
    with (
        Network("a", *NODES) as network,
        RayMachines(network, "a", dict.fromkeys(NODES, BOXES)) as ray,
        RayUp(ray, config()) as up,
    ):
        yield Town(up)


@pytest.fixture
def town(place: Town) -> Town:
    place.bring_back()
    return place


def test_replicas_are_spread_over_nodes_and_what_waits_says_for_what(town: Town) -> None:
    up = town.up
    here = {town.host(name) for name in NODES}
    assert town.nodes_of("chat") == here
    assert town.nodes_of("embed") <= here
    client = Load(town)
    assert client.embed() == 384
    client.close()
    assert "0.2 CPU, 1 box: alive" in up.run("ps").stdout
    far = up.run("model", "start", "far", "--engine=fake", "--resource=moon=1", "--no-wait")
    assert far.returncode == 0
    up.until(lambda: "lacks moon" in up.run("model", "show", "far").stdout, "it says why", 60)
    assert up.run("model", "stop", "far", "--delete").returncode == 0


def test_one_replica_is_replaced_under_load_and_its_place_is_given_back(town: Town) -> None:
    up = town.up
    old, other = town.ids("chat")
    with Load(town).running(2) as load:
        words = ["model", "restart", "chat", "--instance", old, "--timeout=120"]
        done = up.run(*words, timeout_s=150)
        assert done.returncode == 0, done.stderr
        now = set(town.ids("chat"))
        assert other in now
        assert old not in now
        assert len(now) == 2
        load.until_good(3)
    assert load.errors == []
    up.until(lambda: up.held("0.2 CPU, 1 box: alive") == 3, "three places are held, not four", 60)


def test_F41_a_node_that_dies_under_load_costs_no_request_and_its_replica_comes_back(
    town: Town,
) -> None:
    up, lost = town.up, town.host("b")
    with Load(town).running() as load:
        load.until_good(5)
        before = {one["instance_id"] for one in up.instances("chat")}
        began_s = time.monotonic()
        town.kill_machine("b")
        up.until(
            lambda: len(up.instances("chat")) == 2 and lost not in town.nodes_of("chat"),
            "both replicas are on nodes that live",
            60,
        )
        took_s = time.monotonic() - began_s
        load.until_good(5)
        assert {one["instance_id"] for one in up.instances("chat")} != before
    assert load.errors == [], f"{load.good} good, back after {took_s:.1f} s"
    up.note(f"a node killed: {load.good} requests, no error, back after {took_s:.1f} s")


def test_F42_what_was_cut_off_and_replaced_ends_when_its_node_is_back(town: Town) -> None:
    """The row asks for 5 s; the rest is for a machine with too much to do."""
    up, back = town.up, town.host("b")
    with Load(town).running() as load:
        load.until_good(3)
        zombies = town.workers_on("b")
        (old,) = [one["instance_id"] for one in up.instances("chat") if one["host_name"] == back]
        town.cut_off("b")
        up.until(lambda: town.standing("b") == "lost", "it is given up", 40)
        asked = len(load.by)
        load.until_good(3)
        assert zombies <= town.workers_on("b"), "nothing tells it so: it runs on"
        town.network.heal()
        took_s = town.waits(lambda: not zombies & town.workers_on("b"), "the old engine ends", 20)
        load.until_good(3)
    assert load.errors == []
    assert old not in load.by[asked:], "what was given up has served a request"
    up.note(f"a cut healed: the old engine was gone after {took_s:.1f} s, {load.good} requests")


def test_F42_a_node_that_ray_gave_up_and_we_did_not_is_left_as_it_comes_back(town: Town) -> None:
    """Ray's notice is the quicker one here: the instance has no place when its host is heard again."""
    up, back = town.up, town.host("b")
    with Load(town).running() as load:
        load.until_good(3)
        old = town.workers_on("b")
        deaths = up.ray.deaths("b")
        town.cut_off("b")  # Ray's patience here is 3 to 4 s, ours 5
        cut_s = town.waits(lambda: up.ray.deaths("b") > deaths, "Ray gives the node up", 10)
        town.network.heal()
        took_s = town.waits(lambda: not old & town.workers_on("b"), "it has left", 60)
        up.until(lambda: len(up.instances("chat")) == 2, "another one is there", 60)
        assert back not in town.nodes_of("chat")
        load.until_good(3)
    assert load.errors == []
    up.note(
        f"Ray gave a node up after {cut_s:.1f} s: left after {took_s:.1f} s, {load.good} requests"
    )


def test_a_controller_that_is_killed_finds_its_places_and_workers_again(town: Town) -> None:
    up = town.up
    before = {one["instance_id"]: one["pid"] for one in up.instances("chat")}
    with Load(town).running() as load:
        load.until_good(3)
        town.kill_controller()
        up.until(lambda: len(up.instances("chat")) == 2, "the replicas are known again", 40)
        up.until(lambda: up.held("box: alive"), "places are held again", 60)
        load.until_good(3)
    assert load.errors == []
    assert {one["instance_id"]: one["pid"] for one in up.instances("chat")} == before


def test_a_place_whose_actor_is_killed_is_left_and_its_instance_moves(town: Town) -> None:
    up = town.up
    with Load(town).running() as load:
        load.until_good(3)
        before = {one["instance_id"] for one in up.instances("chat")}
        hit = town.kill_actors("b", "Place")
        assert hit >= 1
        moved = lambda: len({*town.ids("chat")} & before) == 1 and len(town.ids("chat")) == 2  # noqa: E731
        took_s = up.until(moved, "another process has its place", 60)
        load.until_good(3)
    assert load.errors == []
    assert "box: alive" in up.run("ps").stdout
    up.note(f"a place killed: moved after {took_s:.1f} s, {load.good} requests, no error")


def test_a_host_process_goes_on_without_its_keeper_and_a_new_keeper_starts_it_again(
    town: Town,
) -> None:
    up = town.up
    (first,) = town.host_processes_on("b")
    with Load(town).running() as load:
        load.until_good(3)
        before = town.ids("chat")
        assert town.kill_actors("b", "Keeper") == 1
        load.until_good(10)
        assert town.host_processes_on("b") == [first], "it is needed, and nobody else started one"
        assert town.ids("chat") == before
        began_s, most = time.monotonic(), 0
        os.kill(first, signal.SIGKILL)

        def is_back() -> bool:
            nonlocal most
            here = town.host_processes_on("b")
            most = max(most, len(here))
            return bool(here) and first not in here and town.standing("b") == "alive"

        town.waits(is_back, "another host process serves", 90)
        took_s = time.monotonic() - began_s
        up.until(lambda: len(up.instances("chat")) == 2, "two replicas are ready")
        load.until_good(3)
    assert most == 1, "two at once"
    up.note(f"keeper and host process killed: back after {took_s:.1f} s; {load.errors=}")


def test_a_node_whose_host_was_removed_joins_again_with_a_token_of_its_own(town: Town) -> None:
    up = town.up
    (first,) = town.host_processes_on("b")
    done = up.run("host", "remove", town.host("b"), "--force")
    assert done.returncode == 0, done.stderr
    town.waits(lambda: first not in town.host_processes_on("b"), "it was dismissed", 60)
    took_s = up.until(lambda: town.standing("b") == "alive", "it has joined again", 60)
    up.until(lambda: len(up.instances("chat")) == 2, "two replicas are ready")
    up.note(f"a host removed: joined again {took_s:.1f} s after it was dismissed")


def test_the_load_brings_a_replica_to_the_other_node_and_takes_it_back(town: Town) -> None:
    up = town.up
    words = ["--type=llm", "--engine=fake", "--concurrency=2", "--cpus=1.2", "--timeout=90"]
    words += ["--param=tokens=10", '--param=script={"delay_ms": 40}']
    words += ["--max-replicas=2", "--scaling=up_s=1", "--scaling=down_s=3"]
    order = up.run("model", "start", "grow", *words, timeout_s=120)
    assert order.returncode == 0, order.stderr
    assert len(town.nodes_of("grow")) == 1
    with Load(town, "grow").running(8) as load:
        up.until(lambda: len(up.instances("grow")) == 2, "the load brings another one", 90)
        assert len(town.nodes_of("grow")) == 2, "no node has the CPUs for two"
        load.until_good(5)
    assert load.errors == []
    up.until(lambda: len(up.instances("grow")) == 1, "one is enough", 90)
    up.until(lambda: up.held("1.2 CPU: alive") == 1, "its place is given back")
    assert up.run("model", "stop", "grow", "--delete").returncode == 0


def test_F43_without_ray_requests_go_on_and_one_that_is_started_anew_is_joined_anew(
    town: Town,
) -> None:
    """First the head alone is killed, where Ray keeps all that it knows; then the nodes, too. They come
    back as others, which remember nothing.
    """
    up, before = town.up, sorted(town.ids("chat"))
    workers = town.workers_on("b") | town.workers_on("c")
    with Load(town).running() as load:
        load.until_good(3)
        town.kill_ray("a")
        order = up.run("model", "start", "late", "--engine=fake", "--resource=box=1", "--no-wait")
        assert order.returncode == 0, order.stderr
        told = lambda: "placement_unavailable" in town.reason("late")  # noqa: E731
        up.until(told, "what is started now waits for Ray", 60)
        assert "placement_unavailable" in up.run("model", "show", "late").stdout
        load.until_good(10)
        assert len(up.instances("chat")) == 2
        for name in NODES:
            town.kill_ray(name)
        up.ray.start_all()
        began_s = time.monotonic()
        up.until(lambda: up.instances("late"), "what waited has found a place", 120)
        up.until(lambda: up.held("1 box: alive") >= 4, "the others' places are held again", 120)
        took_s = time.monotonic() - began_s
        load.until_good(10)
    town.hurt.clear()
    assert load.errors == []
    assert sorted(town.ids("chat")) == before
    assert workers <= town.workers_on("b") | town.workers_on("c"), "nobody has moved"
    up.note(f"Ray started anew: all is as wished after {took_s:.1f} s, {load.good} requests")


def test_F44_a_ray_without_a_token_is_refused_before_anything_starts(place: Town) -> None:
    up = place.up
    env = {name: value for name, value in up.env.items() if name != "RAY_AUTH_MODE"}
    began_s = time.monotonic()
    done = subprocess.run(
        up.command("up", "--ray=127.0.0.1:1", "--port=0", "--control-port=0"),
        env={**env, "HOSTLER_STATE_DIR": str(up.root / "other")},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 78, done.stderr
    assert "RAY_AUTH_MODE=token" in done.stderr
    assert time.monotonic() - began_s < 20
