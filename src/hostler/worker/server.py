"""ServedEngine: the OpenAI HTTP face of a ModelWorker, on the engine socket.

Requests arrive from the gateway, which has judged them; here only what the model needs is read.
What the answers look like is in `worker/shapes.py`.
"""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import NoReturn

import msgspec

from hostler.app.config import HttpLimits
from hostler.app.telemetry import logger
from hostler.core.errors import EngineError, HostlerError, ModelLoading, NotFound, WrongInstance
from hostler.core.fleet import WorkerSpec
from hostler.core.model import ModelMetadata, ModelOutput
from hostler.core.snapshot import Endpoint
from hostler.engines.base import GenerateRequest, ModelWorker, Started
from hostler.wire.server import Exchange, HttpServer
from hostler.wire.sse import data_event, error_event
from hostler.worker import shapes
from hostler.worker.runtime import WorkerRuntime

log = logger(__name__)

_JSON = (b"content-type", b"application/json")
_SSE = (b"content-type", b"text/event-stream; charset=utf-8")
_INSTANCE = b"x-hostler-instance"


class ServedEngine:
    """An `engines.base.Engine` around a ModelWorker."""

    def __init__(self, worker: ModelWorker) -> None:
        self._worker = worker
        self._runtime: WorkerRuntime | None = None
        self._face: Face | None = None

    async def start(self, spec: WorkerSpec) -> Started:
        runtime = self._runtime = WorkerRuntime(self._worker, spec.concurrency)
        metadata = await runtime.load(spec)
        self._face = Face(runtime, spec, metadata)
        await self._face.listen()
        return Started(
            metadata=metadata,
            endpoint=Endpoint(socket=spec.engine_socket),
            upstream_model=spec.model_name,
        )

    async def probe(self) -> bool:
        """True: the server lives in the event loop that runs this line."""
        return self._face is not None

    def in_flight(self) -> int | None:
        return self._face.in_flight if self._face is not None else 0

    async def stop(self, drain_s: float) -> None:
        if self._face is None or self._runtime is None:
            return  # a load that was called off: the process ends around it
        await self._face.close(drain_s)
        await self._runtime.unload()

    async def exited(self) -> str:
        """Serve; never returns, for this engine ends only with its process."""
        if self._face is None:
            raise EngineError("the engine has not started")
        return await self._face.serve()


