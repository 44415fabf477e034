"""Batcher: computes texts of concurrent requests together, within a budget of padded tokens.

A text alone is computed at once; while a batch is computed others gather, so batches form under
load and never by waiting. Requests take turns, so a long list does not hold up a short one. Texts
of about the same length go together, since a batch costs its longest text times its size
(measured: 32 texts of 182 tokens at once are slower per text than one by one, hence the budget).
Not here: tokens, models.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from hostler.core.errors import EngineError, HostlerError, Overloaded

Item = TypeVar("Item")
Result = TypeVar("Result")

_WINDOW = 256  # items looked at to form one batch


class Batcher(Generic[Item, Result]):
    """All methods belong to one event loop; `compute` runs in one thread of the batcher's own.

    compute: items in, one result an item out, in order. length: tokens of an item.
    batch_tokens: bound of longest x count of a batch; an item above it goes alone.
    queue_length: items that may wait, those being computed not counted.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Result]],
        length: Callable[[Item], int],
        *,
        batch_tokens: int,
        queue_length: int,
    ) -> None:
        self._compute = compute
        self._length = length
        self._batch_tokens = batch_tokens
        self._queue_length = queue_length
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._jobs: deque[_Job[Item, Result]] = deque()
        self._again: deque[list[_Entry[Item, Result]]] = deque()  # parts of a batch that raised
        self._waiting = 0
        self._is_busy = False
        self.batch_count = 0
        self.item_count = 0

    async def run(self, items: Sequence[Item]) -> list[Result]:
        """Return one result an item, in order. Cancelled: what is not yet computed is dropped.

        Raises:
            Overloaded: the queue is full. EngineError: `compute` raised for one of these items.
        """
        if self._waiting and self._waiting + len(items) > self._queue_length:
            raise Overloaded(f"{self._waiting} texts wait to be computed", retry_after_s=1)
        loop = asyncio.get_running_loop()
        job: _Job[Item, Result] = _Job(items, loop.create_future())
        self._jobs.append(job)
        self._waiting += len(items)
        if not self._is_busy:
            self._is_busy = True
            loop.call_soon(self._next)  # after the other requests of this turn of the loop
        try:
            return await job.answer
        finally:
            self._drop(job)

    def close(self) -> None:
        """Compute nothing more; what waits is told so."""
        for job in tuple(self._jobs):
            job.fail(EngineError("the model is being unloaded"))
            self._drop(job)
        self._thread.shutdown(wait=False, cancel_futures=True)

    # Private

    def _next(self) -> None:
        batch = self._again.popleft() if self._again else self._choose()
        batch = [entry for entry in batch if not entry.job.answer.done()]
        if not batch:
            self._is_busy = bool(self._again or self._waiting)
            if self._is_busy:
                asyncio.get_running_loop().call_soon(self._next)
            return
        self.batch_count += 1
        self.item_count += len(batch)
        items = [entry.item for entry in batch]
        call = asyncio.get_running_loop().run_in_executor(self._thread, self._compute, items)
        call.add_done_callback(lambda done: self._finished(batch, done))

    def _choose(self) -> "list[_Entry[Item, Result]]":
        """Take the next batch out of the queue: the item whose turn it is, and some like it."""
        window = list(self._in_turn())
        if not window:
            return []
        chosen = self._neighbours(window)
        for entry in chosen:
            del entry.job.waiting[entry.index]
        self._waiting -= len(chosen)
        self._jobs.rotate(-1)
        return chosen

    def _in_turn(self) -> "Iterator[_Entry[Item, Result]]":
        """Yield waiting entries, one a job and round, up to a window."""
        turns = deque(iter(job.waiting.values()) for job in self._jobs if job.waiting)
        for _ in range(_WINDOW):
            while turns:
                entry = next(turns[0], None)
                if entry is not None:
                    turns.rotate(-1)
                    yield entry
                    break
                turns.popleft()

    def _neighbours(self, window: "list[_Entry[Item, Result]]") -> "list[_Entry[Item, Result]]":
        first = window[0]
        first_tokens = self._length(first.item)
        others = sorted(
            (
                (abs(self._length(entry.item) - first_tokens), place)
                for place, entry in enumerate(window)
            ),
        )
        chosen = [first]
        shortest = longest = first_tokens
        for _, place in others:
            if place == 0:
                continue
            tokens = self._length(window[place].item)
            low, high = min(shortest, tokens), max(longest, tokens)
            if high * (len(chosen) + 1) > self._batch_tokens or high > 2 * low + 8:
                continue
            shortest, longest = low, high
            chosen.append(window[place])
        return chosen

    def _finished(
        self, batch: "list[_Entry[Item, Result]]", call: "asyncio.Future[Sequence[Result]]"
    ) -> None:
        error = None if call.cancelled() else call.exception()
        if call.cancelled():
            error = EngineError("the model is being unloaded")
        if error is None:
            for entry, result in zip(batch, call.result(), strict=True):
                entry.job.settle(entry.index, result)
        elif len(batch) == 1:
            known = isinstance(error, HostlerError)
            entry = batch[0]
            entry.job.fail(error if known else EngineError(f"the model raised {error!r:.200}"))
        else:  # somebody's item did it: find whose, so that the others get their results
            middle = len(batch) // 2
            self._again.extend((batch[:middle], batch[middle:]))
        self._next()

    def _drop(self, job: "_Job[Item, Result]") -> None:
        """Forget a job that has ended, and what of it still waits."""
        self._waiting -= len(job.waiting)
        job.waiting.clear()
        if job in self._jobs:
            self._jobs.remove(job)


class _Entry(Generic[Item, Result]):
    __slots__ = ("index", "item", "job")

    def __init__(self, job: "_Job[Item, Result]", index: int, item: Item) -> None:
        self.job = job
        self.index = index
        self.item = item


class _Job(Generic[Item, Result]):
    """One request: its items that wait, its results so far."""

    def __init__(self, items: Sequence[Item], answer: "asyncio.Future[list[Result]]") -> None:
        self.answer = answer
        self.waiting = {index: _Entry(self, index, item) for index, item in enumerate(items)}
        self._results: dict[int, Result] = {}
        self._count = len(items)
        if not items:
            answer.set_result([])

    def settle(self, index: int, result: Result) -> None:
        if self.answer.done():
            return
        self._results[index] = result
        if len(self._results) == self._count:
            self.answer.set_result([self._results[number] for number in range(self._count)])

    def fail(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
