"""Change: what is other in one snapshot than in the one before. Who has that one needs no more."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from hostler.core.snapshot import InstanceView, KeyView, ModelView, Snapshot

T = TypeVar("T")

# Of an answer to an order: "incarnation.version" of the snapshot that has what was ordered in it.
PLACE_HEADER = "x-hostler-snapshot"


class Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The way from version `since` to `version`. Without `since` it is a whole snapshot, which is read alike.

    models_gone, gone: names of models and ids of instances that are no more; they are taken out first.
    models, instances: those that are new, which come last, and those that are other, which keep their
        place. keys: all of them, if anything of them is other. count: instances there are then, as a check.
    """

    protocol: int = 1
    incarnation: int = 0
    since: int | None = None
    version: int = 0
    models_gone: tuple[str, ...] = ()
    models: tuple[ModelView, ...] = ()
    gone: tuple[str, ...] = ()
    instances: tuple[InstanceView, ...] = ()
    keys: tuple[KeyView, ...] | None = None
    count: int | None = None


class Picture:
    """A snapshot that changes where it stands: a step costs what it changes, not what there is."""

    __slots__ = ("_snapshot", "incarnation", "instances", "keys", "models", "protocol", "version")

    def __init__(self, *, incarnation: int = 0, protocol: int = 1) -> None:
        self.protocol = protocol
        self.incarnation = incarnation
        self.version = 0
        self.models: dict[str, ModelView] = {}
        self.instances: dict[str, InstanceView] = {}
        self.keys: tuple[KeyView, ...] = ()
        self._snapshot: Snapshot | None = None

    def apply(self, change: Change) -> None:
        """Take a step from here."""
        _patch(self.models, change.models_gone, ((m.name, m) for m in change.models))
        _patch(self.instances, change.gone, ((i.instance_id, i) for i in change.instances))
        if change.keys is not None:
            self.keys = change.keys
        self.protocol, self.incarnation = change.protocol, change.incarnation
        self.version = change.version
        self._snapshot = None

    def become(self, snapshot: Snapshot | Change) -> Change:
        """Turn to a whole snapshot; return the step from here to there."""
        models = {model.name: model for model in snapshot.models}
        instances = {instance.instance_id: instance for instance in snapshot.instances}
        keys = snapshot.keys or ()
        change = Change(
            protocol=snapshot.protocol,
            incarnation=snapshot.incarnation,
            since=self.version,
            version=snapshot.version,
            models_gone=tuple(name for name in self.models if name not in models),
            models=_news(self.models, models),
            gone=tuple(one for one in self.instances if one not in instances),
            instances=_news(self.instances, instances),
            keys=keys if keys != self.keys else None,
        )
        self.apply(change)
        self.models, self.instances = models, instances  # in the order they are told
        return change

    def snapshot(self) -> Snapshot:
        """All of it as it is now, for good. Made once a version."""
        if self._snapshot is None:
            self._snapshot = Snapshot(
                protocol=self.protocol,
                incarnation=self.incarnation,
                version=self.version,
                models=tuple(self.models.values()),
                instances=tuple(self.instances.values()),
                keys=self.keys,
            )
        return self._snapshot


# Private


def _patch(held: dict[str, T], gone: Iterable[str], news: Iterable[tuple[str, T]]) -> None:
    for name in gone:
        held.pop(name, None)
    held.update(news)


def _news(held: Mapping[str, T], told: Mapping[str, T]) -> tuple[T, ...]:
    return tuple(one for name, one in told.items() if held.get(name) != one)
