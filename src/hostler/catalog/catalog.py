"""The models that Hostler knows by name: where they come from, what they are, what they need."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from hostler.catalog.entries import ENTRIES
from hostler.catalog.entry import CatalogEntry, FileFacts
from hostler.core.errors import ModelNotFound
from hostler.core.model import WorkerType

__all__ = ["Catalog", "CatalogEntry", "FileFacts"]


class Catalog:
    """Known models, found by name or alias. The shipped ones when none are given."""

    def __init__(self, entries: Iterable[CatalogEntry] = ENTRIES) -> None:
        self.entries = tuple(entries)
        names: dict[str, CatalogEntry] = {}
        for entry in self.entries:
            for name in (entry.name, *entry.aliases):
                if names.setdefault(name, entry) is not entry:
                    raise ValueError(f"two catalogue entries are called {name!r}")
        self._names: Mapping[str, CatalogEntry] = names

    def find(self, name: str) -> CatalogEntry | None:
        """Return the entry of this name or alias."""
        return self._names.get(name)

    def find_source(self, source: str) -> CatalogEntry | None:
        """Return the entry whose files come from exactly this source."""
        return next((entry for entry in self.entries if entry.source == source), None)

    def nearest(self, name: str) -> str | None:
        """Return the known name that looks most like this one, for a "did you mean"."""
        near = difflib.get_close_matches(name.lower(), self._names, n=1, cutoff=0.5)
        return self._names[near[0]].name if near else None

    def require(self, name: str) -> CatalogEntry:
        """Return the entry of this name.

        Raises:
            ModelNotFound: with the nearest known name.
        """
        if (entry := self.find(name)) is not None:
            return entry
        near = self.nearest(name)
        hint = (
            f"did you mean {near}?"
            if near
            else "give engine and source, or see `hostler model list`"
        )
        raise ModelNotFound(f"model {name!r} is not in the catalogue; {hint}", param="model")

    def default_models(self) -> tuple[CatalogEntry, ...]:
        """Return the models that a fresh machine starts: one a role, chat first."""
        return tuple(entry for entry in self.entries if entry.default)

    def default_for(self, worker_type: WorkerType) -> CatalogEntry | None:
        """Return the default model of a role."""
        return next((e for e in self.default_models() if e.worker_type is worker_type), None)

    def as_rows(self) -> list[dict[str, Any]]:
        """Return the entries as plain values, for JSON and tables."""
        rows: list[dict[str, Any]] = [msgspec.to_builtins(entry) for entry in self.entries]
        return rows
