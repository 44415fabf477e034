"""What an instance asks of the machine that it is placed on by another placer than ours, Ray."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.core.rules import need, read_fields

GPUS_MOST = 64  # of one process
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")  # NVIDIA's; AMD's reads both
_GPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9/:_.-]{0,79}")  # "3", "GPU-8a1f...", "MIG-.../1/0"
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


class Held(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a placer has chosen for one process. Its host checks it before anything is started.

    gpus: by number or name, as their driver knows them; None: nobody has chosen; (): it gets none.
    """

    gpus: tuple[str, ...] | None = None

    def problem(self) -> str:
        """What of it no host may take, whoever says it; "": nothing."""
        gpus = self.gpus or ()
        if len(gpus) > GPUS_MOST or not all(_GPU.fullmatch(one) for one in gpus):
            return f"no list of up to {GPUS_MOST} GPUs: {', '.join(gpus)[:200]!r}"
        return ""

    def variables(self) -> dict[str, str]:
        """What its process finds in its environment. The names are ours, whoever holds."""
        if self.gpus is None:
            return {}
        return dict.fromkeys(GPU_VARIABLES, ",".join(self.gpus))


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """Where an instance may be, and what is held for it there."""

    host_id: str
    held: Held = Held()


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """One node, as Ray sees it. free: of its resources, what nobody has; memory in bytes."""

    node_id: str
    address: str
    is_alive: bool
    free: Mapping[str, float] = {}


class PlaceView(msgspec.Struct, frozen=True, kw_only=True):
    """One place. node_id: "" while Ray looks for a node. gpus: of that node. why: of its end."""

    place_id: str
    node_id: str = ""
    gpus: tuple[str, ...] = ()
    is_gone: bool = False
    why: str = ""
