"""Store: what survives a restart. Wishes, keys, hosts, launched processes, events, usage and counters.

A room takes the small protocol it needs (`KeyStore`, `EventStore`...); `Store` is all of them.
An implementation is `storage.sql.SqlStore` (SQLite) or `storage.memory.MemoryStore`; both pass
tests/unit/storage/test_conformance.py. Not here: what is running now (registry), limits.

Every method is synchronous and quick, and may be called from any thread. When it returns, a change
of a wish, key, token, host, launch or counter is on the disk. Every method may raise `StorageBusy`,
`InsufficientStorage` (writes) and `StorageFailed`.
"""

from typing import Protocol

from hostler.app.auth import KeyStore
from hostler.app.tokens import HostStore, TokenStore
from hostler.core.deployment import Deployment
from hostler.core.launch import Launch
from hostler.core.model import WorkerType
from hostler.core.usage import DAY_S, UsageBatch, UsageQuestion, UsageRow
from hostler.core.worker import OperatorEvent

EVENTS_KEPT = 10_000  # the newest; older ones are forgotten as new ones come
USAGE_KEPT_S = 400 * DAY_S  # older hours are forgotten, and gateways not heard of since


class DeploymentStore(Protocol):
    """The operators' wishes, one a (name, worker_type)."""

    def deployments(self) -> tuple[Deployment, ...]:
        """By name, then type."""

    def save_deployment(self, deployment: Deployment) -> None:
        """Add it, or replace the one of the same name and type."""

    def delete_deployment(self, name: str, worker_type: WorkerType) -> bool:
        """Forget it, but for its generation. False: it was not there."""

    def last_generation(self, name: str, worker_type: WorkerType) -> int:
        """The generation of the last one of this name and type that was deleted; 0: there was none."""


class LaunchStore(Protocol):
    """Processes we started and have not seen the end of."""

    def launches(self) -> tuple[Launch, ...]:
        """By instance id."""

    def save_launch(self, launch: Launch) -> None:
        """Add it, or replace the one of the same instance id."""

    def delete_launch(self, instance_id: str) -> bool:
        """Forget it: the process is gone. False: it was not there."""


class EventStore(Protocol):
    """The operators' log. An event survives a crash of ours; one written in the last moments before
    the machine loses power may be lost (no disk flush of its own)."""

    def append_event(self, event: OperatorEvent, *more: OperatorEvent) -> int:
        """Keep each under a new number, higher than every one before, or none; return that of the last.

        An event's own `seq` is not read.
        """

    def events(
        self, after_seq: int = 0, limit: int = 500, model: str | None = None
    ) -> tuple[OperatorEvent, ...]:
        """The oldest `limit` events after this number, oldest first; of one model if named."""

    def last_seq(self) -> int:
        """The number of the newest event; 0 before the first."""


class UsageStore(Protocol):
    """What was used. Counts survive a crash of ours; those of the last moments before the machine
    loses power may be lost (no disk flush of their own)."""

    def add_usage(self, batch: UsageBatch) -> bool:
        """Add all of its counts, or none. False: this batch of this source was there already."""

    def usage(self, question: UsageQuestion) -> tuple[UsageRow, ...]:
        """By time, then key, then model."""


class CounterStore(Protocol):
    """Numbers that only grow, also across restarts and when what they counted is forgotten."""

    def next_incarnation(self) -> int:
        """+1 for each start of a controller on this store; the first is 1."""

    def next_epoch(self, worker_key: str, replica: int) -> int:
        """+1 for each process of this replica; the first is 1."""


class Store(
    DeploymentStore,
    LaunchStore,
    KeyStore,
    TokenStore,
    HostStore,
    EventStore,
    UsageStore,
    CounterStore,
    Protocol,
):
    """Everything a controller keeps.

    `keys()` lists by creation; `revoke_key(id)` is False when no such key is there, and a revoked
    one stays listed; `drop_keys` forgets some, and says how many of them were there.
    """

    def close(self) -> None:
        """Let go of the file. Nothing may be called after it."""
