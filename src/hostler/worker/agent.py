"""The life of a worker process: load, register, beat, obey, leave.

Whatever ends it goes through one place (`_end`), so that it leaves once, with one reason: an order,
a signal, an engine that exits, a controller that wants it no more, or none for `orphan_grace_s`.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec
import psutil
import uvloop

from hostler.app.background import Background, begin
from hostler.app.config import HttpLimits, quiet_openmp
from hostler.app.telemetry import configure_logging, logger
from hostler.core.errors import (
    Conflict,
    EngineError,
    HostlerError,
    ModelFormatError,
    ModelSourceError,
    NotFound,
)
from hostler.core.fleet import WorkerSpec
from hostler.engines.base import OOM_TEXT, Engine, ModelWorker, Started, WorkerMaker, load_engine
from hostler.engines.lending import LEND_PATH, READ_PATH
from hostler.wire.server import Exchange, HttpServer
from hostler.worker.identity import claim
from hostler.worker.lending import LendingDesk
from hostler.worker.reports import Condition, Ending, Reporter
from hostler.worker.server import ServedEngine

log = logger(__name__)

EXIT_ENGINE = 1  # the engine failed or ended
EXIT_MODEL = 3  # the model's files are missing or damaged: another try would fail as well

_PROBE_INTERVAL_S = 0.5
_PROBE_TIMEOUT_S = 2.0
_PROBE_FALL = 2  # failed probes until the beat says so
_STOP_MARGIN_S = 5.0  # an engine's stop may take so much longer than its drain
_JSON = ((b"content-type", b"application/json"),)


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """GET /status on the agent's socket."""

    instance_id: str
    epoch: int
    model_name: str
    engine: str
    pid: int
    state: str  # starting, serving, leaving
    registered: bool
    engine_ok: bool
    in_flight: int | None
    memory_bytes: int
    beats: int


