"""Changes of a running model that something comes in between: a kill, another order, a new life."""

import asyncio
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hostler import (
    LocalWorkerManager,
    ModelConfig,
    WorkerApplyRequest,
    WorkerApplyType,
    WorkerShutdownRequest,
    WorkerStartupRequest,
    WorkerType,
)
from hostler.app.process import sweep
from hostler.manager.workers import STATE_TAG
from tests.chaos.test_crash_points import Folder, wait
from tests.integration.manager.test_local_manager import run

LLM = WorkerType.LLM
ECHO_ONE = ModelConfig(name="echo", type=LLM, engine="fake")
UPDATE, RESTART = WorkerApplyType.UPDATE_PARAMS, WorkerApplyType.RESTART


def script(**faults: Any) -> dict[str, Any]:
    return {"script": json.dumps(faults)}


@pytest.fixture(scope="module")
def folder() -> Iterator[Folder]:
    with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as name:
        found = Folder(Path(name))
        try:
            yield found
        finally:
            sweep(STATE_TAG, str(found.state))


async def until(manager: LocalWorkerManager, is_true: Callable[[], bool]) -> None:
    """Wait until it is so; every change of a wish or an instance is news."""
    async with asyncio.timeout(30):
        while not is_true():
            await manager.registry.news().wait()


def instances(folder: Folder, model: str) -> list[dict[str, Any]]:
    status, found = folder.ask("GET", f"/api/v1/instances?model={model}")
    return found["instances"] if status == 200 else []


OLD = {"tokens": 3, **script(load_s=0.5)}
GOOD = {"tokens": 5, **script(load_s=1.0)}
BAD = {"tokens": 9, **script(load_s=1.0, lie_model="other")}
CHANGES: dict[str, tuple[WorkerApplyType, dict[str, Any] | None]] = {
    "again": (RESTART, None),
    "good": (UPDATE, GOOD),
    "bad": (UPDATE, BAD),
}


def pids(folder: Folder, model: str) -> set[int]:
    return {one["pid"] for one in instances(folder, model) if one["pid"]}


def test_changes_are_carried_out_or_taken_back_though_the_controller_was_killed(
    folder: Folder,
) -> None:
    def order(model: str) -> None:
        kind, params = CHANGES[model]
        given = {"params": params} if params else {}
        folder.ask("POST", "/api/v1/apply", {"model": model, "apply_type": kind.value, **given})

    def is_wished(model: str) -> bool:
        found = folder.ask("GET", f"/api/v1/models/{model}")[1]
        return bool(found["deployment"]["generation"] > 1)

    with folder.controller():
        wait(lambda: folder.ask("GET", "/api/v1/status")[0] == 200, "it answers", folder)
        for model in CHANGES:
            replicas = 2 if model == "again" else 1
            wish = {"model": model, "engine": "fake", "params": OLD, "replicas": replicas}
            assert folder.ask("POST", "/api/v1/models", wish)[0] == 202
        wait(folder.has_converged, "every model is ready", folder)
        before = {model: pids(folder, model) for model in CHANGES}
        threads = [threading.Thread(target=order, args=(model,)) for model in CHANGES]
        for thread in threads:
            thread.start()
        wait(lambda: all(map(is_wished, CHANGES)), "every change is written down", folder)
        wait(lambda: bool(pids(folder, "again") - before["again"]), "a new process", folder)
    for thread in threads:
        thread.join(30)
    with folder.controller():
        wait(lambda: folder.ask("GET", "/api/v1/status")[0] == 200, "it answers again", folder)

        def is_concluded() -> bool:
            for model, (_, params) in CHANGES.items():
                status, now = folder.ask("GET", f"/api/v1/models/{model}")
                if status != 200 or now["states"] != {"ready": len(before[model])}:
                    return False
                found = {one["pid"] for one in now["instances"]}
                if model == "bad":
                    params, is_right = None, found == before[model]
                else:
                    is_right = not found & before[model]
                if not is_right or now["deployment"]["params"] != (params or OLD):
                    return False
            return True

        wait(is_concluded, "each change is carried out or taken back", folder)
        for model in CHANGES:
            kinds = {event["kind"] for event in events(folder, model)}
            assert ("model.taken_back" in kinds) == (model == "bad")


def events(folder: Folder, model: str) -> list[dict[str, Any]]:
    found = folder.ask("GET", f"/api/v1/events?model={model}&limit=500")[1]
    listed: list[dict[str, Any]] = found["events"]
    return listed


def test_a_process_of_a_forgotten_model_is_never_its_successors() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        (before,) = await manager.get_model_instances(LLM, "echo")
        first = manager.wishes.find("echo").generation
        for tokens in (4, 5, 6):
            # the plan need not have looked between the two orders
            forget = WorkerShutdownRequest(model="echo", delete_after=True)
            await manager.model_shutdown(forget, wait=False)
            again = WorkerStartupRequest(model="echo", engine="fake", params={"tokens": tokens})
            (now,) = [one for one in await manager.model_startup(again) if not one.stopped][-1:]
            assert now.instance_id != before.instance_id
            assert now.epoch > before.epoch
            whole = await manager.generate({"model": "echo", "prompt": "a"})
            assert len(whole.text.split()) == tokens
            assert manager.wishes.find("echo").generation > first
            before, first = now, manager.wishes.find("echo").generation

    run(body, ECHO_ONE)


def test_the_last_of_two_changes_at_once_holds_and_the_other_says_so() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        def change(**params: Any) -> WorkerApplyRequest:
            return WorkerApplyRequest(model="echo", apply_type=UPDATE, params=params)

        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(manager.worker_apply(change(tokens=4, **script(load_s=30.0))))
            await until(manager, lambda: len(manager.run_data("echo")) == 2)
            second = await manager.worker_apply(change(tokens=6, **script()))
        assert second.success, second.message
        assert not first.result().success
        assert "another order" in first.result().message
        assert len((await manager.generate({"model": "echo", "prompt": "a"})).text.split()) == 6
        # a bad one on top of one that was never proven goes back to the last that worked
        async with asyncio.TaskGroup() as tasks:
            slow = tasks.create_task(manager.worker_apply(change(tokens=7, **script(load_s=30.0))))
            await until(manager, lambda: len(manager.run_data("echo")) == 2)
            bad = await manager.worker_apply(change(**script(exit_at_start=7)))
        assert not bad.success
        assert not slow.result().success
        assert manager.wishes.find("echo").params["tokens"] == 6
        assert manager.wishes.find("echo").fallback is None
        assert len((await manager.generate({"model": "echo", "prompt": "a"})).text.split()) == 6

    run(body, ECHO_ONE)


def test_a_change_goes_on_when_the_one_who_ordered_it_has_left() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        order = WorkerApplyRequest(
            model="echo", apply_type=UPDATE, params=script(load_s=1.0, lie_model="other")
        )
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(manager.worker_apply(order))
            await until(manager, lambda: manager.wishes.find("echo").fallback is not None)
            asking.cancel()
        await until(manager, lambda: manager.wishes.find("echo").fallback is None)
        assert manager.wishes.find("echo").params == {}

    run(body, ECHO_ONE)
