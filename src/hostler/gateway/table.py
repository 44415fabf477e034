"""What a gateway goes by: the snapshot it holds and what it thinks of each instance. Reads only."""

import msgspec

from hostler.core.lifecycle import State
from hostler.core.snapshot import Snapshot
from hostler.routing.router import Router


class InstanceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One instance, as this gateway sees it.

    routable: it may get a request now. down: probes found it dead. ejected: requests failed there, so
    it is asked last for a while.
    """

    instance_id: str
    model: str
    epoch: int
    state: State
    in_flight: int
    routable: bool
    down: bool
    ejected: bool


class PolicyRow(msgspec.Struct, frozen=True, kw_only=True):
    """How a model's instances are chosen. problem: why its own policy is not followed; "": it is."""

    model: str
    policy: str
    problem: str


class GatewayTable(msgspec.Struct, frozen=True, kw_only=True):
    """One gateway's table. (incarnation, version): of the controller's snapshot it holds.

    number: which one of this machine's gateways it is. gateways: how many lend slots now, those that
        leave included; each counts its own requests here. machines: how many have such gateways.
    """

    incarnation: int
    version: int
    connected: bool  # it hears the controller
    number: int = 1
    gateways: int = 1
    machines: int = 1
    instances: tuple[InstanceRow, ...]
    policies: tuple[PolicyRow, ...] = ()


def gateway_table(
    snapshot: Snapshot, router: Router, *, connected: bool, number: int = 1, gateways: int = 1
) -> GatewayTable:
    """Return the table as it is now."""
    usable = {i.instance_id for model in router.models() for i in router.usable(model.name)}
    health, load = router.health, router.load
    return GatewayTable(
        incarnation=snapshot.incarnation,
        version=snapshot.version,
        connected=connected,
        number=number,
        gateways=gateways,
        machines=router.known.afar.machines,
        instances=tuple(
            InstanceRow(
                instance_id=one.instance_id,
                model=one.model_name,
                epoch=one.epoch,
                state=one.state,
                in_flight=load.get(one.instance_id, 0),
                routable=one.instance_id in usable,
                down=health.is_down(one.instance_id),
                ejected=health.is_out(one.instance_id),
            )
            for one in snapshot.instances
        ),
        policies=tuple(
            PolicyRow(model=name, policy=policy.name, problem=policy.problem)
            for name, policy in router.policies().items()
        ),
    )
