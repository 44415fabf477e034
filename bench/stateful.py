"""`make soak ARGS=--stateful`: the state machines of the tests, for as long as B29 wants them."""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.figures import Part
from hostler.app.config import child_environment

ROOT = Path(__file__).parents[1]
# over pure code: what each is about, and the class that counts its sequences
MACHINES = (
    ("registry", "tests/unit/registry/test_reports_state_machine.py"),
    ("lifecycle", "tests/stateful/test_core.py"),
    ("breaker and retry", "tests/unit/routing/test_breaker_state_machine.py"),
    ("queue and permits", "tests/unit/routing/test_slots_state_machine.py"),
)
STEPS = 50
PROCESSES = "tests/stateful/test_processes.py"
_SHOWN = 200  # lines of a failure
_TOLD = re.compile(r"stateful: (.*)")
_COUNTS = (re.compile(r"(\d+) sequences"), re.compile(r"(\d+) steps"))


def run_stateful(part: Part, sequences: int, seed: int, tell: Callable[[str], None]) -> None:
    """Add B29: every machine on paper, and the one with real processes. tell: takes lines of progress."""
    for name, path in MACHINES:
        _run(part, name, path, sequences, STEPS, seed, tell)
    _run(part, "real processes", PROCESSES, sequences, 1, seed, tell)


# Private


def _run(
    part: Part,
    name: str,
    path: str,
    sequences: int,
    steps_each: int,
    seed: int,
    tell: Callable[[str], None],
) -> None:
    began_s = time.monotonic()
    argv = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "--timeout=7200"]
    argv += [f"--hypothesis-seed={seed}", path]
    env = {"HOSTLER_HYPOTHESIS": "soak", "HOSTLER_SEQUENCES": str(sequences)}
    said: list[str] = []
    told = ""
    with subprocess.Popen(
        argv,
        cwd=ROOT,
        env=child_environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if match := _TOLD.search(line):
                told = match[1] if "sequences" in line else told
                tell(f"{name}: {match[1]}")
    if process.returncode:
        whole = Path(tempfile.gettempdir()) / f"stateful-{name.replace(' ', '-')}-{seed}.log"
        whole.write_text("".join(said))
        tell("".join([*said[-_SHOWN:], f"the whole story: {whole}"]))
    note = f"{time.monotonic() - began_s:.0f} s, seed {seed}"
    ran, steps = (float(found[1]) if (found := one.search(told)) else 0.0 for one in _COUNTS)
    part.add(f"B29 {name}: sequences", ran, "", at_least=sequences, note=note)
    part.add(f"B29 {name}: steps", steps, "", at_least=sequences * steps_each)
    part.add(f"B29 {name}: failed", float(process.returncode != 0), "", at_most=0)
