"""Glimpse: all of a server at one moment, as `hostler top` shows it."""

from collections.abc import Iterable, Iterator

import msgspec

from hostler.admin.messages import ModelStatus
from hostler.cli.models import model_state
from hostler.cli.watch import Pace, Watch
from hostler.core.deployment import HERE
from hostler.core.lifecycle import State
from hostler.core.model import WorkerType
from hostler.core.worker import WorkerRunData


class ModelGlimpse(msgspec.Struct, frozen=True, kw_only=True):
    """One model. ready, wanted: instances."""

    worker_key: str
    name: str
    worker_type: WorkerType
    state: str
    ready: int
    wanted: int
    reason: str = ""
    pace: Pace = Pace()


class InstanceGlimpse(msgspec.Struct, frozen=True, kw_only=True):
    """One instance. host_id: "" on the controller's own machine. beat_s: since its last sign of life."""

    instance_id: str
    worker_key: str
    model_name: str
    worker_type: WorkerType
    state: State
    host: str = ""
    host_id: str = ""
    in_flight: int = 0
    slots: int = 1
    memory_bytes: int | None = None
    beat_s: float | None = None
    reason: str = ""


class Glimpse(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at one moment. at_s: Unix time, of who looks. notes: what of it is not whole."""

    url: str
    at_s: float
    models: tuple[ModelGlimpse, ...] = ()
    instances: tuple[InstanceGlimpse, ...] = ()
    notes: tuple[str, ...] = ()


def glimpse(
    url: str,
    at_s: float,
    models: Iterable[ModelStatus],
    instances: Iterable[WorkerRunData],
    watch: Watch,
    silent: int,
) -> Glimpse:
    """Put together what was asked. silent: gateways that did not say what they know."""
    return Glimpse(
        url=url,
        at_s=at_s,
        models=tuple(
            ModelGlimpse(
                worker_key=one.worker_key,
                name=one.name,
                worker_type=one.worker_type,
                state=model_state(one),
                ready=one.ready,
                wanted=one.wanted,
                reason=one.reason if one.ready < one.wanted else "",
                pace=watch.pace(one.name),
            )
            for one in models
        ),
        instances=tuple(_instance(one) for one in instances if not one.stopped),
        notes=tuple(_notes(watch, silent)),
    )


# Private


def _instance(one: WorkerRunData) -> InstanceGlimpse:
    return InstanceGlimpse(
        instance_id=one.instance_id,
        worker_key=one.worker_key,
        model_name=one.model_name,
        worker_type=one.worker_type,
        state=one.state,
        host=one.host_name or ("" if one.state is State.PENDING else HERE),
        host_id=one.host_id,
        in_flight=one.in_flight,
        slots=one.limit_model_concurrency,
        memory_bytes=one.memory_bytes,
        beat_s=one.last_heartbeat_s,
        reason=one.reason,
    )


def _notes(watch: Watch, silent: int) -> Iterator[str]:
    if silent:
        yield f"{silent} gateway(s) did not answer: rates are without theirs"
    if watch.is_short:
        yield "more requests than gateways remember (gateway.timeline_requests): rates are too low"
