"""A browser for each file of tests; tells where the pictures of this run are."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.integration.console.browser import browsing, notes, shots

_BEGAN_S = time.time()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as found:
        yield found


def pytest_terminal_summary(terminalreporter: Any) -> None:
    made = [one for one in shots().glob("*.png") if one.stat().st_mtime >= _BEGAN_S]
    if made:
        terminalreporter.write_line(f"console: {len(made)} pictures in {shots()}")
    if notes().exists() and notes().stat().st_mtime >= _BEGAN_S:
        terminalreporter.write_line(f"console, odd: {notes().read_text()}")
