"""What a host does about the list of all that should run on it. Pure: it starts and ends nothing."""

from collections.abc import Mapping, Sequence

import msgspec

from hostler.core.hosts import HostOrders, Order, OrderWish
from hostler.core.lifecycle import Instance, State
from hostler.manager.plan import GONE


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Start a process for this instance."""

    order: Order


class Leave(msgspec.Struct, frozen=True, kw_only=True):
    """Let it finish, then end its process."""

    instance_id: str
    reason: str


class End(msgspec.Struct, frozen=True, kw_only=True):
    """End its process now."""

    instance_id: str
    reason: str


class Forget(msgspec.Struct, frozen=True, kw_only=True):
    """Nobody asks for the record of one that is gone any more."""

    instance_id: str


class Recall(msgspec.Struct, frozen=True, kw_only=True):
    """Tell what became of one that ended here, and is not started again: under an id there is one process."""

    order: Order
    ended: "Ended"


Action = Start | Leave | End | Forget | Recall


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How an instance ended here."""

    state: State
    reason: str = ""
    error_code: str = ""


def rank(orders: HostOrders | None) -> tuple[int, int]:
    """What orders lists by their age."""
    return (orders.incarnation, orders.version) if orders is not None else (0, 0)


def decide(
    orders: Sequence[Order], seen: Sequence[Instance], ended: Mapping[str, Ended]
) -> list[Action]:
    """Return what leads from `seen` to what was ordered. Twice the same list orders nothing twice.

    ended: instances that had their process here, by an earlier one of ours.
    """
    wished = {order.instance_id: order for order in orders}
    here = {instance.instance_id: instance for instance in seen}
    actions: list[Action] = []
    for instance_id, order in wished.items():
        instance = here.get(instance_id)
        if instance is None:
            actions.append(_absent(order, ended.get(instance_id)))
        elif instance.state in GONE:
            continue  # told as it is until it is struck from the list
        elif order.wish is OrderWish.END:
            actions.append(End(instance_id=instance_id, reason=order.reason or "it was ended"))
        elif order.wish is OrderWish.DRAIN and instance.state is not State.DRAINING:
            actions.append(Leave(instance_id=instance_id, reason=order.reason or "it was stopped"))
    for instance_id, instance in here.items():
        if instance_id in wished:
            continue
        if instance.state in GONE:
            actions.append(Forget(instance_id=instance_id))
        else:
            actions.append(End(instance_id=instance_id, reason="its controller has none such"))
    return actions


def changed_orders(old: Sequence[Order], new: Sequence[Order]) -> tuple[str, ...]:
    """Return the ids whose process was ordered anew under its old id, which is nobody's to do."""
    before = {order.instance_id: _of_process(order) for order in old}
    return tuple(
        order.instance_id
        for order in new
        if before.get(order.instance_id, _of_process(order)) != _of_process(order)
    )


# Private


def _absent(order: Order, ended: Ended | None) -> Action:
    if ended is not None:
        return Recall(order=order, ended=ended)
    if order.wish is OrderWish.RUN:
        return Start(order=order)
    return Recall(order=order, ended=Ended(state=State.STOPPED, reason="it was not here"))


def _of_process(order: Order) -> Order:
    """An order without what may change while its process lives."""
    return msgspec.structs.replace(order, wish=OrderWish.RUN, reason="")
