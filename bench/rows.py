"""`make soak ARGS=--rows`: tests of faults in the length that their rows ask for."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.figures import Part
from hostler.app.config import child_environment

ROOT = Path(__file__).parents[1]
# The row, where its test is, and what `HOSTLER_LONG=1` changes there.
ROWS = (
    ("F12", "tests/chaos/test_processes.py", "60 s without another start"),
    ("F16", "tests/integration/engines/test_process_engine.py", "5 s after the threads ended"),
    ("F21", "tests/chaos/test_network.py", "60 s of lost packets, each way"),
    ("F27", "tests/integration/gateway/test_distant.py", "each other holder of the address"),
    ("F19", "tests/integration/gateway/test_distant.py", "each way, and both"),
    ("F21", "tests/integration/gateway/test_distant.py", "30 s of lost packets to both hosts"),
    ("F19", "tests/chaos/test_machines.py", "five machines, lines cut and lossy, a host that dies"),
    ("F33", "tests/chaos/test_controller.py", "20 s of SIGSTOP for all"),
    ("F79", "tests/chaos/test_storage.py", "the store locked for 20 s"),
    ("F83", "tests/chaos/test_background.py", "every task of the controller, under load"),
    ("F86", "tests/chaos/test_sinks.py", "30 s of load on a log that hangs"),
    ("F59", "tests/unit/wire/test_sse.py", "3,000 random splits"),
    ("F88", "tests/unit/wire/test_smuggling.py", "4,000 mutations"),
    ("F92", "tests/unit/wire/test_json.py", "3,400 texts"),
    ("F103", "tests/unit/engines/test_process_command.py", "4,000 parameters"),
    ("F104", "tests/unit/catalog/test_address.py", "5,600 names"),
    ("F104", "tests/unit/admin/test_logs.py", "1,500 names"),
)
_FIGURE = re.compile(r"(?:F\d+|llama)\b.*: .+|(?:controller|gateway|worker) [\w.]+: .+")


def run_rows(
    part: Part, tell: Callable[[str], None], rows: Sequence[tuple[str, str, str]] = ROWS
) -> None:
    """Add one figure a row: how many of its tests failed. tell: takes what they measured."""
    for row, path, what in rows:
        began_s = time.monotonic()
        argv = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider"]
        ran = subprocess.run(
            [*argv, "--timeout=600", path, "-k", row],
            cwd=ROOT,
            env=child_environment({"HOSTLER_LONG": "1"}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        for line in ran.stdout.splitlines():
            if _FIGURE.fullmatch(line):
                tell(line)
        if ran.returncode:
            tell(ran.stdout[-20_000:])
        note = f"{what}; {time.monotonic() - began_s:.0f} s"
        part.add(f"{row} failed", float(ran.returncode != 0), "", at_most=0, note=note)
