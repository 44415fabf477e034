"""One worker process: what it is told, how long it may load, how it is started. Watches nothing."""

import secrets
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil

from hostler.app.config import Config, LifeConfig
from hostler.app.environment import own_python, worker_environment
from hostler.app.faults import CrashPoint, crash_point
from hostler.app.paths import StatePaths
from hostler.app.process import ProcessHandle, spawn
from hostler.catalog.needs import size_bytes
from hostler.core.deployment import Deployment
from hostler.core.fleet import WorkerSpec
from hostler.core.launch import Launch, order
from hostler.core.lifecycle import Instance
from hostler.core.placing import Held
from hostler.core.snapshot import Endpoint
from hostler.wire.client import UpstreamLost, fetch


def load_deadline_s(life: LifeConfig, model_bytes: int) -> float:
    """Return how long a model of this size may take from its process to its registration, in seconds."""
    return life.start_timeout_s + model_bytes / life.load_bytes_per_s


def specify(
    instance: Instance,
    deployment: Deployment,
    path: Path | None,
    paths: StatePaths,
    config: Config,
    held: Held,
) -> WorkerSpec:
    """Return what a new worker is told, its secret included. path: the model's files, if it has any."""
    instance_id = instance.instance_id
    life = config.life
    return WorkerSpec(
        instance_id=instance_id,
        epoch=instance.epoch,
        secret=secrets.token_urlsafe(32),
        model_name=deployment.name,
        worker_type=deployment.worker_type,
        engine=deployment.engine,
        model_path=str(path or ""),
        params=deployment.params,
        concurrency=deployment.concurrency,
        engine_socket=str(paths.engine_socket(instance_id)),
        agent_socket=str(paths.agent_socket(instance_id)),
        registry_socket=str(paths.registry_socket),
        state_dir=str(paths.state_dir),
        orphan_grace_s=life.orphan_grace_s,
        drain_timeout_s=life.drain_timeout_s,
        start_timeout_s=load_deadline_s(life, size_bytes(path) if path else 0),
        log_json=config.log_json,
        held=held,
    )


def intent(instance: Instance, spec: WorkerSpec) -> Launch:
    """Return the record of a process that is about to be started."""
    return order(
        spec,
        worker_key=instance.worker_key,
        replica=instance.replica,
        generation=instance.generation,
        started_at_s=time.time(),
    )


def start_process(paths: StatePaths, spec: WorkerSpec, tags: Mapping[str, str]) -> ProcessHandle:
    """Start a worker, its tags in its environment. From the main thread only.

    Raises:
        StartupError: it cannot be started. OSError: its specification or its log cannot be written.
    """
    instance_id = spec.instance_id
    place = paths.worker_spec(instance_id)
    place.touch(mode=0o600)
    place.write_bytes(msgspec.json.encode(spec))
    crash_point(CrashPoint.SPEC_WRITTEN)
    with paths.worker_log(instance_id).open("ab") as output:
        return spawn(
            worker_argv(paths, spec),
            # spinning OpenMP threads ruin neighbours (docs/design/engines.md)
            env=worker_environment(
                {**spec.held.variables(), **tags, "OMP_WAIT_POLICY": "passive"}, spec.held.python
            ),
            stdout=output.fileno(),
        )


def worker_argv(paths: StatePaths, spec: WorkerSpec) -> list[str]:
    """Return the command of a worker."""
    words = ("-m", "hostler", "worker", f"--spec={paths.worker_spec(spec.instance_id)}")
    return own_python(*words, python=spec.held.python)


def resident_bytes(pid: int) -> int:
    """Return the memory of a process and of what it started; 0 when it is gone."""
    total = 0
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            total += int(one.memory_info().rss)
    except psutil.Error:
        pass
    return total


async def agent_answers(paths: StatePaths, instance_id: str) -> bool:
    """Whether the agent of a worker answers now. One that loads its model does; one that hangs does not."""
    endpoint = Endpoint(socket=str(paths.agent_socket(instance_id)))
    try:
        return (await fetch(endpoint, "GET", "/health", timeout_s=2.0)).status == 200
    except (UpstreamLost, TimeoutError, OSError):
        return False
