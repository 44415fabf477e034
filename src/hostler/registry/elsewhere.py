"""What a snapshot, or a step, says to a gateway on another machine: engines here are reached at the relay.

The controller leaves its own address out, since it may have several: the gateway puts in the one at which
it reaches it. Pure.
"""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from hostler.core.change import Change
from hostler.core.snapshot import Endpoint, InstanceView, Snapshot
from hostler.wire.identity import CONTROLLER

T = TypeVar("T", bound=Snapshot | Change)


def for_elsewhere(snapshot: T, relay_port: int) -> T:
    """Return it as other machines may use it: no socket of this one is in it."""

    def at_relay(instance: InstanceView) -> Endpoint:
        return Endpoint(
            host_id=CONTROLLER.role, port=relay_port, prefix=f"/i/{instance.instance_id}"
        )

    return _moved(snapshot, lambda one: bool(one.endpoint.socket), at_relay)


def at_controller(snapshot: T, address: str) -> T:
    """Return it with the address of the controller's machine, for the engines that are there."""

    def found(instance: InstanceView) -> Endpoint:
        return msgspec.structs.replace(instance.endpoint, host=address)

    def is_there(instance: InstanceView) -> bool:
        return instance.endpoint.host_id == CONTROLLER.role and not instance.endpoint.host

    return _moved(snapshot, is_there, found)


# Private


def _moved(
    snapshot: T,
    is_meant: Callable[[InstanceView], bool],
    where: Callable[[InstanceView], Endpoint],
) -> T:
    return msgspec.structs.replace(
        snapshot,
        instances=tuple(
            msgspec.structs.replace(one, endpoint=where(one)) if is_meant(one) else one
            for one in snapshot.instances
        ),
    )
