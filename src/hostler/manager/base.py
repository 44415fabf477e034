"""WorkerManager: the contract. Implementations write the async half; the sync half is derived here, once."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from inspect import isawaitable
from typing import Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar

from hostler.app.component import BaseComponent, ComponentType
from hostler.core.errors import StartupError
from hostler.core.model import ModelMetadata, ModelOutput, ParameterDescription, WorkerType
from hostler.core.params import Params
from hostler.core.worker import (
    WorkerApplyOutput,
    WorkerApplyRequest,
    WorkerRunData,
    WorkerShutdownRequest,
    WorkerStartupRequest,
    WorkerSupportedModel,
)
from hostler.manager.whole import Whole

P = ParamSpec("P")
T = TypeVar("T")
Listener = Callable[["WorkerManager"], Awaitable[None] | None]
NOT_RUNNING = "this worker manager is not running: await its start() first"
LOOP_CHECK_S = 0.5  # how often a waiting thread looks whether the manager's loop still runs


def twin(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """Return the blocking twin of a coroutine method, for threads without an event loop."""

    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        overridden: Callable[P, Coroutine[Any, Any, T]] = getattr(self, method.__name__)
        manager: WorkerManager = self
        return manager.wait_for(lambda: overridden(*args, **kwargs))

    call.__name__ = call.__qualname__ = f"sync_{method.__name__}"
    call.__doc__ = f"As `{method.__name__}`, for a thread without an event loop."
    return call


class WorkerManager(ABC):
    """Starts and stops model workers, knows which live, picks one for each request, and asks it.

    Every implementation passes the same conformance suite (tests/conformance/). Each coroutine method
    has a `sync_*` twin for threads without an event loop of their own; inside one they would block it,
    and raise instead.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: list[Listener] = []

    # Life

    @abstractmethod
    async def start(self) -> None:
        """Bring the manager and the models it was asked to keep running to life.

        Raises:
            StartupError: with the reason; nothing is left running.
        """

    @abstractmethod
    async def stop(self, ignore_exception: bool = False) -> None:
        """Drain, then stop every worker."""

    def after_start(self, listener: Listener) -> None:
        """Call a sync or async listener with the manager once it is up, in the order added."""
        self._listeners.append(listener)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # Instances

    @abstractmethod
    async def get_model_instances(
        self, worker_type: WorkerType, model_name: str, healthy_only: bool = True
    ) -> list[WorkerRunData]:
        """The instances of one model; none for an unknown name."""

    @abstractmethod
    async def get_all_model_instances(
        self, worker_type: WorkerType, healthy_only: bool = True
    ) -> list[WorkerRunData]:
        """The instances of all models of a type."""

    @abstractmethod
    async def select_one_instance(
        self, worker_type: WorkerType, model_name: str, healthy_only: bool = True
    ) -> WorkerRunData:
        """The instance the routing policy would use now.

        Raises:
            ModelNotFound: no such model. NoReadyInstance: none of its instances can serve.
        """

    @abstractmethod
    async def supported_models(self) -> list[WorkerSupportedModel]:
        """The models that can be started, with their parameters, presence and fit."""

    # Orders

    @abstractmethod
    async def model_startup(
        self, request: WorkerStartupRequest, *, wait: bool = True
    ) -> list[WorkerRunData]:
        """Create and start a model's instances; the same specification again changes nothing.

        wait: return when all are ready; otherwise as soon as the wish is written down.

        Raises:
            AlreadyRunning: it runs with another specification; the message names the difference.
            EngineError, ModelSourceError, ...: an instance failed, and why.
        """

    @abstractmethod
    async def model_shutdown(
        self, request: WorkerStartupRequest | WorkerShutdownRequest, *, wait: bool = True
    ) -> None:
        """Drain and stop every instance of a model; `delete_after` also forgets it.

        Raises:
            ModelNotFound: no such model was ever started.
        """

    @abstractmethod
    async def worker_apply(self, request: WorkerApplyRequest) -> WorkerApplyOutput:
        """START, STOP, RESTART or UPDATE_PARAMS on every instance of a model."""

    # Requests

    @abstractmethod
    def generate_stream(self, params: Params) -> AsyncGenerator[ModelOutput, None]:
        """Chat (`messages`) or completion (`prompt`) as deltas.

        params: a `GenerateParams`, or an OpenAI request body as a mapping: `model`, `messages` or
        `prompt`, and any field the engine knows. A fault before the first output is raised; after
        it, it is a last output with `error_code != 0`. Closing the iterator early stops the engine.
        """

    async def generate(self, params: Params) -> ModelOutput:
        """The whole answer, with usage, finish reason and metrics; a fault is raised or in it."""
        whole = Whole()
        async for output in self.generate_stream(params):
            whole.add(output)
        return whole.answer()

    @abstractmethod
    async def embeddings(self, params: Params) -> list[list[float]]:
        """One vector an input, order kept; for a reranker (`query` given) one score an input.

        params: an `EmbeddingParams`, or a mapping with `model`, `input` (a text or a list), and
        optionally `query`.
        """

    @abstractmethod
    async def count_token(self, params: Params) -> int:
        """Tokens of `prompt`, or of `messages` (with `tools`) through the chat template, by the model's
        own tokenizer: what the engine will charge as `prompt_tokens`. Takes no slot.
        """

    @abstractmethod
    async def get_model_metadata(self, params: Params) -> ModelMetadata:
        """What the model that `params` names is and can do.

        Raises:
            ModelNotFound: no such model. NoReadyInstance: none of its instances has said it yet.
        """

    @abstractmethod
    async def parameter_descriptions(
        self, worker_type: WorkerType | None, model_name: str
    ) -> list[ParameterDescription]:
        """What can be set for that model, running or not.

        Raises:
            ModelNotFound: neither started nor in the catalogue.
        """

    # The sync twins

    sync_get_model_instances = twin(get_model_instances)
    sync_get_all_model_instances = twin(get_all_model_instances)
    sync_select_one_instance = twin(select_one_instance)
    sync_supported_models = twin(supported_models)
    sync_model_startup = twin(model_startup)
    sync_model_shutdown = twin(model_shutdown)
    sync_worker_apply = twin(worker_apply)
    sync_generate = twin(generate)
    sync_embeddings = twin(embeddings)
    sync_count_token = twin(count_token)
    sync_get_model_metadata = twin(get_model_metadata)
    sync_parameter_descriptions = twin(parameter_descriptions)

    def sync_generate_stream(self, params: Params) -> Iterator[ModelOutput]:
        """As `generate_stream`; closing the iterator early stops the engine too."""
        self._loop_of_others()
        return self._follow_stream(self.generate_stream(params))

    def wait_for(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine in the manager's event loop and wait for it, from any other thread.

        Raises:
            RuntimeError: this thread runs an event loop, which would stand still meanwhile.
            StartupError: the manager is not running.
        """
        loop = self._loop_of_others()
        answer = asyncio.run_coroutine_threadsafe(work(), loop)
        try:
            while True:
                try:
                    return answer.result(LOOP_CHECK_S)
                except TimeoutError:
                    if answer.done():
                        raise  # the work's own
                    if not loop.is_running():
                        raise StartupError("the worker manager's event loop has ended") from None
        finally:
            answer.cancel()

    def check_running(self) -> None:
        """Return between the end of `start` and the beginning of `stop`.

        Raises:
            StartupError: this is another time; what to do about it.
        """
        if self._loop is None:
            raise StartupError(NOT_RUNNING)

    # Private

    async def _started(self) -> None:
        """Implementations call this at the end of `start`, and stop again when it raises."""
        self._loop = asyncio.get_running_loop()
        for listener in self._listeners:
            if isawaitable(pending := listener(self)):
                await pending

    def _loop_of_others(self) -> asyncio.AbstractEventLoop:
        """The manager's event loop, which must not be this thread's."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            if self._loop is None or not self._loop.is_running():
                raise StartupError(NOT_RUNNING) from None
            return self._loop
        raise RuntimeError("a sync_* method would block the event loop: await the async one")

    def _follow_stream(self, stream: AsyncGenerator[ModelOutput, None]) -> Iterator[ModelOutput]:
        async def following() -> ModelOutput | None:
            return await anext(stream, None)

        try:
            while (output := self.wait_for(following)) is not None:
                yield output
        finally:
            with suppress(StartupError):  # the manager has gone, and the stream with it
                self.wait_for(stream.aclose)

    def _stopped(self) -> None:
        """Implementations call this when `stop` begins: the sync twins have no loop from now on."""
        self._loop = None


class WorkerManagerFactory(BaseComponent, ABC):
    """How an application finds the manager: `system_app.get_component(WORKER_MANAGER_FACTORY, ...)`."""

    name: ClassVar[str] = ComponentType.WORKER_MANAGER_FACTORY.value

    @abstractmethod
    def create(self) -> WorkerManager:
        """Return the application's worker manager, always the same one."""
