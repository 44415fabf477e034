"""StreamWatch: has a stream of events said everything it owed? Byte scans; rare events are parsed.

A quote inside a JSON string is escaped, so the patterns below cannot occur in generated text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec


class StreamWatch:
    """Follows one engine's stream of completion chunks (F60, F61).

    choices: how many choices the request asked for; each owes a finish_reason.
    """

    __slots__ = ("_finished", "_owed", "is_done", "is_failed")

    def __init__(self, choices: int) -> None:
        self._owed = choices
        self._finished: set[int] = set()
        self.is_done = False  # [DONE] has come
        self.is_failed = False  # the engine sent an error object

    @property
    def is_finished(self) -> bool:
        """Has every choice a finish_reason?"""
        return len(self._finished) >= self._owed

    @property
    def is_complete(self) -> bool:
        """Has everything been said as it should?"""
        return self.is_done and self.is_finished and not self.is_failed

    def is_plain(self, events: bytes) -> bool:
        """May these go to the client without a look? No end, no error and no usage is among them."""
        return not (
            b"[DONE]" in events
            or b'"finish_reason":"' in events
            or b'"finish_reason": "' in events
            or b'"error"' in events
            or (self._owed > 1 and _NULL in events)
        )

    def see(self, events: bytes) -> bytes:
        """Take whole events; return what may go to the client now: all but a [DONE] too early.

        llama.cpp has `data: null` in a stream of several answers, over which the SDKs stumble.
        """
        if self._owed > 1 and _NULL in events:
            events = events.replace(_NULL, b"")
        if b'"finish_reason":"' in events or b'"finish_reason": "' in events:
            self._note_finishes(events)
        if b'"error"' in events:
            self._note_errors(events)
        end = events[-24:].rstrip()
        if end.endswith(b"[DONE]") and end[:-6].rstrip().endswith(b"data:"):
            self.is_done = True
            if not self.is_finished or self.is_failed:
                return events[: events.rindex(b"data:")]
        return events

    # Private

    def _note_finishes(self, events: bytes) -> None:
        for chunk in _payloads(events, b'"finish_reason"'):
            choices = chunk.get("choices")
            for choice in choices if isinstance(choices, Sequence) else ():
                if isinstance(choice, Mapping) and choice.get("finish_reason") is not None:
                    index = choice.get("index", 0)
                    self._finished.add(index if isinstance(index, int) else 0)

    def _note_errors(self, events: bytes) -> None:
        if any(chunk.get("error") is not None for chunk in _payloads(events, b'"error"')):
            self.is_failed = True


# Private

_NULL = b"data: null\n\n"


def _payloads(events: bytes, mark: bytes) -> list[Mapping[str, Any]]:
    """The JSON objects of those events that hold `mark`."""
    found: list[Mapping[str, Any]] = []
    for line in events.splitlines():
        if line.startswith(b"data:") and mark in line:
            try:
                chunk = msgspec.json.decode(line[5:])
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            if isinstance(chunk, dict):
                found.append(chunk)
    return found
