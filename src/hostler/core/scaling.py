"""How many copies of a model there are, by its load: what an operator may say, and what gateways tell.

What is made of it is the manager's business (manager/scaling.py).
"""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from hostler.core.rules import need, read_fields
from hostler.core.snapshot import REPORTED

_GROUP = "scaling"


class ScalingRules(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Between which numbers of replicas, and at which load.

    max_replicas: 0: there are as many as `replicas` says, whatever the load.
    target_in_flight: the share of its slots that an instance should have in use.
    target_wait_s: a request that waits longer for a slot asks for one replica more.
    up_s, down_s: for so long the load must have been that high, or that low.
    """

    min_replicas: int = 1
    max_replicas: int = 0
    target_in_flight: float = 0.8
    target_wait_s: float = 1.0
    up_s: float = 3.0
    down_s: float = 300.0

    def __post_init__(self) -> None:
        need(self.min_replicas >= 1, _GROUP, "min_replicas", "need 1 or more")
        need(
            self.max_replicas == 0 or self.max_replicas >= self.min_replicas,
            _GROUP,
            "max_replicas",
            f"need min_replicas ({self.min_replicas}) or more, or 0 for no scaling",
        )
        need(
            0 < self.target_in_flight <= 1,
            _GROUP,
            "target_in_flight",
            "need more than 0, and 1 at most: it is a share of the slots",
        )
        need(self.target_wait_s > 0, _GROUP, "target_wait_s", "need more than 0 seconds")
        need(self.up_s >= 0, _GROUP, "up_s", "need 0 or more")
        need(self.down_s >= 1, _GROUP, "down_s", "need 1 or more")

    @property
    def is_on(self) -> bool:
        """Does the load decide?"""
        return self.max_replicas > 0

    def clamp(self, replicas: int) -> int:
        """The allowed number nearest to this one."""
        return max(self.min_replicas, min(replicas, self.max_replicas))


def read_scaling(given: Mapping[str, Any] | None, old: ScalingRules | None = None) -> ScalingRules:
    """As `core.rules.read_fields`."""
    return read_fields(given, old or ScalingRules(), _GROUP)


class ModelDemand(msgspec.Struct, frozen=True, kw_only=True):
    """What one gateway has of one model now. waited_s: how long the oldest that waits has waited."""

    model: str
    in_flight: int = 0
    waiting: int = 0
    waited_s: float = 0.0


class DemandReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one gateway has of the models that are scaled, each second. POST /demand."""

    protocol: int = REPORTED
    source: str  # one gateway process
    models: tuple[ModelDemand, ...]


def replicas_for(
    rules: ScalingRules, demand: ModelDemand, *, concurrency: int, replicas: int, ready: int
) -> int:
    """Return how many replicas this demand asks for, within the rules.

    replicas: how many are wished now; ready: how many of them serve. A wait asks for one more than
    there are, but not while those that were asked for are still on their way.
    """
    slots = concurrency * rules.target_in_flight
    asked = math.ceil((demand.in_flight + demand.waiting) / slots - 1e-9)
    if demand.waited_s > rules.target_wait_s and ready >= replicas:
        asked = max(asked, replicas + 1)
    return rules.clamp(asked)
