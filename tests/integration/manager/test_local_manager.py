"""LocalWorkerManager embedded in a program, with real worker processes and the fake engine."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hostler import (
    ComponentType,
    Config,
    HostlerError,
    LocalWorkerManager,
    LocalWorkerManagerFactory,
    ModelConfig,
    SystemApp,
    WorkerApplyRequest,
    WorkerApplyType,
    WorkerManager,
    WorkerManagerFactory,
    WorkerShutdownRequest,
    WorkerStartupRequest,
    WorkerType,
)
from hostler.app.config import LifeConfig
from hostler.app.process import tagged
from hostler.core.errors import (
    AlreadyRunning,
    BadRequest,
    EngineError,
    ModelNotFound,
    NoReadyInstance,
)
from hostler.core.lifecycle import State
from hostler.manager.workers import STATE_TAG
from hostler.testing.embedded import assert_manager_truth
from hostler.testing.fake_text import expected_texts

ECHO = ModelConfig(name="echo", type=WorkerType.LLM, engine="fake", replicas=2, concurrency=2)
VECTORS = ModelConfig(name="vectors", type=WorkerType.TEXT2VEC, engine="fake")
RANKS = ModelConfig(name="ranks", type=WorkerType.RERANKER, engine="fake")
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def managed(*models: ModelConfig) -> AsyncIterator[LocalWorkerManager]:
    with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as folder:
        life = LifeConfig(drain_timeout_s=5.0, kill_grace_s=1.0, backoff_first_s=0.1)
        config = Config(state_dir=folder, life=life)
        async with LocalWorkerManager(config, models=models, declare=bool(models)) as manager:
            for deployment in manager.wishes.all():
                await manager.until_ready(deployment, 30)
            yield manager
            await assert_manager_truth(manager)
        assert tagged(STATE_TAG, folder) == {}, "a process outlived its manager"


def run(body: Callable[[LocalWorkerManager], Awaitable[None]], *models: ModelConfig) -> None:
    async def main() -> None:
        async with managed(*models) as manager:
            await body(manager)

    asyncio.run(main())


def test_it_starts_what_it_was_asked_to_keep_and_stops_it() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        found = await manager.get_model_instances(WorkerType.LLM, "echo")
        assert [data.state for data in found] == [State.READY, State.READY]
        assert found[0].print_key.startswith("model echo@llm(127.0.0.1:")
        assert found[0].limit_model_concurrency == 2
        assert len({data.pid for data in found}) == 2
        assert await manager.get_all_model_instances(WorkerType.TEXT2VEC) == []
        assert await manager.get_model_instances(WorkerType.LLM, "nobody") == []

    run(body, ECHO)


def test_listeners_are_called_in_order_once_it_is_up() -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as folder:
            called: list[str] = []
            manager = LocalWorkerManager(Config(state_dir=folder), models=(), declare=False)

            async def later(given: WorkerManager) -> None:
                assert given is manager
                called.append("async")

            manager.after_start(lambda given: called.append("sync"))
            manager.after_start(later)
            async with manager:
                assert called == ["sync", "async"]

    asyncio.run(main())


def test_a_stream_is_deltas_then_finish_usage_and_metrics() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        outputs = [output async for output in manager.generate_stream(HELLO)]
        *deltas, last = outputs
        assert len(deltas) > 1
        assert all(delta.text and delta.finish_reason is None for delta in deltas)
        assert last.finish_reason == "stop"
        assert last.usage is not None
        assert last.usage.completion_tokens == len(deltas)
        assert last.metrics is not None
        assert last.metrics.first_token_s is not None
        whole = await manager.generate(HELLO)
        assert whole.text == "".join(delta.text for delta in deltas)
        assert whole.success

    run(body, ECHO)


def test_closing_a_stream_early_gives_its_slot_back() -> None:
    slow = ModelConfig(
        name="echo",
        type=WorkerType.LLM,
        engine="fake",
        concurrency=1,
        params={"tokens": 1000, "delay_ms": 20},
    )

    async def body(manager: LocalWorkerManager) -> None:
        for _ in range(3):
            stream = manager.generate_stream(HELLO)
            assert (await anext(stream)).text
            await stream.aclose()
            assert manager.router.load == {}

    run(body, slow)


def test_embeddings_and_scores_keep_the_order_of_their_inputs() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        both = await manager.embeddings({"model": "vectors", "input": ["a", "b"]})
        one = await manager.embeddings({"model": "vectors", "input": "b"})
        assert len(both) == 2
        assert both[1] == one[0]
        assert both[0] != both[1]
        scores = await manager.embeddings(
            {"model": "ranks", "query": "q", "input": ["a", "b", "c"]}
        )
        assert [len(score) for score in scores] == [1, 1, 1]
        again = await asyncio.to_thread(
            manager.sync_embeddings, {"model": "ranks", "query": "q", "input": ["c"]}
        )
        assert again[0] == scores[2]

    run(body, VECTORS, RANKS)


def test_tokens_and_metadata_take_no_slot() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        assert await manager.count_token({"model": "echo", "prompt": "one two three"}) == 3
        counted = await manager.count_token(HELLO)
        whole = await manager.generate(HELLO)
        assert whole.usage is not None
        assert counted == whole.usage.prompt_tokens
        metadata = await manager.get_model_metadata({"model": "echo"})
        assert metadata.context_length == 4096
        with pytest.raises(BadRequest):
            await manager.count_token({"model": "echo"})

    run(body, ECHO)


def test_selection_names_a_ready_instance_or_says_why_not() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        chosen = await manager.select_one_instance(WorkerType.LLM, "echo")
        assert chosen.state is State.READY
        with pytest.raises(ModelNotFound, match="echo"):
            await manager.select_one_instance(WorkerType.LLM, "nobody")
        await manager.model_shutdown(WorkerShutdownRequest(model="echo"))
        with pytest.raises(NoReadyInstance):
            await manager.select_one_instance(WorkerType.LLM, "echo")

    run(body, ECHO)


def test_the_same_start_twice_is_one_and_another_names_the_difference() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        request = WorkerStartupRequest(
            model="other", worker_type=WorkerType.LLM, engine="fake", concurrency=3
        )
        (first,) = await manager.model_startup(request)
        (again,) = await manager.model_startup(request)
        assert again.instance_id == first.instance_id
        different = WorkerStartupRequest(
            model="other", worker_type=WorkerType.LLM, engine="fake", concurrency=5
        )
        with pytest.raises(AlreadyRunning, match="concurrency: 3 now, 5 asked"):
            await manager.model_startup(different)
        await manager.model_shutdown(WorkerShutdownRequest(model="other", delete_after=True))
        assert [d.name for d in manager.wishes.all()] == ["echo"]

    run(body, ECHO)


def test_a_start_that_cannot_work_raises_with_the_reason() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        broken = WorkerStartupRequest(
            model="liar",
            worker_type=WorkerType.LLM,
            engine="fake",
            params={"script": json.dumps({"lie_model": "another-model"})},
        )
        with pytest.raises(EngineError, match="another-model"):
            await manager.model_startup(broken)
        (failed,) = manager.run_data("liar")
        assert failed.state is State.FAILED
        with pytest.raises(BadRequest, match="tokenz"):
            await manager.model_startup(
                WorkerStartupRequest(model="typo", engine="fake", params={"tokenz": 1})
            )

    run(body)


@pytest.mark.parametrize("kind", [WorkerApplyType.RESTART, WorkerApplyType.UPDATE_PARAMS])
def test_a_renewal_replaces_every_process_and_loses_no_request(kind: WorkerApplyType) -> None:
    async def body(manager: LocalWorkerManager) -> None:
        before = {data.pid for data in manager.run_data("echo")}
        over = asyncio.Event()
        failures: list[HostlerError] = []
        answered = 0

        async def ask() -> None:
            nonlocal answered
            while not over.is_set():
                try:
                    await manager.generate(HELLO)
                    answered += 1
                except HostlerError as error:
                    failures.append(error)
                await asyncio.sleep(0.01)

        params = {"tokens": 4} if kind is WorkerApplyType.UPDATE_PARAMS else None
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask())
            output = await manager.worker_apply(
                WorkerApplyRequest(model="echo", apply_type=kind, params=params)
            )
            over.set()
        assert output.success, output.message
        assert len(output.instances) == 2
        assert not before & {data.pid for data in manager.run_data("echo")}
        assert failures == []
        assert answered > 0
        if params:
            answer = await manager.generate(HELLO)
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 4

    run(body, ECHO)


def test_a_bad_new_parameter_leaves_the_old_processes_serving_and_says_why() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        before = {data.pid for data in manager.run_data("echo")}
        output = await manager.worker_apply(
            WorkerApplyRequest(
                model="echo",
                apply_type=WorkerApplyType.UPDATE_PARAMS,
                params={"script": json.dumps({"exit_at_start": 7})},
                timeout_s=30,
            )
        )
        assert not output.success
        assert "old specification" in output.message
        assert (await manager.generate(HELLO)).success
        await asyncio.sleep(0.5)
        ready = [d for d in manager.run_data("echo") if d.state is State.READY]
        assert {data.pid for data in ready} == before

    run(body, ECHO)


def test_stop_and_start_by_apply() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        stopped = await manager.worker_apply(
            WorkerApplyRequest(model="echo", apply_type=WorkerApplyType.STOP)
        )
        assert stopped.success
        assert await manager.get_model_instances(WorkerType.LLM, "echo") == []
        started = await manager.worker_apply(
            WorkerApplyRequest(model="echo", apply_type=WorkerApplyType.START)
        )
        assert started.success
        assert len(await manager.get_model_instances(WorkerType.LLM, "echo")) == 2

    run(body, ECHO)


def test_parameters_and_supported_models_are_described_without_starting_them() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        described = await manager.parameter_descriptions(WorkerType.LLM, "smollm2-135m-instruct")
        assert "context_length" in {one.name for one in described}
        running = await manager.parameter_descriptions(WorkerType.LLM, "echo")
        assert "tokens" in {one.name for one in running}
        with pytest.raises(ModelNotFound):
            await manager.parameter_descriptions(WorkerType.LLM, "nobody")
        supported = {one.model: one for one in await manager.supported_models()}
        assert supported["bge-small-en-v1.5"].params
        assert not supported["bge-small-en-v1.5"].present

    run(body, ECHO)


def test_sync_methods_work_from_a_thread_and_refuse_to_block_the_loop() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        found = await asyncio.to_thread(
            manager.sync_get_model_instances, WorkerType.LLM, "echo", True
        )
        assert len(found) == 2
        chosen = await asyncio.to_thread(manager.sync_select_one_instance, WorkerType.LLM, "echo")
        assert chosen.model_name == "echo"
        with pytest.raises(RuntimeError, match="block the event loop"):
            manager.sync_get_all_model_instances(WorkerType.LLM)

    run(body, ECHO)


def test_a_system_app_runs_a_manager_and_finds_it_by_its_factory() -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="hst", dir="/tmp") as folder:
            app = SystemApp()
            app.register(LocalWorkerManagerFactory(Config(state_dir=folder, models=(ECHO,))))
            async with app.running():
                factory: WorkerManagerFactory = app.get_component(
                    ComponentType.WORKER_MANAGER_FACTORY,
                    WorkerManagerFactory,  # type: ignore[type-abstract]
                )
                manager = factory.create()
                assert manager is factory.create()
                request = WorkerStartupRequest(model="echo")
                await manager.model_startup(request)
                assert (await manager.generate(HELLO)).success

    asyncio.run(main())


def test_zero_valued_sampling_fields_reach_the_engine() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        await manager.generate({**HELLO, "temperature": 0, "top_p": 0.0, "presence_penalty": 0})
        (data,) = manager.run_data("echo")
        seen = await _last_body(Path(data.address.removeprefix("unix:")))
        assert (seen["temperature"], seen["top_p"], seen["presence_penalty"]) == (0, 0.0, 0)

    one = ModelConfig(name="echo", type=WorkerType.LLM, engine="fake")
    run(body, one)


def test_F65_many_prompts_at_once_get_their_own_answers() -> None:
    async def body(manager: LocalWorkerManager) -> None:
        async def one(number: int) -> None:
            text = f"prompt {number}"
            found = await manager.generate(
                {"model": "echo", "messages": [{"role": "user", "content": text}]}
            )
            assert found.text == expected(text)

        def expected(text: str) -> str:
            messages = [{"role": "user", "content": text}]
            return expected_texts("echo", {"model": "echo", "messages": messages})[0]

        async with asyncio.TaskGroup() as tasks:
            for number in range(100):
                tasks.create_task(one(number))

    run(body, ECHO)


async def _last_body(socket: Path) -> dict[str, Any]:
    from hostler.core.snapshot import Endpoint
    from hostler.wire.client import fetch

    answer = await fetch(Endpoint(socket=str(socket)), "GET", "/_fake/last", timeout_s=5)
    found: dict[str, Any] = json.loads(answer.body)
    return dict(found.get("body", found))
