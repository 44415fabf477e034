"""What a running server leaves in its state folder for programs on its machine: where it answers
(`UpRecord`), and of whom its controller is the standby (`StandbyRecord`).
"""

from contextlib import suppress

import msgspec

from hostler.app.paths import StatePaths
from hostler.app.process import ProcessHandle


class UpRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Where it answers.

    control_url: of its control port, where other machines join; "": it has none.
    ca: file of who vouches for its certificate, where that is an authority of ours.
    """

    url: str
    pid: int
    started_at_s: float = 0.0
    control_url: str = ""
    ca: str = ""


class StandbyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A controller that does not lead.

    leader: who does; "": nobody is known to. text: the same and why, for people.
    """

    text: str
    leader: str = ""
    pid: int = 0
    since_at_s: float = 0.0  # wall clock


def read_up_record(paths: StatePaths) -> UpRecord | None:
    """Return what the last `hostler up` on this state folder wrote, None without one."""
    try:
        return msgspec.json.decode(paths.up_record.read_bytes(), type=UpRecord)
    except (OSError, msgspec.DecodeError):
        return None


def read_standby(paths: StatePaths) -> StandbyRecord | None:
    """Return what the controller of this state folder says while it stands by, None when it does not."""
    try:
        record = msgspec.json.decode(paths.standby_record.read_bytes(), type=StandbyRecord)
    except (OSError, msgspec.DecodeError):
        return None
    return record if ProcessHandle.of(record.pid) is not None else None


def write_standby(paths: StatePaths, record: StandbyRecord | None) -> None:
    """Say it, or that it is over. A full disk or the like changes nothing."""
    fresh = paths.standby_record.with_suffix(".new")
    with suppress(OSError):
        if record is None:
            paths.standby_record.unlink(missing_ok=True)
            return
        fresh.write_bytes(msgspec.json.encode(record))
        fresh.replace(paths.standby_record)


def read_admin_key(paths: StatePaths) -> str | None:
    """Return the admin key of this state folder, None when it is not readable."""
    try:
        return paths.admin_key.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None
