"""LendingDesk: the agent's two routes for gateways that want a prompt read once for several slots."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from hostler.app.telemetry import logger
from hostler.core.errors import BadRequest, HostlerError, NotFound, Overloaded
from hostler.engines.lending import (
    LEND_PATH,
    READ_PATH,
    LendOrder,
    PrefixLender,
    ReadOrder,
)
from hostler.wire.server import Exchange

log = logger(__name__)

AT_ONCE = 4  # orders under way
_JSON = ((b"content-type", b"application/json"),)


class LendingDesk:
    """Carries out orders beside the agent's life; one whose sender leaves is given up."""

    def __init__(self) -> None:
        self.tasks: asyncio.TaskGroup | None = None  # where they run; None: the worker leaves
        self._running: set[asyncio.Task[None]] = set()

    def handle(self, exchange: Exchange, engine: object) -> None:
        """Carry out the order in a request. Raises a HostlerError for one that cannot be."""
        if not isinstance(engine, PrefixLender):
            raise NotFound("this engine lends nothing")
        if self.tasks is None or len(self._running) >= AT_ONCE:
            raise Overloaded("too many loans are under way", retry_after_s=1)
        request = exchange.request
        work = _work(engine, request.path, request.body)
        task = self.tasks.create_task(self._carry_out(exchange, work), name="agent.lending")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

        def gone() -> None:
            task.cancel()

        exchange.on_gone = gone

    def close(self) -> None:
        """Take no more, and give up what is under way."""
        self.tasks = None
        for task in self._running:
            task.cancel()

    # Private

    async def _carry_out(
        self, exchange: Exchange, work: Callable[[], Awaitable[msgspec.Struct]]
    ) -> None:
        try:
            exchange.send(200, msgspec.json.encode(await work()), _JSON)
        except HostlerError as error:
            log.info("lending.refused", code=error.code, error=error)
            exchange.send_error(error)
        except Exception as error:  # boundary: one order to an engine, which is others' code
            log.error("lending.failed", error=error)
            exchange.send_error(HostlerError("a loan failed"))


# Private


def _work(engine: PrefixLender, path: str, body: bytes) -> Callable[[], Awaitable[msgspec.Struct]]:
    try:
        if path == READ_PATH:
            reading = msgspec.json.decode(body, type=ReadOrder)
            return lambda: engine.read_prefix(reading)
        if path == LEND_PATH:
            lending = msgspec.json.decode(body, type=LendOrder)
            return lambda: engine.lend_prefix(lending)
    except msgspec.MsgspecError as error:
        raise BadRequest(f"this is no order: {error}") from error
    raise NotFound(f"the agent has no {path}")
