"""CatalogEntry: what is known of one model before any byte of it is here."""

from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.core.model import WorkerType


class FileFacts(msgspec.Struct, frozen=True, kw_only=True):
    sha256: str
    bytes: int


class CatalogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A known model.

    source: see `hostler.catalog.address`. wheels: by `PACKAGE==VERSION`, each wheel of the source.
    files: by name below the model folder; empty when no hash is known (the hub's files).
    download_bytes: what is transferred; None when not known. memory_bytes: of one instance with
    default parameters, by `needs.estimate_memory_bytes`; what is said before the files are here.
    params: the engine's parameters that this model needs to be served right.
    context_length: in tokens. dimensions: of an embedding.
    needs_hub: its files come from a model hub, and no hash of ours guards them.
    """

    name: str
    worker_type: WorkerType
    engine: str
    source: str
    label: str
    description: str
    license: str
    wheels: Mapping[str, FileFacts] = {}
    files: Mapping[str, FileFacts] = {}
    download_bytes: int | None = None
    memory_bytes: int | None = None
    params: Mapping[str, Any] = {}
    context_length: int | None = None
    dimensions: int | None = None
    aliases: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    default: bool = False
    needs_hub: bool = False
