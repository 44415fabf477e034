"""The words between a worker agent and the registry. Both sides decode with these types."""

from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.core.model import ModelMetadata, WorkerType
from hostler.core.placing import Held
from hostler.core.snapshot import REPORTED, Endpoint


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that a worker process needs to start: written to a 0600 file, path given on its argv.

    secret: made at launch; the worker shows it when it registers.
    model_path: the file or folder with the model's files, already fetched and checked; "" if none.
    engine_socket, agent_socket: Unix socket paths in the run folder, named after the instance.
    registry_socket: where to register and beat. held: what a placer has chosen for it.
    """

    instance_id: str
    epoch: int
    secret: str
    model_name: str
    worker_type: WorkerType
    engine: str
    model_path: str = ""
    params: Mapping[str, Any] = {}
    concurrency: int = 1
    engine_socket: str
    agent_socket: str
    registry_socket: str
    state_dir: str = ""
    orphan_grace_s: float = 20.0
    drain_timeout_s: float = 30.0
    start_timeout_s: float = 600.0
    log_json: bool = False
    held: Held = Held()


class Registration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A worker that has loaded says so. POST /register.

    draining: it was told to leave, perhaps by a controller that is gone; it takes nothing new.
    protocol: `core.snapshot.REPORTED` of the sender.
    """

    protocol: int = 1
    instance_id: str
    epoch: int
    secret: str
    pid: int
    endpoint: Endpoint
    upstream_model: str = ""
    metadata: ModelMetadata
    concurrency: int = 1
    memory_bytes: int | None = None
    draining: bool = False


class Beat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A worker that lives says so. POST /beat.

    seq: +1 a beat. engine_ok: its own probe of the engine succeeded.
    """

    instance_id: str
    epoch: int
    secret: str
    seq: int
    engine_ok: bool = True
    draining: bool = False
    in_flight: int = 0
    memory_bytes: int | None = None


class BeatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """When to beat next. A stale or unknown sender gets an error object (409, 410) instead."""

    next_beat_s: float
    registered: bool = True  # False: send a Registration first


class Doubt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A gateway says that an engine takes requests, says nothing, and left a canary unanswered. POST /doubt.

    A hint: the controller asks for itself.
    """

    protocol: int = REPORTED
    instance_id: str
    epoch: int


class Departure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A worker that leaves says so. POST /deregister.

    reason: "" for a stop as asked. code: of the error that ended it, "" when there was none.
    """

    instance_id: str
    epoch: int
    secret: str
    reason: str = ""
    code: str = ""
