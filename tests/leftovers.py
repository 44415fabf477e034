"""After each module (or package) of tests: no process of its folders lives, and every child was reaped."""

import os
from collections.abc import Iterator

import pytest

from hostler.testing.leftovers import Folders, wait_gone

FOLDERS = Folders()
FOLDERS.record()
TOLD: set[str] = set()  # told once, where it was left


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Torn down after every other fixture of the module."""
    yield
    _judge(tmp_path_factory)


@pytest.fixture(scope="package", autouse=True)
def nothing_is_left_of_the_package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same where servers are shared by a whole package."""
    yield
    _judge(tmp_path_factory)


# Private


def _judge(paths: pytest.TempPathFactory) -> None:
    FOLDERS.made.add(os.path.realpath(paths.getbasetemp()))
    left = set(wait_gone(FOLDERS, known=TOLD))
    fresh = sorted(left - TOLD)
    TOLD.update(left)
    assert not fresh, "\n".join(fresh)
