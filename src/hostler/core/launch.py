"""Launch: a process we started, written down so that a later controller can adopt or end it."""

import hashlib
import hmac

import msgspec

from hostler.core.fleet import WorkerSpec


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """One worker process, as it was ordered.

    It is saved before the process is started (pid None), and again when it has a pid: a crash
    between the two leaves a record, not a process that nobody knows.

    secret_hash: hex SHA-256 of the secret that the worker shows; the store holds no plain secret.
    pid_start_ticks: start of the process in clock ticks since boot (`/proc/PID/stat`, field 22).
    boot_id: of the boot these ticks count from; pid, ticks and boot together name one process.
    spec: what the worker was told, without its secret; of one on another host, what it is ordered as.
    host_id: of the host that starts it, "" here. There are no pid and no secret then.
    source, upstream_model: of its deployment, for that host.
    pinned: it was brought by hand: never started, replaced or counted by the plan.
    """

    instance_id: str
    worker_key: str
    replica: int
    epoch: int
    generation: int
    secret_hash: str
    spec: WorkerSpec
    pid: int | None = None
    pid_start_ticks: int | None = None
    boot_id: str = ""
    started_at_s: float = 0.0  # wall clock, for people
    host_id: str = ""
    source: str = ""
    upstream_model: str = ""
    pinned: bool = False

    def __post_init__(self) -> None:
        if self.spec.secret:
            raise ValueError("a launch must not hold the plain secret; make it with order()")

    def proves(self, secret: str) -> bool:
        """Whether this secret is the one the process was started with. Constant time."""
        shown = hashlib.sha256(secret.encode()).hexdigest()
        return hmac.compare_digest(shown, self.secret_hash)


def order(
    spec: WorkerSpec, *, worker_key: str, replica: int, generation: int, started_at_s: float = 0.0
) -> Launch:
    """Return the record of a process about to be started from this specification."""
    return Launch(
        instance_id=spec.instance_id,
        worker_key=worker_key,
        replica=replica,
        epoch=spec.epoch,
        generation=generation,
        secret_hash=hashlib.sha256(spec.secret.encode()).hexdigest(),
        spec=msgspec.structs.replace(spec, secret=""),
        started_at_s=started_at_s,
    )
