"""What an instance asks of the machine that it is placed on by another placer than ours, Ray."""

from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.core.rules import need, read_fields

_GROUP = "resources"


class Needs(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What is held for one instance. resources: of one's own, by name. memory_bytes: 0: none is held.

    Without Ray it says nothing: memory is estimated, and machines are chosen by name or label.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0
    resources: Mapping[str, float] = {}

    def __post_init__(self) -> None:
        for name in ("cpus", "gpus", "memory_bytes"):
            need(getattr(self, name) >= 0, _GROUP, name, "need 0 or more")
        for name, many in self.resources.items():
            need(
                bool(name) and many > 0, _GROUP, "resources", "need names, and more than 0 of each"
            )

    def __str__(self) -> str:
        parts = [f"{self.cpus:g} CPU"] if self.cpus else []
        if self.gpus:
            parts.append(f"{self.gpus:g} GPU")
        if self.memory_bytes:
            parts.append(f"{self.memory_bytes / (1 << 30):.1f} GiB")
        parts += [f"{many:g} {name}" for name, many in sorted(self.resources.items())]
        return ", ".join(parts) or "nothing"


def read_needs(given: Mapping[str, Any] | None, old: Needs | None = None) -> Needs:
    """As `core.rules.read_fields`."""
    return read_fields(given, old or Needs(), _GROUP)


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """One node, as Ray sees it. free: of its resources, what nobody has; memory in bytes."""

    node_id: str
    address: str
    is_alive: bool
    free: Mapping[str, float] = {}


class PlaceView(msgspec.Struct, frozen=True, kw_only=True):
    """One place. node_id: "" while Ray looks for a node. why: of its end."""

    place_id: str
    node_id: str = ""
    is_gone: bool = False
    why: str = ""
