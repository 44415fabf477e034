"""Tests in a process of their own: for what changes the process they run in."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


def own_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return our environment without what pytest put there, and this."""
    return {name: value for name, value in os.environ.items() if "PYTEST" not in name} | {**more}


def run_apart(
    *arguments: str, env: Mapping[str, str], timeout_s: float
) -> "subprocess.CompletedProcess[str]":
    """Run pytest with these arguments from the root, and return how it ended."""
    alone = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *alone, *arguments], cwd=ROOT, env=own_environment(env),
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
