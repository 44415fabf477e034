"""What a router has to do, for those who decide how many instances there should be."""

from collections.abc import Iterator

from hostler.core.scaling import ModelDemand
from hostler.routing.router import Router


def demand_of(router: Router) -> Iterator[ModelDemand]:
    """What is in flight and in queues now, of each model whose load decides."""
    load = router.load
    for model in router.models():
        if model.scales:
            in_flight = sum(load.get(i.instance_id, 0) for i in router.usable(model.name))
            yield ModelDemand(
                model=model.name, in_flight=in_flight, waiting=router.waiting(model.name)
            )
