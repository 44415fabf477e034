"""WorkerManager: the contract. Implementations write the async half; the sync half is derived here, once."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from inspect import isawaitable
from typing import Any, ClassVar, Self, TypeVar

from hostler.app.component import BaseComponent, ComponentType
from hostler.core.errors import HostlerError
from hostler.core.model import ModelMetadata, ModelOutput, ParameterDescription, WorkerType
from hostler.core.worker import (
    WorkerApplyOutput,
    WorkerApplyRequest,
    WorkerRunData,
    WorkerShutdownRequest,
    WorkerStartupRequest,
    WorkerSupportedModel,
)

T = TypeVar("T")
Params = Mapping[str, Any]
Listener = Callable[["WorkerManager"], Awaitable[None] | None]


class WorkerManager(ABC):
    """Starts and stops model workers, knows which live, picks one for each request, and asks it.

    Every implementation passes the same conformance suite. The `sync_*` twins work from any thread
    but the event loop's own, where they would block it and raise instead.
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
    def generate_stream(self, params: Params) -> AsyncIterator[ModelOutput]:
        """Chat (`messages`) or completion (`prompt`) as deltas.

        params: an OpenAI request body: `model`, `messages` or `prompt`, and any sampling field.
        A fault before the first output is raised; after it, it is a last output with
        `error_code != 0`. Closing the iterator early stops the engine.
        """

    async def generate(self, params: Params) -> ModelOutput:
        """The whole answer, with usage, finish reason and metrics; a fault is raised or in it."""
        texts: list[str] = []
        thoughts: list[str] = []
        last = ModelOutput()
        calls: dict[int, dict[str, Any]] = {}
        finish: str | None = None
        async for output in self.generate_stream(params):
            texts.append(output.text)
            thoughts.append(output.thinking_text)
            _merge_tool_calls(calls, output.tool_calls)
            finish = output.finish_reason or finish
            last = output
        return ModelOutput(
            text="".join(texts),
            thinking_text="".join(thoughts),
            tool_calls=tuple(calls[index] for index in sorted(calls)),
            finish_reason=finish,
            usage=last.usage,
            metrics=last.metrics,
            model_name=last.model_name,
            error_code=last.error_code,
            error=last.error,
        )

    @abstractmethod
    async def embeddings(self, params: Params) -> list[list[float]]:
        """One vector an input, order kept; for a reranker (`query` given) one score an input.

        params: `model`, `input` (a text or a list), optionally `query`.
        """

    @abstractmethod
    async def count_token(self, params: Params) -> int:
        """Tokens of `prompt`, or of `messages` through the chat template, by the model's tokenizer."""

    @abstractmethod
    async def get_model_metadata(self, params: Params) -> ModelMetadata:
        """What the model (`params["model"]`) is and can do."""

    @abstractmethod
    async def parameter_descriptions(
        self, worker_type: WorkerType, model_name: str
    ) -> list[ParameterDescription]:
        """What can be set for that model, running or not.

        Raises:
            ModelNotFound: neither started nor in the catalogue.
        """

    # The sync twins

    def sync_get_model_instances(
        self, worker_type: WorkerType, model_name: str, healthy_only: bool = True
    ) -> list[WorkerRunData]:
        return self._wait(self.get_model_instances(worker_type, model_name, healthy_only))

    def sync_get_all_model_instances(
        self, worker_type: WorkerType, healthy_only: bool = True
    ) -> list[WorkerRunData]:
        return self._wait(self.get_all_model_instances(worker_type, healthy_only))

    def sync_select_one_instance(
        self, worker_type: WorkerType, model_name: str, healthy_only: bool = True
    ) -> WorkerRunData:
        return self._wait(self.select_one_instance(worker_type, model_name, healthy_only))

    def sync_embeddings(self, params: Params) -> list[list[float]]:
        return self._wait(self.embeddings(params))

    # Private

    async def _started(self) -> None:
        """Implementations call this at the end of `start`."""
        self._loop = asyncio.get_running_loop()
        for listener in self._listeners:
            if isawaitable(pending := listener(self)):
                await pending

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            if self._loop is None or self._loop.is_closed():
                work.close()
                raise HostlerError(
                    "the worker manager is not running: call start() first"
                ) from None
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        work.close()
        raise RuntimeError("a sync_* method would block the event loop: await the async one")


class WorkerManagerFactory(BaseComponent, ABC):
    """How an application finds the manager: `system_app.get_component(WORKER_MANAGER_FACTORY, ...)`."""

    name: ClassVar[str] = ComponentType.WORKER_MANAGER_FACTORY.value

    @abstractmethod
    def create(self) -> WorkerManager:
        """Return the application's worker manager, always the same one."""


# Private


def _merge_tool_calls(
    calls: dict[int, dict[str, Any]], deltas: tuple[Mapping[str, Any], ...]
) -> None:
    """Put OpenAI tool call deltas together: fields once, arguments appended."""
    for position, delta in enumerate(deltas):
        call = calls.setdefault(delta.get("index", position), {"type": "function", "function": {}})
        function = call["function"]
        for key, value in delta.items():
            if key != "function":
                call[key] = value
        for key, value in (delta.get("function") or {}).items():
            function[key] = function.get(key, "") + value if key == "arguments" else value
