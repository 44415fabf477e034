"""Logs: one line a fact, as plain text or JSON, with the request's id, and without secrets.

`log = logger(__name__)`, then `log.info("instance.ready", worker_key=key, took_s=41.3)`: a dotted
constant and its fields. Every line of every logger in the process, libraries' tracebacks included,
passes the redaction here. Not here: prompts and answers; nobody may pass them in. Metrics are the
gateway's.
"""

import asyncio
import logging
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from functools import lru_cache
from time import gmtime, localtime, strftime, time
from typing import Protocol, TextIO

import msgspec

from hostler.app.outlet import dropped_lines, has_caught_up, never_waiting

OFTEN_S = 0.1  # the longest that a line of `Log.often` is held
OFTEN_LINES = 256  # so many are held at most

request_id: ContextVar[str] = ContextVar("request_id", default="")


class Story(Protocol):
    """Fields that write themselves, for what is logged thousands of times a second."""

    def plain(self) -> str:
        """`field=value field=value`: printable, one line."""
        ...

    def fields(self) -> Mapping[str, object]:
        """The same fields, for JSON."""
        ...


# When it happened (Unix time), event, whose it is, fields.
FrequentFact = tuple[float, str, logging.Logger, Story]


class Held:
    """Frequent lines of one handler that are not written yet."""

    __slots__ = ("_write", "facts")

    def __init__(self, write: Callable[[], None]) -> None:
        self.facts: list[FrequentFact] = []
        self._write = write

    def add(self, fact: FrequentFact) -> None:
        """Write this later, with others: one write costs as much as rendering many lines."""
        facts = self.facts
        facts.append(fact)
        if len(facts) == 1:
            asyncio.get_running_loop().call_later(OFTEN_S, self._write)
        elif len(facts) >= OFTEN_LINES:
            self._write()

    def take(self) -> list[FrequentFact]:
        """Give them away. For any thread; what is added meanwhile stays."""
        facts = self.facts
        count = len(facts)
        taken = facts[:count]
        del facts[:count]
        return taken


class Log:
    """A logger of events with fields."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._held: Held | None = None  # where frequent lines wait

    @property
    def is_debug(self) -> bool:
        """Whether a debug line would be written: the hot path asks first."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def debug(self, event: str, **fields: object) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._write(logging.INFO, event, fields)

    def often(self, event: str, story: Story) -> None:
        """As `info`, for what happens thousands of times a second: written OFTEN_S later, together.

        For the thread of the event loop alone. A process that is killed loses what is held.
        """
        held = self._held
        if (
            held is None or not held.facts
        ):  # the first of each lot asks whether and how it is written
            if not self._logger.isEnabledFor(logging.INFO):
                return
            handlers = logging.root.handlers
            if len(handlers) != 1 or not isinstance(handlers[0], LineHandler):
                # logging is not ours here: somebody else's handlers want a record
                self._write(logging.INFO, event, story.fields())
                return
            held = self._held = handlers[0].held
        held.add((time(), event, self._logger, story))

    def warning(self, event: str, **fields: object) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, *, error: BaseException | None = None, **fields: object) -> None:
        """error: the exception, whose traceback follows the line."""
        self._write(logging.ERROR, event, fields, error)

    def _write(
        self,
        level: int,
        event: str,
        fields: Mapping[str, object],
        error: BaseException | None = None,
    ) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, exc_info=error, extra={"fields": fields})


def logger(name: str) -> Log:
    """Return the log of a module: `logger(__name__)`."""
    return Log(name)


