"""Logs: one line a fact, as plain text or JSON, with the request's id, and without secrets.

`log = logger(__name__)`, then `log.info("instance.ready", worker_key=key, took_s=41.3)`: a dotted
constant and its fields. Every line of every logger in the process, libraries' tracebacks included,
passes the redaction here. Not here: prompts and answers; nobody may pass them in. Metrics are the
gateway's.
"""

import logging
import re
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TextIO

import msgspec

request_id: ContextVar[str] = ContextVar("request_id", default="")


class Log:
    """A logger of events with fields."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    @property
    def is_debug(self) -> bool:
        """Whether a debug line would be written: the hot path asks first."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def debug(self, event: str, **fields: object) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._write(logging.INFO, event, fields)

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

    json_lines: one JSON object a line; else `time level event field=value`, for people.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if json_lines else PlainFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(True)


def redact(text: str) -> str:
    """Return the text without the secrets of keys and bearer tokens; a key keeps its public id."""
    return _BEARER.sub(r"\1 [redacted]", _KEY.sub(r"hst_\1_[redacted]", text))


class JsonFormatter(logging.Formatter):
    """`{"at": ..., "level": ..., "event": ..., "logger": ..., "request_id": ..., fields...}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": f"{_utc(record.created)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        if current := request_id.get():
            line["request_id"] = current
        for name, value in _fields(record).items():
            line[name if name not in line else f"field_{name}"] = value
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        text = msgspec.json.encode(line, enc_hook=repr).decode()
        # JSON lets these stand, some readers take them for the end of a line
        return redact(_LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


class PlainFormatter(logging.Formatter):
    """`12:00:01 info instance.ready worker_key=qwen@llm took_s=41.3`."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        parts = [clock, record.levelname.lower(), _one_line(record.getMessage())]
        parts += [f"{name}={_shown(value)}" for name, value in _fields(record).items()]
        if current := request_id.get():
            parts.append(f"request_id={_shown(current)}")
        line = " ".join(parts)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redact(line)


# Private

_LINE_ENDS = re.compile("[\x7f-\x9f\u2028\u2029]")
_KEY = re.compile(r"hst_([0-9A-Za-z]{10})_[0-9A-Za-z]{16,}")
_BEARER = re.compile(r"(?i)\b(bearer)\s+(?!\[redacted\])[^\s\"'\\,;]+")

# Fields with these names are never shown, whatever they hold.
_HIDDEN = re.compile(
    r"(?i)(secret|password|token|authorization|api_key|prompt|messages|completion)\Z"
)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: Mapping[str, object] = getattr(record, "fields", {})
    return {name: "[redacted]" if _HIDDEN.search(name) else value for name, value in fields.items()}


def _utc(created_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created_s))


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
