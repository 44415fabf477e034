"""A model file behind a URL: resumed, bounded, known by its hash."""

import asyncio
import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler.catalog.sources import FetchLimits, FetchProgress, fetch_model, is_present
from hostler.core.errors import InsufficientStorage, ModelSourceError
from tests.integration.catalog.index import LocalIndex
from tests.unit.catalog.files import gguf, tensor

LENGTH = 2_000_000
CONTENT = gguf(tensors=[tensor("t", [LENGTH], 24, 0)], data=os.urandom(LENGTH))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalIndex]:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "m.gguf").write_bytes(CONTENT)
    with LocalIndex(folder).running() as running:
        yield running


def source(server: LocalIndex, sha256: str = SHA256) -> str:
    return f"{server.url}/files/m.gguf#sha256={sha256}"


def fetch(text: str, models: Path, limits: FetchLimits | None = None) -> Path:
    return asyncio.run(fetch_model(text, models, limits=limits or FetchLimits(reserve_bytes=0)))


def test_a_file_arrives_whole_with_its_progress(server: LocalIndex, tmp_path: Path) -> None:
    reports: list[FetchProgress] = []

    async def main() -> Path:
        return await fetch_model(
            source(server),
            tmp_path / "models",
            progress=reports.append,
            limits=FetchLimits(reserve_bytes=0),
        )

    path = asyncio.run(main())
    assert path.read_bytes() == CONTENT
    assert is_present(source(server), tmp_path / "models") == path
    assert (reports[0].done_bytes, reports[0].total_bytes) == (0, len(CONTENT))
    assert reports[-1].done_bytes == len(CONTENT)


def test_a_broken_connection_goes_on_where_it_stopped(server: LocalIndex, tmp_path: Path) -> None:
    server.cut_at, server.cuts = 700_000, 2
    assert fetch(source(server), tmp_path / "models").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == ["", "bytes=700000-", "bytes=1400000-"]


def test_a_cancelled_download_goes_on_the_next_time(server: LocalIndex, tmp_path: Path) -> None:
    server.pause = threading.Event()

    async def main() -> None:
        seen = asyncio.Event()

        def watch(report: FetchProgress) -> None:
            if report.done_bytes > 100_000:
                seen.set()

        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(
                fetch_model(
                    source(server),
                    tmp_path / "models",
                    progress=watch,
                    limits=FetchLimits(reserve_bytes=0),
                )
            )
            await asyncio.wait_for(seen.wait(), 20)
            task.cancel()

    asyncio.run(main())
    assert is_present(source(server), tmp_path / "models") is None
    server.pause.set()
    assert fetch(source(server), tmp_path / "models").read_bytes() == CONTENT
    assert server.requests[-1][1].startswith("bytes=")


def test_a_file_that_changed_meanwhile_starts_again(server: LocalIndex, tmp_path: Path) -> None:
    server.cut_at, server.cuts = 700_000, 1

    def fail_from_now(report: FetchProgress) -> None:
        server.status = 503 if report.done_bytes else 200

    async def main() -> None:
        await fetch_model(
            source(server),
            tmp_path / "models",
            progress=fail_from_now,
            limits=FetchLimits(reserve_bytes=0),
        )

    with pytest.raises(ModelSourceError, match="status 503"):
        asyncio.run(main())
    server.status, server.etag = 200, '"v2"'
    assert fetch(source(server), tmp_path / "models").read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=700000-"


def test_F70_another_file_than_the_one_asked_for_is_not_kept(
    server: LocalIndex, tmp_path: Path
) -> None:
    server.lie = True
    with pytest.raises(ModelSourceError, match="SHA-256"):
        fetch(source(server), tmp_path / "models")
    assert not [p for p in (tmp_path / "models").rglob("*") if p.is_file() and p.suffix != ".lock"]


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final_and_named(status: int, server: LocalIndex, tmp_path: Path) -> None:
    server.status = status
    with pytest.raises(ModelSourceError, match=f"status {status}"):
        fetch(source(server), tmp_path / "models")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "target",
    ["http://example.org/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "//169.254.169.254/x"],
)
def test_F102_a_redirect_to_a_place_not_allowed_is_refused(
    target: str, server: LocalIndex, tmp_path: Path
) -> None:
    server.redirect = target
    with pytest.raises(ModelSourceError, match="not allowed"):
        fetch(source(server), tmp_path / "models")


def test_redirects_have_an_end(server: LocalIndex, tmp_path: Path) -> None:
    server.redirect = f"{server.url}/files/m.gguf"
    with pytest.raises(ModelSourceError, match="redirects"):
        fetch(source(server), tmp_path / "models")
    assert len(server.requests) == 6


def test_a_file_over_the_limit_is_refused_by_its_announced_size(
    server: LocalIndex, tmp_path: Path
) -> None:
    with pytest.raises(ModelSourceError, match="over the limit"):
        fetch(source(server), tmp_path / "models", FetchLimits(reserve_bytes=0, file_bytes=1000))


def test_F71_a_disk_that_runs_full_on_the_way_leaves_nothing(
    server: LocalIndex, tmp_path: Path
) -> None:
    models = tmp_path / "small"
    models.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(models)],
        capture_output=True,
        text=True,
    )
    if mount.returncode:
        pytest.skip(f"a small tmpfs needs root: {mount.stderr.strip()}")
    try:
        with pytest.raises(InsufficientStorage, match="free"):
            fetch(source(server), models)
        server.length_told = False
        with pytest.raises(InsufficientStorage, match="ran full"):
            fetch(source(server), models)
        assert not [p for p in models.rglob("*") if p.is_file() and p.suffix != ".lock"]
    finally:
        subprocess.run(["umount", str(models)], check=True)


def test_a_local_path_stays_where_it_is_and_must_exist(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(CONTENT)
    assert fetch(str(file), tmp_path / "models") == file
    assert fetch(f"file://{file}", tmp_path / "models") == file
    assert not (tmp_path / "models").exists()
    with pytest.raises(ModelSourceError, match="not there"):
        fetch(str(tmp_path / "gone.gguf"), tmp_path / "models")
