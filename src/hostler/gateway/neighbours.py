"""Neighbours: the other gateways of this machine, so that all together keep an instance's slots.

Only while there are others: alone, a gateway reads and writes nothing here. Waking is a datagram, so nobody
polls; a late timer covers one that was woken and is gone.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from hostler.core.change import Change
from hostler.core.loads import waiting_for
from hostler.gateway.board import COLUMNS, Bells, Board, bell_path
from hostler.routing.router import Router

LATE_S = 0.02  # how long a slot is left to another gateway


class Neighbours:
    """One gateway among others. The router's Peers."""

    def __init__(self, board: Board, folder: Path, column: int, router: Router) -> None:
        self.count = 1
        self._board = board
        self._folder = folder
        self._bells = Bells(folder)
        self._column = column
        self._router = router
        self._others: tuple[int, ...] = ()
        self._late: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hear the bell, and count with the others while there are any."""
        path = bell_path(self._folder, self._column)
        path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as bell:
            bell.bind(str(path))

            def hear() -> None:
                try:
                    while bell.recv(64):
                        pass
                except OSError:
                    pass
                self.look()

            loop.add_reader(bell, hear)
            self.look()
            try:
                yield
            finally:
                loop.remove_reader(bell)
                path.unlink(missing_ok=True)
                if self._late is not None:
                    self._late.cancel()
                self._bells.close()

    def look(self) -> None:
        """Somebody came, went, or gave something back."""
        others = tuple(column for column in self._board.lent() if column != self._column)
        if others == self._others:
            self._router.serve_all()
            return
        self._others = others
        self.count = len(others) + 1
        self._router.join(self if others else None)

    def take(self, change: Change) -> None:
        """Who is no more leaves its row to others."""
        if change.gone or change.models_gone:
            self._board.forget([*change.gone, *map(waiting_for, change.models_gone)])

    # Peers

    def note(self, instance_id: str, in_flight: int) -> None:
        self._board.write(instance_id, self._column, in_flight)

    def elsewhere(self, instance_id: str) -> int:
        return self._board.total(instance_id, self._others)

    def note_waiting(self, model: str, waiting: int) -> None:
        self._board.write(waiting_for(model), self._column, waiting)

    def go_first(self, model: str, instance_ids: Iterable[str], *, ties: bool) -> bool:
        waiting = self._who_waits(model)
        if not waiting:
            return False
        ids = list(instance_ids)
        held = {column: self._held(ids, column) for column in (*waiting, self._column)}
        first = min(waiting, key=lambda one: (held[one], (one - self._column) % COLUMNS))
        mine = held[self._column]
        if held[first] > mine or (held[first] == mine and not ties):
            return False
        self._bells.ring(first)
        if self._late is None:
            self._late = asyncio.get_running_loop().call_later(LATE_S, self._serve_late)
        return True

    def wake(self, model: str) -> None:
        for column in self._who_waits(model):
            self._bells.ring(column)

    # Private

    def _who_waits(self, model: str) -> list[int]:
        read, row = self._board.read, waiting_for(model)
        return [column for column in self._others if read(row, column)]

    def _held(self, instance_ids: Iterable[str], column: int) -> int:
        return sum(self._board.read(one, column) for one in instance_ids)

    def _serve_late(self) -> None:
        self._late = None
        self._router.serve_all(is_late=True)
