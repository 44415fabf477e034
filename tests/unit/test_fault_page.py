"""docs/reference/faults.md says what the tests say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# The rows that shape the architecture: a release without one of their tests is no release.
REQUIRED = (
    "F07 F08 F09 F15 F16 F25 F27 F28 F45 F49 F54 F59 F60 F61 F65 F88 F89 F90 F91 F92 F93 F99 F100 "
    "F103 F104 F105 F110"
).split()


def test_the_page_is_current() -> None:
    told = subprocess.run(
        [sys.executable, ROOT / "scripts" / "faults.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_every_required_row_has_a_test() -> None:
    text = (ROOT / "docs" / "reference" / "faults.md").read_text()
    rows = {line.split(" | ")[0].lstrip("| "): line for line in text.splitlines() if " | P" in line}
    assert [row for row in REQUIRED if "none yet" in rows[row]] == []
