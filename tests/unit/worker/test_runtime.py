"""Slots are given back in every path; a sync model never blocks the loop or outgrows its threads."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from hostler.core.errors import BadRequest, EngineError, Overloaded
from hostler.core.fleet import WorkerSpec
from hostler.core.model import ModelMetadata, ModelOutput
from hostler.engines.base import Embeddings, GenerateRequest, ModelWorker, Text
from hostler.worker.runtime import WorkerRuntime


class Gated(ModelWorker):
    """Sync; each call waits at a gate. Knows how many run, and how many generators were closed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.running = 0
        self.most = 0
        self.closed = threading.Event()
        self._lock = threading.Lock()

    def load(self, spec: WorkerSpec) -> ModelMetadata:
        return ModelMetadata(model=spec.model_name)

    def embeddings(self, texts: Sequence[Text]) -> Embeddings:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            assert self.gate.wait(10.0)
            if "bad" in texts:
                raise ValueError("bad")
            return Embeddings(vectors=[[float(len(text))] for text in texts])
        finally:
            with self._lock:
                self.running -= 1

    def generate_stream(self, request: GenerateRequest) -> Iterator[ModelOutput]:
        try:
            for number in range(10_000):
                yield ModelOutput(text=str(number))
        finally:
            self.closed.set()


class Async(ModelWorker):
    """Async; fails in the way the prompt says."""

    def __init__(self) -> None:
        self.closed = False

    async def load(self, spec: WorkerSpec) -> ModelMetadata:
        return ModelMetadata(model=spec.model_name)

    async def generate_stream(self, request: GenerateRequest) -> AsyncIterator[ModelOutput]:
        try:
            yield ModelOutput(text="first")
            if request.prompt == "raise":
                raise KeyError("x")
            if request.prompt == "fault":
                yield ModelOutput(error_code=500, error="worker_lost")
            await asyncio.Event().wait()
        finally:
            self.closed = True


async def settled(runtime: WorkerRuntime) -> None:
    """Wait until no call holds a slot."""
    async with asyncio.timeout(10.0):
        while runtime.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0)


def test_at_most_as_many_calls_run_as_there_are_slots() -> None:
    async def main() -> None:
        worker = Gated()
        runtime = WorkerRuntime(worker, concurrency=2)
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(runtime.embeddings(["ab"])) for _ in range(6)]
            await asyncio.sleep(0)
            assert runtime.in_flight == 6
            worker.gate.set()
        assert [list(call.result().vectors) for call in calls] == [[[2.0]]] * 6
        assert worker.most <= 2
        await settled(runtime)
        await runtime.unload()

    asyncio.run(main())


def test_a_call_whose_caller_has_gone_keeps_its_slot_until_its_thread_is_done() -> None:
    async def main() -> None:
        worker = Gated()
        runtime = WorkerRuntime(worker, concurrency=1)
        async with asyncio.TaskGroup() as tasks:
            gone = tasks.create_task(runtime.embeddings(["a"]))
            while not worker.running:  # noqa: ASYNC110
                await asyncio.sleep(0)
            gone.cancel()
            await asyncio.wait({gone})
            assert gone.cancelled()
            assert runtime.in_flight == 1
            waits = tasks.create_task(runtime.embeddings(["b"]))
            await asyncio.sleep(0)
            assert not waits.done()
            worker.gate.set()
        assert worker.most == 1
        await settled(runtime)
        await runtime.unload()

    asyncio.run(main())


def test_more_waiting_calls_than_the_bound_are_refused() -> None:
    async def main() -> None:
        worker = Gated()
        runtime = WorkerRuntime(worker, concurrency=1)
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(runtime.embeddings(["a"])) for _ in range(17)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as raised:
                await runtime.embeddings(["a"])
            assert raised.value.retry_after_s == 1
            worker.gate.set()
        assert all(call.result().vectors for call in calls)
        await settled(runtime)
        await runtime.unload()

    asyncio.run(main())


def test_a_sync_generator_is_closed_when_its_reader_leaves() -> None:
    async def main() -> None:
        worker = Gated()
        runtime = WorkerRuntime(worker, concurrency=1)
        outputs = runtime.generate_stream(GenerateRequest(prompt="x"))
        assert (await anext(outputs)).text == "0"
        assert (await anext(outputs)).text == "1"
        await outputs.aclose()
        assert await asyncio.to_thread(worker.closed.wait, 10.0)
        await settled(runtime)
        await runtime.unload()

    asyncio.run(main())


def test_an_async_generator_is_closed_when_its_reader_leaves() -> None:
    async def main() -> None:
        worker = Async()
        runtime = WorkerRuntime(worker, concurrency=1)
        outputs = runtime.generate_stream(GenerateRequest(prompt="x"))
        assert (await anext(outputs)).text == "first"
        assert runtime.in_flight == 1
        await outputs.aclose()
        assert worker.closed
        assert runtime.in_flight == 0
        await runtime.unload()

    asyncio.run(main())


@pytest.mark.parametrize(("prompt", "kind"), [("raise", KeyError), ("fault", EngineError)])
def test_a_fault_of_the_model_frees_the_slot(prompt: str, kind: type[Exception]) -> None:
    async def main() -> None:
        worker = Async()
        runtime = WorkerRuntime(worker, concurrency=1)
        outputs = runtime.generate_stream(GenerateRequest(prompt=prompt))
        assert (await anext(outputs)).text == "first"
        with pytest.raises(kind):
            await anext(outputs)
        assert runtime.in_flight == 0
        await runtime.unload()

    asyncio.run(main())


def test_a_raising_call_frees_the_slot_and_what_a_model_cannot_do_is_a_400() -> None:
    async def main() -> None:
        worker = Gated()
        worker.gate.set()
        runtime = WorkerRuntime(worker, concurrency=1)
        with pytest.raises(ValueError, match="bad"):
            await runtime.embeddings(["bad"])
        with pytest.raises(BadRequest, match="does not rerank"):
            await runtime.rerank("q", ["d"])
        with pytest.raises(BadRequest, match="does not count"):
            await runtime.count_token("x")
        await settled(runtime)
        await runtime.unload()

    asyncio.run(main())
