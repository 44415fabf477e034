"""How far a fetch is, and what a fetch may use."""

from collections.abc import Callable, Mapping
from enum import StrEnum

import msgspec


class FetchPhase(StrEnum):
    WAITING = "waiting"  # another process fetches the same files
    DOWNLOADING = "downloading"
    UNPACKING = "unpacking"  # taken out of the archive, hashed
    DONE = "done"


class FetchProgress(msgspec.Struct, frozen=True, kw_only=True):
    """One report. Bytes are of the current phase; total_bytes is None when nobody told."""

    source: str
    phase: FetchPhase
    done_bytes: int = 0
    total_bytes: int | None = None


Report = Callable[[FetchProgress], None]


class FetchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds a fetch.

    reserve_bytes: left free on the disk; None: 1 GiB, or 5 % of a smaller disk.
    stall_s: a download without a new byte for so long has failed.
    file_bytes: no single file may be larger.
    index_environment: variables for the index's or hub's client alone (`PIP_INDEX_URL`, ...).
    """

    reserve_bytes: int | None = None
    stall_s: float = 300.0
    file_bytes: int = 2 << 40
    index_environment: Mapping[str, str] = {}
