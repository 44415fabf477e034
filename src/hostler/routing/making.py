"""make_policy(): from the name in a model's rules to the policy that does it."""

from collections.abc import Callable

from hostler.core.model import WorkerType
from hostler.core.serving import WEIGHTED
from hostler.core.snapshot import ModelView
from hostler.routing.own import Guarded
from hostler.routing.policies import (
    LeastInFlight,
    LeastTokens,
    Policy,
    RandomTwo,
    RoundRobin,
    Weighted,
)
from hostler.routing.prefix import PrefixAware
from hostler.routing.session import SessionAffinity


def make_policy(model: ModelView) -> Policy:
    """Return the policy that a model's rules ask for."""
    named = model.routing.policy
    if named == "auto":
        named = "prefix" if model.worker_type is WorkerType.LLM else "least-in-flight"
    if named == WEIGHTED:
        return Weighted(model.routing.weights)
    make = _NAMED.get(named)
    return Guarded(named, model.name) if make is None else make()


# Private

_NAMED: dict[str, Callable[[], Policy]] = {
    "round-robin": RoundRobin,
    "least-in-flight": LeastInFlight,
    "least-tokens": LeastTokens,
    "random-two": RandomTwo,
    "session": SessionAffinity,
    "prefix": PrefixAware,
}
