"""Moments and durations as people write them on a command line."""

import re
from datetime import UTC, datetime

from hostler.cli.exits import CommandFailed, Exit

_AGO = re.compile(r"(\d{1,6})([smhd])\Z")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def moment_of(text: str, now_s: float, option: str) -> int:
    """Return Unix time: of how long ago (`24h`), a date or time in UTC, or Unix time itself.

    Raises:
        CommandFailed: it is none of these; `option` names where it stood.
    """
    if ago := _AGO.match(text):
        return max(0, int(now_s - int(ago[1]) * _UNITS_S[ago[2]]))
    if text.isascii() and text.isdigit() and len(text) < 12:
        return int(text)
    try:
        at = datetime.fromisoformat(text)
        return max(0, int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()))
    except (ValueError, OverflowError) as error:
        raise CommandFailed(
            f"{option} {text!r}: need how long ago (90m, 24h, 7d), a date (2026-11-01 or "
            "2026-11-01T08:00, UTC) or Unix time",
            Exit.USAGE,
        ) from error


def seconds_of(text: str, option: str) -> int:
    """Return a duration in seconds: `90s`, `30m`, `24h`, `7d`.

    Raises:
        CommandFailed: it is none; `option` names where it stood.
    """
    if (match := _AGO.match(text)) is None:
        raise CommandFailed(
            f"{option} {text!r}: need a number and s, m, h or d, as in 24h", Exit.USAGE
        )
    return int(match[1]) * _UNITS_S[match[2]]
