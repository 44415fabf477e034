"""What a host says of its instances, as signals of ours. No host is judged here."""

from hostler.core.hosts import HostBeat, InstanceReport
from hostler.core.lifecycle import Signal, State
from hostler.registry.host import Host
from hostler.registry.record import Record
from hostler.registry.registry import Registry, loaded

MISSED_TWICE = 2  # an instance that was ordered and is not in so many beats is not there
_SERVING = frozenset({State.READY, State.SUSPECT})
_GONE = frozenset({State.FAILED, State.STOPPED})


def take_beat(registry: Registry, host: Host, beat: HostBeat, now_s: float) -> tuple[str, ...]:
    """Believe a host about all that was ordered from it; return of whom the full report is wanted."""
    wanted, named = [], set()
    for report in beat.instances:
        if report.instance_id not in host.since:
            continue  # not ours to hear of: the list ends it there
        named.add(report.instance_id)
        record = registry.record(report.instance_id)
        if record is not None and take_report(registry, record, report, now_s):
            wanted.append(report.instance_id)
    is_ours = beat.incarnation == registry.incarnation
    for instance_id, version in list(host.since.items()) if is_ours else ():
        record = registry.record(instance_id)
        if record is None or instance_id in named or beat.version < version:
            host.missed.pop(instance_id, None)
            continue
        host.missed[instance_id] = host.missed.get(instance_id, 0) + 1
        if host.missed[instance_id] >= MISSED_TWICE:
            gone(registry, record, f"its host {host.name} does not have it")
    return tuple(wanted)


def take_report(registry: Registry, record: Record, report: InstanceReport, now_s: float) -> bool:
    """Believe a host about one instance that was ordered from it. True: its full report is wanted.

    A report of another process than the one ordered says nothing.
    """
    one = record.instance
    if report.epoch != one.epoch or one.state in _GONE:
        return False
    record.heard_at_s = now_s
    record.in_flight = report.in_flight
    record.memory_bytes = report.memory_bytes or record.memory_bytes
    record.pid = report.pid or record.pid
    record.command_args = report.command_args or record.command_args
    instance_id = one.instance_id
    match report.state:
        case State.FAILED:
            record.error_code = report.error_code
            registry.post(instance_id, Signal.EXITED, report.reason or "it ended on its host")
        case State.STOPPED:
            if one.state is State.DRAINING:
                registry.post(instance_id, Signal.DRAINED, report.reason or one.reason)
            else:
                registry.post(instance_id, Signal.EXITED, report.reason or "it left by itself")
        case State.DRAINING:
            if one.state in _SERVING or one.state is State.STARTING:
                registry.post(instance_id, Signal.DRAIN, report.reason or "it leaves")
        case State.READY | State.SUSPECT:
            return _serves(registry, record, report)
        case _:
            _is_before(registry, record, report)
    return False


def gone(registry: Registry, record: Record, reason: str) -> None:
    """It is not there any more, or nobody can say that it is: its place is for another one."""
    match record.instance.state:
        case State.PENDING | State.FETCHING:
            signal = Signal.EXITED
        case State.DRAINING:
            signal = Signal.DRAINED
        case _:
            signal = Signal.LOST
    registry.post(record.instance.instance_id, signal, reason)


# Private


def _is_before(registry: Registry, record: Record, report: InstanceReport) -> None:
    """Its files come, or it loads."""
    one = record.instance
    if one.state in _SERVING:  # the process that served is gone, whatever comes after it
        registry.post(one.instance_id, Signal.EXITED, "its host had to start it again")
    elif one.state is State.PENDING and report.state is State.FETCHING:
        registry.post(one.instance_id, Signal.FETCH, report.reason)
    elif one.state in (State.PENDING, State.FETCHING) and report.state is State.STARTING:
        registry.post(one.instance_id, Signal.LAUNCH, report.reason)


def _serves(registry: Registry, record: Record, report: InstanceReport) -> bool:
    """It has loaded. Only a full report makes an instance ready."""
    instance_id = record.instance.instance_id
    if report.metadata is None and record.metadata is None:
        return True
    if record.instance.state in (State.PENDING, State.FETCHING):
        registry.post(instance_id, Signal.LAUNCH)
    if report.metadata is not None:
        loaded(
            registry,
            record,
            pid=report.pid,
            metadata=report.metadata,
            memory_bytes=report.memory_bytes,
            endpoint=record.expected.endpoint,
            upstream_model=report.upstream_model,
        )
    if report.state is State.SUSPECT or not report.engine_ok:
        why = report.reason or "the engine does not answer its agent"
        registry.post(instance_id, Signal.LATE, why)
    else:
        registry.post(instance_id, Signal.SEEN)
    return False
