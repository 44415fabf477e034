"""Tallies: each model's instances by state, counted as they move instead of anew for each change."""

from collections import Counter

import msgspec

from hostler.core.lifecycle import State
from hostler.core.snapshot import ModelView
from hostler.registry.record import Record

LOADING = frozenset({State.PENDING, State.FETCHING, State.STARTING})


class Tallies:
    """Those of all models that have instances, or have just had some."""

    def __init__(self) -> None:
        self._by_model: dict[str, Tally] = {}

    def records(self, model: str) -> list[Record]:
        tally = self._by_model.get(model)
        return list(tally.records.values()) if tally is not None else []

    def add(self, record: Record) -> None:
        self._by_model.setdefault(record.instance.model_name, Tally()).add(record)

    def remove(self, record: Record) -> None:
        model = record.instance.model_name
        tally = self._by_model[model]
        tally.remove(record)
        if not tally.records and not tally.renewing:
            del self._by_model[model]

    def move(self, model: str, before: State, after: State) -> None:
        """An instance of this model is in another state."""
        self._by_model[model].move(before, after)

    def view(self, model: ModelView) -> ModelView:
        """A model as it was described, with what is counted here."""
        tally = self._by_model.get(model.name)
        if not model.wanted and tally is not None and not tally.records:
            del self._by_model[model.name]  # nobody waits for a new one
            tally = None
        return (tally or _NONE).view(model)


class Tally:
    """One model's. records: by instance id. renewing: the last ready one made room for a new one."""

    __slots__ = ("_counts", "records", "renewing")

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.renewing = False
        self._counts: Counter[State] = Counter()

    def add(self, record: Record) -> None:
        self.records[record.instance.instance_id] = record
        self._counts[record.instance.state] += 1

    def remove(self, record: Record) -> None:
        del self.records[record.instance.instance_id]
        self._count_out(record.instance.state)

    def move(self, before: State, after: State) -> None:
        """One of them is in another state."""
        self._count_out(before)
        self._counts[after] += 1
        if after in (State.READY, State.FAILED):
            self.renewing = False
        elif after is State.DRAINING and not self._counts[State.READY]:
            self.renewing = True

    def view(self, model: ModelView) -> ModelView:
        """The model with what is counted here."""
        known = (r.metadata for r in self.records.values() if r.metadata)
        metadata = next(known, None)
        return msgspec.structs.replace(
            model,
            states=tuple(sorted((state.value, count) for state, count in self._counts.items())),
            loading=any(state in LOADING for state in self._counts),
            context_length=metadata.context_length if metadata else model.context_length,
            renewing=model.wanted > 0 and self.renewing,
        )

    # Private

    def _count_out(self, state: State) -> None:
        self._counts[state] -= 1
        if not self._counts[state]:
            del self._counts[state]


_NONE = Tally()
