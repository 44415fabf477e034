"""MemoryStore: a store that ends with its process; for tests, and programs without a disk."""

from collections import Counter, deque
from collections.abc import Sequence

import msgspec

from hostler.app.auth import StoredKey
from hostler.core.deployment import Deployment
from hostler.core.launch import Launch
from hostler.core.model import WorkerType, worker_key
from hostler.core.usage import (
    DAY_S,
    Tokens,
    UsageBatch,
    UsageBy,
    UsageCount,
    UsageQuestion,
    UsageRow,
    matches,
    total_of,
)
from hostler.core.worker import OperatorEvent
from hostler.storage.memory_members import MemoryMembers
from hostler.storage.store import EVENTS_KEPT


class MemoryStore(MemoryMembers):
    """The same behaviour as `SqlStore`, in dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self._deployments: dict[tuple[str, str], Deployment] = {}
        self._launches: dict[str, Launch] = {}
        self._keys: dict[str, StoredKey] = {}
        self._events: deque[OperatorEvent] = deque(maxlen=EVENTS_KEPT)
        self._last_seq = 0
        self._counters: Counter[str] = Counter()
        self._usage: dict[tuple[int, str, str], Tokens] = {}
        self._sources: dict[str, int] = {}

    def deployments(self) -> tuple[Deployment, ...]:
        with self._lock:
            return tuple(self._deployments[key] for key in sorted(self._deployments))

    def save_deployment(self, deployment: Deployment) -> None:
        with self._lock:
            self._deployments[deployment.name, deployment.worker_type.value] = deployment

    def delete_deployment(self, name: str, worker_type: WorkerType) -> bool:
        with self._lock:
            gone = self._deployments.pop((name, worker_type.value), None)
            if gone is not None:
                self._counters[f"generation:{gone.worker_key}"] = gone.generation
            return gone is not None

    def last_generation(self, name: str, worker_type: WorkerType) -> int:
        with self._lock:
            return self._counters[f"generation:{worker_key(name, worker_type)}"]

    def launches(self) -> tuple[Launch, ...]:
        with self._lock:
            return tuple(self._launches[key] for key in sorted(self._launches))

    def save_launch(self, launch: Launch) -> None:
        with self._lock:
            self._launches[launch.instance_id] = launch

    def delete_launch(self, instance_id: str) -> bool:
        with self._lock:
            return self._launches.pop(instance_id, None) is not None

    def keys(self) -> tuple[StoredKey, ...]:
        with self._lock:
            return tuple(
                sorted(self._keys.values(), key=lambda key: (key.created_at_s, key.view.key_id))
            )

    def save_key(self, key: StoredKey) -> None:
        with self._lock:
            self._keys[key.view.key_id] = key

    def revoke_key(self, key_id: str) -> bool:
        with self._lock:
            if (key := self._keys.get(key_id)) is None:
                return False
            view = msgspec.structs.replace(key.view, revoked=True)
            self._keys[key_id] = msgspec.structs.replace(key, view=view)
            return True

    def drop_keys(self, key_ids: Sequence[str]) -> int:
        with self._lock:
            return sum(self._keys.pop(key_id, None) is not None for key_id in key_ids)

    def append_event(self, event: OperatorEvent, *more: OperatorEvent) -> int:
        with self._lock:
            for one in (event, *more):
                self._last_seq += 1
                self._events.append(msgspec.structs.replace(one, seq=self._last_seq))
            return self._last_seq

    def events(
        self, after_seq: int = 0, limit: int = 500, model: str | None = None
    ) -> tuple[OperatorEvent, ...]:
        with self._lock:
            found = [
                event
                for event in self._events
                if event.seq > after_seq and (model is None or event.model == model)
            ]
        return tuple(found[: max(limit, 0)])

    def last_seq(self) -> int:
        with self._lock:
            return self._last_seq

    def add_usage(self, batch: UsageBatch) -> bool:
        with self._lock:
            if batch.seq <= self._sources.get(batch.source, 0):
                return False
            self._sources[batch.source] = batch.seq
            for count in batch.counts:
                place = (count.hour_s, count.key_id, count.model)
                self._usage[place] = total_of((self._usage.get(place, Tokens()), count))
            return True

    def usage(self, question: UsageQuestion) -> tuple[UsageRow, ...]:
        groups: dict[tuple[int | None, str | None, str | None], list[Tokens]] = {}
        with self._lock:
            for (hour_s, key_id, model), tokens in self._usage.items():
                count = UsageCount(
                    hour_s=hour_s, key_id=key_id, model=model, **msgspec.structs.asdict(tokens)
                )
                if matches(question, count):
                    groups.setdefault(_group(question.by, count), []).append(tokens)
        order = sorted(groups, key=lambda group: (group[0] or 0, group[1] or "", group[2] or ""))
        return tuple(
            UsageRow(
                at_s=group[0],
                key_id=group[1],
                model=group[2],
                **msgspec.structs.asdict(total_of(groups[group])),
            )
            for group in order
        )

    def next_incarnation(self) -> int:
        return self._next("incarnation")

    def next_epoch(self, worker_key: str, replica: int) -> int:
        return self._next(f"epoch:{worker_key}:{replica}")

    def close(self) -> None:
        """Nothing to let go of."""

    # Private

    def _next(self, name: str) -> int:
        with self._lock:
            self._counters[name] += 1
            return self._counters[name]


# Private


def _group(by: UsageBy | None, count: UsageCount) -> tuple[int | None, str | None, str | None]:
    """What row a count belongs to."""
    match by:
        case UsageBy.HOUR:
            return count.hour_s, None, None
        case UsageBy.DAY:
            return count.hour_s // DAY_S * DAY_S, None, None
        case UsageBy.KEY:
            return None, count.key_id, None
        case UsageBy.MODEL:
            return None, None, count.model
        case None:
            return None, count.key_id, count.model
