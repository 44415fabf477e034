"""start, stop, after_start and the sync twins: the same of every implementation."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import pytest

from hostler import WorkerManager, WorkerShutdownRequest, WorkerStartupRequest
from hostler.core.errors import ModelNotFound, StartupError
from hostler.core.model import WorkerType
from hostler.core.worker import WorkerApplyRequest, WorkerApplyType
from hostler.manager import base
from tests.conformance.rigs import Rig

T = TypeVar("T")
LLM = WorkerType.LLM
ASK: dict[str, Any] = {"model": "echo", "prompt": "one two"}


def in_thread(rig: Rig, work: Callable[[], T]) -> T:
    """Run blocking code in a plain thread while the manager's loop runs."""
    return rig.run(lambda: asyncio.to_thread(work))


def test_listeners_are_called_with_the_manager_in_their_order_once_it_is_up(rig: Rig) -> None:
    async def main() -> None:
        async with rig.another() as manager:
            called: list[str] = []

            async def later(given: WorkerManager) -> None:
                await asyncio.sleep(0.01)
                assert await given.get_model_instances(LLM, "nobody") == []
                called.append("async")

            manager.after_start(lambda given: called.append(f"first {given is manager}"))
            manager.after_start(later)
            manager.after_start(lambda given: called.append("last"))
            assert called == []
            async with manager:
                assert called == ["first True", "async", "last"]

    rig.run(main)


def test_a_listener_that_raises_fails_the_start_and_nothing_is_left(rig: Rig) -> None:
    async def main() -> None:
        async with rig.another() as manager:
            wrong = [True]

            def listener(given: WorkerManager) -> None:
                if wrong:
                    raise ValueError("not today")

            manager.after_start(listener)
            with pytest.raises(ValueError, match="not today"):
                await manager.start()
            with pytest.raises(StartupError):
                await asyncio.to_thread(manager.sync_supported_models)
            wrong.clear()
            async with manager:  # it can start after that
                assert await manager.get_model_instances(LLM, "nobody") == []

    rig.run(main)


def test_a_second_start_is_an_error_a_second_stop_is_not(rig: Rig) -> None:
    async def main() -> None:
        async with rig.another() as manager:
            await manager.stop()
            await manager.start()
            with pytest.raises(StartupError, match="already"):
                await manager.start()
            assert await manager.supported_models()
            await manager.stop()
            await manager.stop(ignore_exception=True)
            async with manager:
                assert await manager.supported_models()

    rig.run(main)


CALLS: dict[str, tuple[Any, ...]] = {
    "get_model_instances": (LLM, "echo"),
    "get_all_model_instances": (LLM,),
    "select_one_instance": (LLM, "echo"),
    "supported_models": (),
    "model_startup": (WorkerStartupRequest(model="echo"),),
    "model_shutdown": (WorkerShutdownRequest(model="nobody"),),
    "worker_apply": (WorkerApplyRequest(model="echo", apply_type=WorkerApplyType.START),),
    "generate": (ASK,),
    "embeddings": ({"model": "vectors", "input": "a"},),
    "count_token": (ASK,),
    "get_model_metadata": (ASK,),
    "parameter_descriptions": (LLM, "echo"),
}


def test_every_coroutine_of_the_contract_has_its_twin() -> None:
    coroutines = {
        name
        for name, value in vars(WorkerManager).items()
        if asyncio.iscoroutinefunction(value) and not name.startswith("_")
    } - {"start", "stop"}
    assert {f"sync_{name}" for name in coroutines} <= set(vars(WorkerManager))
    assert coroutines == set(CALLS), "the tests below know each one"


def test_before_the_start_and_after_the_stop_every_method_says_what_to_do(rig: Rig) -> None:
    async def refuses(manager: WorkerManager) -> None:
        for name, arguments in CALLS.items():
            with pytest.raises(StartupError, match="await its start"):
                await getattr(manager, name)(*arguments)
            with pytest.raises(StartupError, match="await its start"):
                await asyncio.to_thread(getattr(manager, f"sync_{name}"), *arguments)
        with pytest.raises(StartupError, match="await its start"):
            await anext(manager.generate_stream(ASK))
        with pytest.raises(StartupError, match="await its start"):
            await asyncio.to_thread(manager.sync_generate_stream, ASK)

    async def main() -> None:
        async with rig.another() as manager:
            await refuses(manager)
            async with manager:
                assert await manager.supported_models()
            await refuses(manager)

    rig.run(main)


