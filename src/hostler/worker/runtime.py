"""WorkerRuntime: slots, threads and cancellation around a ModelWorker. No HTTP here."""

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from hostler.core.errors import EngineError, Overloaded
from hostler.core.fleet import WorkerSpec
from hostler.core.model import ModelMetadata, ModelOutput
from hostler.engines.base import Embeddings, GenerateRequest, Message, ModelWorker, Ranking, Text

T = TypeVar("T")

_WAITING_PER_SLOT = (
    16  # requests that may wait for a slot; the gateway's queue stands before this one
)
_PIECES_AHEAD = 32  # outputs a sync generator may be ahead of its reader
_CREDIT_WAIT_S = 0.5  # how often a generator's thread looks whether its reader has gone


class WorkerRuntime:
    """Runs one model. A slot is one running call, and one thread when the method is sync.

    A call whose client has gone keeps its slot until the model lets go of it: that is the truth.
    """

    def __init__(self, worker: ModelWorker, concurrency: int) -> None:
        self.worker = worker
        self.concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._waiting = 0
        self._running = 0
        # a worker that batches takes every call in the loop; threads start only when used
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="model")
        self._side = ThreadPoolExecutor(1, thread_name_prefix="side")

    @property
    def in_flight(self) -> int:
        """Calls that run or wait."""
        return self._running + self._waiting

    async def load(self, spec: WorkerSpec) -> ModelMetadata:
        """Load the model in the one thread that also counts tokens.

        Raises:
            EngineError: it does not load, or returns something else than ModelMetadata.
        """
        metadata = await self._invoke(self._side, self.worker.load, spec)
        if not isinstance(metadata, ModelMetadata):
            raise EngineError(
                f"{type(self.worker).__name__}.load returned {type(metadata).__name__}, "
                "not ModelMetadata"
            )
        return metadata

    async def unload(self) -> None:
        """Let the model go, and its threads, without waiting for those that are stuck."""
        try:
            await self._invoke(self._side, self.worker.unload)
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._side.shutdown(wait=False, cancel_futures=True)

    async def embeddings(self, texts: Sequence[Text]) -> Embeddings:
        found: Embeddings = await self._in_slot(self.worker.embeddings, texts)
        return found

    async def rerank(self, query: str, documents: Sequence[str]) -> Ranking:
        found: Ranking = await self._in_slot(self.worker.rerank, query, documents)
        return found

    async def count_token(self, prompt: str | Sequence[Message]) -> int:
        """Count without a slot: counting goes on while every slot is taken."""
        count: int = await self._invoke(self._side, self.worker.count_token, prompt)
        return count

    async def generate_stream(self, request: GenerateRequest) -> AsyncGenerator[ModelOutput, None]:
        """Yield the model's outputs. Close it to cancel."""
        await self._take_slot()
        held = _Slot(self._give_slot)
        try:
            async with aclosing(self._pieces(request, held)) as outputs:
                async for output in outputs:
                    if not output.success:
                        raise EngineError(f"the model failed: {output.error or output.error_code}")
                    yield output
        finally:
            held.let_go()

    # Private

    async def _in_slot(self, method: Callable[..., Any], *arguments: Any) -> Any:
        await self._take_slot()
        held = _Slot(self._give_slot)
        try:
            if inspect.iscoroutinefunction(method):
                return await method(*arguments)
            call = asyncio.get_running_loop().run_in_executor(self._threads, method, *arguments)
            held.until(call)
            return await asyncio.shield(call)
        finally:
            held.let_go()

    async def _invoke(
        self, threads: ThreadPoolExecutor, method: Callable[..., Any], *arguments: Any
    ) -> Any:
        if inspect.iscoroutinefunction(method):
            return await method(*arguments)
        return await asyncio.get_running_loop().run_in_executor(threads, method, *arguments)

    async def _take_slot(self) -> None:
        if self._waiting >= self.concurrency * _WAITING_PER_SLOT:
            raise Overloaded(
                f"{self.concurrency} slots are taken and {self._waiting} requests wait",
                retry_after_s=1,
            )
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        self._running += 1

    def _give_slot(self) -> None:
        self._running -= 1
        self._slots.release()

    async def _pieces(
        self, request: GenerateRequest, held: "_Slot"
    ) -> AsyncGenerator[ModelOutput, None]:
        method = self.worker.generate_stream
        if not inspect.isasyncgenfunction(method):
            async with aclosing(self._from_thread(request, held)) as outputs:
                async for output in outputs:
                    yield output
            return
        async with aclosing(method(request)) as outputs:
            async for output in outputs:
                yield output

    async def _from_thread(
        self, request: GenerateRequest, held: "_Slot"
    ) -> AsyncGenerator[ModelOutput, None]:
        """Run a sync generator in a thread of its own, a bounded number of outputs ahead."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Queue[ModelOutput | None] = asyncio.Queue()  # bounded by the credit
        credit = threading.Semaphore(_PIECES_AHEAD)
        gone = threading.Event()

        def pump() -> None:
            pieces: Iterator[ModelOutput] = iter(())
            try:
                made = self.worker.generate_stream(request)
                if not isinstance(made, Iterable):
                    raise EngineError("generate_stream must be a generator, sync or async")
                pieces = iter(made)
                for piece in pieces:
                    while not credit.acquire(timeout=_CREDIT_WAIT_S):
                        if gone.is_set():
                            return
                    if gone.is_set():
                        return
                    loop.call_soon_threadsafe(ready.put_nowait, piece)
            finally:
                if (close := getattr(pieces, "close", None)) is not None:
                    close()
                with suppress(RuntimeError):  # the loop has closed: nobody reads any more
                    loop.call_soon_threadsafe(ready.put_nowait, None)

        call = loop.run_in_executor(self._threads, pump)
        held.until(call)
        try:
            while (piece := await ready.get()) is not None:
                credit.release()
                yield piece
            await call  # raises what the generator raised
        finally:
            gone.set()


class _Slot:
    """One slot, given back once: when its caller lets go and its thread, if any, has ended."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back = give_back
        self._holders = 1

    def until(self, call: "asyncio.Future[Any]") -> None:
        self._holders += 1
        call.add_done_callback(self._ended)

    def let_go(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            self._give_back()

    def _ended(self, call: "asyncio.Future[Any]") -> None:
        if not call.cancelled():
            call.exception()  # seen: the caller may have gone
        self.let_go()
