"""Crash points: named places where a test can end this process as SIGKILL would. Nothing otherwise.

`HOSTLER_CRASH_AT=<name>` is read once, when the process starts. The places lie between what is
written down and what is done about it: after a crash at any of them a restart must end the same.
"""

import os
import signal
from enum import StrEnum

from hostler.app.config import environment

CRASH_VARIABLE = "HOSTLER_CRASH_AT"


class CrashPoint(StrEnum):
    """Every place, in the order in which a controller's life passes them."""

    ADMIN_KEY_SAVED = "admin_key.saved"  # its hash is stored, its file is not written
    STARTED = "manager.started"  # counted as a start, nothing adopted
    ADOPTING = "adopt.one"  # a worker taken over, the others not
    ADOPTED = "adopt.all"  # before strays are swept
    KEY_SAVED = "key.saved"  # stored, not answered
    WISH_ASKED = "wish.asked"  # checked, not stored
    WISH_SAVED = "wish.saved"  # stored, not known to the plan
    WISH_KNOWN = "wish.known"  # known to the plan, not answered
    WISH_FORGOTTEN = "wish.forgotten"  # deleted while its processes run
    EPOCH_TAKEN = "launch.epoch"  # a number is used up, nothing written
    INTENT_SAVED = "launch.intent"  # the launch is stored, there is no specification
    SPEC_WRITTEN = "launch.spec"  # the specification, with its secret, lies there
    SPAWNED = "launch.spawned"  # a process runs whose pid nobody wrote down
    LAUNCH_POSTED = "launch.posted"  # the registry knows, the store does not
    PID_SAVED = "launch.pid"
    ORDERED = "order.listed"  # stored, and in the list of its host
    ORDER_STRUCK = "order.struck"  # not in the list of its host any more, its record is stored
    HOST_REMOVED = "host.removed"  # by the store, its instances are still there
    DRAIN_POSTED = "drain.posted"  # draining, no signal sent
    STOP_SENT = "drain.signalled"
    EXIT_SEEN = "exit.seen"  # the process is gone, everything of it is still there
    EXIT_SWEPT = "exit.swept"
    EXIT_CLEANED = "exit.cleaned"  # its files are gone, its record is stored


def crash_point(point: CrashPoint) -> None:
    """End this process here, if a test asked for it."""
    if point == _AT:
        os.kill(os.getpid(), signal.SIGKILL)


# Private

_AT = environment(CRASH_VARIABLE)
