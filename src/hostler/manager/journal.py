"""Journal: what operators may read of what happened, and who waits for more of it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from hostler.app.telemetry import logger
from hostler.core.errors import Standby
from hostler.core.lifecycle import Instance, State
from hostler.core.worker import OperatorEvent
from hostler.manager.telling import PASSING
from hostler.storage.store import EventStore
from hostler.storage.writer import Writer, told

log = logger(__name__)

_AT_ONCE = 1000  # events in one write


class Journal:
    """Writes events to the store, and wakes those who follow.

    It has a writing thread of its own: a chatty download makes no operator's order wait. What happens while
    it writes is written together after that: a fleet that starts has ten thousand moves in a few seconds.
    """

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._writer = Writer("events")
        self._news = asyncio.Event()
        self._waiting: list[OperatorEvent] = []
        self._is_writing = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take events while the block lasts; every one is kept before it ends."""
        async with self._writer.running():
            try:
                yield
            finally:
                while self._is_writing:
                    await self._writer.flush()
                    await asyncio.sleep(0)  # for who is told that it is written

    def tell(self, event: OperatorEvent) -> None:
        """Keep one event; a full or locked disk costs the event, never what it tells of."""
        self._waiting.append(msgspec.structs.replace(event, at_s=time.time()))
        if not self._is_writing:
            self._write()
        if event.kind not in PASSING:
            log.info(
                event.kind, model=event.model, instance_id=event.instance_id, why=event.message
            )

    def tell_start(self, incarnation: int) -> None:
        """Keep that a manager begins. incarnation: which one on this store."""
        text = f"for the {incarnation}. time on this store"
        self.tell(OperatorEvent(kind="manager.start", message=text))

    def tell_move(self, before: Instance, after: Instance) -> None:
        """Keep one move of an instance: `instance.<state>`."""
        fields: dict[str, object] = {
            "from": before.state.value,
            "replica": after.replica,
            "epoch": after.epoch,
            "generation": after.generation,
            "took_s": round(after.since_s - before.since_s, 3),
        }
        self.tell(
            OperatorEvent(
                kind=f"instance.{after.state.value}",
                model=after.model_name,
                instance_id=after.instance_id,
                message=after.reason or _PLAIN.get(after.state, ""),
                fields=fields,
            )
        )

    def after(self, seq: int, limit: int, model: str | None) -> list[OperatorEvent]:
        return list(self._store.events(seq, limit, model))

    def last_seq(self) -> int:
        return self._store.last_seq()

    async def wait(self, seq: int, timeout_s: float) -> None:
        """Return when there is an event with a higher number, or the time has passed."""
        news = self._news
        if await asyncio.to_thread(self._store.last_seq) > seq:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await news.wait()
        except TimeoutError:
            return

    # Private

    def _write(self) -> None:
        """Write down what waits, and then what came meanwhile."""
        events, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
        self._is_writing = True

        def kept(error: BaseException | None) -> None:
            self._is_writing = False
            if error is not None and not isinstance(error, Standby):
                kinds = sorted({event.kind for event in events})
                log.warning("journal.lost", kind=", ".join(kinds), why=told(error))
            self._news.set()
            self._news = asyncio.Event()
            if self._waiting:
                self._write()

        self._writer.post(kept, self._store.append_event, *events)


# Private

_PLAIN = {
    State.FETCHING: "its files are being fetched",
    State.STARTING: "its process is loading the model",
    State.READY: "it takes requests",
    State.DRAINING: "it finishes what it has",
}
