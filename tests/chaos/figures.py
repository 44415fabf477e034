"""What long forms of tests are asked for with, and how a test says what it measured."""

import os
import sys

# `HOSTLER_LONG=1`: the row's own length instead of the quick form.
IS_LONG = os.environ.get("HOSTLER_LONG", "") not in ("", "0")


def tell(*figures: str) -> None:
    """Write measured figures; shown by `pytest -s` and beside a failure."""
    sys.stdout.write("".join(f"\n{figure}" for figure in figures) + "\n")
