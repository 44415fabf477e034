"""A manager and hosts on paper: what is placed where, moved, lost, and back; its own workers are real."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hostler import Config, LocalWorkerManager, WorkerRunData, WorkerStartupRequest, WorkerType
from hostler.app.config import HeartbeatConfig, HttpLimits, LifeConfig
from hostler.app.tokens import StoredHost
from hostler.core.errors import Conflict, NotFound, StaleEpoch
from hostler.core.hosts import (
    HostFacts,
    HostOrders,
    Offer,
    OfferAnswer,
    OrderWish,
    Role,
    Standing,
)
from hostler.core.lifecycle import State
from hostler.core.snapshot import Endpoint
from hostler.core.worker import (
    WorkerApplyRequest,
    WorkerApplyType,
    WorkerShutdownRequest,
)
from hostler.storage.memory import MemoryStore
from hostler.testing.paper_host import PaperHost
from hostler.wire.server import Exchange, HttpServer

WHO = b"x-test-identity"
SOON_S = 15.0
GIB = 1 << 30


@dataclass
class Site:
    """A folder, a store, and the hosts that joined: what outlives a controller."""

    folder: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    hosts: dict[str, PaperHost] = field(default_factory=dict)

    @property
    def control(self) -> Endpoint:
        return Endpoint(socket=str(self.folder / "control.sock"))

    def join(self, name: str, *, role: Role = Role.HOST, **facts: Any) -> PaperHost:
        """Let a host in; it says nothing before it runs."""
        facts.setdefault("engines", ("fake",))
        told = HostFacts(name=name, version="1", **facts)
        self.store.save_host(
            StoredHost(
                host_id=f"id-{name}",
                role=role,
                name=name,
                facts=told,
                address="127.0.0.1",
                port=1,
                joined_at_s=float(len(self.hosts)),
            )
        )
        headers = ((WHO, f"id-{name}".encode()),)
        self.hosts[name] = PaperHost(self.control, f"id-{name}", told, headers)
        return self.hosts[name]

    @asynccontextmanager
    async def controller(self, *, dies: bool = False, **config: Any) -> AsyncIterator["Rig"]:
        """Run a controller for a while. dies: it is let go as by SIGKILL: its own workers run on."""
        life = LifeConfig(
            drain_timeout_s=2.0, kill_grace_s=1.0, backoff_first_s=0.05, backoff_last_s=0.2
        )
        beats = HeartbeatConfig(interval_s=0.2, suspect_after_s=0.6, lost_after_s=1.5)
        settings = Config(
            state_dir=str(self.folder / "s"), **{"life": life, "heartbeat": beats, **config}
        )
        manager = LocalWorkerManager(settings, store=self.store, models=(), declare=False)
        await manager.start()

        def handle(exchange: Exchange) -> None:
            who = dict(exchange.request.headers).get(WHO, b"").decode()
            assert manager.machines.routes.handle(exchange, who, "127.0.0.1")

        server = HttpServer(handle, limits=HttpLimits(), name="control")
        await server.listen_unix(Path(self.control.socket))
        try:
            yield Rig(manager, self)
        finally:
            await server.close(0.0)
            await (manager.abandon() if dies else manager.stop())

    @asynccontextmanager
    async def all_hosts(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for host in self.hosts.values():
                await stack.enter_async_context(host.running())
            yield


@dataclass
class Rig:
    """One controller of a site."""

    manager: LocalWorkerManager
    site: Site

    async def start(self, name: str = "m", **more: Any) -> None:
        """Wish a model of the fake engine."""
        request = WorkerStartupRequest(
            model=name, worker_type=WorkerType.LLM, engine="fake", **more
        )
        await self.manager.model_startup(request, wait=False)

    def joined(self) -> None:
        """The newest host of the store joined just now."""
        for listener in self.manager.members.joined:
            listener(self.site.store.hosts()[-1])

    def rows(self) -> list[WorkerRunData]:
        return self.manager.run_data()

    def ready_on(self) -> list[str]:
        """The hosts of the instances that serve."""
        return sorted(one.host_name for one in self.rows() if one.state is State.READY)

    async def until(self, is_true: Callable[[], bool], timeout_s: float = SOON_S) -> None:
        end_s = time.monotonic() + timeout_s
        while not is_true():
            shown = [
                (r.host_name, r.replica, r.epoch, r.state.value, r.reason) for r in self.rows()
            ]
            assert time.monotonic() < end_s, f"not so after {timeout_s} s: {shown}"
            await asyncio.sleep(0.02)

    def kinds(self, prefix: str) -> list[str]:
        events = self.manager.journal.after(0, 1000, None)
        return [one.kind for one in events if one.kind.startswith(prefix)]


def in_loop(test: Callable[[Site], Awaitable[None]]) -> Callable[[Site], None]:
    """Run an async test to its end."""

    @wraps(test)
    def call(site: Site) -> None:
        asyncio.run(asyncio.wait_for(test(site), 60))

    return call


@pytest.fixture
def site() -> Any:
    with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as folder:
        yield Site(Path(folder))


def stops_nothing(host: PaperHost) -> bool:
    return all(order.wish is OrderWish.RUN for heard in host.heard for order in heard.orders)


@in_loop
async def test_instances_spread_over_the_machines_that_may_run_them(site: Site) -> None:
    for name in ("b", "c"):
        site.join(name, labels={"gpu": "a100"})
    site.join("d", labels={"gpu": "t4"})
    site.join("e", labels={"gpu": "a100"}, engines=("onnx",))
    async with site.controller() as rig, site.all_hosts():
        await rig.start(replicas=4, labels={"gpu": "a100"})
        await rig.until(lambda: rig.ready_on() == ["b", "b", "c", "c"])
        (one, *_) = [row for row in rig.rows() if row.host_name == "b"]
        assert (one.host_id, one.host, one.port) == ("id-b", "127.0.0.1", 1)


@in_loop
async def test_a_named_machine_is_the_one(site: Site) -> None:
    for name in ("b", "c"):
        site.join(name)
    async with site.controller() as rig, site.all_hosts():
        await rig.start(replicas=2, host="c")
        await rig.until(lambda: rig.ready_on() == ["c", "c"])
        with pytest.raises(NotFound, match="no host 'nobody' has joined"):
            await rig.start("n", host="nobody")


@in_loop
async def test_what_no_machine_can_take_waits_and_says_why(site: Site) -> None:
    site.join("b", engines=("vllm",), memory_free_bytes=8 * GIB)
    site.join("c", memory_free_bytes=2 * GIB)
    async with site.controller() as rig, site.all_hosts():
        await rig.start(labels={"gpu": "h100"})
        await rig.until(lambda: bool(rig.rows()) and bool(rig.rows()[0].reason))
        (row,) = rig.rows()
        assert row.state is State.PENDING
        assert row.reason.startswith(
            "waits for a machine: localhost lacks the label gpu=h100; b lacks"
        )
        await rig.until(lambda: rig.kinds("instance.waits") == ["instance.waits"])
        site.join("d", labels={"gpu": "h100"})
        rig.joined()
        await rig.until(
            lambda: (
                row.instance_id in site.hosts["d"].workers
                or any(r.host_name == "d" for r in rig.rows())
            )
        )
        async with site.hosts["d"].running():
            await rig.until(lambda: rig.ready_on() == ["d"])


@in_loop
async def test_a_model_that_waits_for_a_machine_can_be_stopped(site: Site) -> None:
    site.join("b")
    async with site.controller() as rig:
        await rig.start(labels={"gpu": "h100"})
        await rig.until(lambda: bool(rig.rows()))
        order = WorkerShutdownRequest(model="m", delete_after=True)
        await rig.manager.model_shutdown(order)
        await rig.until(lambda: rig.rows() == [])


@in_loop
async def test_a_stop_drains_on_the_host_and_leaves_nothing(site: Site) -> None:
    host = site.join("b")
    async with site.controller() as rig, site.all_hosts():
        await rig.start(host="b")
        await rig.until(lambda: rig.ready_on() == ["b"])
        await rig.manager.model_shutdown(WorkerShutdownRequest(model="m", delete_after=True))
        await rig.until(lambda: not host.workers and not site.store.launches())
        wishes = [order.wish for heard in host.heard for order in heard.orders]
        assert wishes == [OrderWish.RUN, OrderWish.DRAIN]


@in_loop
async def test_a_second_stop_ends_at_once_what_still_drains(site: Site) -> None:
    host = site.join("b")
    host.is_busy = True
    async with site.controller() as rig, site.all_hosts():
        await rig.start(host="b")
        await rig.until(lambda: rig.ready_on() == ["b"])
        stop = WorkerShutdownRequest(model="m")
        await rig.manager.model_shutdown(stop, wait=False)
        await rig.until(lambda: [one.state for one in rig.rows()] == [State.DRAINING])
        await rig.manager.model_shutdown(stop, wait=False)
        await asyncio.sleep(1.1)  # before that it is the same order, arrived twice
        assert host.workers
        await rig.manager.model_shutdown(stop, wait=False)
        await rig.until(lambda: not host.workers)
        assert host.heard[-2].orders[0].wish is OrderWish.END


@in_loop
async def test_an_instance_that_fails_on_its_host_is_replaced(site: Site) -> None:
    host = site.join("b")
    async with site.controller() as rig, site.all_hosts():
        await rig.start(host="b")
        await rig.until(lambda: rig.ready_on() == ["b"])
        (first,) = host.workers.values()
        first.state, first.reason = State.FAILED, "killed by signal 9"
        host.change()
        await rig.until(lambda: rig.ready_on() == ["b"] and rig.rows()[0].epoch == 2)
        assert first.order.instance_id in host.ended


@in_loop
async def test_a_lost_hosts_places_are_filled_elsewhere_and_it_is_cleaned_when_back(
    site: Site,
) -> None:
    for name in ("b", "c", "d"):
        site.join(name, labels={"big": "yes"})
    async with site.controller() as rig, site.all_hosts():
        await rig.start(replicas=3, labels={"big": "yes"})
        await rig.until(lambda: rig.ready_on() == ["b", "c", "d"])
        lost = site.hosts["b"]
        (old,) = lost.workers
        lost.is_cut = True
        await rig.until(lambda: len(rig.ready_on()) == 3 and "b" not in rig.ready_on())
        await rig.until(lambda: rig.kinds("host.") == ["host.suspect", "host.lost"])
        assert not rig.kinds("instance.given_up")
        assert old in lost.workers, "a host without a controller serves on"
        lost.is_cut = False
        await rig.until(lambda: lost.ended == [old])
        await rig.until(lambda: rig.manager.machines.view("b").standing is Standing.ALIVE)
        assert len(rig.ready_on()) == 3
        assert old not in {row.instance_id for row in rig.rows()}
        await rig.until(lambda: rig.kinds("host.back") == ["host.back"])


@in_loop
async def test_the_loss_of_a_host_counts_as_no_crash_of_its_models(site: Site) -> None:
    site.join("b")
    async with (
        site.controller(life=LifeConfig(crash_limit=1, backoff_first_s=0.05)) as rig,
        site.all_hosts(),
    ):
        await rig.start(host="b")
        await rig.until(lambda: rig.ready_on() == ["b"])
        site.hosts["b"].is_cut = True
        await rig.until(lambda: rig.kinds("host.lost") == ["host.lost"])
        await rig.until(lambda: any("is silent" in row.reason for row in rig.rows()))
        site.hosts["b"].is_cut = False
        await rig.until(lambda: rig.ready_on() == ["b"])


@in_loop
async def test_F36_repeated_and_reordered_lists_change_nothing(site: Site) -> None:
    host = site.join("b")
    async with site.controller() as rig, site.all_hosts():
        await rig.start(replicas=2, host="b")
        await rig.until(lambda: rig.ready_on() == ["b", "b"])
        update = WorkerApplyRequest(model="m", apply_type=WorkerApplyType.UPDATE_PARAMS, replicas=1)
        await rig.manager.worker_apply(update)
        await rig.until(lambda: len(host.workers) == 1)
        now = dict(host.workers)
        for heard in [*reversed(host.heard), *host.heard]:
            host.take(heard)
        host.change()
        await asyncio.sleep(0.5)
        assert host.workers == now
        assert rig.ready_on() == ["b"]


@in_loop
async def test_F29_two_processes_of_one_host_are_told_apart(site: Site) -> None:
    host = site.join("b")
    async with site.controller() as rig, site.all_hosts():
        await rig.start(host="b")
        await rig.until(lambda: rig.ready_on() == ["b"])
        twin = PaperHost(host.control, host.host_id, host.facts, host.headers)
        twin.run_id, twin.workers, twin.known = "twin", host.workers, host.known
        old_run = host.run_id
        assert (await twin.say(twin.next_beat())).status == 200
        host.run_id = old_run
        refused = await host.say(host.next_beat())
        assert (refused.status, StaleEpoch.code in refused.body.decode()) == (409, True)


@in_loop
async def test_a_controller_that_restarts_ends_nothing_and_finds_all_again(site: Site) -> None:
    for name in ("b", "c"):
        site.join(name)
    async with site.all_hosts():
        async with site.controller(dies=True) as rig:
            await rig.start(replicas=2, labels={})
            await rig.start("n", host="c")
            await rig.until(lambda: len(rig.ready_on()) == 3)
            before = {r.instance_id: (r.host_id, r.epoch) for r in rig.rows() if r.host_id}
        async with site.controller() as rig:
            await rig.until(lambda: len(rig.ready_on()) == 3)
            after = {r.instance_id: (r.host_id, r.epoch) for r in rig.rows() if r.host_id}
            assert after == before
            assert all(stops_nothing(host) for host in site.hosts.values())
            assert not any(host.ended for host in site.hosts.values())


@in_loop
async def test_a_host_that_was_away_over_a_restart_is_judged_by_its_silence(site: Site) -> None:
    for name in ("b", "c"):
        site.join(name, labels={"big": "yes"})
    async with site.all_hosts():
        async with site.controller(dies=True) as rig:
            await rig.start(labels={"big": "yes"})
            await rig.until(lambda: len(rig.ready_on()) == 1)
            (name,) = rig.ready_on()
            (other,) = {"b", "c"} - {name}
            site.hosts[name].is_cut = True
        async with site.controller() as rig:
            await rig.until(lambda: rig.ready_on() == [other])
            site.hosts[name].is_cut = False
            await rig.until(lambda: len(site.hosts[name].ended) == 1)


@in_loop
async def test_a_drained_host_is_emptied_one_by_one_without_a_gap(site: Site) -> None:
    for name in ("b", "c"):
        site.join(name, labels={"big": "yes"})
    async with site.controller() as rig, site.all_hosts():
        await rig.start(replicas=4, labels={"big": "yes"})
        await rig.until(lambda: rig.ready_on() == ["b", "b", "c", "c"])
        ready: list[int] = []
        watch = rig.manager.registry
        await rig.manager.machines.drain("b", is_draining=True)
        end_s = time.monotonic() + SOON_S
        while rig.ready_on() != ["c"] * 4:
            assert time.monotonic() < end_s
            ready.append(sum(i.state is State.READY for i in watch.instances()))
            await asyncio.sleep(0.005)
        assert min(ready) >= 4
        await rig.until(lambda: not site.hosts["b"].workers)
        assert rig.manager.machines.view("b").standing is Standing.DRAINING
        await rig.manager.machines.drain("b", is_draining=False)
        assert rig.manager.machines.view("b").standing is Standing.ALIVE


@in_loop
async def test_a_drained_host_keeps_what_has_no_other_place(site: Site) -> None:
    site.join("b", labels={"big": "yes"})
    async with site.controller() as rig, site.all_hosts():
        await rig.start(labels={"big": "yes"})
        await rig.until(lambda: rig.ready_on() == ["b"])
        await rig.manager.machines.drain("b", is_draining=True)
        await rig.until(lambda: any("b is being drained" in row.reason for row in rig.rows()))
        assert rig.ready_on() == ["b"]


@in_loop
async def test_drained_stays_drained_under_the_next_controller(site: Site) -> None:
    site.join("b")
    async with site.controller() as rig:
        await rig.manager.machines.drain("b", is_draining=True)
    async with site.controller() as rig:
        assert rig.manager.machines.view("b").standing is Standing.DRAINING


@in_loop
async def test_a_host_with_instances_is_removed_by_force_alone(site: Site) -> None:
    host = site.join("b")
    async with site.controller() as rig, site.all_hosts():
        await rig.start(host="b")
        await rig.until(lambda: rig.ready_on() == ["b"])
        with pytest.raises(Conflict, match="has 1 instances"):
            await rig.manager.machines.remove("b", force=False)
        await rig.manager.machines.remove("b", force=True)
        await rig.until(lambda: not host.workers)
        assert rig.manager.machines.views() == []
        assert (await host.say(host.next_beat())).status == 404
        await rig.until(lambda: not site.store.launches())


@in_loop
async def test_a_change_of_the_machine_moves_the_model(site: Site) -> None:
    for name in ("b", "c"):
        site.join(name)
    async with site.controller() as rig, site.all_hosts():
        await rig.start(host="b")
        await rig.until(lambda: rig.ready_on() == ["b"])
        update = WorkerApplyRequest(
            model="m", apply_type=WorkerApplyType.UPDATE_PARAMS, host="c", timeout_s=SOON_S
        )
        assert (await rig.manager.worker_apply(update)).success
        await rig.until(lambda: rig.ready_on() == ["c"] and not site.hosts["b"].workers)


@in_loop
async def test_a_worker_brought_by_hand_is_taken_in_and_never_replaced(site: Site) -> None:
    host = site.join("w", role=Role.WORKER)
    offer = Offer(model_name="own", worker_type=WorkerType.LLM, engine="fake", aliases=("mine",))
    async with site.controller() as rig, site.all_hosts():
        body = msgspec.json.encode(offer)
        answers = [await host.ask("POST", "/host/offer", body) for _ in range(2)]
        given = [msgspec.json.decode(one.body, type=OfferAnswer) for one in answers]
        assert given[0] == given[1], "the same again is the same instance"
        await rig.until(lambda: rig.ready_on() == ["w"])
        with pytest.raises(Conflict, match="brings a worker of its own"):
            await rig.start("n", host="w")
        (model,) = rig.manager.registry.snapshot.models
        assert (model.name, model.aliases, model.wanted) == ("own", ("mine",), 1)
        await asyncio.sleep(0.3)
        assert len(rig.rows()) == 1
        (worker,) = host.workers.values()
        worker.state = State.FAILED
        host.change()
        await rig.until(lambda: rig.rows() == [])
        again = await host.ask("POST", "/host/offer", body)
        assert msgspec.json.decode(again.body, type=OfferAnswer).epoch == 2
        await rig.until(lambda: rig.ready_on() == ["w"])
        await rig.manager.model_shutdown(WorkerShutdownRequest(model="own"))
        await rig.until(lambda: not host.workers and not rig.ready_on())
        refused = await host.ask("POST", "/host/offer", body)
        assert (refused.status, "was stopped" in refused.body.decode()) == (409, True)


@in_loop
async def test_a_worker_brought_by_hand_joins_a_model_of_the_controllers_own(site: Site) -> None:
    host = site.join("w", role=Role.WORKER)
    site.join("b")
    offer = Offer(model_name="m", worker_type=WorkerType.LLM, engine="fake")
    other = msgspec.structs.replace(offer, worker_type=WorkerType.TEXT2VEC)
    async with site.controller() as rig, site.all_hosts():
        await rig.start(host="b")
        await rig.until(lambda: rig.ready_on() == ["b"])
        refused = await host.ask("POST", "/host/offer", msgspec.json.encode(other))
        assert (refused.status, "under another name" in refused.body.decode()) == (409, True)
        await host.ask("POST", "/host/offer", msgspec.json.encode(offer))
        await rig.until(lambda: rig.ready_on() == ["b", "w"])
        await asyncio.sleep(0.3)
        assert rig.ready_on() == ["b", "w"], "it is not counted as one too many"


@in_loop
async def test_a_host_that_takes_orders_brings_no_worker(site: Site) -> None:
    host = site.join("b")
    offer = Offer(model_name="own", worker_type=WorkerType.LLM, engine="fake")
    async with site.controller():
        refused = await host.ask("POST", "/host/offer", msgspec.json.encode(offer))
        assert refused.status == 409


@in_loop
async def test_a_controller_that_stops_leaves_what_runs_elsewhere(site: Site) -> None:
    host = site.join("b")
    async with site.controller() as rig, site.all_hosts():
        await rig.start(host="b")
        await rig.start("here", host="localhost")
        await rig.until(lambda: rig.ready_on() == ["", "b"])
        await rig.manager.stop()
        assert len(host.workers) == 1
        assert stops_nothing(host)


@in_loop
async def test_a_newer_stream_of_orders_ends_the_one_before(site: Site) -> None:
    host = site.join("b")
    async with site.controller() as rig, site.all_hosts():
        await rig.until(lambda: bool(host.heard))
        twin = PaperHost(host.control, host.host_id, host.facts, host.headers)
        async with twin.running():
            await rig.until(lambda: bool(twin.heard))
            heard: list[HostOrders] = twin.heard
            assert heard[0].orders == ()