def configure_logging(
    *, json_lines: bool = False, level: str = "INFO", stream: TextIO | None = None
) -> None:
    """Send every log line of this process to one stream (stderr), redacted. Call it once, first.

    Lines that the stream's reader does not take are dropped; `log.dropped` says how many.

    json_lines: one JSON object a line; else `time level event field=value`, for people.
    """
    sink = never_waiting(stream or sys.stderr)
    handler = LineHandler(sink, json_lines=json_lines)
    handler.setFormatter(JsonFormatter() if json_lines else PlainFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        if isinstance(old, LineHandler):
            old.flush()  # nobody else is told to hold a line
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(True)


def dropped_log_lines() -> int:
    """How many log lines of this process nobody took."""
    return sum(
        dropped_lines(handler.stream)
        for handler in logging.root.handlers
        if isinstance(handler, LineHandler)
    )


def redact(text: str) -> str:
    """Return the text without the secrets of keys, join tokens and bearers; ids stay, they are public."""
    if "hst" in text:
        text = _KEY.sub(r"\1_[redacted]", text)
    if "bearer" in text.lower():
        text = _BEARER.sub(r"\1 [redacted]", text)
    return text


# When it happened (Unix time), level, event, name of the logger, id of the request or "", fields.
Fact = tuple[float, str, str, str, str, Mapping[str, object]]


def json_line(fact: Fact, trace: str = "") -> str:
    """`{"at": ..., "level": ..., "event": ..., "logger": ..., "request_id": ..., fields...}`."""
    created_s, level, event, name, request, fields = fact
    line: dict[str, object] = {
        "at": f"{_utc(int(created_s))}.{int(created_s % 1 * 1000):03d}Z",
        "level": level,
        "event": event,
        "logger": name,
    }
    if request:
        line["request_id"] = request
    for key, value in fields.items():
        line[key if key not in line else f"field_{key}"] = _open(key, value)
    if trace:
        line["error"] = trace
    text = msgspec.json.encode(line, enc_hook=repr).decode()
    if not text.isascii() or "\x7f" in text:
        # JSON lets these stand, some readers take them for the end of a line
        text = _LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return redact(text)


def plain_line(fact: Fact, trace: str = "") -> str:
    """`12:00:01 info instance.ready worker_key=qwen@llm took_s=41.3`."""
    created_s, level, event, _, request, fields = fact
    parts = [_clock(int(created_s)), level, _one_line(event)]
    parts += [f"{key}={_shown(_open(key, value))}" for key, value in fields.items()]
    if request:
        parts.append(f"request_id={_shown(request)}")
    line = " ".join(parts)
    return redact(f"{line}\n{trace}" if trace else line)


def frequent_text(facts: list[FrequentFact], *, json_lines: bool) -> str:
    """As `json_line` or `plain_line`, of what was held, each with its end."""
    lines: list[str] = []
    if json_lines:
        for at_s, event, log, story in facts:
            lines.append(json_line((at_s, "info", event, log.name, "", story.fields())) + "\n")
        return "".join(lines)
    second, clock = -1, ""
    for at_s, event, _, story in facts:
        if int(at_s) != second:
            second = int(at_s)
            clock = _clock(second)
        lines.append(f"{clock} info {event} {story.plain()}\n")
    text = "".join(lines)
    if "hst" in text:  # an id may be whatever a client sent
        return "".join([redact(line) for line in lines])
    return text


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: see `json_line`."""

    def format(self, record: logging.LogRecord) -> str:
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        return json_line(_fact(record), trace)


class PlainFormatter(logging.Formatter):
    """A record for people: see `plain_line`."""

    def format(self, record: logging.LogRecord) -> str:
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        return plain_line(_fact(record), trace)


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes a record at once, and the facts that were held before it, in their order."""

    def __init__(self, stream: TextIO, *, json_lines: bool) -> None:
        super().__init__(stream)
        self.held = Held(self.flush)
        self._json_lines = json_lines
        self._told_dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self.held.facts:
            self.flush()
        super().emit(record)
        self._tell_dropped()

    def flush(self) -> None:
        """Write what is held. Called at the end of the process too, by `logging.shutdown`."""
        with self.lock or nullcontext():
            text = frequent_text(self.held.take(), json_lines=self._json_lines)
            try:
                if text:
                    self.stream.write(text)
                    self._tell_dropped()
                super().flush()
            except (OSError, ValueError):
                pass  # a full disk or a closed stream: nobody is left to tell

    def _tell_dropped(self) -> None:
        """Say that lines were dropped, when the reader has caught up."""
        dropped = dropped_lines(self.stream)
        if dropped == self._told_dropped or not has_caught_up(self.stream):
            return
        fields: dict[str, object] = {"lines": dropped - self._told_dropped, "in_all": dropped}
        self._told_dropped = dropped
        fact = (time(), "warning", "log.dropped", __name__, "", fields)
        self.stream.write((json_line(fact) if self._json_lines else plain_line(fact)) + "\n")


# Private

_LINE_ENDS = re.compile("[\x7f-\x9f\u2028\u2029]")
_KEY = re.compile(r"(hstj?_[0-9A-Za-z]{10})_[0-9A-Za-z]{16,}")
_BEARER = re.compile(r"(?i)\b(bearer)\s+(?!\[redacted\])[^\s\"'\\,;]+")

# Fields with these names are never shown, whatever they hold.
_HIDDEN = re.compile(
    r"(?i)(secret|password|token|authorization|api_key|prompt|messages|completion)\Z"
)


def _fact(record: logging.LogRecord) -> Fact:
    fields: dict[str, object] = getattr(record, "fields", {})
    level, event = record.levelname.lower(), record.getMessage()
    return record.created, level, event, record.name, request_id.get(), fields


def _open(name: str, value: object) -> object:
    return "[redacted]" if _is_hidden(name) else value


@lru_cache(maxsize=1024)  # names are constants in our code
def _is_hidden(name: str) -> bool:
    return _HIDDEN.search(name) is not None


@lru_cache(maxsize=4)
def _utc(created_s: int) -> str:
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(created_s))


@lru_cache(maxsize=4)
def _clock(created_s: int) -> str:
    return strftime("%H:%M:%S", localtime(created_s))


def _shown(value: object) -> str:
    text = str(value)
    return _one_line(text) if text and " " not in text and '"' not in text else _quoted(text)


def _quoted(text: str) -> str:
    return _one_line(msgspec.json.encode(text).decode())


def _one_line(text: str) -> str:
    """No control character reaches a terminal or starts a second line."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else f"\\u{ord(sign):04x}" for sign in text)
