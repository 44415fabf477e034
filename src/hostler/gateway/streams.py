"""StreamWatch: has a stream of events said everything it owed, and how many tokens was it?

Byte scans; rare events are parsed. A quote inside a JSON string is escaped, so the patterns below
cannot occur in generated text.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from hostler.gateway.usage import Used, read_timings, read_usage, together
from hostler.wire.scan import holds
from hostler.wire.sse import parse_event, split_events


class StreamWatch:
    """Follows one engine's stream of completion chunks (F60, F61).

    choices: how many choices the request asked for; each owes a finish_reason.
    copies: how many of them share a prompt.
    hides_usage: the engine was asked for usage by us, not by the client, who must not see it.
    """

    __slots__ = (
        "_copies",
        "_finish_mark",
        "_finished",
        "_head",
        "_hides_usage",
        "_is_unsure",
        "_looks",
        "_misses",
        "_owed",
        "_tail",
        "_timed",
        "_told",
        "events",
        "is_done",
        "is_failed",
    )

    def __init__(self, choices: int, *, copies: int = 1, hides_usage: bool = False) -> None:
        self._owed = choices
        self._copies = copies
        self._hides_usage = hides_usage
        self._is_unsure = True  # whether this engine writes a space after a colon
        self._looks = True  # at every event: at the beginning, and once a choice has ended
        self._finish_mark = _CLOSE
        # of a plain frame: what is before its text, without the size, and after it
        self._head = self._tail = b""
        self._misses = 0  # frames in a row that were not like the one before
        self._finished: set[int] = set()
        self._told: list[Used] = []  # by usage objects: of the stream, or of each choice
        self._timed: list[Used] = []  # by llama.cpp's timings: of each choice
        self.events = 0  # that held a part of an answer, as far as a scan can tell
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

    def told(self) -> Used | None:
        """The tokens of the stream, as the engine told; None: it did not."""
        told = self._told or (self._timed if self.is_finished else None)
        return together(told, self._copies) if told else None

    def counted(self, prompt_tokens: int) -> Used:
        """Its tokens by the events that came. prompt_tokens: about how many; 0 when nobody knows."""
        return Used(prompt_tokens, max(0, self.events), is_estimated=True)

    def is_plain(self, frames: bytes) -> bool:
        """May these go to the client without a look? No end, no error and no usage is among them.

        frames: whole chunks of whole events, framed. The next one mostly says all but its text as the
        last one did: comparing costs less than a search for each of the marks.
        """
        if self._looks:
            return False
        if self._is_like_last(frames):
            self._misses = 0
            return True
        if (
            holds(frames, _DONE)
            or holds(frames, self._finish_mark)
            or holds(frames, _ERROR)
            or (self._hides_usage and holds(frames, _TOTAL))
            or (self._owed > 1 and holds(frames, _NULL))
        ):
            return False
        if self._misses < _MISSES_MAX:  # of some engines no two are alike
            self._misses += 1
            self._learn(frames)
        return True

    def marks(self) -> tuple[bytes, ...]:
        """What a plain frame has none of; empty: each one is looked at."""
        if self._looks:
            return ()
        found = [_DONE, self._finish_mark, _ERROR]
        if self._hides_usage:
            found.append(_TOTAL)
        if self._owed > 1:
            found.append(_NULL)
        return tuple(found)

    @property
    def frame(self) -> tuple[bytes, bytes]:
        """What the last plain frame had before its text, without the size, and after it."""
        return self._head, self._tail

    def see(self, events: bytes) -> bytes:
        """Take whole events; return what may go to the client now: all but a [DONE] too early.

        Nothing follows a [DONE]. llama.cpp has `data: null` in a stream of several answers, over
        which the SDKs stumble.
        """
        if self.is_done:
            return b""
        done = b""
        if holds(events, _DONE):
            events, done = self._split_at_done(events)
        if self._owed > 1 and holds(events, _NULL):
            events = _NULLS.sub(b"", events)
        if self._is_unsure:
            self._begin(events)
        self.events += events.count(b"\ndata:") + events.startswith(b"d")
        if holds(events, self._finish_mark):
            self._note_finishes(events)
        if holds(events, _ERROR):
            self._note_errors(events)
        if self._finished:
            if holds(events, b'"usage"'):
                events = self._note_usage(events)
        elif self._hides_usage and holds(events, _TOTAL):
            events = self._note_usage(events)
        self._looks = self._is_unsure or bool(self._finished) or self.is_done
        return events + done if done and self.is_complete else events

    # Private

    def _is_like_last(self, frames: bytes) -> bool:
        """Does this differ from a plain frame in its text alone, which is a short one without a quote?"""
        start = _size_line(frames) + len(self._head)
        end = len(frames) - len(self._tail)
        if not start < end <= start + _TEXT_BYTES or not self._tail:
            return False
        at = start
        while at < end:
            byte = frames[at]
            if byte < 0x20 or byte == _QUOTE:
                return False
            at += 1
        return frames[start - len(self._head) : start] == self._head and frames[end:] == self._tail

    def _learn(self, frames: bytes) -> None:
        """Take this plain frame apart, if it is one with a text."""
        for mark in _TEXTS:
            start = frames.find(mark) + len(mark)
            if start >= len(mark):
                end = frames.find(b'"', start)
                if end > start and frames[end - 1] != _BACKSLASH:
                    self._head, self._tail = frames[_size_line(frames) : start], frames[end:]
                return

    def _begin(self, events: bytes) -> None:
        """Learn how the engine writes; do not count a first event that only says whose turn it is."""
        if not self.events:
            first = events[: events.find(b"\ndata:") + 1 or len(events)]
            if first.find(b'"role"') >= 0 and _EMPTY.search(first) is not None:
                self.events -= 1
        if b'"finish_reason":' in events:
            self._is_unsure = False
            if b'"finish_reason": ' in events:
                self._finish_mark = _SPACED

    def _split_at_done(self, events: bytes) -> tuple[bytes, bytes]:
        """Return what comes before the first [DONE], and that event: a text may hold the word too."""
        for start, end in _spans(events, b"[DONE]"):
            told = parse_event(events[start:end])
            if told is not None and told.data.lstrip().startswith(b"[DONE]"):  # as the SDKs look
                self.is_done = True
                is_last = not events[end:].strip()
                return events[:start], events[start:] if is_last else events[start:end]
        return events, b""

    def _note_finishes(self, events: bytes) -> None:
        for chunk in _payloads(events, self._finish_mark):
            choices = chunk.get("choices")
            said = 0
            for choice in choices if isinstance(choices, list) else ():
                if isinstance(choice, dict):
                    said += _says_something(choice)
                    if choice.get("finish_reason") is not None:
                        index = choice.get("index", 0)
                        self._finished.add(index if isinstance(index, int) else 0)
            self.events -= not said
            timings = chunk.get("timings")
            if isinstance(timings, dict) and (one := read_timings(timings)) is not None:
                self._timed.append(one)

    def _note_errors(self, events: bytes) -> None:
        if any(chunk.get("error") is not None for chunk in _payloads(events, b'"error"')):
            self.is_failed = True

    def _note_usage(self, events: bytes) -> bytes:
        """Take the tokens down; return the events without those that only we asked for."""
        kept = []
        at = 0
        for start, end in _spans(events, b'"usage"'):
            kept.append(events[at:start])
            at, event = end, events[start:end]
            chunks = _payloads(event, b'"usage"')
            usage = chunks[0].get("usage") if chunks else None
            used = read_usage(usage) if isinstance(usage, dict) else None
            if used is not None:
                chunk = chunks[0]
                # one of several answers of llama.cpp; all others tell the sum, the last one counts
                is_part = self._owed > 1 and "timings" in chunk
                self._told = [*self._told, used] if is_part else [used]
                if not chunk.get("choices"):
                    self.events -= 1
                    if self._hides_usage:
                        continue
            kept.append(event)
        kept.append(events[at:])
        return b"".join(kept) if self._hides_usage else events


# Private

_decode: Final = msgspec.json.Decoder().decode
_DONE: Final = b"[DONE]"
_ERROR: Final = b'"error"'
_NULL: Final = b"data: null\n\n"
_NULLS = re.compile(rb"(?:\A|(?<=\n\n))(?:data: null\n\n)+")  # a whole event, not the end of one
# Of a finish_reason that is one, and of a usage object; short, since that is found as surely.
_CLOSE: Final = b'reason":"'
_SPACED: Final = b'reason": "'
_TOTAL: Final = b'"total_tok'
_EMPTY = re.compile(rb'"content": ?(?:""|null)')
_TEXTS: Final = (b'content":"', b'content": "', b'"text":"', b'"text": "')  # what is before a text
_TEXT_BYTES: Final = 64  # of a text that is read byte by byte
_MISSES_MAX: Final = 4
_QUOTE: Final = 0x22
_BACKSLASH: Final = 0x5C
_LF: Final = 0x0A
_SAYING = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call")


def _size_line(frames: bytes) -> int:
    """Where the first chunk's size has ended, if it is a usual one."""
    for at in range(2, min(8, len(frames))):
        if frames[at] == _LF:
            return at + 1
    return 0


def _says_something(choice: dict[str, Any]) -> bool:
    """Whether a choice's chunk holds a part of its answer."""
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return any(delta.get(name) for name in _SAYING)
    return bool(choice.get("text"))


def _spans(events: bytes, mark: bytes) -> Iterator[tuple[int, int]]:
    """Where the events that hold `mark` begin and end: of hundreds that come at once, mostly one."""
    if b"\r" in events:
        at = 0
        for event in split_events(events):
            if mark in event:
                yield at, at + len(event)
            at += len(event)
        return
    place = events.find(mark)
    while place >= 0:
        before = events.rfind(b"\n\n", 0, place)
        after = events.find(b"\n\n", place)
        end = after + 2 if after >= 0 else len(events)
        yield before + 2 if before >= 0 else 0, end
        place = events.find(mark, end)


def _payloads(events: bytes, mark: bytes) -> list[dict[str, Any]]:
    """The JSON objects of those events that hold `mark`."""
    found: list[dict[str, Any]] = []
    for start, end in _spans(events, mark):
        if (told := parse_event(events[start:end])) is not None:
            try:
                chunk = _decode(told.data)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                continue
            if isinstance(chunk, dict):
                found.append(chunk)
    return found
