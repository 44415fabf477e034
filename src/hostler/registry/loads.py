"""LoadSum: adds up what gateways have in each instance, and tells each machine what the others have.

Soft, as all of the registry: gateways tell everything anew to a controller that does not know them.
It limits nothing; what a machine makes of it is routing/afar.py.
"""

from collections.abc import Callable, Iterable

from hostler.core.loads import ENTRIES_MOST, EXPIRE_S, LoadAnswer, LoadReport

SOURCES_MOST = 256  # gateway processes
KEPT_MOST = (
    20_000  # instances remembered at which nobody has anything; of one process: that are told
)
_COUNT_MOST = 1_000_000


class LoadSum:
    """What all gateways have, by instance and machine."""

    def __init__(
        self,
        clock: Callable[[], float],
        silent: Callable[[], Iterable[str]] = tuple,
        vouch: Callable[[str], None] = lambda host_id: None,
    ) -> None:
        """silent: hosts whose beats are late. vouch: told of one whose instances answer a gateway."""
        self._clock = clock
        self._silent = silent
        self._vouch = vouch
        self._sources: dict[str, _Source] = {}
        self._counts: dict[str, _Count] = {}  # what changed longest ago first
        self._version = 0
        self._floor = 0  # of what changed before, something is forgotten

    def take(self, machine: str, report: LoadReport) -> LoadAnswer:
        """Hear a gateway process of a machine; "": of the controller's own."""
        self._expire()
        source = self._sources.get(report.source)
        if report.is_last:
            self._drop(report.source)
            return LoadAnswer()
        for host_id in report.heard[:ENTRIES_MOST]:
            self._vouch(host_id)
        if report.is_first:
            self._drop(report.source)
            if len(self._sources) >= SOURCES_MOST:
                return LoadAnswer(is_lost=True)
            source = self._sources[report.source] = _Source(machine)
        elif source is None or source.machine != machine or report.seq != source.seq + 1:
            self._drop(report.source)
            return LoadAnswer(is_lost=True)
        source.seq, source.heard_at_s = report.seq, self._clock()
        for instance_id, count in report.counts.items():
            if instance_id in source.counts or len(source.counts) < KEPT_MOST:
                self._note(source, instance_id, min(max(0, count), _COUNT_MOST))
        return self._answer(machine, 0 if report.is_first else report.seen)

    @property
    def machines(self) -> frozenset[str]:
        """Who tells what it has, at present."""
        return frozenset(source.machine for source in self._sources.values())

    # Private

    def _answer(self, machine: str, seen: int) -> LoadAnswer:
        """What the others of this machine have, as far as it changed since."""
        is_whole = not self._floor <= seen <= self._version or not seen
        news: list[tuple[str, _Count]] = []
        for instance_id, count in reversed(self._counts.items()):
            if not is_whole and count.version <= seen:
                break
            if count.is_news(machine, seen, is_whole=is_whole):
                news.append((instance_id, count))
        news.reverse()
        told = news[:ENTRIES_MOST]
        return LoadAnswer(
            machines=len(self.machines | {machine}),
            version=told[-1][1].version if len(news) > len(told) else self._version,
            is_whole=is_whole,
            counts={instance_id: count.elsewhere(machine) for instance_id, count in told},
            silent=tuple(self._silent())[:ENTRIES_MOST],
        )

    def _note(self, source: "_Source", instance_id: str, number: int) -> None:
        more = number - source.counts.get(instance_id, 0)
        if not more:
            return
        if number:
            source.counts[instance_id] = number
        else:
            del source.counts[instance_id]
        self._version += 1
        count = self._counts.pop(instance_id, None) or _Count()
        count.add(source.machine, more, self._version)
        self._counts[instance_id] = count

    def _drop(self, name: str) -> None:
        """What this process told counts no more."""
        source = self._sources.pop(name, None)
        if source is not None:
            for instance_id in list(source.counts):
                self._note(source, instance_id, 0)

    def _expire(self) -> None:
        since_s = self._clock() - EXPIRE_S
        for name in [n for n, one in self._sources.items() if one.heard_at_s < since_s]:
            self._drop(name)
        if len(self._counts) > KEPT_MOST:
            self._forget()

    def _forget(self) -> None:
        """Keep the newer half of what is at 0 everywhere; who has not heard it by then hears all anew."""
        idle = [
            (i, count.version) for i, count in self._counts.items() if not any(count.by.values())
        ]
        for instance_id, version in idle[: len(idle) // 2 + 1]:
            del self._counts[instance_id]
            self._floor = version


class _Source:
    """One gateway process."""

    __slots__ = ("counts", "heard_at_s", "machine", "seq")

    def __init__(self, machine: str) -> None:
        self.machine = machine
        self.seq = 0
        self.heard_at_s = 0.0
        self.counts: dict[str, int] = {}


class _Count:
    """What there is in one instance, by machine, and at which version each of them changed last."""

    __slots__ = ("by", "changed", "version")

    def __init__(self) -> None:
        self.by: dict[str, int] = {}
        self.changed: dict[str, int] = {}
        self.version = 0

    def add(self, machine: str, more: int, version: int) -> None:
        self.by[machine] = self.by.get(machine, 0) + more
        self.changed[machine] = self.version = version

    def elsewhere(self, machine: str) -> int:
        return sum(number for of, number in self.by.items() if of != machine)

    def is_news(self, machine: str, seen: int, *, is_whole: bool) -> bool:
        """Must a machine that is at this version be told?"""
        if is_whole:
            return self.elsewhere(machine) > 0
        return any(at > seen for of, at in self.changed.items() if of != machine)
