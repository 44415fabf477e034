"""Sequence: how one run of the state machine over a real server begins, is judged and ends."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine, invariant

from tests.stateful.belief import Belief, Spec, changed, running
from tests.stateful.moves import NAMES
from tests.stateful.rig import Json, Rig
from tests.stateful.truth import CONVERGED_S, Asked, Truth

TOLD_EVERY = 10  # sequences; as often the shared oracle looks at the whole history, too
RENEWED_EVERY = 100  # so that this history does not grow without end


class Stage:
    """The one server of all sequences; a broken one is replaced. Use it as a context manager."""

    def __init__(self, sequences: int) -> None:
        """sequences: how many are wanted. Hypothesis tries some more, in which nothing happens."""
        self.sequences = sequences
        self.rig = Rig(Counter())

    def __enter__(self) -> "Stage":
        self.rig.__enter__()
        self.truth = Truth(self.rig)
        return self

    def __exit__(self, *error: Any) -> None:
        self.rig.__exit__(*error)

    def renew(self) -> None:
        """Stop the server as an operator would; the oracle judges all it did. Begin with a new one."""
        self.rig.__exit__(None, None, None)
        self.rig = Rig(self.rig.done)
        self.__enter__()

    def replace(self) -> None:
        self.rig.give_up()
        self.rig = Rig(self.rig.done)
        self.__enter__()


class Sequence(RuleBasedStateMachine):
    """Everything of the machine but its rules."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.rig, self.truth = stage.rig, stage.truth
        self.beliefs = {name: Belief() for name in NAMES}
        self.asked: list[Asked] = []
        self.story: list[str] = []
        self.is_idle = stage.rig.done["sequences"] >= stage.sequences
        self.is_broken = False
        self.began_s = time.monotonic()

    @invariant()
    def the_table_is_the_processes(self) -> None:
        with self.step("") as goes_on:
            if goes_on:
                self.truth.check()

    def teardown(self) -> None:
        """From wherever this ended: what is wished comes about, and then nothing is left."""
        if self.is_idle:
            return
        try:
            if not self.is_broken:
                with self.step("all that hangs goes on; it becomes quiet"):
                    self.rig.resume()
                    self.rig.finish_later()
                    self.mend()
                    self.truth.converge(self.beliefs)
                    self.truth.judge(self.asked)
        finally:
            self.clear()

    # For rules

    @contextmanager
    def step(self, what: str) -> Iterator[bool]:
        """One step, written down; if it fails, with the story up to there. Gives whether to do it."""
        if what:
            self.story.append(f"{time.monotonic() - self.began_s:6.2f} s  {what}")
        try:
            yield not self.is_idle
        except Exception as error:
            self.is_broken = True
            told = "\n".join(["the story:", *self.story])
            error.add_note(told)
            error.add_note(self.rig.cluster.story())
            sys.stderr.write(f"stateful: broken: {error}\n{told}\n")
            raise

    def begin_model(self, name: str, replicas: int, tokens: int, times: int = 1) -> None:
        belief = self.beliefs[name]
        order: Json = {"model": name}
        if not belief.is_known:
            params = {"tokens": tokens, "ledger": str(self.rig.ledger)}
            order |= {
                "worker_type": "llm",
                "engine": "fake",
                "replicas": replicas,
                "params": params,
            }
        start = partial(self.rig.order, "POST", "/api/v1/models", order)
        answers = self.rig.at_once(*[start] * times)
        assert all(status < 300 for status, _ in answers), answers
        assert sum(answer["created"] for _, answer in answers) <= 1, answers
        if belief.is_known:
            belief.surely(running(True))
        else:
            belief.begin(Spec(running=True, replicas=replicas, tokens=tokens))

    def end_model(self, name: str, forget: bool, times: int) -> None:
        path = f"/api/v1/models/{name}" + ("?delete=true" if forget else "")
        answers = self.rig.at_once(*[partial(self.rig.order, "DELETE", path)] * times)
        belief = self.beliefs[name]
        expected: tuple[int, ...] = (202,) if belief.is_known else (404,)
        if forget:  # the second of two finds nothing
            expected = (202, 404)
            self.truth.renewed.add(name)  # its next life may begin before this one has ended
        assert all(status in expected for status, _ in answers), answers
        belief.surely(lambda one: None if forget else running(False)(one))

    def cross(self, name: str) -> None:
        """A start and a stop at the same time: one of them is the last."""
        belief = self.beliefs[name]
        if not belief.is_known:
            return
        self.rig.at_once(
            partial(self.rig.order, "POST", "/api/v1/models", {"model": name}),
            partial(self.rig.order, "DELETE", f"/api/v1/models/{name}"),
        )
        before = belief.allowed
        belief.surely(running(False))
        belief.allowed |= {running(True)(one) for one in before if one is not None}

    def apply(self, name: str, order: Json) -> None:
        status, answer = self.rig.order("POST", "/api/v1/apply", order)
        assert status == (200 if self.beliefs[name].is_known else 404), answer

    # Private

    def mend(self) -> None:
        """Bad parameters that were not taken back yet give way to good ones."""
        for name, belief in self.beliefs.items():
            if any(one is not None and one.is_bad for one in belief.allowed):
                self.truth.renewed.add(name)
                belief.perhaps(changed(script=""))
                mended = {"apply_type": "update_params", "params": {"script": ""}}
                self.apply(name, {"model": name, **mended, "timeout_s": 4.0})

    def clear(self) -> None:
        """Nothing of this sequence meets the next one; a server that is broken is replaced."""
        if self.is_broken:
            self.stage.replace()
            return
        with self.step("forget all"):
            for name in NAMES:
                self.rig.order("DELETE", f"/api/v1/models/{name}?delete=true")
            self.truth.wait_empty()
            self.rig.forget_executions()
            self.truth.forget_sequence()
        done = self.rig.done
        done["sequences"] += 1
        done["steps"] += len(self.story) - 2
        for line in self.story[:-2]:
            done[line.split("s  ", 1)[1].split("(")[0].split()[0].lower()] += 1
        if done["sequences"] % TOLD_EVERY == 0:
            tell(self.rig)
            with self.step("the oracle looks"):
                self.rig.cluster.assert_truth(CONVERGED_S)
        if done["sequences"] % RENEWED_EVERY == 0:
            self.stage.renew()


def tell(rig: Rig) -> None:
    """Write down how far the run is."""
    counts = ", ".join(f"{count} {name}" for name, count in sorted(rig.done.items()))
    sys.stderr.write(f"stateful: processes: {counts}\n")
    sys.stderr.flush()
