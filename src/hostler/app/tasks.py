"""Waiting for several things at once, and what went wrong with them."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from hostler.core.errors import HostlerError


async def first_of(*waits: Coroutine[Any, Any, object], timeout_s: float | None = None) -> None:
    """Return when one of these ends, or after timeout_s; none of them goes on. Raises what they raise.

    Whoever is cancelled while one of them breaks is cancelled: a TaskGroup of Python 3.11 tells of what broke
    alone, and a loop that catches that would never end.
    """
    me = asyncio.current_task()
    asked = me.cancelling() if me is not None else 0
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(wait) for wait in waits]
            await asyncio.wait(running, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            for task in running:
                task.cancel()
    except BaseExceptionGroup as group:
        if me is not None and me.cancelling() > asked:
            raise asyncio.CancelledError from group
        raise


def reason_of(error: BaseException) -> HostlerError | None:
    """The one error of ours that a group of tasks ended by; None: it was another, or several."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, HostlerError) else None
