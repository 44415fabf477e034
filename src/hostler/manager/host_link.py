"""Link: how a host and its controller hear of each other. It decides nothing and starts nothing.

Beats go out as often as the controller asks, and at once when a state has changed; the list of orders
comes in on a connection that stays open. Either may break without the other, and both for any length.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Protocol, TypeVar

import msgspec

from hostler.app.background import Background, begin
from hostler.app.config import HostConfig
from hostler.app.tasks import first_of
from hostler.app.telemetry import logger
from hostler.core.errors import Conflict, ControllerUnavailable, HostlerError, StaleEpoch
from hostler.core.hosts import HostBeat, HostBeatAnswer, HostOrders, Offer, OfferAnswer
from hostler.core.refusal import refusal_in
from hostler.core.snapshot import Spoken
from hostler.manager.controllers import Controllers
from hostler.manager.host_orders import rank
from hostler.registry.pace import FEW_S, again_s
from hostler.wire.client import Pool, UpstreamLost, UpstreamStatus, fetch, stream

log = logger(__name__)

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

COALESCE_S = 0.05  # changes so close together are one beat
RETRY_FIRST_S, RETRY_LAST_S = 0.5, 4.0  # between tries to reach a controller that is away
LINE_BYTES = 32 << 20  # of one list of orders
_LEAVE_S = 2.0
_STALE_S = 1.0  # a try that is older than the good news hangs in the silence before it
_BEHIND = 3  # beats in a row whose answer knows of newer orders: the stream hangs
_BEATS, _ORDERS = "beats", "orders"  # the two ways, in the log
_JSON = ((b"content-type", b"application/json"),)


class Speaks(Protocol):
    """Makes what a host says. `host_voice.Voice` is one."""

    def beat(self) -> HostBeat:
        """Return the next beat. Nothing counts as told before `heard`."""

    def heard(self, beat: HostBeat, answer: HostBeatAnswer) -> bool:
        """A beat was answered; return whether another one is wanted at once."""

    def forget(self) -> None:
        """Say everything again: who listens now may be another one."""


class Link:
    """Tells and hears, as long as `running` lasts."""

    def __init__(
        self,
        controllers: Controllers,
        voice: Speaks,
        config: HostConfig,
        *,
        known: tuple[int, int],
        take: Callable[[HostOrders], Awaitable[None]],
        dismissed: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        """known: the rank of the newest orders from before. take: keeps a newer list and obeys it.

        dismissed: told why the controller wants no more of this host.
        """
        self._controllers = controllers
        self._voice = voice
        self._config = config
        self._take = take
        self._clock = clock
        self._heard_at_s = clock()
        self._news = asyncio.Event()
        self._reopen = asyncio.Event()
        self._is_back = asyncio.Event()  # set, and another one: the line is good again
        self._is_cut = asyncio.Event()  # set, and another one: the stream of orders has ended
        self._is_renewed = False  # in this silence
        self._tried_at_s: dict[str, float] = {}  # by way: since when the try under way is silent
        self._tasks: asyncio.TaskGroup | None = None
        self._behind = 0
        self._spread_s = 0.0  # over which hosts as many as we are should come back
        self._back_at_s = clock()  # our turn to come back
        self._is_good = False  # something was heard on the stream of now
        self._told: dict[str, str] = {}  # by what is disturbed
        self._unknown_since_s: float | None = None
        self._dismissed = dismissed
        self.known = known

    @property
    def silence_s(self) -> float:
        """Seconds since a controller was last heard."""
        return self._clock() - self._heard_at_s

    @property
    def is_heard(self) -> bool:
        return not self._told

    @property
    def is_unknown(self) -> bool:
        """Has the controller said last that it does not know this host?"""
        return self._unknown_since_s is not None

    @property
    def silent(self) -> frozenset[str]:
        """The ways on which no controller is heard: beats, orders."""
        return frozenset(self._told)

    def url(self) -> str:
        """Where the controller is now."""
        return self._controllers.url

    def hurry(self) -> None:
        """Beat soon: something has changed."""
        self._news.set()

    def asked(self) -> HostBeat:
        """The beat for a controller that came for it, because none arrived there.

        Where it came, we get through: tries that wait are made at once, and what was sent into a
        cut line is not waited for; but once a silence only, since a handshake may take long (F42).
        """
        now_s = self._heard_at_s = self._clock()
        is_stale = any(now_s - at_s > _STALE_S for at_s in self._tried_at_s.values())
        if is_stale and not self._is_renewed and self._tasks is not None:
            self._is_renewed = True
            self._tasks.create_task(self._controllers.renew(), name="host.renew")
        self._is_back.set()
        self._is_back = asyncio.Event()
        return self._voice.beat()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                beats = begin(tasks, Background.HOST_BEATS, self._beats())
                orders = begin(tasks, Background.HOST_ORDERS, self._listen())
                try:
                    yield
                finally:
                    self._tasks = None
                    beats.cancel()
                    orders.cancel()
        finally:  # also when it is cancelled: no connection stays
            await self._controllers.renew()

    async def beat(self) -> float:
        """Beat once; return how many seconds until the next is due.

        It is given up when the orders end meanwhile: nobody is left there who would answer.

        Raises:
            HostlerError: it was not taken.
        """
        is_cut, due_s = self._is_cut, 0.0

        async def beat() -> None:
            nonlocal due_s
            due_s = await self._beat()

        try:
            await first_of(beat(), is_cut.wait())
        except* HostlerError as group:
            if not is_cut.is_set():
                raise _first(group) from group
        return due_s

    async def offer(self, offer: Offer) -> OfferAnswer:
        """Bring a worker of one's own.

        Raises:
            ControllerUnavailable: nobody answers; HostlerError: it is not taken.
        """
        return await self._ask("/host/offer", offer, OfferAnswer, self._config.answer_timeout_s)

    async def leave(self) -> None:
        """Say goodbye, if anybody hears it."""
        try:
            await self._ask("/host/leave", self._voice.beat(), dict[str, object], _LEAVE_S)
        except HostlerError as error:
            log.info("host.goodbye_unheard", why=error.message)

    # Private: beats

    async def _beats(self) -> None:
        wait_s = RETRY_FIRST_S
        while True:
            self._news.clear()
            is_back, is_cut = self._is_back, self._is_cut
            try:
                with self._trying(_BEATS):
                    due_s = await self.beat()
                wait_s, is_back = RETRY_FIRST_S, asyncio.Event()  # nothing waits for a good line
            except HostlerError as error:
                self._note_silence(_BEATS, error)
                self._voice.forget()
                due_s = again_s(wait_s, self._spread_s)
                wait_s = min(wait_s * 2, RETRY_LAST_S)
            await first_of(self._news.wait(), is_back.wait(), is_cut.wait(), timeout_s=due_s)
            if (hold_s := self._back_at_s - self._clock()) > 0:
                await first_of(self._news.wait(), self._is_back.wait(), timeout_s=hold_s)
            if self._news.is_set():
                await asyncio.sleep(COALESCE_S)

    async def _beat(self) -> float:
        beat = self._voice.beat()
        answer = await self._ask("/host/beat", beat, HostBeatAnswer, self._config.answer_timeout_s)
        self._check_incarnation(answer.incarnation)
        self._note_heard(_BEATS)
        is_wanted = self._voice.heard(beat, answer)
        self._note_version((answer.incarnation, answer.version))
        self._spread_s = answer.spread_s
        is_at_once = is_wanted and self._spread_s <= FEW_S  # one of many waits for its turn
        return 0.0 if is_at_once else max(0.0, answer.next_beat_s)

    def _note_version(self, told: tuple[int, int]) -> None:
        """An answer that knows of newer orders again and again: their stream is dead, unnoticed."""
        self._behind = self._behind + 1 if told > self.known else 0
        if self._behind >= _BEHIND:
            self._behind = 0
            log.warning("host.orders_hang", known=self.known, told=told)
            self._reopen.set()

    # Private: orders

    async def _listen(self) -> None:
        wait_s = RETRY_FIRST_S
        while True:
            self._reopen.clear()
            self._is_good = False
            is_back, pool, is_lost = self._is_back, self._controllers.pool(), False
            try:
                with self._trying(_ORDERS):
                    await first_of(self._read(pool), self._reopen.wait())
            except* (UpstreamLost, TimeoutError, OSError) as group:
                is_lost = True
                why = f"its orders ended: {_first(group)}"
                self._note_silence(_ORDERS, ControllerUnavailable(why))
            except* HostlerError as group:
                self._note_silence(_ORDERS, _first(group))
            if self._is_good:  # who answers next may be another one: one beat tells it everything
                self._voice.forget()
                wait_s = RETRY_FIRST_S
            over_s = 0.0 if self._reopen.is_set() else self._spread_s
            due_s = again_s(wait_s, over_s)
            if self._is_good and over_s:  # it ended for all at once, most probably
                self._back_at_s = self._clock() + due_s
                self._is_cut.set()
                self._is_cut = asyncio.Event()
            if is_lost:
                await self._controllers.failed(pool)
            await first_of(is_back.wait(), timeout_s=due_s)
            wait_s = min(wait_s * 2, RETRY_LAST_S)

    async def _read(self, pool: Pool) -> None:
        """Take lists until the stream ends.

        Raises:
            HostlerError: it ended, or says what is not understood.
            UpstreamLost, TimeoutError, OSError: it is cut or silent.
        """
        pending = bytearray()
        limit_s, idle_s = self._config.answer_timeout_s, self._config.silence_s
        parts = stream(
            pool.endpoint, "GET", "/host/orders", timeout_s=limit_s, idle_s=idle_s, pool=pool
        )
        try:
            async with aclosing(parts):
                async for part in parts:
                    pending += part
                    *lines, rest = pending.split(b"\n")
                    pending = bytearray(rest)
                    if len(pending) > LINE_BYTES:
                        raise Conflict(f"a list of orders has over {LINE_BYTES} bytes")
                    for line in lines:
                        await self._hear(bytes(line))
        except UpstreamStatus as error:
            raise await self._refusal(pool, error.status, error.body) from error
        raise ControllerUnavailable("its orders ended")

    async def _hear(self, line: bytes) -> None:
        """Take one line: a list, or the empty one of a controller that has nothing new."""
        if not line.strip():
            self._note_heard(_ORDERS)
            return
        try:
            if refusal := msgspec.json.decode(line, type=Spoken).refusal():
                raise Conflict(refusal)
            orders = msgspec.json.decode(line, type=HostOrders)
        except msgspec.MsgspecError as error:
            raise Conflict(f"its orders cannot be read: {error}") from error
        self._check_incarnation(orders.incarnation)
        self._note_heard(_ORDERS)
        if rank(orders) > self.known:
            self.known = rank(orders)
            await self._take(orders)  # no beat: what changes by it is news of its own

    # Private: both

    @contextmanager
    def _trying(self, by: str) -> Iterator[None]:
        self._tried_at_s[by] = self._clock()
        try:
            yield
        finally:
            del self._tried_at_s[by]

    async def _ask(self, path: str, message: msgspec.Struct, kind: type[T], timeout_s: float) -> T:
        pool = self._controllers.pool()
        body = msgspec.json.encode(message)
        try:
            answer = await fetch(
                pool.endpoint,
                "POST",
                path,
                headers=_JSON,
                body=body,
                timeout_s=timeout_s,
                pool=pool,
            )
        except (UpstreamLost, TimeoutError, OSError) as error:
            await self._controllers.failed(pool)
            raise ControllerUnavailable(str(error)) from error
        if answer.status != 200:
            raise await self._refusal(pool, answer.status, answer.body)
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except msgspec.MsgspecError as error:
            raise Conflict(f"its answer to {path} cannot be read: {error}") from error

    async def _refusal(self, pool: Pool, status: int, body: bytes) -> HostlerError:
        """What an answer of 400 or more means. A host that is told for a while that it is not known has
        been removed; one whose place another process has taken ends at once.
        """
        code, text = refusal_in(body)
        if code == StaleEpoch.code:
            self._dismissed(text)
        elif status in (403, 404):
            self._unknown_since_s = self._unknown_since_s or self._clock()
            if self._clock() - self._unknown_since_s > self._config.dismissed_after_s:
                self._dismissed(text)
        if status < 500:
            return Conflict(text)
        # it stands by, or is in trouble: another one may serve
        await self._controllers.failed(pool)
        return ControllerUnavailable(text)

    def _check_incarnation(self, incarnation: int) -> None:
        """Refuse what a controller says that is older than one heard before (F35)."""
        if incarnation and incarnation < self.known[0]:
            raise Conflict(
                f"this controller is the {incarnation}. on its store; orders of the {self.known[0]}. were "
                "heard before: another one serves, or its store is an old copy"
            )

    def _note_heard(self, by: str) -> None:
        self._heard_at_s = self._clock()
        if by == _BEATS:
            self._unknown_since_s, self._is_renewed = None, False
        else:
            self._is_good, self._tried_at_s[by] = True, self._heard_at_s
        if self._told.pop(by, None):
            log.info("host.controller_heard", by=by)

    def _note_silence(self, by: str, error: HostlerError) -> None:
        """Told once, and again when it is for another reason."""
        if self._told.get(by) != error.code:
            self._told[by] = error.code
            log.warning("host.controller_away", by=by, code=error.code, why=error.message)


# Private


def _first(group: BaseExceptionGroup[E]) -> E:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise group
