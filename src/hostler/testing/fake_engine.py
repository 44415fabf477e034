"""The fake engine: an OpenAI server whose every byte is known beforehand and that fails as it is told.

    python -m hostler.testing.fake_engine --socket PATH | --port N [--host ADDRESS]
        [--model NAME] [--script JSON] [--ledger FILE]

Orders are in `fake_script`, answers in `fake_answers`. It must start quickly, so it imports little.
"""

import asyncio
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable

import msgspec
import uvloop

from hostler.testing import fake_faults, fake_text
from hostler.testing.executions import End, Execution, ExecutionLog
from hostler.testing.fake_answers import CREATED, MAKERS, Answer, Refused, make_answer
from hostler.testing.fake_door import Door
from hostler.testing.fake_http import Connection, Request, whole
from hostler.testing.fake_memory import Memory
from hostler.testing.fake_run import run_answer
from hostler.testing.fake_script import Script, merge, parse_script

CACHED = 2048  # prepared answers kept
CACHED_BODY = 16 * 1024  # bytes; longer requests are prepared each time


class FakeEngine:
    """One engine: what it serves, by which script, and what it did."""

    def __init__(
        self, model: str, script: Script, log: ExecutionLog, tasks: asyncio.TaskGroup
    ) -> None:
        self.model = model
        self.script = script
        self.log = log
        self.door: Door | None = None
        self.grandchildren: list[int] = []
        self._tasks = tasks
        self._memory = Memory()
        self._prepared: dict[tuple[str, bytes], Answer] = {}
        self._rate_debt = 0.0
        self._numbers = 0
        self._last: tuple[str, bytes] = ("", b"null")
        self._ready_at_s = time.monotonic() + script.load_s
        self._instance_id = fake_faults.environment().get("HOSTLER_INSTANCE", "")
        self._pid = fake_faults.pid()
        self._routes: dict[tuple[str, str], Callable[[Request], bytes]] = {
            ("GET", "/health"): self._health,
            ("GET", "/v1/models"): self._models,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/tokenize"): self._tokenize,
            ("GET", "/_fake/script"): self._show_script,
            ("POST", "/_fake/script"): self._change_script,
            ("GET", "/_fake/ledger"): self._ledger,
            ("GET", "/_fake/last"): self._show_last,
        }

    def connect(self) -> Connection:
        """Make the protocol of a new connection."""
        return Connection(self.serve, self.script.close_after)

    def serve(self, connection: Connection, request: Request) -> None:
        """Answer one request; what takes time goes on in a task."""
        route = self._routes.get((request.method, request.path))
        if route is not None:
            connection.send(route(request))
            connection.finish(request)
        elif request.path not in MAKERS or request.method != "POST":
            connection.send(_error(404, f"no {request.method} {request.path} here", "not_found"))
            connection.finish(request)
        elif not self._is_ready():
            connection.send(_error(503, "Loading model", "unavailable"))
            connection.finish(request)
        else:
            self._execute(connection, request)

    # Private: executions

    def _execute(self, connection: Connection, request: Request) -> None:
        self._last = (request.path, request.body)
        try:
            answer = self._prepare(request)
        except Refused as refused:
            answer = Answer(request.path, "", (), Script(status=refused.status))
            execution = self._begin(request, answer)
            execution.status = refused.status
            connection.send(_error(refused.status, str(refused), refused.code))
            self.log.end(execution, End.REFUSED)
            connection.finish(request)
            return
        execution = self._begin(request, answer)
        if answer.script.status and self._is_due(answer.script.status_rate):
            execution.status = answer.script.status
            connection.send(fake_faults.status_answer(answer.script))
            self.log.end(execution, End.REFUSED)
            connection.finish(request)
        elif answer.quick and not answer.stream:
            execution.tokens = answer.tokens
            connection.send(answer.whole)
            self.log.end(execution, End.DONE)
            connection.finish(request)
        else:
            connection.task = self._tasks.create_task(
                self._run(connection, request, answer, execution)
            )

    async def _run(
        self, connection: Connection, request: Request, answer: Answer, execution: Execution
    ) -> None:
        try:
            await run_answer(connection, answer, execution, self.log, self._memory)
        except asyncio.CancelledError:
            self.log.end(execution, End.ABORTED)
            if connection.transport is not None:
                raise  # not the client: the whole process stops
            return
        self.log.end(execution, End.DONE if connection.transport else End.ABORTED)
        connection.finish(request)

    def _prepare(self, request: Request) -> Answer:
        key = (request.path, request.body)
        answer = self._prepared.get(key)
        if answer is None:
            answer = make_answer(request.path, request.body, self.model, self.script)
            if len(request.body) <= CACHED_BODY:
                if len(self._prepared) >= CACHED:
                    self._prepared.clear()
                self._prepared[key] = answer
        return answer

    def _begin(self, request: Request, answer: Answer) -> Execution:
        self._numbers += 1
        execution = Execution(
            number=self._numbers,
            pid=self._pid,
            instance_id=self._instance_id,
            request_id=request.request_id,
            path=request.path,
            model=self.model,
            asked=answer.asked,
            digest=answer.digest,
            body_keys=answer.body_keys,
            stream=answer.stream,
            prompt_tokens=answer.prompt_tokens,
            started_at_s=time.monotonic(),
        )
        self.log.begin(execution)
        return execution

    def _is_due(self, rate: float) -> bool:
        """True for this share of the calls, evenly spread."""
        self._rate_debt += rate
        if self._rate_debt < 1.0:
            return False
        self._rate_debt -= 1.0
        return True

    def _is_ready(self) -> bool:
        return not self.script.never_ready and time.monotonic() >= self._ready_at_s

    # Private: routes

    def _health(self, request: Request) -> bytes:
        if not self._is_ready():
            return _error(503, "Loading model", "unavailable")
        return whole(200, b'{"status":"ok"}')

    def _models(self, request: Request) -> bytes:
        if not self._is_ready():
            return _error(503, "Loading model", "unavailable")
        model = {
            "id": self.script.lie_model or self.model,
            "object": "model",
            "created": CREATED,
            "owned_by": "hostler-fake",
        }
        return _json({"object": "list", "data": [model]})

    def _metrics(self, request: Request) -> bytes:
        line = f"fake:requests_running {self.log.counts.in_flight}\n"
        return whole(200, line.encode(), content_type="text/plain; version=0.0.4")

    def _tokenize(self, request: Request) -> bytes:
        try:
            body = msgspec.json.decode(request.body)
            if "content" in body:
                body = {"prompt": body["content"]}
            count = fake_text.prompt_tokens(body)
        except (msgspec.DecodeError, TypeError, AttributeError):
            return _error(400, "bad request", "invalid_value")
        return _json({"count": count, "max_model_len": 4096, "tokens": list(range(count))})

    def _show_script(self, request: Request) -> bytes:
        return _json(self.script)

    def _change_script(self, request: Request) -> bytes:
        try:
            self.script = merge(self.script, msgspec.json.decode(request.body or b"{}"))
        except (msgspec.DecodeError, TypeError) as error:
            return _error(400, str(error), "invalid_value")
        self._prepared.clear()
        self._rate_debt = 0.0
        if self.script.refuse_s and self.door is not None:
            self._tasks.create_task(self.door.refuse(self.script.refuse_s))
            self.script = merge(self.script, {"refuse_s": None})
        if self.script.grandchildren and not self.grandchildren:
            self.grandchildren = fake_faults.spawn_grandchildren()
        return _json(self.script)

    def _ledger(self, request: Request) -> bytes:
        facts = {"model": self.model, "pid": self._pid, "instance_id": self._instance_id}
        counts = self.log.counts
        data = {"grandchildren": self.grandchildren, "executions": list(self.log.records)}
        return _json({**facts, "counts": counts, **data})

    def _show_last(self, request: Request) -> bytes:
        path, body = self._last
        try:
            parsed = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            parsed = None
        return _json({"path": path, "body": parsed, "raw": body.decode("utf-8", "replace")})


