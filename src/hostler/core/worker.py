"""What a worker manager is asked and what it answers: the contract's own types."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from hostler.core.lifecycle import State
from hostler.core.model import ParameterDescription, WorkerType


class WorkerRunData(msgspec.Struct, frozen=True, kw_only=True):
    """A running worker, as it was when asked: a frozen view, no live handle.

    host, port: where the worker answers; port 0 when it listens on a Unix socket (see address).
    host_id, host_name: of the other machine it runs on; "" for the controller's own.
    placement: what Ray holds for it, and how it sees that; "" without Ray.
    limit_model_concurrency: its slots. in_flight: how many of them are lent now, as last reported.
    last_heartbeat_s: seconds since its last sign of life arrived here; None before the first.
    """

    worker_key: str
    worker_type: WorkerType
    model_name: str
    instance_id: str
    host: str = "127.0.0.1"
    port: int = 0
    address: str = ""
    engine: str = ""
    state: State = State.PENDING
    reason: str = ""
    error_code: str = ""  # of a failed one: as in docs/reference/errors.md
    replica: int = 0
    epoch: int = 1
    pid: int | None = None
    worker_params: Mapping[str, Any] = {}
    model_params: Mapping[str, Any] = {}
    command_args: tuple[str, ...] = ()
    limit_model_concurrency: int = 1
    in_flight: int = 0
    last_heartbeat_s: float | None = None
    state_for_s: float = 0.0
    memory_bytes: int | None = None
    stopped: bool = False
    host_id: str = ""
    host_name: str = ""
    placement: str = ""

    @property
    def print_key(self) -> str:
        return f"model {self.model_name}@{self.worker_type.value}({self.host}:{self.port})"


class WorkerSupportedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model that could be started on a host."""

    model: str
    worker_type: WorkerType
    engine: str
    source: str = ""
    host: str = "127.0.0.1"
    label: str = ""
    description: str = ""
    license: str | None = None
    download_bytes: int | None = None
    memory_bytes: int | None = None
    present: bool = False  # its files are on disk
    fits: bool | None = None  # its memory is free now; None when not known
    params: tuple[ParameterDescription, ...] = ()


class WorkerStartupRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Start this model. What is left out comes from the catalogue entry of the same name."""

    model: str
    worker_type: WorkerType | None = None
    engine: str | None = None
    source: str | None = None
    replicas: int | None = None
    concurrency: int | None = None
    params: Mapping[str, Any] | None = None
    urls: tuple[str, ...] | None = None
    aliases: tuple[str, ...] | None = None
    open_fields: tuple[str, ...] | None = None
    upstream_model: str | None = None
    api_key_env: str | None = None
    routing: Mapping[str, Any] | None = None  # as RoutingRules
    scaling: Mapping[str, Any] | None = None  # as ScalingRules
    host: str | None = None  # by name or id; "": any machine; "localhost": the controller's own
    labels: Mapping[str, str] | None = None  # that its machine must have
    resources: Mapping[str, Any] | None = None  # as core.placing.Needs; for Ray
    runtime_env: Mapping[str, Any] | None = None  # as core.runtime_env.RuntimeEnv; for Ray


class WorkerShutdownRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Drain and stop every instance of a model. delete_after: forget the deployment as well."""

    model: str
    worker_type: WorkerType | None = None
    delete_after: bool = False


class Until(StrEnum):
    """What to wait for."""

    READY = "ready"  # every wished instance serves
    GONE = "gone"  # no process is left


class WorkerApplyType(StrEnum):
    """What to do with a running model."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    UPDATE_PARAMS = "update_params"


class WorkerApplyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Do one thing with every instance of a model, or RESTART one.

    worker_type: when given, the model must be of it. instance_id: the one to restart; None: all of them.
    source, params, replicas, concurrency, routing, scaling, host, labels, resources, runtime_env: for
    UPDATE_PARAMS; what is None stays. Of params, routing, scaling, resources and runtime_env, too, only what
    is given changes.
    """

    model: str
    apply_type: WorkerApplyType
    worker_type: WorkerType | None = None
    instance_id: str | None = None
    source: str | None = None
    params: Mapping[str, Any] | None = None  # of the engine; one of None: its default
    replicas: int | None = None
    concurrency: int | None = None
    routing: Mapping[str, Any] | None = None  # as RoutingRules; a rule of None: its default
    scaling: Mapping[str, Any] | None = None  # as ScalingRules; a rule of None: its default
    host: str | None = None  # "": any machine
    labels: Mapping[str, str] | None = None
    resources: Mapping[str, Any] | None = None  # as Needs; one of None: its default
    runtime_env: Mapping[str, Any] | None = None  # as RuntimeEnv; one of None: its default
    timeout_s: float = 600.0


class InstanceResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one instance."""

    instance_id: str
    success: bool
    state: State
    message: str = ""


class WorkerApplyOutput(msgspec.Struct, frozen=True, kw_only=True):
    """The per-instance results, merged. notes: what of a changed routing has no effect as things are."""

    success: bool
    message: str = ""
    notes: tuple[str, ...] = ()
    took_s: float = 0.0
    instances: tuple[InstanceResult, ...] = ()


class OperatorEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the operator's log: what moved, when, why. Never a prompt, an answer or a key.

    kind: dotted constant, e.g. `instance.ready`, `fetch.progress`, `model.start`.
    at_s: wall-clock seconds since 1970, for people.
    """

    seq: int = 0
    at_s: float = 0.0
    kind: str
    model: str = ""
    instance_id: str = ""
    message: str = ""
    fields: Mapping[str, Any] = {}
