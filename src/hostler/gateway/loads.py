"""Tells the controller what this gateway has in instances, and hears what other machines have there.

A report is what changed since the last one: each half second, and at once when requests wait that could
go where others have told to have nothing. How much is left to us is routing/afar.py.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping

from hostler.app.telemetry import logger
from hostler.core.errors import HostlerError
from hostler.core.loads import ENTRIES_MOST, EXPIRE_S, LoadAnswer, LoadReport, waiting_for
from hostler.gateway.probes import Prober
from hostler.routing.router import Router

EVERY_S = 0.5
GAP_S = 0.02  # between two reports at least
HURRIED_MOST = 10.0  # reports out of turn in a row; two a second are forgiven
FAREWELL_S = 0.5

Tell = Callable[[LoadReport], Awaitable[LoadAnswer]]

log = logger(__name__)


class LoadTeller:
    """Of one gateway process."""

    def __init__(
        self, router: Router, prober: Prober, tell: Tell | None, clock: Callable[[], float]
    ) -> None:
        """tell: takes a report, or raises a HostlerError; None: there is nobody to tell."""
        self._router = router
        self._prober = prober
        self._tell = tell
        self._clock = clock
        self._source = secrets.token_hex(8)
        self._seq = 0
        self._is_first = True
        self._seen = 0
        self._told: dict[str, int] = {}  # as the controller has it
        self._ours: dict[str, int] = {}  # of this machine, when that was told
        self._theirs: dict[str, int] = {}
        self._heard_at_s = clock()
        self._heard: tuple[str, ...] = ()  # hosts, to be told
        self._wanted = asyncio.Event()
        router.known.afar.on_want = self._wanted.set

    async def run(self) -> None:
        """Tell until cancelled."""
        if self._tell is None:
            return
        hurried, told_at_s = 0.0, self._clock()
        while True:
            self._wanted.clear()
            if await self.tell_once():
                self._wanted.set()
            before_s, told_at_s = told_at_s, self._clock()
            hurried = max(0.0, hurried - (told_at_s - before_s) / EVERY_S)
            gap_s = GAP_S if hurried < HURRIED_MOST else EVERY_S
            await asyncio.sleep(gap_s)
            try:
                async with asyncio.timeout(EVERY_S - gap_s):
                    await self._wanted.wait()
                hurried += 1
            except TimeoutError:
                continue

    async def tell_once(self) -> bool:
        """Tell what is other than before; True: it should be told again soon."""
        assert self._tell is not None
        counts, ours = self._news(), self._of_machine()
        self._seq += 1
        report = LoadReport(
            source=self._source,
            seq=self._seq,
            is_first=self._is_first,
            seen=self._seen,
            counts=counts,
            heard=self._heard,
        )
        try:
            answer = await self._tell(report)
        except HostlerError:
            self._begin_anew()
            if self._clock() - self._heard_at_s > EXPIRE_S:
                self._be_alone()
            return False
        if answer.is_lost:
            was_first = self._is_first
            self._begin_anew()
            return not was_first
        self._is_first = False
        _patch(self._told, counts)
        self._heard_at_s = self._clock()
        is_more = self._hear(answer, ours)
        before, self._heard = self._heard, await self._ask(answer.silent)
        if is_more:
            self._router.serve_all()
        is_short = is_more and any(one.queue for one in self._router.known.by_model.values())
        return is_short or self._heard != before or len(counts) == ENTRIES_MOST

    async def close(self) -> None:
        """Say goodbye, if somebody listens: what we had counts no more."""
        if self._tell is None or self._is_first:
            return
        try:
            async with asyncio.timeout(FAREWELL_S):
                await self._tell(LoadReport(source=self._source, seq=0, is_last=True))
        except (HostlerError, TimeoutError):
            return

    # Private

    def _news(self) -> dict[str, int]:
        """What is other than the controller has it, as much as one report may hold."""
        told, pools = self._told, self._router.known.by_model
        waiting = {waiting_for(name): len(one.queue) for name, one in pools.items() if one.queue}
        load = {**self._router.load, **waiting}
        counts = {one: 0 for one in told if one not in load}
        counts.update((one, count) for one, count in load.items() if told.get(one) != count)
        if len(counts) > ENTRIES_MOST:
            counts = dict(list(counts.items())[:ENTRIES_MOST])
        return counts

    def _of_machine(self) -> dict[str, int]:
        """What this machine has, with its other gateways."""
        load, peers = self._router.load, self._router.peers
        if peers is None or self._router.known.afar.machines <= 1:
            return dict(load)
        both = (
            (one, load.get(one, 0) + peers.elsewhere(one))
            for one in self._router.known.picture.instances
        )
        return {one: count for one, count in both if count}

    def _hear(self, answer: LoadAnswer, ours: dict[str, int]) -> bool:
        """Go by what was told; True: there is more for us than before."""
        theirs = {} if answer.is_whole else self._theirs
        changed = set(answer.counts)
        if answer.is_whole:
            changed.update(self._theirs)
        changed.update(one for one, count in ours.items() if self._ours.get(one) != count)
        changed.update(one for one in self._ours if one not in ours)
        _patch(theirs, answer.counts)
        self._theirs, self._ours, self._seen = theirs, ours, answer.version
        before = self._router.known.afar.machines
        if answer.machines != before:
            log.info("loads.machines", machines=answer.machines, before=before)
        return self._router.known.hear(answer.machines, theirs, ours, changed)

    def _begin_anew(self) -> None:
        self._is_first, self._seen, self._told, self._heard = True, 0, {}, ()

    def _be_alone(self) -> None:
        """Nobody tells what others have: what they told counts no more."""
        known = self._router.known
        if known.afar.machines > 1:
            log.warning("loads.alone", silent_s=round(self._clock() - self._heard_at_s, 1))
            self._theirs = {}
            if known.hear(1, {}, self._ours, ()):
                self._router.serve_all()

    async def _ask(self, host_ids: Iterable[str]) -> tuple[str, ...]:
        """Those of these hosts of which an instance answers us."""
        wanted = frozenset(host_ids)
        if not wanted:
            return ()
        return await self._prober.hosts_that_answer(wanted, since_s=self._clock() - EVERY_S)


# Private


def _patch(counts: dict[str, int], news: Mapping[str, int]) -> None:
    for one, count in news.items():
        if count:
            counts[one] = count
        else:
            counts.pop(one, None)
