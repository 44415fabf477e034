"""What an instance asks of the machine that it is placed on by another placer than ours, Ray."""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from hostler.core.rules import need, read_fields
from hostler.core.runtime_env import variables_problem

GPUS_MOST = 64  # of one process
BUNDLES_MOST = 64
GROUP_VARIABLE = "HOSTLER_RAY_PLACEMENT_GROUP"
_GROUP_ID = re.compile(r"[0-9a-f]{8,64}")
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")  # NVIDIA's; AMD's reads both
_GPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9/:_.-]{0,79}")  # "3", "GPU-8a1f...", "MIG-.../1/0"
_GROUP = "resources"


class Strategy(StrEnum):
    """How Ray lays bundles out over nodes."""

    PACK = "PACK"  # on as few as can be
    SPREAD = "SPREAD"
    STRICT_PACK = "STRICT_PACK"  # on one
    STRICT_SPREAD = "STRICT_SPREAD"  # each on another


class Bundle(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What is held together on one node. As Needs, but no CPU unless it is asked for."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory_bytes: int = 0
    resources: Mapping[str, float] = {}

    def __post_init__(self) -> None:
        _check_amounts(self, f"{_GROUP}.bundles")
        need(bool(self.by_name()), _GROUP, "bundles", "need something in each")

    def __str__(self) -> str:
        return _told(self)

    def by_name(self) -> dict[str, float]:
        """What is asked for, by Ray's names."""
        return _by_name(self)


class Needs(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What is held for one instance. resources: of one's own, by name. memory_bytes: 0: none is held.
    bundles: for a model over several nodes, instead of the others: its engine takes them for itself, and
    its process is where the first one is.

    Without Ray it says nothing: memory is estimated, and machines are chosen by name or label.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0
    resources: Mapping[str, float] = {}
    bundles: tuple[Bundle, ...] = ()
    strategy: Strategy = Strategy.PACK

    def __post_init__(self) -> None:
        _check_amounts(self, _GROUP)
        need(len(self.bundles) <= BUNDLES_MOST, _GROUP, "bundles", f"need up to {BUNDLES_MOST}")
        is_else = bool(self.gpus or self.memory_bytes or self.resources) or self.cpus != 1.0
        told = "with them, say in each what it holds, and nothing beside them"
        need(not (self.bundles and is_else), _GROUP, "bundles", told)

    def __str__(self) -> str:
        if self.bundles:
            told = "; ".join(map(str, self.bundles))
            return f"{len(self.bundles)} bundles {self.strategy} ({told})"
        return _told(self)

    def by_name(self) -> dict[str, float]:
        """What is asked for of one node, by Ray's names; nothing where there are bundles."""
        return {} if self.bundles else _by_name(self)

    @property
    def parts(self) -> "tuple[Bundle | Needs, ...]":
        """What is to be found together on one node each."""
        return self.bundles or (self,)


def read_needs(given: Mapping[str, Any] | None, old: Needs | None = None) -> Needs:
    """As `core.rules.read_fields`."""
    return read_fields(given, old or Needs(), _GROUP)


class Held(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a placer has chosen for one process. Its host checks it before anything is started.

    gpus: by number or name, as their driver knows them; None: nobody has chosen; (): it gets none.
    python: the interpreter of an environment of its own. folder: that it starts in and imports from.
    env_vars: further ones that its model asks for. group: of Ray, with the bundles that are held for it.
    """

    gpus: tuple[str, ...] | None = None
    python: str = ""
    folder: str = ""
    env_vars: Mapping[str, str] = {}
    group: str = ""

    def problem(self) -> str:
        """What of it no host may take, whoever says it; "": nothing."""
        gpus = self.gpus or ()
        if len(gpus) > GPUS_MOST or not all(_GPU.fullmatch(one) for one in gpus):
            return f"no list of up to {GPUS_MOST} GPUs: {', '.join(gpus)[:200]!r}"
        if self.group and not _GROUP_ID.fullmatch(self.group):
            return f"no id of a placement group: {self.group[:80]!r}"
        return variables_problem(self.env_vars)

    def variables(self) -> dict[str, str]:
        """What its process finds in its environment; of the names, none but those of `env_vars` is chosen
        by who holds.
        """
        gpus = {} if self.gpus is None else dict.fromkeys(GPU_VARIABLES, ",".join(self.gpus))
        group = {GROUP_VARIABLE: self.group} if self.group else {}
        return {**self.env_vars, **gpus, **group}


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

    def lacks(self, part: "Needs | Bundle") -> str:
        """What it has too little of now, by name; empty when it has a place."""
        asked = part.by_name()
        return ", ".join(name for name, many in asked.items() if many > self.free.get(name, 0.0))


class PlaceView(msgspec.Struct, frozen=True, kw_only=True):
    """One place. node_id: "" while Ray looks for a node. gpus, python, folder, group: as of Held, there.

    why: of its end. cannot_be: that is for what was asked, not for who gave it.
    """

    place_id: str
    node_id: str = ""
    gpus: tuple[str, ...] = ()
    python: str = ""
    folder: str = ""
    group: str = ""
    is_gone: bool = False
    cannot_be: bool = False
    why: str = ""


# Private


def _check_amounts(one: Bundle | Needs, group: str) -> None:
    for name in ("cpus", "gpus", "memory_bytes"):
        need(getattr(one, name) >= 0, group, name, "need 0 or more")
    for name, many in one.resources.items():
        need(bool(name) and many > 0, group, "resources", "need names, and more than 0 of each")


def _by_name(one: Bundle | Needs) -> dict[str, float]:
    asked = {"CPU": one.cpus, "GPU": one.gpus, "memory": float(one.memory_bytes), **one.resources}
    return {name: many for name, many in asked.items() if many}


def _told(one: Bundle | Needs) -> str:
    parts = [f"{one.cpus:g} CPU"] if one.cpus else []
    if one.gpus:
        parts.append(f"{one.gpus:g} GPU")
    if one.memory_bytes:
        parts.append(f"{one.memory_bytes / (1 << 30):.1f} GiB")
    parts += [f"{many:g} {name}" for name, many in sorted(one.resources.items())]
    return ", ".join(parts) or "nothing"
