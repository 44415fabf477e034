"""The contract on a Ray cluster: the conformance suite, in processes of its own (conformance/rigs.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hostler.testing.ray_start import missing
from tests.conformance.rigs import ONLY_RIG

ROOT = Path(__file__).parents[3]
LIMIT_S = 900


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("part", ["not real_models", "real_models"])
def test_the_contract_holds_on_ray(part: str) -> None:
    """Two parts, of which each has a manager of its own: a process is of one Ray alone."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    plain = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    done = subprocess.run(
        [*command, f"-k={part}", str(ROOT / "tests" / "conformance")],
        cwd=ROOT,
        env={**plain, ONLY_RIG: "ray"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    sys.stderr.write(done.stdout[-300:])
    assert done.returncode == 0, done.stdout[-6000:]
