"""Belief: what the orders that were acknowledged allow a wish to be."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

BAD_SCRIPTS = ('{"exit_at_start": 3}', "{no json")


@dataclass(frozen=True)
class Spec:
    """What one model should be. script: of the fake engine; those of BAD_SCRIPTS never serve."""

    running: bool
    replicas: int
    tokens: int
    script: str = ""

    @property
    def is_bad(self) -> bool:
        return self.script in BAD_SCRIPTS


def spec_of(model: dict[str, Any] | None) -> Spec | None:
    """Return the wish as the controller tells it; None for a model it does not know."""
    if model is None:
        return None
    one = model["deployment"]
    return Spec(
        running=one["wish"] == "running",
        replicas=one["replicas"],
        tokens=one["params"]["tokens"],
        script=one["params"].get("script", ""),
    )


class Belief:
    """The specifications a model may have now; None stands for a model that is not known."""

    def __init__(self) -> None:
        self.allowed: set[Spec | None] = {None}

    @property
    def is_known(self) -> bool:
        return None not in self.allowed

    def surely(self, change: Callable[[Spec], Spec | None]) -> None:
        """An order that holds once it is acknowledged."""
        self.allowed = {None if one is None else change(one) for one in self.allowed}

    def perhaps(self, change: Callable[[Spec], Spec]) -> None:
        """An order that may be taken back: a change of what runs, which can fail."""
        self.allowed |= {change(one) for one in self.allowed if one is not None}

    def begin(self, spec: Spec) -> None:
        self.allowed = {spec}


def running(is_running: bool) -> Callable[[Spec], Spec]:
    return lambda one: replace(one, running=is_running)


def changed(**fields: Any) -> Callable[[Spec], Spec]:
    """An UPDATE_PARAMS or RESTART: it makes a stopped model run, too."""
    return lambda one: replace(one, running=True, **fields)
