"""One instance is replaced: on hosts on paper, by the manager's own mechanism; and what cannot be."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from hostler import WorkerApplyOutput, WorkerRunData, WorkerStartupRequest, WorkerType
from hostler.core.errors import BadRequest, Conflict, NotFound
from hostler.core.hosts import Offer, Order, Role
from hostler.core.lifecycle import State
from hostler.core.worker import WorkerApplyRequest, WorkerApplyType, WorkerShutdownRequest
from tests.integration.manager.test_hosts import Rig, Site, in_loop
from tests.integration.manager.test_hosts import site as site

RESTART = WorkerApplyType.RESTART


async def replace(rig: Rig, one: WorkerRunData, **more: Any) -> WorkerApplyOutput:
    return await rig.manager.worker_apply(
        WorkerApplyRequest(
            model=one.model_name,
            apply_type=RESTART,
            instance_id=one.instance_id,
            timeout_s=15.0,
            **more,
        )
    )


def on(rig: Rig, host: str) -> WorkerRunData:
    [found] = [one for one in rig.rows() if one.host_name == host and one.state is State.READY]
    return found


def ready(rig: Rig) -> list[WorkerRunData]:
    return [one for one in rig.rows() if one.state is State.READY]


@in_loop
async def test_one_instance_of_a_host_is_replaced_and_the_others_stay(site: Site) -> None:
    for name in ("b", "c"):
        site.join(name, labels={"big": "yes"})
    async with site.controller() as rig, site.all_hosts():
        await rig.start(replicas=2, labels={"big": "yes"})
        await rig.until(lambda: rig.ready_on() == ["b", "c"])
        old, other = on(rig, "b"), on(rig, "c")
        done = await replace(rig, old)
        assert done.success, done.message
        assert done.message == f"another process has the place of {old.instance_id}"
        assert [one.state for one in done.instances if one.instance_id != old.instance_id] == [
            State.READY
        ]
        await rig.until(lambda: len(ready(rig)) == 2)
        now = {one.replica: one for one in ready(rig)}
        assert now[other.replica].instance_id == other.instance_id
        assert now[old.replica].epoch == old.epoch + 1
        await rig.until(lambda: old.instance_id in site.hosts["b"].ended)
        assert other.instance_id not in site.hosts["c"].ended
        told = ["instance.ready"] * 2 + ["instance.restart", "instance.ready", "instance.replaced"]
        await rig.until(lambda: rig.kinds("instance.re") == told)
        assert not rig.manager.renewals.single.ids
        with pytest.raises(NotFound, match=f"model 'm' has no instance '{old.instance_id}'"):
            await replace(rig, old)


@in_loop
async def test_the_same_order_twice_is_one_order(site: Site) -> None:
    site.join("b")
    async with site.controller() as rig, site.all_hosts():
        await rig.start(host="b")
        await rig.until(lambda: rig.ready_on() == ["b"])
        old = on(rig, "b")
        first, second = await asyncio.gather(replace(rig, old), replace(rig, old))
        assert first.success
        assert second.success
        await rig.until(lambda: rig.kinds("instance.replaced") == ["instance.replaced"])
        assert rig.kinds("instance.restart") == ["instance.restart"]
        assert ready(rig)[0].epoch == old.epoch + 1


@in_loop
async def test_an_instance_goes_on_when_its_successor_fails(site: Site) -> None:
    def becomes(order: Order) -> State:
        return State.READY if order.epoch == 1 else State.FAILED

    site.join("b")
    site.hosts["b"].becomes = becomes
    async with site.controller() as rig, site.all_hosts():
        await rig.start(host="b")
        await rig.until(lambda: rig.ready_on() == ["b"])
        old = on(rig, "b")
        done = await replace(rig, old)
        assert not done.success
        assert f"instance {old.instance_id} of m@llm goes on as it was" in done.message
        await rig.until(lambda: [one.instance_id for one in rig.rows()] == [old.instance_id])
        assert on(rig, "b").instance_id == old.instance_id
        await rig.until(lambda: rig.kinds("instance.kept") == ["instance.kept"])
        assert not rig.kinds("instance.draining")


@in_loop
async def test_a_successor_that_was_started_is_finished_by_the_next_controller(site: Site) -> None:
    """Of two in one place the newer stays; an order that had begun nothing is no order any more."""
    site.join("b", labels={"big": "yes"})
    host = site.hosts["b"]
    is_slow = False
    host.becomes = lambda order: State.STARTING if is_slow and order.epoch > 1 else State.READY
    async with site.all_hosts():
        async with site.controller(dies=True) as rig:
            await rig.start(replicas=3, labels={"big": "yes"})
            await rig.until(lambda: len(ready(rig)) == 3)
            before = {one.replica: one.instance_id for one in ready(rig)}
            is_slow = True
            rig.manager.renewals.single.order(before[1])
            await rig.until(lambda: len(rig.rows()) == 4 and len(host.workers) == 4)
        async with site.controller() as rig:
            await rig.until(lambda: len(ready(rig)) == 3)
            [new] = [one for one in rig.rows() if one.state is State.STARTING]
            host.workers[new.instance_id].state = State.READY
            host.change()
            await rig.until(
                lambda: (
                    len(rig.rows()) == 3 and new.instance_id in {o.instance_id for o in ready(rig)}
                )
            )
            now = {one.replica: one.instance_id for one in ready(rig)}
            assert now == {**before, 1: new.instance_id}
            await rig.until(lambda: host.ended == [before[1]])


@in_loop
async def test_what_cannot_be_replaced_says_why_and_what_to_do(site: Site) -> None:
    host = site.join("b")
    site.join("hand", role=Role.WORKER)
    async with site.controller() as rig, site.all_hosts():
        single = rig.manager.renewals.single
        with pytest.raises(NotFound, match="there is no instance 'nobody'; `hostler ps` lists"):
            single.order("nobody")

        host.becomes = lambda order: State.STARTING
        await rig.start(host="b")
        await rig.until(lambda: [one.state for one in rig.rows()] == [State.STARTING])
        [one] = rig.rows()
        with pytest.raises(Conflict, match="is starting: it does not serve yet; wait until"):
            await replace(rig, one)
        host.workers[one.instance_id].state = State.READY
        host.change()
        await rig.until(lambda: rig.ready_on() == ["b"])

        host.is_busy = True
        await rig.manager.model_shutdown(WorkerShutdownRequest(model="m"), wait=False)
        await rig.until(lambda: rig.rows()[0].state is State.DRAINING)
        with pytest.raises(Conflict, match="is not wished any more: it ends, and nothing takes"):
            await replace(rig, one)
        host.is_busy = False

        given = WorkerStartupRequest(
            model="given", worker_type=WorkerType.LLM, urls=("http://127.0.0.1:9/v1",)
        )
        await rig.manager.model_startup(given, wait=False)
        await rig.until(lambda: any(row.model_name == "given" for row in rig.rows()))
        [server] = [row for row in rig.rows() if row.model_name == "given"]
        with pytest.raises(Conflict, match="given by URL, and Hostler did not start it"):
            await replace(rig, server)
        with pytest.raises(BadRequest, match="one instance can only be restarted, not stop"):
            await rig.manager.worker_apply(
                WorkerApplyRequest(
                    model="given", apply_type=WorkerApplyType.STOP, instance_id=server.instance_id
                )
            )
        with pytest.raises(NotFound, match=f"model 'given' has no instance '{one.instance_id}'"):
            await replace(rig, msgspec.structs.replace(one, model_name="given"))

        offer = Offer(model_name="own", worker_type=WorkerType.LLM, engine="fake")
        await site.hosts["hand"].ask("POST", "/host/offer", msgspec.json.encode(offer))
        await rig.until(
            lambda: any(row.model_name == "own" and row.state is State.READY for row in rig.rows())
        )
        [own] = [row for row in rig.rows() if row.model_name == "own"]
        with pytest.raises(Conflict, match=r"brought by hand \(`hostler worker`\): end that"):
            await replace(rig, own)


@in_loop
async def test_an_order_ends_when_its_model_is_stopped_or_changed(site: Site) -> None:
    site.join("b")
    host = site.hosts["b"]
    host.becomes = lambda order: State.READY if order.epoch == 1 else State.STARTING
    async with site.controller() as rig, site.all_hosts():
        await rig.start(host="b")
        await rig.until(lambda: rig.ready_on() == ["b"])
        old = on(rig, "b")
        order = rig.manager.renewals.single.order(old.instance_id)
        await rig.until(lambda: len(rig.rows()) == 2)
        params = {"script": json.dumps({"load_s": 0.1})}
        change = WorkerApplyRequest(
            model="m", apply_type=WorkerApplyType.UPDATE_PARAMS, params=params, timeout_s=0.1
        )
        await rig.manager.worker_apply(change)
        error = await order.outcome
        assert isinstance(error, Conflict)
        assert "another order for its model came meanwhile" in error.message
        with pytest.raises(Conflict, match="a change of its model is under way"):
            await replace(rig, old)
