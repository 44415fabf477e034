"""Start, stop, apply: the same of every implementation. Each test forgets what it started."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hostler import (
    WorkerApplyRequest,
    WorkerApplyType,
    WorkerManager,
    WorkerShutdownRequest,
    WorkerStartupRequest,
)
from hostler.core.errors import (
    AlreadyRunning,
    BadRequest,
    EngineError,
    HostlerError,
    ModelNotFound,
    NameTaken,
    NoReadyInstance,
    NotFound,
)
from hostler.core.lifecycle import State
from hostler.core.model import WorkerType
from tests.conformance.rigs import Rig

LLM = WorkerType.LLM


def order(model: str = "extra", **fields: Any) -> WorkerStartupRequest:
    given = {"worker_type": LLM, "engine": "fake", "concurrency": 2, **fields}
    return WorkerStartupRequest(model=model, **given)


def apply(kind: WorkerApplyType, model: str = "extra", **fields: Any) -> WorkerApplyRequest:
    return WorkerApplyRequest(model=model, apply_type=kind, **{"timeout_s": 40.0, **fields})


@asynccontextmanager
async def extra(manager: WorkerManager, **fields: Any) -> AsyncIterator[None]:
    """A model of this test, forgotten at its end."""
    try:
        await manager.model_startup(order(**fields))
        yield
    finally:
        await forget(manager)


async def forget(manager: WorkerManager, model: str = "extra") -> None:
    try:
        await manager.model_shutdown(WorkerShutdownRequest(model=model, delete_after=True))
    except ModelNotFound:
        return


def test_a_start_returns_ready_instances_and_again_the_same(rig: Rig) -> None:
    async def main() -> None:
        manager = rig.manager
        try:
            (first,) = await manager.model_startup(order())
            assert (first.state, first.limit_model_concurrency) == (State.READY, 2)
            assert first.model_name == "extra"
            (again,) = await manager.model_startup(order())
            (bare,) = await manager.model_startup(WorkerStartupRequest(model="extra"))
            assert first.instance_id == again.instance_id == bare.instance_id
            assert (await manager.generate({"model": "extra", "prompt": "a"})).success
        finally:
            await forget(manager)
        assert await manager.get_model_instances(LLM, "extra") == []

    rig.run(main)


def test_starts_at_the_same_time_are_one_start(rig: Rig) -> None:
    async def main() -> None:
        try:
            found = await asyncio.gather(*(rig.manager.model_startup(order()) for _ in range(5)))
            assert len({data.instance_id for (data,) in found}) == 1
        finally:
            await forget(rig.manager)

    rig.run(main)


def test_another_specification_is_refused_and_the_running_one_stays(rig: Rig) -> None:
    async def main() -> None:
        async with extra(rig.manager):
            (before,) = await rig.manager.get_model_instances(LLM, "extra")
            with pytest.raises(AlreadyRunning, match="concurrency: 2 now, 5 asked"):
                await rig.manager.model_startup(order(concurrency=5))
            with pytest.raises(AlreadyRunning, match="replicas: 1 now, 3 asked"):
                await rig.manager.model_startup(order(replicas=3))
            (after,) = await rig.manager.get_model_instances(LLM, "extra")
            assert after.instance_id == before.instance_id

    rig.run(main)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (order("Not A Name"), BadRequest),
        (order(engine="nothing"), BadRequest),
        (order(params={"tokenz": 1}), BadRequest),
        (order(worker_type=WorkerType.TEXT2VEC, engine="llama.cpp"), BadRequest),
        (order(aliases=("single",)), NameTaken),
        (WorkerStartupRequest(model="never-heard-of"), ModelNotFound),
    ],
)
def test_a_start_that_means_nothing_is_refused_and_leaves_nothing(
    rig: Rig, request_: WorkerStartupRequest, error: type[HostlerError]
) -> None:
    with pytest.raises(error):
        rig.run(lambda: rig.manager.model_startup(request_))
    with pytest.raises(ModelNotFound):
        rig.run(lambda: rig.manager.model_shutdown(WorkerShutdownRequest(model=request_.model)))


def test_a_start_that_cannot_work_says_why(rig: Rig) -> None:
    async def main() -> None:
        script = json.dumps({"lie_model": "another-model"})
        try:
            with pytest.raises(EngineError, match="another-model"):
                await rig.manager.model_startup(order(params={"script": script}))
            (failed,) = await rig.manager.get_model_instances(LLM, "extra", healthy_only=False)
            assert failed.state is State.FAILED
            assert "another-model" in failed.reason
            assert failed.stopped
            with pytest.raises(NoReadyInstance):
                await rig.manager.select_one_instance(LLM, "extra", healthy_only=False)
        finally:
            await forget(rig.manager)

    rig.run(main)


def test_a_start_need_not_be_waited_for(rig: Rig) -> None:
    async def main() -> None:
        slow = order(params={"script": json.dumps({"load_s": 1.0})})
        try:
            found = await rig.manager.model_startup(slow, wait=False)
            assert all(data.state is not State.READY for data in found)
            (ready,) = await rig.manager.model_startup(slow)
            assert ready.state is State.READY
        finally:
            await forget(rig.manager)

    rig.run(main)


def test_a_stopped_model_is_known_but_never_selected_and_starts_as_it_was(rig: Rig) -> None:
    async def main() -> None:
        manager = rig.manager
        async with extra(manager, params={"tokens": 3}):
            await manager.model_shutdown(WorkerShutdownRequest(model="extra"))
            await manager.model_shutdown(WorkerShutdownRequest(model="extra"))  # nothing more
            assert await manager.get_model_instances(LLM, "extra") == []
            for healthy_only in (True, False):
                with pytest.raises(NoReadyInstance):
                    await manager.select_one_instance(LLM, "extra", healthy_only)
            with pytest.raises(HostlerError) as caught:
                await manager.generate({"model": "extra", "prompt": "a"})
            assert caught.value.http_status == 503
            await manager.model_startup(WorkerStartupRequest(model="extra"))
            whole = await manager.generate({"model": "extra", "prompt": "a"})
            assert whole.usage is not None
            assert whole.usage.completion_tokens == 3
            await manager.model_shutdown(order(params={"tokens": 3}))  # by the startup request too

    rig.run(main)


def test_a_forgotten_model_is_unknown_and_its_name_is_free(rig: Rig) -> None:
    async def main() -> None:
        manager = rig.manager
        async with extra(manager):
            await manager.model_shutdown(WorkerShutdownRequest(model="extra", delete_after=True))
            with pytest.raises(ModelNotFound):
                await manager.select_one_instance(LLM, "extra")
            with pytest.raises(ModelNotFound):
                await manager.model_shutdown(WorkerShutdownRequest(model="extra"))
            await manager.model_startup(order(concurrency=7))
            (data,) = await manager.get_model_instances(LLM, "extra")
            assert data.limit_model_concurrency == 7

    rig.run(main)


@pytest.mark.parametrize("model", ["nobody", "Not A Name", "../x", ""])
def test_stopping_what_was_never_started_is_not_found(rig: Rig, model: str) -> None:
    with pytest.raises(ModelNotFound):
        rig.run(lambda: rig.manager.model_shutdown(WorkerShutdownRequest(model=model)))
    with pytest.raises(ModelNotFound):
        rig.run(lambda: rig.manager.worker_apply(apply(WorkerApplyType.STOP, model)))


def test_an_order_names_the_model_itself_not_an_alias(rig: Rig) -> None:
    with pytest.raises(ModelNotFound):
        rig.run(lambda: rig.manager.model_shutdown(WorkerShutdownRequest(model="parrot")))
    assert len(rig.run(lambda: rig.manager.get_model_instances(LLM, "echo"))) == 2


def test_a_stop_lets_a_running_stream_end(rig: Rig) -> None:
    async def main() -> None:
        async with extra(rig.manager):
            stream = rig.manager.generate_stream(
                {"model": "extra", "prompt": "[[delay_ms=20]] [[tokens=50]]"}
            )
            first = await anext(stream)
            async with asyncio.TaskGroup() as tasks:
                stopping = tasks.create_task(
                    rig.manager.model_shutdown(WorkerShutdownRequest(model="extra"))
                )
                outputs = [first, *[output async for output in stream]]
                assert outputs[-1].finish_reason == "stop"
                assert len(outputs) == 51
                await stopping

    rig.run(main)


def test_apply_stops_starts_restarts_and_says_what_became_of_each(rig: Rig) -> None:
    async def main() -> None:
        manager = rig.manager
        async with extra(manager, replicas=2):
            before = {data.pid for data in await manager.get_model_instances(LLM, "extra")}
            restarted = await manager.worker_apply(apply(WorkerApplyType.RESTART))
            assert restarted.success, restarted.message
            now = await manager.get_model_instances(LLM, "extra")
            assert len(now) == 2
            assert not before & {data.pid for data in now}
            ready = [one for one in restarted.instances if one.state is State.READY]
            assert {one.instance_id for one in ready} == {data.instance_id for data in now}
            assert all(one.success for one in ready)
            assert restarted.took_s > 0
            stopped = await manager.worker_apply(apply(WorkerApplyType.STOP))
            assert stopped.success, stopped.message
            assert await manager.get_model_instances(LLM, "extra") == []
            started = await manager.worker_apply(apply(WorkerApplyType.START))
            assert started.success, started.message
            assert len(await manager.get_model_instances(LLM, "extra")) == 2

    rig.run(main)


def test_apply_restarts_one_instance_and_leaves_the_others(rig: Rig) -> None:
    async def main() -> None:
        manager = rig.manager
        async with extra(manager, replicas=2):
            old, other = await manager.get_model_instances(LLM, "extra")
            restart = apply(WorkerApplyType.RESTART, instance_id=old.instance_id)
            done = await manager.worker_apply(restart)
            assert done.success, done.message
            now = {one.replica: one for one in await manager.get_model_instances(LLM, "extra")}
            assert now[other.replica].pid == other.pid
            new = now[old.replica]
            assert (new.pid, new.instance_id) != (old.pid, old.instance_id)
            assert {one.instance_id for one in done.instances if one.state is State.READY} == {
                new.instance_id
            }
            with pytest.raises(NotFound, match="has no instance"):
                await manager.worker_apply(restart)
            stop = apply(WorkerApplyType.STOP, instance_id=other.instance_id)
            with pytest.raises(BadRequest, match="can only be restarted"):
                await manager.worker_apply(stop)

    rig.run(main)


def test_apply_updates_parameters_or_leaves_the_old_ones_and_says_why(rig: Rig) -> None:
    async def main() -> None:
        manager = rig.manager
        ask = {"model": "extra", "prompt": "a"}
        async with extra(manager, params={"tokens": 3}):
            updated = await manager.worker_apply(
                apply(WorkerApplyType.UPDATE_PARAMS, params={"tokens": 5})
            )
            assert updated.success, updated.message
            assert len((await manager.generate(ask)).text.split()) == 5
            (data,) = await manager.get_model_instances(LLM, "extra")
            assert data.model_params["tokens"] == 5
            bad = {"script": json.dumps({"exit_at_start": 7})}
            failed = await manager.worker_apply(apply(WorkerApplyType.UPDATE_PARAMS, params=bad))
            assert not failed.success
            assert "old specification" in failed.message
            assert len((await manager.generate(ask)).text.split()) == 5
            default = apply(WorkerApplyType.UPDATE_PARAMS, params={"tokens": None})
            assert (await manager.worker_apply(default)).success
            assert len((await manager.generate(ask)).text.split()) == 16
            with pytest.raises(BadRequest, match="tokenz"):
                await manager.worker_apply(
                    apply(WorkerApplyType.UPDATE_PARAMS, params={"tokenz": 1})
                )

    rig.run(main)


def test_a_failed_model_is_started_again_with_a_mended_specification(rig: Rig) -> None:
    async def main() -> None:
        manager = rig.manager
        bad = order(params={"script": json.dumps({"lie_model": "another-model"})})
        try:
            with pytest.raises(EngineError, match="another-model"):
                await manager.model_startup(bad)
            (ready,) = [
                data
                for data in await manager.model_startup(order(params={"tokens": 4}))
                if not data.stopped
            ]
            assert ready.state is State.READY
            with pytest.raises(AlreadyRunning, match="hostler model update extra"):
                await manager.model_startup(bad)  # one that serves is not replaced by a start
        finally:
            await forget(manager)

    rig.run(main)


@pytest.mark.parametrize("kind", list(WorkerApplyType))
def test_an_apply_of_another_type_finds_nobody(rig: Rig, kind: WorkerApplyType) -> None:
    with pytest.raises(ModelNotFound):
        rig.run(
            lambda: rig.manager.worker_apply(apply(kind, "echo", worker_type=WorkerType.RERANKER))
        )
    assert len(rig.run(lambda: rig.manager.get_model_instances(LLM, "echo"))) == 2
