"""Afar: what gateways of other machines have in the same instances, and how much is left to this one.

What is known of them is some tenths of a second old. So nobody goes by it alone: each machine may always use
its share of an instance's slots, and beyond that takes, between two reports, no more than its share of
what all have reported as free. docs/design/gateway.md has the bound that follows. Pure.
"""

from collections.abc import Callable, Mapping

from hostler.core.loads import waiting_for


class Afar:
    """machines: that lend these slots, this one included; 1: nobody else does.

    theirs, ours: requests in flight by instance id, of the others and of this machine, as both were
    told last; of the others also who waits. on_want: called when requests wait here whom a word from
    the others could help.
    """

    __slots__ = ("machines", "on_want", "ours", "theirs")

    def __init__(self) -> None:
        self.machines = 1
        self.theirs: Mapping[str, int] = {}
        self.ours: Mapping[str, int] = {}
        self.on_want: Callable[[], None] = _nothing

    def is_wanted(self, model: str) -> bool:
        """Do requests wait elsewhere for a slot of this model?"""
        return self.machines > 1 and waiting_for(model) in self.theirs

    def limit(self, instance_id: str, slots: int, *, is_wanted: bool) -> int:
        """How many requests of this machine an instance may have until both have told again.

        is_wanted: then nobody has more than half, which is more than its share if there are many machines.
        """
        machines = self.machines
        if machines <= 1:
            return slots
        share = max(1, -(-slots // machines))
        theirs, ours = self.theirs.get(instance_id, 0), self.ours.get(instance_id, 0)
        left = slots - theirs - ours
        lent = ours - (-left // machines) if left > 0 else slots - theirs
        return max(share, min(lent, -(-slots // 2)) if is_wanted else lent)


# Private


def _nothing() -> None:
    pass
