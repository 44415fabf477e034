"""Any order of orders and faults on a real server: what the controller says is what is the case.

A Hypothesis state machine over one `hostler up` with fake engines. A move says what to do and to whom (by
number); none depends on what was seen, so a sequence means the same when it is run again. Few sequences
here; many with HOSTLER_HYPOTHESIS=soak (`make soak ARGS=--stateful`).
"""

import os
import signal
import time
from functools import partial

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from tests.stateful.belief import changed
from tests.stateful.moves import COPIES, MOVES, Ask, Change, Harm, Late, Lose, Move, Order, Wait
from tests.stateful.rig import TOKENS
from tests.stateful.sequence import Sequence, Stage, tell

IS_SOAK = os.environ.get("HOSTLER_HYPOTHESIS") == "soak"
SEQUENCES = int(os.environ.get("HOSTLER_SEQUENCES", "500" if IS_SOAK else "30"))
STEPS = 8 if IS_SOAK else 4
COMMON = settings(
    max_examples=SEQUENCES,
    stateful_step_count=STEPS,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
# Here the same sequences every time, and no shrinking: the story tells the steps, and every try costs
# seconds. A soak is random (its seed is printed, `--hypothesis-seed` repeats it) and shrinks.
SETTINGS = (
    settings(COMMON, phases=(Phase.generate, Phase.shrink))
    if IS_SOAK
    else settings(COMMON, phases=(Phase.generate,), derandomize=True)
)


class Processes(Sequence):
    """Two models under orders and faults, beside one that nobody touches."""

    @initialize(replicas=COPIES, both=st.booleans())
    def begin(self, replicas: int, both: bool) -> None:
        with self.step(f"begin anna x{replicas}{', bert' if both else ''}") as goes_on:
            if goes_on:
                self.begin_model("anna", replicas, TOKENS)
            if goes_on and both:
                self.begin_model("bert", 1, TOKENS)

    @rule(move=MOVES)
    def move(self, move: Move) -> None:
        with self.step(str(move)) as goes_on:
            if goes_on:
                self.make(move)

    def make(self, move: Move) -> None:
        match move:
            case Wait():
                if move.resume:
                    self.rig.resume()
                time.sleep(move.seconds)
            case Ask():
                for _ in range(move.count):
                    self.asked.append((move.name, self.rig.ask(move.name, move.stream)))
            case Order():
                self.order(move)
            case Change():
                self.change(move)
            case Harm():
                pids = self.rig.victims(move.name, move.number, move.victim)
                self.rig.send(pids, signal.SIGSTOP if move.hangs else signal.SIGKILL)
            case Lose():
                for role in ("controller", "gateway"):
                    if move.role in (role, "both"):
                        self.rig.kill(role)
            case Late():
                self.late(move)

    def order(self, move: Order) -> None:
        start = partial(self.begin_model, move.name, move.replicas, move.tokens, move.times)
        match move.what:
            case "start":
                start()
            case "cross":
                self.cross(move.name)
            case "interrupt":
                starting = self.rig.submit(start)
                time.sleep(0.01 * (move.times - 1))
                self.rig.kill("controller")
                starting.result(120)
            case _:
                self.end_model(move.name, move.what == "forget", move.times)

    def change(self, move: Change) -> None:
        """Parameters with which no engine starts leave the old ones serving."""
        params = move.what.get("params", {})
        if "replicas" in move.what:
            self.beliefs[move.name].perhaps(changed(replicas=move.what["replicas"]))
        else:
            self.truth.renewed.add(move.name)
            self.beliefs[move.name].perhaps(changed(**params))
        order = {"model": move.name, **move.what, "timeout_s": move.patience_s or 4.0}
        if move.patience_s:
            self.apply(move.name, order)
        else:
            self.rig.later(move.name, order)

    def late(self, move: Late) -> None:
        """From a process that is no more, of an epoch that is over, or once more from one that lives."""
        route = "/beat" if move.whose == "again" else move.route
        message = self.truth.late_message(move.number, route, move.whose)
        if message is not None:
            status = self.rig.report(route, message)
            fine = (None, 200, 409, 410) if move.whose == "again" else (None, 409, 410)
            assert status in fine, f"{route} of {message['instance_id']}: {status}"


@pytest.mark.slow(55)
@pytest.mark.timeout(300 + 30 * SEQUENCES)
def test_F29_F36_F68_whatever_dies_the_table_is_the_processes() -> None:
    with Stage(SEQUENCES) as stage:
        run_state_machine_as_test(
            lambda: Processes(stage),  # type: ignore[arg-type]
            settings=SETTINGS,
            _min_steps=0 if IS_SOAK else STEPS,  # few sequences should not be short ones, too
        )
        tell(stage.rig)
        assert stage.rig.done["sequences"] == SEQUENCES