class Face:
    """The routes of one model."""

    def __init__(self, runtime: WorkerRuntime, spec: WorkerSpec, metadata: ModelMetadata) -> None:
        self._runtime = runtime
        self._spec = spec
        self._metadata = metadata
        self._instance = spec.instance_id.encode()
        self._server = HttpServer(self._handle, limits=HttpLimits(), name="engine")
        self._tasks: asyncio.TaskGroup | None = None
        self._requests: set[asyncio.Task[None]] = set()
        self._created_at_s = int(time.time())
        self._routes: dict[tuple[str, str], Callable[[Exchange], Awaitable[None]]] = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completion,
            ("POST", "/v1/embeddings"): self._embeddings,
            ("POST", "/v1/rerank"): self._rerank,
            ("POST", "/tokenize"): self._tokenize,
            ("GET", "/v1/models"): self._models,
            ("GET", "/health"): self._health,
        }

    @property
    def in_flight(self) -> int:
        return len(self._requests)

    async def listen(self) -> None:
        await self._server.listen_unix(Path(self._spec.engine_socket))

    async def serve(self) -> NoReturn:
        """Answer requests until cancelled; until it runs, requests are told to come back."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await asyncio.Event().wait()
        raise AssertionError

    async def close(self, drain_s: float) -> None:
        """Let running requests end, `drain_s` at most; cut the others; take the socket away."""
        ends_at_s = time.monotonic() + drain_s
        try:
            async with asyncio.timeout(drain_s):
                while self._requests:
                    await asyncio.wait(self._requests)
        except TimeoutError:
            for task in self._requests:
                task.cancel()
        await self._server.close(max(0.0, ends_at_s - time.monotonic()))  # what is still unsent
        Path(self._spec.engine_socket).unlink(missing_ok=True)

    # Private

    def _handle(self, exchange: Exchange) -> None:
        request = exchange.request
        meant = dict(request.headers).get(_INSTANCE, self._instance)
        route = self._routes.get((request.method, request.path))
        if meant != self._instance:
            exchange.send_error(WrongInstance())
        elif self._tasks is None:
            exchange.send_error(ModelLoading(retry_after_s=1))
        elif route is None:
            exchange.send_error(NotFound(f"this model has no {request.method} {request.path}"))
        else:
            task = self._tasks.create_task(self._answer(exchange, route), name="request")
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)
            exchange.on_gone = _canceller(task)

    async def _answer(
        self, exchange: Exchange, route: Callable[[Exchange], Awaitable[None]]
    ) -> None:
        try:
            await route(exchange)
        except HostlerError as error:
            exchange.send_error(error)
        except Exception as error:  # boundary: one request of a model, which is others' code
            log.error(
                "request.failed",
                path=exchange.request.path,
                raised=type(error).__name__,
                where=_place(error),
            )
            exchange.send_error(EngineError(f"the model raised {type(error).__name__}"))

    async def _chat(self, exchange: Exchange) -> None:
        raw = exchange.request.body
        body = shapes.read(raw, shapes.ChatBody)
        request = body.as_request(shapes.extra_fields(raw, shapes.ChatBody))
        await self._generate(exchange, body, request, chat=True)

    async def _completion(self, exchange: Exchange) -> None:
        raw = exchange.request.body
        body = shapes.read(raw, shapes.CompletionBody)
        request = body.as_request(shapes.extra_fields(raw, shapes.CompletionBody))
        await self._generate(exchange, body, request, chat=False)

    async def _generate(
        self, exchange: Exchange, body: shapes.Body, request: GenerateRequest, *, chat: bool
    ) -> None:
        answer = shapes.Answer(self._spec.model_name, chat=chat)
        outputs = self._runtime.generate_stream(request)
        async with aclosing(outputs):
            if body.stream:
                await self._stream(exchange, answer, outputs, body.include_usage)
                return
            async for output in outputs:
                answer.add(output)
        self._send(exchange, answer.whole())

    async def _stream(
        self,
        exchange: Exchange,
        answer: shapes.Answer,
        outputs: AsyncIterator[ModelOutput],
        include_usage: bool,
    ) -> None:
        """Send pieces as they come. A fault before the first one is an ordinary error answer; a
        later one is an error event and an unclean end, so that no client takes it for success."""
        flowing = asyncio.Event()
        flowing.set()
        exchange.on_pause, exchange.on_resume = flowing.clear, flowing.set
        started = False
        try:
            async for output in outputs:
                if not started:
                    exchange.start(200, (_SSE, *self._headers()), None)
                    started = True
                    exchange.write(data_event(answer.first_chunk()))
                for chunk in answer.chunks(output):
                    exchange.write(data_event(chunk))
                await flowing.wait()
        except Exception as error:  # boundary: one stream of a model, which is others' code
            if not started:
                raise
            log.error(
                "stream.failed",
                path=exchange.request.path,
                raised=type(error).__name__,
                where=_place(error),
            )
            known = error if isinstance(error, HostlerError) else EngineError()
            exchange.write(error_event(known))
            exchange.abort()
            return
        if not started:
            raise EngineError("the model ended without an answer")
        exchange.write(data_event(answer.last_chunk()))
        if include_usage:
            exchange.write(data_event(answer.usage_chunk()))
        exchange.write(data_event(b"[DONE]"))
        exchange.end()

    async def _embeddings(self, exchange: Exchange) -> None:
        body = shapes.read(exchange.request.body, shapes.EmbeddingsBody)
        found = await self._runtime.embeddings(body.texts())
        self._send(exchange, shapes.embeddings_answer(self._spec.model_name, body, found))

    async def _rerank(self, exchange: Exchange) -> None:
        body = shapes.read(exchange.request.body, shapes.RerankBody)
        found = await self._runtime.rerank(body.query, body.texts())
        self._send(exchange, shapes.rerank_answer(self._spec.model_name, body, found))

    async def _tokenize(self, exchange: Exchange) -> None:
        body = shapes.read(exchange.request.body, shapes.TokenizeBody)
        count = await self._runtime.count_token(body.subject())
        self._send(exchange, msgspec.json.encode({"count": count}))

    async def _models(self, exchange: Exchange) -> None:
        self._send(exchange, shapes.models_answer(self._metadata, self._created_at_s))

    async def _health(self, exchange: Exchange) -> None:
        self._send(exchange, b'{"status":"ok"}')

    def _headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return ((_INSTANCE, self._instance),)

    def _send(self, exchange: Exchange, body: bytes) -> None:
        exchange.send(200, body, (_JSON, *self._headers()))


def _place(error: Exception) -> str:
    """Say where it was raised. Its text stays out of logs: a model may have put a prompt into it."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _canceller(task: asyncio.Task[None]) -> Callable[[], None]:
    def cancel() -> None:
        task.cancel()

    return cancel
