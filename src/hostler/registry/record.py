"""Record: everything known of one instance. Only the registry and those it asks write it."""

import hashlib
import hmac

from hostler.core.errors import Conflict, StaleEpoch, UnknownInstance
from hostler.core.fleet import Beat, Departure, Registration
from hostler.core.lifecycle import Instance, State
from hostler.core.model import ModelMetadata
from hostler.registry.expected import Expected


class Record:
    """One instance. States are replaced only through the registry.

    due_s: when its next beat is. interval_s: what it was told for that.
    """

    __slots__ = (
        "beat_seq",
        "command_args",
        "draining",
        "due_s",
        "error_code",
        "expected",
        "heard_at_s",
        "in_flight",
        "instance",
        "interval_s",
        "memory_bytes",
        "metadata",
        "pid",
        "view",
        "well_at_s",
    )

    def __init__(self, instance: Instance, expected: Expected) -> None:
        self.instance = instance
        self.expected = expected
        self.metadata: ModelMetadata | None = None
        self.heard_at_s: float | None = None
        self.well_at_s: float | None = None  # heard, and its engine answers
        self.due_s = 0.0
        self.interval_s = 0.0
        self.beat_seq = 0
        self.in_flight = 0
        self.memory_bytes: int | None = None
        self.pid: int | None = None
        self.command_args: tuple[
            str, ...
        ] = ()  # as its host tells, of one that is on another machine
        self.draining = False
        self.error_code = ""  # of what ended it, if it said
        self.view = expected.view(instance)


def authentic(record: Record | None, message: Registration | Beat | Departure) -> Record:
    """Return the record of a message whose sender has proven to be that very instance.

    Raises:
        UnknownInstance: not one we launched, or it is gone. Conflict: somebody else speaks for it.
        StaleEpoch: a newer process has its place.
    """
    instance_id = message.instance_id
    if record is None or not record.expected.secret_hash:
        raise UnknownInstance(f"instance {instance_id!r} is not expected by this controller")
    shown = hashlib.sha256(message.secret.encode()).hexdigest()
    if not hmac.compare_digest(shown, record.expected.secret_hash):
        raise Conflict(f"instance {instance_id!r}: this sender has not proven to be it")
    if message.epoch < record.instance.epoch:
        raise StaleEpoch(
            f"instance {instance_id!r}: epoch {message.epoch} was replaced by a newer process"
        )
    if record.instance.state in (State.FAILED, State.STOPPED):
        raise UnknownInstance(f"instance {instance_id!r} was given up here")
    return record