class Agent:
    """One worker's life. `run` returns the exit code."""

    def __init__(
        self,
        spec: WorkerSpec,
        make_engine: Callable[[], Engine],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """make_engine: imports and makes the engine; called once, in the event loop."""
        self._spec = spec
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._reports = Reporter(spec, self._condition, clock)
        self._server = HttpServer(self._handle, limits=HttpLimits(), name="agent")
        self._started: Started | None = None
        self._ending: asyncio.Future[Ending] | None = None
        self._hasten = asyncio.Event()
        self._engine_ok = True
        self._desk = LendingDesk()

    async def run(self) -> int:
        """Live until something ends it."""
        holder = claim(self._spec)
        if holder is None:
            return self._refuse()
        with holder:
            return await self._run()

    # Private

    def _refuse(self) -> int:
        """Leave everything of the process that has our identity alone: sockets, engine, name."""
        text = f"another process is instance {self._spec.instance_id} already"
        _tell_error(Conflict(text))
        log.error("worker.second_claim", instance_id=self._spec.instance_id)
        return EXIT_ENGINE

    async def _run(self) -> int:
        self._ending = asyncio.get_running_loop().create_future()
        self._arm_signals()
        await self._server.listen_unix(Path(self._spec.agent_socket))
        async with asyncio.TaskGroup() as tasks:
            self._desk.tasks = tasks
            life = begin(tasks, Background.LIFE, self._live())
            ending = await self._ending
            self._desk.close()
            if self._started is None:
                life.cancel()  # still loading
            await self._leave(tasks, ending)
            life.cancel()
            await self._reports.say_goodbye(ending)
            await self._server.close(0.0)
        return ending.exit_code

    async def _live(self) -> None:
        """Start the engine, then report, probe and watch it side by side until cancelled."""
        spec = self._spec
        try:
            async with asyncio.timeout(spec.start_timeout_s):
                self._engine = self._make_engine()
                self._started = await self._engine.start(spec)
        except TimeoutError:
            text = f"engine {spec.engine!r} did not start within {spec.start_timeout_s:g} s"
            return self._fail(EngineError(text))
        except HostlerError as error:
            return self._fail(error)
        except Exception as error:  # boundary: a start of an engine, which is others' code
            log.error("engine.start_failed", error=error, engine=spec.engine)
            return self._fail(
                EngineError(f"engine {spec.engine!r}: {type(error).__name__}: {error}")
            )
        self._arm_signals()  # llama.cpp has set its own
        log.info("engine.started", engine=spec.engine, model=spec.model_name)
        async with asyncio.TaskGroup() as tasks:
            begin(tasks, Background.REPORT, self._report(self._started))
            begin(tasks, Background.ENGINE_PROBE, self._probe(self._engine))
            begin(tasks, Background.ENGINE_WATCH, self._watch(self._engine))

    def _fail(self, error: HostlerError) -> None:
        """End because the engine did not start; say why."""
        wrong_files = isinstance(error, ModelFormatError | ModelSourceError)
        _tell_error(error)
        code = EXIT_MODEL if wrong_files else EXIT_ENGINE
        self._end(Ending(exit_code=code, reason=error.message, code=error.code))

    def _end(self, ending: Ending) -> None:
        """Leave, for this reason; the first one counts."""
        if self._ending is not None and not self._ending.done():
            log.info("worker.leaving", reason=ending.reason, exit_code=ending.exit_code)
            self._ending.set_result(ending)

    async def _leave(self, tasks: asyncio.TaskGroup, ending: Ending) -> None:
        """Drain and stop the engine while the beats go on and say so; hastened: at once."""
        self._reports.hurry()
        drain_s = ending.drain_s if self._started else 0.0
        drain = tasks.create_task(self._stop_engine(drain_s), name="agent.stop")
        hasten = tasks.create_task(self._hasten.wait(), name="agent.hasten")
        await asyncio.wait({drain, hasten}, return_when=asyncio.FIRST_COMPLETED)
        hasten.cancel()
        if not drain.done():
            drain.cancel()
            await asyncio.wait({drain})
            await self._stop_engine(0.0)

    async def _stop_engine(self, drain_s: float) -> None:
        if self._engine is None:
            return
        try:
            async with asyncio.timeout(drain_s + _STOP_MARGIN_S):
                await self._engine.stop(drain_s)
        except TimeoutError:
            log.warning("engine.stop_late", drain_s=drain_s)
        except Exception as error:  # boundary: a stop of an engine; this process ends in any case
            log.error("engine.stop_failed", error=error)

    async def _report(self, started: Started) -> None:
        self._end(await self._reports.run(started))

    async def _probe(self, engine: Engine) -> None:
        """Ask the engine whether it lives; two silences in a row are told at once."""
        failed = 0
        while True:
            await asyncio.sleep(_PROBE_INTERVAL_S)
            try:
                async with asyncio.timeout(_PROBE_TIMEOUT_S):
                    answered = await engine.probe()
            except TimeoutError:
                answered = False
            failed = 0 if answered else failed + 1
            engine_ok = failed < _PROBE_FALL
            if engine_ok != self._engine_ok:
                log.warning("engine.probe", ok=engine_ok)
                self._engine_ok = engine_ok
                self._reports.hurry()

    async def _watch(self, engine: Engine) -> None:
        reason = await engine.exited()
        if not self._is_leaving():
            code = "oom_killed" if reason.startswith(OOM_TEXT) else ""
            text = f"engine exited: {reason}"
            self._end(Ending(exit_code=EXIT_ENGINE, reason=text, code=code))

    def _condition(self) -> Condition:
        return Condition(
            engine_ok=self._engine_ok,
            is_leaving=self._is_leaving_as_asked(),
            in_flight=self._in_flight() or 0,
            memory_bytes=self._memory_bytes(),
        )

    def _in_flight(self) -> int | None:
        return self._engine.in_flight() if self._engine is not None else 0

    def _memory_bytes(self) -> int:
        """Resident memory of this process and of the engine's own."""
        total = 0
        try:
            total = int(psutil.Process().memory_info().rss)
            if self._started is not None and self._started.pid is not None:
                engine = psutil.Process(self._started.pid)
                for process in (engine, *engine.children(recursive=True)):
                    total += process.memory_info().rss
        except psutil.Error:
            pass
        return total

    def _is_leaving(self) -> bool:
        return self._ending is not None and self._ending.done()

    def _is_leaving_as_asked(self) -> bool:
        """One whose engine died does not drain: its goodbye says what it is."""
        ending = self._ending
        return ending is not None and ending.done() and ending.result().exit_code == 0

    # Orders

    def _arm_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            loop.add_signal_handler(number, self._obey_stop, number == signal.SIGINT)

    def _obey_stop(self, hasten: bool) -> None:
        """Drain and leave; asked again, or told to hasten: leave now."""
        if hasten or self._is_leaving():
            self._hasten.set()
        self._end(Ending(drain_s=self._spec.drain_timeout_s))

    def _handle(self, exchange: Exchange) -> None:
        request = exchange.request
        route = (request.method, request.path)
        if route == ("GET", "/health"):
            exchange.send(200, b'{"status":"ok"}', _JSON)
        elif route == ("GET", "/status"):
            exchange.send(200, msgspec.json.encode(self._status()), _JSON)
        elif route == ("POST", "/beat"):
            exchange.send(200, msgspec.json.encode(self._reports.asked()), _JSON)
        elif request.method == "POST" and request.path in (READ_PATH, LEND_PATH):
            try:
                self._desk.handle(exchange, self._engine)
            except HostlerError as error:
                exchange.send_error(error)
        elif route == ("POST", "/stop"):
            exchange.send(202, b'{"status":"leaving"}', _JSON)
            self._obey_stop(hasten="hasten" in str(request.query))
        else:
            exchange.send_error(NotFound(f"the agent has no {request.method} {request.path}"))

    def _status(self) -> AgentStatus:
        spec = self._spec
        serving = "serving" if self._started else "starting"
        return AgentStatus(
            instance_id=spec.instance_id,
            epoch=spec.epoch,
            model_name=spec.model_name,
            engine=spec.engine,
            pid=os.getpid(),
            state="leaving" if self._is_leaving() else serving,
            registered=self._reports.is_registered,
            engine_ok=self._engine_ok,
            in_flight=self._in_flight(),
            memory_bytes=self._memory_bytes(),
            beats=self._reports.beats,
        )


def _tell_error(error: HostlerError) -> None:
    """Say why on stderr, one line for programs."""
    line = msgspec.json.encode({"code": error.code, "message": error.message}).decode()
    sys.stderr.write(f"hostler-error: {line}\n")
    sys.stderr.flush()


def make_engine(spec: WorkerSpec) -> Engine:
    """Import an engine and make one; a ModelWorker gets our own HTTP server around it.

    Raises:
        HostlerError: as `load_engine` and `PythonClass.make`.
    """
    made = load_engine(spec.engine)()
    if isinstance(made, WorkerMaker):
        made = made.make(spec)
    return ServedEngine(made) if isinstance(made, ModelWorker) else made


def run_worker(spec: WorkerSpec) -> NoReturn:
    """Live as this worker, and leave the process with its exit code.

    By `os._exit`, straight from the loop: native threads of an engine, or a load that was called
    off, may still run, and an ordinary end of the loop or the interpreter would wait for them.
    """
    quiet_openmp()

    async def life() -> NoReturn:
        _exit(await Agent(spec, lambda: make_engine(spec)).run())

    uvloop.run(life())


def run_worker_file(path: Path) -> NoReturn:
    """Read a worker's spec from a file and live as it: what `hostler worker --spec` does."""
    try:
        spec = msgspec.json.decode(path.read_bytes(), type=WorkerSpec)
        configure_logging(json_lines=spec.log_json)
        if folder := spec.held.folder:
            os.chdir(folder)
            sys.path.insert(0, folder)
        run_worker(spec)
    except Exception as error:  # boundary: the process; its last words go to the log
        log.error("worker.crashed", error=error, spec=path)
    finally:
        _exit(EXIT_ENGINE)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
