"""Write docs/reference/faults.md: each fault and invariant we know of, and the tests that carry its id.

python scripts/faults.py            write the page
python scripts/faults.py --check    say whether it is current; exit code 1 if not
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

from fault_rows import ROWS
from invariant_rows import INVARIANTS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "faults.md"
NAME = re.compile(r"^\s*(?:async )?def (test_((?:[FI]\d{2,3}_)+)\w+)", re.MULTILINE)
HEAD = """<!-- Written by scripts/faults.py from the tests' names; change those, then run it. -->
# Faults and their tests

What goes wrong in systems like this one, and the tests that show what this one does then. P0 rows come
first in every plan. A row without a test is not claimed.

| row | priority | what goes wrong | tests |
|---|---|---|---|
"""
ALWAYS = """
## What is always so

Checked at the end of runs whatever they are about (docs/design/oracle.md): *load* by `hostler.testing.ledger`
wherever a test asks a server under load, *run* by `hostler.testing.oracle` for every server and manager that
a test starts.

| invariant | what is always so | checked | tests of its own |
|---|---|---|---|
"""


def tests_by_row() -> dict[str, list[str]]:
    """Return the tests of each row, as `file::name` without the folder."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name, rows in NAME.findall(path.read_text()):
            for row in rows.strip("_").split("_"):
                found[row].append(f"{path.relative_to(ROOT / 'tests')}::{name}")
    return found


def page() -> str:
    """Return the whole page."""
    found = tests_by_row()
    known = {row for row, _, _ in (*ROWS, *INVARIANTS)}
    if strangers := sorted(found.keys() - known):
        raise SystemExit(f"tests carry ids that are no row: {', '.join(strangers)}")
    lines = []
    for row, priority, text in ROWS:
        tests = "<br>".join(f"`{name}`" for name in found.get(row, ())) or "none yet"
        lines.append(f"| {row} | {priority} | {text.replace('|', '/')} | {tests} |")
    with_tests = sum(row in found for row, _, _ in ROWS)
    told = HEAD + "\n".join(lines) + f"\n\n{with_tests} of {len(ROWS)} rows have a test.\n"
    always = [
        f"| {row} | {text} | {where} | {'<br>'.join(f'`{name}`' for name in found.get(row, ()))} |"
        for row, text, where in INVARIANTS
    ]
    return told + ALWAYS + "\n".join(always) + "\n"


def main(arguments: list[str]) -> int:
    text = page()
    if "--check" not in arguments:
        PAGE.write_text(text)
        return 0
    if PAGE.exists() and PAGE.read_text() == text:
        return 0
    print("docs/reference/faults.md is not current: run scripts/faults.py")
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
