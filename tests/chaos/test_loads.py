"""Gateways on three machines lend the slots of one instance on a fourth: the sum, measured at the engine."""

import os
import signal
import time
from pathlib import Path

import pytest

from hostler.core.loads import EXPIRE_S
from hostler.testing import netns
from hostler.testing.executions import read_executions
from hostler.testing.netns import Network
from tests.asking import Asking
from tests.chaos.figures import tell
from tests.chaos.wide import Wide, ask_far

WHY_NOT = netns.missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

SLOTS, THREADS, MACHINES = 8, 12, 3  # the controller's own gateway is one
SHARE = -(-SLOTS // MACHINES)
MOST = SLOTS + (MACHINES - 1) * SHARE  # docs/design/gateway.md


def in_flight(ledger: Path, begun_s: float, ended_s: float) -> tuple[int, float, float]:
    """The most requests the engine had at once, the mean, and the share of the time with too many."""
    steps: list[tuple[float, int]] = []
    for one in read_executions([ledger]):
        ends_s = one.ended_at_s or ended_s
        if ends_s > begun_s and one.started_at_s < ended_s:
            steps += [(max(begun_s, one.started_at_s), 1), (min(ended_s, ends_s), -1)]
    now, most, area, over_s, last_s = 0, 0, 0.0, 0.0, begun_s
    for at_s, step in sorted(steps):
        area += now * (at_s - last_s)
        over_s += (at_s - last_s) * (now > SLOTS)
        now, last_s = now + step, at_s
        most = max(most, now)
    seconds = ended_s - begun_s
    return most, area / seconds, over_s / seconds


def phase(name: str, asking: Asking, ledger: Path, seconds: float) -> int:
    """Let them ask so long; return the most requests that the engine had at once."""
    begun_s = time.monotonic()
    with asking:
        time.sleep(seconds)
        ended_s = time.monotonic()
    most, mean, over = in_flight(ledger, begun_s, ended_s)
    tell(
        f"loads, {name}: at most {most} requests on {SLOTS} slots, {mean:.1f} on average, "
        f"{100 * over:.1f} % of the time more than {SLOTS}; "
        f"answered by gateway: {sorted(asking.answered.values())}"
    )
    assert not asking.failed, asking.failed[:3]
    return most


def test_F54_gateways_of_several_machines_lend_an_instances_slots_together(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    with Network("control", "host", "gone", "gtwo") as net:
        wide = Wide(net, tmp_path, ["host"], ["gone", "gtwo"], "")
        with wide.running():
            wide.begin(1, SLOTS, tokens=4, delay_ms=50, ledger=str(ledger))
            one, two = wide.gateways.values()
            most = phase("one is asked", ask_far([one], THREADS, 0.0), ledger, 4)
            assert SHARE < most <= MOST, "what the others do not use is lent"
            both = ask_far([one, two], THREADS, 0.0)
            assert phase("both are", both, ledger, 6) <= MOST
            assert len(both.answered) == 2
            assert 4 * min(both.answered.values()) > max(both.answered.values())
            (controller,) = wide.server.pids("controller")
            os.kill(controller, signal.SIGSTOP)
            try:
                time.sleep(EXPIRE_S + 2.5)  # until nobody's word counts any more
                both = ask_far([one, two], THREADS, 0.0)
                assert phase("no controller", both, ledger, 4) > SLOTS, "each has all of them"
            finally:
                os.kill(controller, signal.SIGCONT)
