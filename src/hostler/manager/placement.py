"""place(): on which machine an instance should run, or what each of them lacks. Pure: no I/O, no clock.

It starts nothing, and promises no memory: two orders in one moment see each other as `coming_bytes`.
"""

from collections.abc import Mapping, Sequence

import msgspec

from hostler.core.deployment import HERE
from hostler.core.hosts import Standing

_TOLD = 12  # machines in a reason; more are counted


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One machine, as far as it matters.

    host_id: "" for the controller's own. engines: that may be started there; None: not known.
    free_bytes: of memory; None: not known. coming_bytes: of it, what instances on their way will take.
    instances: of all models, there or on their way.
    mine: living instances of the model there, without the one that is to be replaced; was: that one is
    there. failed: of its places, how many failed there last.
    """

    host_id: str = ""
    name: str = HERE
    standing: Standing = Standing.ALIVE
    engines: tuple[str, ...] | None = None
    labels: Mapping[str, str] = {}
    free_bytes: int | None = None
    coming_bytes: int = 0
    instances: int = 0
    mine: int = 0
    was: bool = False
    failed: int = 0

    @property
    def left_bytes(self) -> int | None:
        return None if self.free_bytes is None else self.free_bytes - self.coming_bytes


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance needs of its machine.

    engine: "": it brings that. host: a name or an id; "": any. memory_bytes: None: not known.
    """

    engine: str
    host: str = ""
    labels: Mapping[str, str] = {}
    memory_bytes: int | None = None


class Unplaced(msgspec.Struct, frozen=True, kw_only=True):
    """No machine can take it now; why, for people."""

    reason: str


def place(need: Need, machines: Sequence[Machine]) -> Machine | Unplaced:
    """Return the machine for one instance: of those that may, the one with the fewest of its model.

    Then where it did not fail last; then where the one is that it replaces (its files are there); then the
    controller's own; then the one with the most memory left. When nobody knows what an instance takes,
    memory says little of what comes: then the one with the fewest instances goes before.
    """
    meant = [one for one in machines if need.host in ("", one.host_id, one.name)]
    if not meant:
        known = ", ".join(sorted(one.name for one in machines if one.host_id)[:_TOLD]) or "none"
        return Unplaced(
            reason=f"waits for a machine: no host {need.host!r} has joined (there are: {known})"
        )
    lacks = {one.host_id: what_lacks(need, one) for one in meant}
    able = [one for one in meant if not lacks[one.host_id]]
    if not able:
        told = "; ".join(f"{one.name} {lacks[one.host_id]}" for one in meant[:_TOLD])
        more = f"; and {len(meant) - _TOLD} more" if len(meant) > _TOLD else ""
        return Unplaced(reason=f"waits for a machine: {told}{more}")
    return best(need, able)


def what_lacks(need: Need, machine: Machine) -> str:
    """Say what a machine lacks for this need, as the end of a sentence about it; "": nothing."""
    match machine.standing:
        case Standing.UNKNOWN | Standing.SUSPECT | Standing.LOST:
            return "is silent"
        case Standing.DRAINING:
            return "is being drained"
        case Standing.LEFT:
            return "has left"
    for key, value in need.labels.items():
        if machine.labels.get(key) != value:
            has = machine.labels.get(key)
            return f"lacks the label {key}={value}" + (f" (it has {key}={has})" if has else "")
    if machine.engines is not None and need.engine not in ("", *machine.engines):
        return f"lacks the engine {need.engine}"
    left = machine.left_bytes
    if need.memory_bytes is not None and left is not None and left < need.memory_bytes:
        return f"has {_gib(max(0, left))} free, {_gib(need.memory_bytes)} are needed"
    return ""


def best(need: Need, able: Sequence[Machine]) -> Machine:
    """Return the one for it, of machines that may take an instance; there is one at least."""
    return min(
        able,
        key=lambda one: (
            one.mine,
            one.failed,
            not one.was,
            bool(one.host_id),
            fullness(need, one),
        ),
    )


def fullness(need: Need, machine: Machine) -> tuple[int, int, str]:
    """How full a machine is for this need: of machines that differ by nothing else, the least has it."""
    left_bytes = machine.left_bytes or 0
    if need.memory_bytes is None:
        return machine.instances, -left_bytes, machine.host_id
    return -left_bytes, machine.instances, machine.host_id


# Private


def _gib(number: int) -> str:
    return f"{number / (1 << 30):.1f} GiB"
