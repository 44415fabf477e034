"""After each module (or package) of tests: no process of its folders lives, and every child was reaped.

No run folder outside of a state folder is left, either.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler.app.paths import StatePaths, outside_name
from hostler.testing.leftovers import Folders, wait_gone

FOLDERS = Folders()
FOLDERS.record()
TOLD: set[str] = set()  # told once, where it was left


def _run_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(f"{outside_name()}*"))


EARLIER = _run_folders()  # of others


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
    base = paths.getbasetemp()
    FOLDERS.made.add(os.path.realpath(base))
    left = set(wait_gone(FOLDERS, known=TOLD))
    if strange := _run_folders() - EARLIER:  # of ours, or of tests beside us
        ours = {StatePaths(folder).run_dir: folder for folder, _, _ in os.walk(base)}
        left |= {f"{one} is left: run folder of {ours[one]}" for one in strange & ours.keys()}
    fresh = sorted(left - TOLD)
    TOLD.update(left)
    assert not fresh, "\n".join(fresh)
