"""docs/reference/faults.md says what the tests say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# The rows that shape the architecture: a release without one of their tests is no release.
REQUIRED = [f"F{number:02}" for number in (
    7, 8, 9, 15, 16, 25, 27, 28, 45, 49, 54, 59, 60, 61, 65, 88, 89, 90, 91, 92, 93, 99, 100, 103, 104,
    105, 110,
)]  # fmt: skip


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
