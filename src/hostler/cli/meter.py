"""Meter: how far a start is: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hostler.cli.render import clean, err, size
from hostler.core.lifecycle import State
from hostler.core.worker import OperatorEvent, WorkerRunData

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LINE_EVERY_S = 5.0  # of a download or a load, where no bar can be drawn


class Meter:
    """Shows events of a start. A context manager: the bar lives inside."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar = None if quiet or not sys.stderr.isatty() else _bar()
        self._tasks: dict[str, TaskID] = {}
        self._told_at_s: dict[str, float] = {}
        self._draining: dict[str, int] = {}

    def __enter__(self) -> "Meter":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, event: OperatorEvent) -> None:
        if event.kind == "fetch.progress":
            done, total = event.fields.get("done_bytes", 0), event.fields.get("total_bytes")
            self._show_progress(event, done, total)
        elif event.kind == "start.progress":
            self._show_progress(event, event.fields.get("memory_bytes", 0), None)
        elif event.kind.startswith("instance."):
            self._end_task(event.instance_id)
            state = event.kind.partition(".")[2]
            self.line(f"{event.model}: {state}{f': {event.message}' if event.message else ''}")

    def show_drains(self, instances: Sequence[WorkerRunData]) -> None:
        """How many requests each draining instance still works on, when that has changed."""
        for one in instances:
            if one.state is State.DRAINING and self._draining.get(one.instance_id) != one.in_flight:
                self._draining[one.instance_id] = one.in_flight
                self.line(f"{one.model_name}: {one.instance_id} drains, {one.in_flight} left")

    def line(self, text: str) -> None:
        """One line, above the bar if there is one."""
        if not self._quiet:
            if self._bar is None:
                sys.stderr.write(f"{clean(text)}\n")
            else:
                self._bar.console.print(clean(text), markup=False)

    # Private

    def _show_progress(self, event: OperatorEvent, done: int, total: int | None) -> None:
        """Bytes fetched of all, or in memory by now."""
        text = f"{event.model}: {event.message}"
        if self._bar is not None:
            task = self._tasks.get(event.instance_id)
            if task is None:
                task = self._bar.add_task(text, total=total)
                self._tasks[event.instance_id] = task
            self._bar.update(task, description=text, completed=done, total=total)
            return
        now_s = time.monotonic()
        if now_s - self._told_at_s.get(event.instance_id, 0.0) >= _LINE_EVERY_S:
            self._told_at_s[event.instance_id] = now_s
            self.line(f"{text}, {size(done)}{f' of {size(total)}' if total else ''}")

    def _end_task(self, instance_id: str) -> None:
        task = self._tasks.pop(instance_id, None)
        if task is not None and self._bar is not None:
            self._bar.remove_task(task)


# Private


def _bar() -> "Progress":
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TransferSpeedColumn,
    )

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=err(),
        transient=True,
    )
