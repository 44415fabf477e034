"""ControlPlane: what the admin API needs of the manager behind it."""

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from hostler.core.deployment import Deployment
from hostler.core.hosts import HostFacts, HostView
from hostler.core.model import ModelMetadata, ParameterDescription, WorkerType
from hostler.core.usage import UsageQuestion, UsageRow
from hostler.core.worker import (
    OperatorEvent,
    Until,
    WorkerApplyOutput,
    WorkerApplyRequest,
    WorkerRunData,
    WorkerShutdownRequest,
    WorkerStartupRequest,
    WorkerSupportedModel,
)


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A controller, in numbers.

    incarnation: +1 for each start of a controller on this store.
    models: how many deployments in each state of their best instance, e.g. `{"ready": 2}`.
    isolation: how engine processes are fenced in, e.g. `pid_namespace`, `parent_death_signal`.
    machine: what the controller's own machine is like now.
    """

    version: str = ""
    incarnation: int = 0
    uptime_s: float = 0.0
    controller_pid: int = 0
    isolation: str = ""
    models: Mapping[str, int] = {}
    machine: HostFacts | None = None
    details: Mapping[str, Any] = {}


class LogSource(Protocol):
    """The log of one instance, here or on another machine. Its lines are without secrets."""

    async def last_lines(self, count: int) -> list[str]:
        """The last lines; what comes after them is new. Raises LogUnavailable."""

    async def new_lines(self) -> list[str]:
        """The whole lines written since the last look. Raises LogUnavailable."""

    async def close(self) -> None:
        """It is not read any more."""


class HostPlane(Protocol):
    """The machines of one controller. What is said of `ControlPlane` holds here, too."""

    def hosts(self) -> list[HostView]:
        """The machines that joined, by name."""

    def host(self, name: str) -> HostView:
        """One of them, by its id or name. Raises NotFound; Conflict: several have this name."""

    async def drain_host(self, name: str, *, is_draining: bool) -> HostView:
        """Write down that a machine is to be emptied, or not any more. Raises as `host`."""

    async def remove_host(self, name: str, *, force: bool) -> HostView:
        """Let a machine belong here no more. Raises as `host`; Conflict: it has instances."""


class ControlPlane(HostPlane, Protocol):
    """The wishes, the instances and the events of one controller.

    Coroutines run in the event loop that serves the API and raise `HostlerError`; the others return
    at once, from memory, but for `events_after` and `last_event_seq`, which read the store and are
    called in a thread.
    """

    async def start_model(self, request: WorkerStartupRequest) -> tuple[Deployment, bool]:
        """Write the wish down and return it at once; True: it is new, False: it was there already.

        Raises:
            AlreadyRunning: there with another specification; the text names the differences.
        """

    async def stop_model(self, request: WorkerShutdownRequest) -> Deployment:
        """Write the wish down and return it; the draining follows. Raises ModelNotFound."""

    async def worker_apply(self, request: WorkerApplyRequest) -> WorkerApplyOutput:
        """Do it, and return when it is done or `request.timeout_s` has passed."""

    async def restart_instance(self, instance_id: str) -> WorkerRunData:
        """Order a new process in the place of this one, and return how it stands; the events tell the rest.

        Raises:
            NotFound: no such instance. Conflict: it cannot be replaced; the text says why.
        """

    def start_limit_s(self, deployment: Deployment) -> float:
        """How long its processes may take to be ready, by the size of the files that are here."""

    def deployments(self) -> list[Deployment]:
        """Every wish, by name."""

    def run_data(self, model: str | None) -> list[WorkerRunData]:
        """The instances known now, dead ones with their reason included; of one model if named."""

    async def select_one_instance(
        self, worker_type: WorkerType | None, model_name: str, healthy_only: bool
    ) -> WorkerRunData:
        """The instance a request would get now. Raises ModelNotFound, NoReadyInstance."""

    async def get_model_metadata(self, model_name: str) -> ModelMetadata:
        """What a running model is. Raises ModelNotFound, NoReadyInstance, ModelLoading."""

    async def wait_model(
        self, worker_type: WorkerType | None, model_name: str, until: Until, timeout_s: float
    ) -> list[WorkerRunData]:
        """Return its instances when all that are wished are ready, or none is left.

        Raises:
            UpstreamTimeout: not in that time. EngineError: an instance was given up, and why.
        """

    async def supported_models(self) -> list[WorkerSupportedModel]:
        """What could be started here."""

    async def parameter_descriptions(
        self, worker_type: WorkerType | None, model_name: str
    ) -> list[ParameterDescription]:
        """What can be set for this model, running or not."""

    def events_after(self, seq: int, limit: int, model: str | None) -> list[OperatorEvent]:
        """The oldest `limit` events with a higher number, oldest first."""

    def last_event_seq(self) -> int:
        """The number of the newest event; 0 before the first."""

    async def wait_events(self, seq: int, timeout_s: float) -> None:
        """Return when there is an event with a higher number, or the time has passed."""

    async def usage(self, question: UsageQuestion) -> tuple[UsageRow, ...]:
        """What was used. Raises StorageBusy, StorageFailed."""

    def log_of(self, instance_id: str) -> LogSource | None:
        """The log of an instance that the manager knows, which need not be there yet; None for any
        other text. To be closed.
        """

    def status(self) -> Status:
        """This controller, in numbers."""
