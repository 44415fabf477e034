"""The model folder shows whole models only, and forgets what dead fetches left."""

import asyncio
import os
from pathlib import Path

import pytest

from hostler.catalog.address import folder_name
from hostler.catalog.store import (
    MANIFEST,
    Manifest,
    StoredFile,
    check_space,
    delete_model,
    disk_errors,
    find_file,
    is_present,
    list_files,
    locked,
    publish,
    staging,
    sweep,
    try_lock,
)
from hostler.core.errors import Conflict, InsufficientStorage, ModelSourceError, NotFound

SOURCE = "wheel:tiny==1#tiny/m.gguf"


def store(models_dir: Path, source: str = SOURCE, content: bytes = b"weights") -> Path:
    with staging(models_dir) as stage:
        files = stage / "files"
        files.mkdir()
        (files / "m.gguf").write_bytes(content)
        stored = StoredFile(name="m.gguf", bytes=len(content), sha256="ab")
        return publish(files, models_dir, Manifest(source=source, main="m.gguf", files=(stored,)))


def test_a_published_model_is_present_listed_and_found_by_hash(tmp_path: Path) -> None:
    assert is_present(SOURCE, tmp_path) is None
    folder = store(tmp_path)
    assert is_present(SOURCE, tmp_path) == folder / "m.gguf"
    (model,) = list_files(tmp_path)
    assert (model.source, model.bytes, model.path) == (SOURCE, 7, str(folder / "m.gguf"))
    assert find_file(tmp_path, "ab", 7) == folder / "m.gguf"
    assert find_file(tmp_path, "ab", 8) is None


@pytest.mark.parametrize("harm", ["shorter", "gone", "link", "no manifest", "broken manifest"])
def test_F72_a_model_whose_files_changed_is_not_present_and_can_be_fetched_again(
    harm: str, tmp_path: Path
) -> None:
    folder = store(tmp_path)
    match harm:
        case "shorter":
            (folder / "m.gguf").write_bytes(b"weight")
        case "gone":
            (folder / "m.gguf").unlink()
        case "link":
            (folder / "m.gguf").unlink()
            (folder / "m.gguf").symlink_to("/etc/hostname")
        case "no manifest":
            (folder / MANIFEST).unlink()
        case _:
            (folder / MANIFEST).write_text("{")
    assert is_present(SOURCE, tmp_path) is None
    assert list_files(tmp_path) == ()
    assert store(tmp_path) == folder
    assert is_present(SOURCE, tmp_path) == folder / "m.gguf"


def test_a_model_in_use_is_not_deleted_and_another_is(tmp_path: Path) -> None:
    folder = store(tmp_path)
    with pytest.raises(Conflict, match="in use"):
        delete_model(SOURCE, tmp_path, in_use={SOURCE})
    assert folder.is_dir()
    assert delete_model(SOURCE, tmp_path) == 7
    assert not folder.exists()
    assert list((tmp_path / ".staging").iterdir()) == []
    with pytest.raises(NotFound):
        delete_model(SOURCE, tmp_path)


def test_the_sweep_takes_what_the_dead_left_and_nothing_of_the_living(tmp_path: Path) -> None:
    folder = store(tmp_path)
    dead = tmp_path / ".staging" / "0123"
    dead.mkdir()
    (dead / "half.gguf").write_bytes(b"half")
    (tmp_path / ".staging" / "0123.lock").touch()
    (tmp_path / ".wheels" / "x").mkdir(parents=True)
    old, new = tmp_path / ".wheels" / "x" / "old.whl", tmp_path / ".wheels" / "x" / "new.whl"
    for wheel in (old, new):
        wheel.write_bytes(b"w")
    now = new.stat().st_mtime
    os.utime(old, (now - 7200, now - 7200))
    with staging(tmp_path) as alive:
        (alive / "file").touch()
        assert sweep(tmp_path, clock=lambda: now) == 2
        assert (alive / "file").exists()
    assert not dead.exists()
    assert not old.exists()
    assert new.exists()
    assert folder.is_dir()


def test_the_sweep_of_a_folder_that_is_not_there_does_nothing(tmp_path: Path) -> None:
    assert sweep(tmp_path / "none") == 0


def test_a_lock_is_held_by_one_and_shared_by_many(tmp_path: Path) -> None:
    async def take(name: str, waited: list[str]) -> None:
        async with locked(tmp_path, name, on_wait=lambda: waited.append("told")):
            pass

    async def main() -> None:
        waited: list[str] = []
        async with locked(tmp_path, "a"):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(take("a", waited), 0.01)
        assert waited == ["told"]
        async with (
            locked(tmp_path, "b", shared=True) as one,
            locked(tmp_path, "b", shared=True),
        ):
            assert not try_lock(one)
        async with locked(tmp_path, "b"):
            pass

    asyncio.run(main())


def test_F71_too_little_space_is_refused_with_both_figures(tmp_path: Path) -> None:
    check_space(tmp_path, 1, 0)
    with pytest.raises(InsufficientStorage, match=r"needs 1000000000\.0 GB") as caught:
        check_space(tmp_path, 10**18, None)
    assert caught.value.facts["need_bytes"] == 10**18


@pytest.mark.parametrize(
    ("number", "kind"),
    [(28, InsufficientStorage), (122, InsufficientStorage), (13, ModelSourceError)],
)
def test_F71_the_systems_error_becomes_ours(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind), disk_errors("x"):
        raise OSError(number, "no")


def test_an_unsafe_folder_beside_the_models_is_left_alone(tmp_path: Path) -> None:
    store(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / folder_name(SOURCE))
    assert len(list_files(tmp_path)) == 1
