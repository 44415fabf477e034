"""Follow: wait for a model, and show how far it is."""

import time
from collections.abc import Callable
from contextlib import closing
from queue import Empty, Queue
from threading import Thread
from typing import TypeVar

from hostler.admin.messages import ModelStatus
from hostler.cli.api import Api
from hostler.cli.exits import CommandFailed, Exit
from hostler.cli.meter import Meter
from hostler.cli.render import duration
from hostler.core.lifecycle import State

T = TypeVar("T")

_SILENCE_S = 20.0  # after which the stream is opened again; the server's keep-alive is shorter
_LOOK_S = 0.25
_LIMIT_S = 600.0  # of a start, where a server does not tell its own
_AWAY_S = 15.0  # a controller may be away so long before a command gives up
_PASSING = (Exit.UNREACHABLE, Exit.TRY_AGAIN, Exit.FAILED)


class Follow:
    """Waits for one model of one server. quiet: shows nothing."""

    def __init__(self, api: Api, status: ModelStatus, *, quiet: bool) -> None:
        self._api = api
        self._name = status.name
        self._type = status.worker_type
        self._status = status
        self._meter = Meter(quiet=quiet)
        self._since_s = time.monotonic()
        self._failed = _failed(status)  # before the order; it may try them anew

    def until_ready(self, events: str, timeout_s: float | None) -> ModelStatus:
        """Return how it stands when it is ready, an instance has failed, or the time has passed.

        events: the address of its event stream, from the order on. timeout_s: None: as long as the
            server lets a start take, from the last sign of a download on.
        """
        began_s = self._since_s = time.monotonic()
        with self._meter:
            while not self._is_done() and self._left_s(timeout_s) > 0:
                events = self._read(events, timeout_s)
        if self._status.ready >= self._status.wanted:
            took = duration(time.monotonic() - began_s)
            self._meter.line(f"{self._status.worker_key}: ready after {took}")
        return self._status

    def until_gone(self, timeout_s: float) -> int:
        """Return how many of its instances are left: 0, or those at the end of the time."""
        end_s = time.monotonic() + timeout_s
        while True:
            mine = [
                one for one in self._api.instances() if one.worker_key == self._status.worker_key
            ]
            self._meter.show_drains(mine)
            left = sum(not one.stopped for one in mine)
            if not left or time.monotonic() >= end_s:
                return left
            time.sleep(_LOOK_S)

    def while_ordered(self, order: Callable[[], T]) -> T:
        """Give an order that is answered when it is done; show what comes of it meanwhile.

        Raises:
            CommandFailed: what the order raised; a look that fails is only left out.
        """
        answers: Queue[T | CommandFailed] = Queue()

        def give() -> None:
            try:
                answers.put(order())
            except CommandFailed as failure:
                answers.put(failure)

        seen = max((event.seq for event in self._api.events(model=self._name)), default=0)
        Thread(target=give, name="order", daemon=True).start()
        with self._meter:
            while True:
                try:
                    answer = answers.get(timeout=_LOOK_S)
                except Empty:
                    seen = self._glance(seen)
                    continue
                except KeyboardInterrupt:
                    self._meter.line(f"{self._status.worker_key}: the server goes on with it")
                    raise
                self._glance(seen)
                break
        if isinstance(answer, CommandFailed):
            raise answer
        return answer

    # Private

    def _is_done(self) -> bool:
        status = self._status
        return status.ready >= status.wanted or bool(_failed(status) - self._failed)

    def _left_s(self, timeout_s: float | None) -> float:
        limit_s = (self._status.start_limit_s or _LIMIT_S) if timeout_s is None else timeout_s
        return self._since_s + limit_s - time.monotonic()

    def _read(self, events: str, timeout_s: float | None) -> str:
        """Follow the stream until it is done or breaks; return the address to go on from."""
        idle_s = min(_SILENCE_S, max(0.1, self._left_s(timeout_s)))
        try:
            with closing(self._api.follow_events(events, idle_s=idle_s)) as news:
                for event in news:
                    events = go_on_from(events, event.seq)
                    self._meter.show(event)
                    if event.kind == "fetch.progress" and timeout_s is None:
                        self._since_s = time.monotonic()
                    if event.kind.startswith("instance."):
                        self._look()
                    if self._is_done() or self._left_s(timeout_s) <= 0:
                        break
        except CommandFailed as failure:
            if failure.exit_code not in _PASSING:
                raise
            self._look_again(failure)
        return events

    def _glance(self, seen: int) -> int:
        """Show what has happened since this event; return the newest one."""
        try:
            for event in self._api.events(after=seen, model=self._name):
                seen = event.seq
                self._meter.show(event)
            mine = self._api.instances()
        except CommandFailed as failure:
            if failure.exit_code not in _PASSING:
                raise
        else:
            self._meter.show_drains(
                [one for one in mine if one.worker_key == self._status.worker_key]
            )
        return seen

    def _look(self) -> None:
        self._status = self._api.model(self._name, self._type)

    def _look_again(self, failure: CommandFailed) -> None:
        """Ask once more after a break: a controller that is restarted is back within seconds."""
        for _ in range(int(_AWAY_S / _LOOK_S)):
            time.sleep(_LOOK_S)
            try:
                return self._look()
            except CommandFailed as again:
                if again.exit_code not in _PASSING:
                    raise
        raise failure


def go_on_from(address: str, seq: int) -> str:
    """The same stream, from after this event on."""
    path, _, query = address.partition("?")
    kept = [part for part in query.split("&") if part and not part.startswith("after=")]
    return f"{path}?{'&'.join([*kept, f'after={seq}'])}"


# Private


def _failed(status: ModelStatus) -> set[str]:
    return {one.instance_id for one in status.instances if one.state is State.FAILED}
