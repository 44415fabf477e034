"""Where the files of a state folder are, and that a run folder outside of it goes when nobody needs it."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler.app.paths import StatePaths


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The system's temporary folder, as far as this test knows."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def far(folder: Path) -> StatePaths:
    return StatePaths(folder / ("long" * 20))


def test_a_short_path_has_its_run_folder_inside_and_keeps_it(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        paths = StatePaths(folder)
        paths.create()
        assert paths.run_dir == Path(folder) / "run"
        paths.leave(is_last=True)
        assert paths.run_dir.is_dir()


def test_a_run_folder_outside_goes_with_the_last_who_uses_it(outside: Path, tmp_path: Path) -> None:
    paths = far(tmp_path)
    paths.create()
    assert paths.run_dir.parent == outside
    used = paths.run_dir / "settings.json"
    used.touch()
    paths.leave()
    assert used.exists()  # somebody may need it
    paths.leave(is_last=True)
    assert list(outside.iterdir()) == []
    paths.create()
    paths.leave()
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_start_sweeps_old_run_folders_in_which_nobody_listens(
    outside: Path, tmp_path: Path, kind: socket.SocketKind
) -> None:
    left = [far(tmp_path / name) for name in ("dead", "alive", "fresh")]
    for paths in left:
        paths.create()
    dead, alive, fresh = (paths.run_dir for paths in left)
    (outside / "stranger").mkdir()
    with socket.socket(socket.AF_UNIX, kind) as gone, socket.socket(socket.AF_UNIX, kind) as held:
        gone.bind(str(dead / "a.sock"))
        gone.close()
        held.bind(str(alive / "a.sock"))
        if kind == socket.SOCK_STREAM:
            held.listen()
        for folder in (dead, alive, outside / "stranger"):
            os.utime(folder, (1.0, 1.0))
        far(tmp_path / "next").create()
        assert not dead.exists()
        assert alive.exists()
        assert fresh.exists()
        assert (outside / "stranger").exists()
