"""How many sequences the state machines over pure code run: few in the suite, many in a soak (B29)."""

import atexit
import os
import sys
from collections import Counter
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant

IS_SOAK = os.environ.get("HOSTLER_HYPOTHESIS") == "soak"
SEQUENCES = int(os.environ.get("HOSTLER_SEQUENCES", "500"))
STEPS = 50


class CountedMachine(RuleBasedStateMachine):
    """A machine whose sequences and steps are counted, by its name."""

    counts: ClassVar[Counter[tuple[str, str]]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.counts[type(self).__name__, "sequences"] += 1

    @invariant()
    def one_step_more(self) -> None:
        self.counts[type(self).__name__, "steps"] += 1


def machine_settings(sequences: int, steps: int) -> settings:
    """Return the settings of a machine that costs next to nothing a step; a soak has its own numbers."""
    return settings(
        max_examples=SEQUENCES * 6 // 5
        if IS_SOAK
        else sequences,  # some end before their last step
        stateful_step_count=STEPS if IS_SOAK else steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def tell() -> None:
    """Write down how much ran; `make soak` reads these lines."""
    for name in sorted({name for name, _ in CountedMachine.counts}):
        sequences = CountedMachine.counts[name, "sequences"]
        steps = CountedMachine.counts[name, "steps"] - sequences  # one look before the first step
        sys.stderr.write(f"stateful: {name}: {sequences} sequences, {steps} steps\n")


if IS_SOAK:
    atexit.register(tell)
