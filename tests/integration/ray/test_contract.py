"""The contract on a Ray cluster: the conformance suite, in processes of its own (conformance/rigs.py)."""

import sys

import pytest

from hostler.testing.ray_start import missing
from tests.apart import ROOT, run_apart
from tests.conformance.rigs import ONLY_RIG

LIMIT_S = 900


@pytest.mark.slow(120, busy=True)
@pytest.mark.timeout(LIMIT_S + 60)
@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("part", ["not real_models", "real_models"])
def test_the_contract_holds_on_ray(part: str) -> None:
    """Two parts, of which each has a manager of its own: a process is of one Ray alone."""
    where = str(ROOT / "tests" / "conformance")
    done = run_apart(f"-k={part}", where, env={ONLY_RIG: "ray"}, timeout_s=LIMIT_S)
    sys.stderr.write(done.stdout[-300:])
    assert done.returncode == 0, done.stdout[-6000:]
