"""UpRecord: what a running `hostler up` leaves in its state folder for programs on its machine."""

import msgspec

from hostler.app.paths import StatePaths


class UpRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Where it answers."""

    url: str
    pid: int
    started_at_s: float = 0.0


def read_up_record(paths: StatePaths) -> UpRecord | None:
    """Return what the last `hostler up` on this state folder wrote, None without one."""
    try:
        return msgspec.json.decode(paths.up_record.read_bytes(), type=UpRecord)
    except (OSError, msgspec.DecodeError):
        return None


def read_admin_key(paths: StatePaths) -> str | None:
    """Return the admin key of this state folder, None when it is not readable."""
    try:
        return paths.admin_key.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None