def test_sync_methods_work_from_a_thread_while_the_loop_runs(rig: Rig) -> None:
    manager = rig.manager

    def work() -> None:
        assert len(manager.sync_get_model_instances(LLM, "echo")) == 2
        assert manager.sync_get_all_model_instances(WorkerType.AUDIO) == []
        assert manager.sync_select_one_instance(LLM, "echo").model_name == "echo"
        assert manager.sync_supported_models()
        assert manager.sync_generate(ASK).success
        assert manager.sync_count_token(ASK) == 2
        assert manager.sync_get_model_metadata(ASK).context_length == 4096
        assert manager.sync_parameter_descriptions(LLM, "echo")
        assert len(manager.sync_embeddings({"model": "vectors", "input": ["a", "b"]})) == 2
        order = WorkerStartupRequest(model="extra", engine="fake", worker_type=LLM)
        try:
            assert len(manager.sync_model_startup(order)) == 1
            start = WorkerApplyRequest(model="extra", apply_type=WorkerApplyType.START)
            assert manager.sync_worker_apply(start).success
        finally:
            with suppress(ModelNotFound):
                manager.sync_model_shutdown(WorkerShutdownRequest(model="extra", delete_after=True))
        with pytest.raises(ModelNotFound):
            manager.sync_select_one_instance(LLM, "extra")

    in_thread(rig, work)


def test_many_threads_at_once_share_the_slots(rig: Rig) -> None:
    def work() -> None:
        failures: list[BaseException] = []

        def one() -> None:
            try:
                assert rig.manager.sync_generate({"model": "single", "prompt": "a"}).success
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert failures == []

    in_thread(rig, work)


def test_a_sync_stream_is_incremental_and_can_be_left(rig: Rig) -> None:
    def work() -> None:
        outputs = list(rig.manager.sync_generate_stream(ASK))
        assert len(outputs) > 2
        assert outputs[-1].finish_reason == "stop"
        for _ in range(2):  # the only slot is given back
            stream = rig.manager.sync_generate_stream(
                {"model": "single", "prompt": "[[delay_ms=20]] [[tokens=2000]]"}
            )
            assert next(stream).text
            stream.close()  # type: ignore[attr-defined]

    in_thread(rig, work)


def test_inside_a_coroutine_a_sync_method_says_so_instead_of_blocking(rig: Rig) -> None:
    manager = rig.manager

    async def main() -> None:
        for name, arguments in CALLS.items():
            with pytest.raises(RuntimeError, match="block the event loop"):
                getattr(manager, f"sync_{name}")(*arguments)
        with pytest.raises(RuntimeError, match="block the event loop"):
            manager.sync_generate_stream(ASK)

    rig.run(main)
    in_thread(rig, lambda: asyncio.run(main()))  # a loop of another thread would stand still too


def test_a_sync_method_of_a_manager_whose_loop_does_not_run_ends_at_once(rig: Rig) -> None:
    with pytest.raises(StartupError, match="not running"):
        rig.manager.sync_get_model_instances(LLM, "echo")  # the loop runs inside rig.run only


def test_a_loop_that_ends_meanwhile_is_no_deadlock(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "LOOP_CHECK_S", 0.05)
    raised: list[BaseException] = []
    began = threading.Event()

    async def for_ever() -> None:
        began.set()
        await asyncio.sleep(60)

    def wait() -> None:
        try:
            rig.manager.wait_for(for_ever)
        except BaseException as error:
            raised.append(error)

    async def main() -> threading.Thread:
        thread = threading.Thread(target=wait)
        thread.start()
        await asyncio.to_thread(began.wait, 5)
        return thread

    rig.run(main).join(5)  # the loop stands still from here on
    assert isinstance(raised[0], StartupError)
    rig.run(lambda: asyncio.sleep(0))  # what was given up is cancelled