async def serve(arguments: "Arguments") -> int:
    """Serve until a signal; return the exit code."""
    script = arguments.script
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    log = ExecutionLog(arguments.ledger)
    async with asyncio.TaskGroup() as tasks:
        engine = FakeEngine(arguments.model, script, log, tasks)
        fake_faults.on_sigterm(loop, lambda: engine.script.sigterm, log, stop)
        if script.grandchildren:
            engine.grandchildren = fake_faults.spawn_grandchildren()
        door = engine.door = Door(engine.connect, arguments.socket, arguments.host, arguments.port)
        await door.open()
        try:
            await stop.wait()
        finally:
            door.shut()
    return 0


class Arguments(msgspec.Struct, kw_only=True):
    socket: str
    host: str
    port: int
    model: str
    script: Script
    ledger: str


def parse_arguments(argv: list[str]) -> Arguments:
    parser = ArgumentParser(prog="fake_engine", allow_abbrev=False)
    parser.add_argument("--socket", default="")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="fake")
    parser.add_argument("--script", default="{}")
    parser.add_argument("--ledger", default="")
    given = vars(parser.parse_args(argv))
    return msgspec.convert({**given, "script": parse_script(given["script"])}, Arguments)


def main() -> int:
    try:
        arguments = parse_arguments(sys.argv[1:])
    except msgspec.MsgspecError as error:
        sys.stderr.write(f"fake engine: --script: {error}\n")
        return 2
    script = arguments.script
    if script.dump:
        fake_faults.dump(script.dump)
    fake_faults.print_megabytes(script.start_stdout_mb)
    if script.exit_at_start is not None:
        sys.stderr.write("fake engine: told to exit at start\n")
        return script.exit_at_start
    return uvloop.run(serve(arguments))


# Private


def _json(data: object) -> bytes:
    return whole(200, msgspec.json.encode(data))


def _error(status: int, message: str, code: str) -> bytes:
    return whole(status, fake_faults.error_body(message, code))


if __name__ == "__main__":
    raise SystemExit(main())
